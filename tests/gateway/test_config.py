"""Settings of the gateway: defaults, ranges, names that nobody knows, and the city's time zone."""

from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from gateway.config import Config, city_of
from keys.errors import SettingsRefused
from keys.settings import load

MINIMAL = """
environment = "test"
[keys]
root = "file:/root/root.key"
store = "file:/keystore"
secrets = "/secrets"
[database]
dsn = "postgresql://127.0.0.1/gateway"
[api]
cert = "/tls/api.pem"
key = "/tls/api.key"
[processor]
url = "https://processor.test:8446"
"""
STUB = """
[stub]
cert = "/tls/stub.pem"
key = "/tls/stub.key"
memory = "/stub/memory.sqlite"
"""


def _load(folder: Path, text: str = MINIMAL, **environ: str) -> Config:
    path = folder / "gateway.toml"
    path.write_text(text)
    return load(path, Config, environ)


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    """The shortest file listens on loopback, has no stub, asks for no certificate, and lives in Los Angeles."""
    config = _load(tmp_path)

    assert (config.api.host, config.api.port, config.api.client_ca, config.api.connections_max) == (
        *("127.0.0.1", 8443, None, 1024),
    )
    assert config.api.workers == 1
    assert (config.processor.ca, config.stub, config.metrics.port) == (None, None, 9464)
    assert (config.database.pool_max, config.database.ca, config.database.directory) == (10, None, None)
    assert city_of(config) == ZoneInfo("America/Los_Angeles")


def test_a_stub_has_two_ports(tmp_path: Path) -> None:
    """The double is controlled on one port, and called on another."""
    stub = _load(tmp_path, MINIMAL + STUB).stub

    assert stub is not None
    assert (stub.host, stub.port, stub.wire_port) == ("127.0.0.1", 8445, 8446)


def test_sections_that_may_be_missing_are_overridden_like_all_others(tmp_path: Path) -> None:
    """A value of the environment reaches them, a doubtful one stops the start, and no secret is taken from there."""
    assert _load(tmp_path, MINIMAL + STUB, GATEWAY_STUB_PORT="9445").stub.port == 9445  # type: ignore[union-attr]
    with pytest.raises(SettingsRefused, match="GATEWAY_STUB_PORT"):
        _load(tmp_path, MINIMAL + STUB, GATEWAY_STUB_PORT="no port")
    with pytest.raises(SettingsRefused, match="GATEWAY_OIDC_CLIENT_SECRET is no setting"):
        _load(tmp_path, GATEWAY_OIDC_CLIENT_SECRET="hunter2")


@pytest.mark.parametrize(
    ("variable", "lowest", "highest"),
    [
        ("GATEWAY_API_PORT", 1, 65535),
        ("GATEWAY_METRICS_PORT", 1, 65535),
        ("GATEWAY_API_CONNECTIONS_MAX", 1, 65536),
        ("GATEWAY_API_WORKERS", 1, 64),
        ("GATEWAY_DATABASE_POOL_MAX", 1, 100),
    ],
)
def test_numbers_have_ranges(tmp_path: Path, variable: str, lowest: int, highest: int) -> None:
    """Both ends of a range pass; beyond them, and what is no whole number, is refused by its name and origin."""
    for value in (lowest, highest):
        _load(tmp_path, **{variable: str(value)})
    for wrong in (str(lowest - 1), str(highest + 1), "-1", "8443.5", "0x1", "", "many"):
        with pytest.raises(SettingsRefused) as refused:
            _load(tmp_path, **{variable: wrong})
        section, _, name = variable.removeprefix("GATEWAY_").lower().partition("_")
        assert str(refused.value).startswith(f"{section}.{name}: ")
        assert variable in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://processor.test",
        "processor.test:8446",
        "https://",
        "https://user@processor.test",
        "https://processor.test/path",
        "https://processor.test?x=1",
        "https://processor.test#x",
        "https://processor.test\n",
        "HTTPS://processor.test",
        "",
    ],
)
def test_the_processor_is_an_https_origin(tmp_path: Path, url: str) -> None:
    """Card numbers go to `https://host[:port]` and nothing else; what was given instead is not repeated."""
    with pytest.raises(SettingsRefused, match=r"processor\.url") as refused:
        _load(tmp_path, GATEWAY_PROCESSOR_URL=url)

    assert "processor.test" not in str(refused.value)


@pytest.mark.parametrize(
    "variable",
    ["GATEWAY_API_CERT", "GATEWAY_API_KEY", "GATEWAY_API_CLIENT_CA", "GATEWAY_PROCESSOR_CA", "GATEWAY_KEYS_SECRETS"],
)
def test_paths_are_absolute(tmp_path: Path, variable: str) -> None:
    """No path depends on where a process was started."""
    _load(tmp_path, **{variable: "/anywhere"})
    with pytest.raises(SettingsRefused, match=variable):
        _load(tmp_path, **{variable: "tls/api.pem"})


@pytest.mark.parametrize("host", ["", "h" * 254])
def test_a_host_has_a_name(tmp_path: Path, host: str) -> None:
    """An empty host would listen everywhere."""
    with pytest.raises(SettingsRefused, match=r"api\.host"):
        _load(tmp_path, GATEWAY_API_HOST=host)


@pytest.mark.parametrize(
    ("spoilt", "place"),
    [
        (MINIMAL + "[debug]\non = true\n", "the file"),
        (MINIMAL.replace("[api]\n", "[api]\nprot = 8443\n"), "api"),
        (MINIMAL.replace("[processor]\n", "[processor]\ntimeout_s = 1\n"), "processor"),
        (MINIMAL + STUB + "seed = 7\n", "stub"),
        (MINIMAL + "[metrics]\nhost = '0.0.0.0'\n", "metrics"),
        (MINIMAL + "[city]\nzone = 'UTC'\n", "city"),
    ],
)
def test_unknown_names_stop_the_start(tmp_path: Path, spoilt: str, place: str) -> None:
    """A misspelt setting is a doubt, not a default: the place is named."""
    with pytest.raises(SettingsRefused, match=f"^{place}: .*unknown field"):
        _load(tmp_path, spoilt)


@pytest.mark.parametrize("section", ["keys", "database", "api", "processor"])
def test_sections_without_a_default_must_be_there(tmp_path: Path, section: str) -> None:
    """What nobody can guess must be written."""
    without = MINIMAL.replace(f"[{section}]", f"[other_{section}]")

    with pytest.raises(SettingsRefused):
        _load(tmp_path, without)


@pytest.mark.parametrize("environment", ["", "Test", "1test", "a" * 32, "te st", "test\n"])
def test_an_environment_is_a_short_name(tmp_path: Path, environment: str) -> None:
    """It enters every seal, so it is plain."""
    with pytest.raises(SettingsRefused, match="environment"):
        _load(tmp_path, GATEWAY_ENVIRONMENT=environment)


@pytest.mark.parametrize("zone", ["Europe/Paris", "UTC", "America/New_York"])
def test_a_city_may_lie_elsewhere(tmp_path: Path, zone: str) -> None:
    """Any zone of the database will do."""
    assert city_of(_load(tmp_path, GATEWAY_CITY_TIME_ZONE=zone)) == ZoneInfo(zone)


@pytest.mark.parametrize(
    "zone", ["", "Los Angeles", "PST8PDT9", "../../etc/passwd", "/etc/localtime", "America", "\0"]
)
def test_an_unknown_time_zone_is_refused(tmp_path: Path, zone: str) -> None:
    """A zone that is none, or that leads out of the database, is one clear line."""
    with pytest.raises(SettingsRefused, match=r"city\.time_zone"):
        city_of(_load(tmp_path, GATEWAY_CITY_TIME_ZONE=zone))
