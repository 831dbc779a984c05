"""What a process looks at before it begins: its files for TLS, and in production that nothing of a demo stands there.

The rest of the profile is where it belongs: `services.callers` asks for certificates, `rules.card` refuses published
test numbers, `gateway stub` does not run.
"""

import socket
import ssl
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

from gateway.config import AdminSection, ApiSection, Config, StubSection
from gateway.web.certificates import require_no_demo_certificates
from keys.errors import SettingsRefused

LOCAL_NAMES = frozenset(
    {"localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback"}
)
"""What this machine is called in the /etc/hosts of the usual distributions."""


def in_production(config: Config) -> bool:
    """Whether this is the real thing."""
    return config.profile == "production"


def require_profile(config: Config, certificates: Mapping[str, str | None]) -> None:
    """Raises `SettingsRefused` when a file for production has something of a demo in it, or lacks what it needs.

    `certificates` are those that this process works with, by setting; `processor.ca` is looked at beside them.
    """
    if config.api.client_crl is not None and config.api.client_ca is None:
        raise SettingsRefused("api.client_crl: set api.client_ca too, whose revocations it holds")
    if not in_production(config):
        return
    if config.api.client_ca is None or config.api.client_crl is None:
        raise SettingsRefused("profile is production: set api.client_ca, and api.client_crl with its revocations")
    if config.stub is not None:
        raise SettingsRefused("profile is production: remove the section [stub], which belongs to demos and tests")
    if _is_this_machine(urlsplit(config.processor.url).hostname or ""):
        raise SettingsRefused("profile is production: processor.url is this machine; name the processor's own host")
    for setting, path in {**certificates, "processor.ca": config.processor.ca}.items():
        if path is not None:
            require_no_demo_certificates(Path(path), setting)


def require_tls_files(section: str, listener: ApiSection | AdminSection | StubSection) -> None:
    """Raises `SettingsRefused`, with setting and path, for what a listener cannot speak TLS with."""
    for name in ("cert", "key", "client_ca"):
        if (path := getattr(listener, name, None)) is not None:
            try:
                Path(path).open("rb").close()
            except OSError as error:
                told = f"cannot read {path} ({error.strerror}); put the PEM file there, or name another"
                raise SettingsRefused(f"{section}.{name}: {told}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if (authorities := getattr(listener, "client_ca", None)) is not None:
        try:
            context.load_verify_locations(authorities)
        except (OSError, ValueError):
            raise SettingsRefused(f"{section}.client_ca must be PEM of certificates: {authorities}") from None
    try:
        context.load_cert_chain(listener.cert, listener.key, password="")
    except (OSError, ValueError):
        raise SettingsRefused(
            f"{section}.cert and {section}.key must be PEM of a certificate and its own key, without passphrase:"
            f" {listener.cert}, {listener.key}"
        ) from None


def _is_this_machine(host: str) -> bool:
    name = host.rstrip(".")
    address = _address(name)
    if address is None:
        return name in LOCAL_NAMES or name.endswith(".localhost")  # RFC 6761 §6.3
    return address.is_loopback or address.is_unspecified


def _address(name: str) -> IPv4Address | IPv6Address | None:
    """The address that a resolver takes a name for, also spelled 127.1, 0x7f.1 or 2130706433; None for a name."""
    try:
        address = ip_address(name)
        return getattr(address, "ipv4_mapped", None) or address
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(name))
    except OSError:
        return None
