"""Every setting, typed, with unit and range. `keys.settings` reads the file and refuses what is doubtful."""

from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import msgspec

from keys.errors import SettingsRefused
from keys.settings import AbsolutePath, DatabaseSection, Environment, KeysSection

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Host = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
WORKERS_MAX = 64


class ApiSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[api]`: the public listener. `client_ca` makes it ask applications for a certificate."""

    cert: AbsolutePath
    key: AbsolutePath
    client_ca: AbsolutePath | None = None
    client_crl: AbsolutePath | None = None
    """Revocation lists of `client_ca`, PEM, read again when they change; out of date, no certificate is taken."""
    host: Host = "127.0.0.1"
    port: Port = 8443
    connections_max: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1024
    workers: Annotated[int, msgspec.Meta(ge=1, le=WORKERS_MAX)] = 1
    """Processes that share the port and `connections_max`. Each has a pool of its own, `database.pool_max` large,
    metrics of its own, on `metrics.port` and those after it, and counts an application's quota by itself."""


class AdminSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[admin]`: the site of the city's staff."""

    cert: AbsolutePath
    key: AbsolutePath
    host: Host = "127.0.0.1"
    port: Port = 8444
    connections_max: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 256
    breached_passwords: AbsolutePath | None = None
    """Passwords that are known to be guessed, one a line, or their SHA-1 in hex; beside the list that comes along."""


class OidcSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[oidc]`: staff may sign in at the city's own provider. The secret is in `<keys.secrets>/admin/oidc.secret`.

    The provider must send the claims `amr` and `auth_time`. Client id and secret are form-encoded before Basic
    (RFC 6749 section 2.3.1); some providers do not decode them: choose ones without special characters.
    """

    issuer: Annotated[str, msgspec.Meta(pattern=r"^https?://[^?#@\s]+\Z")]
    client_id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    redirect: Annotated[str, msgspec.Meta(pattern=r"^https://[^?#@\s]+/oidc/return\Z")]
    ca: AbsolutePath | None = None
    amr: tuple[str, ...] = ("mfa",)
    """One of these must be among the methods by which the provider says that it knew the person (RFC 8176)."""


class ProcessorSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[processor]`: the far side. The credential is in `<keys.secrets>/api/processor.credential`."""

    url: Annotated[str, msgspec.Meta(pattern=r"^https://[^/?#@\s]+\Z")]
    ca: AbsolutePath | None = None


class StubSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[stub]`: the processor's double, of demos and tests."""

    cert: AbsolutePath
    key: AbsolutePath
    memory: AbsolutePath
    host: Host = "127.0.0.1"
    port: Port = 8445
    wire_port: Port = 8446


class MetricsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[metrics]`: Prometheus, on loopback only, without TLS. Worker 2 of the api has the next port, and so on."""

    port: Port = 9464


class CitySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[city]`: in whose day a card expires."""

    time_zone: str = "America/Los_Angeles"


class FinanceSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[finance]`: what the processor's contract says it takes, and what one person may settle alone. Minor units."""

    fee_basis_points: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 290
    fee_fixed_minor: Annotated[int, msgspec.Meta(ge=0)] = 30
    resolve_minor_max: Annotated[int, msgspec.Meta(ge=0)] = 1000
    """An exception above it needs an approver."""
    deposit_days_max: Annotated[int, msgspec.Meta(ge=0, le=30)] = 5
    """So many days after its settlement a batch must be in the bank."""
    inbox: AbsolutePath | None = None
    """A folder that is watched for files to import."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    environment: Environment
    keys: KeysSection
    database: DatabaseSection
    api: ApiSection
    processor: ProcessorSection
    profile: Literal["demo", "production"] = "production"
    """`demo` takes an API key alone, development certificates, the stub and the published test numbers."""
    admin: AdminSection | None = None
    oidc: OidcSection | None = None
    stub: StubSection | None = None
    metrics: MetricsSection = MetricsSection()
    city: CitySection = CitySection()
    finance: FinanceSection = FinanceSection()


def city_of(config: Config) -> ZoneInfo:
    """The city's time zone; raises `SettingsRefused`."""
    try:
        return ZoneInfo(config.city.time_zone)
    except (KeyError, ValueError, OSError):
        raise SettingsRefused("city.time_zone must be a name of the IANA time zone database") from None
