"""A root key in an HSM, reached through PKCS#11 v2.40. It is made there, and never leaves.

    pkcs11:token=gateway;object=root?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/path/pin

The URI is RFC 7512's. `token` and `object` are labels; `serial` and `id` single one out among namesakes. Without a
`pin-source` a person is asked for the PIN. A wrap is AES-256-GCM inside the HSM, bound to its place:

    0x01 ‖ IV (12) ‖ encrypted key (32) ‖ tag (16)

The IV is random and ours. An HSM that insists on its own is not supported: it is refused when it is opened.

Three facts shape this file. The driver crashes when sessions live in several threads, so one thread owns them all.
An HSM locks itself after a few wrong PINs, so a refused PIN is never tried again. And an HSM that restarts forgets
its sessions, so a call that fails starts the module afresh, logs in, and tries once more.
"""

import ctypes
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

import pkcs11
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MechanismFlag, ObjectClass, PKCS11Error, TokenFlag

from keys.errors import KeystoreRefused, RootRefused, RootUnavailable
from keys.files import read_private_line
from keys.primitives import KEY_BYTES, NONCE_BYTES, TAG_BYTES
from keys.root import NOT_THIS_ROOT, Ask
from keys.secret import Secret

VERSION = b"\x01"
CALL_SECONDS = 5.0
OPEN_SECONDS = 30.0  # modules of network HSMs take their time to load and to find their device

OUT_OF_REACH = {Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: True, Attribute.PRIVATE: True}
"""Never readable, not even by us, and not there at all without the PIN."""
ROOT_KEY: Mapping[Attribute, Any] = {
    Attribute.CLASS: ObjectClass.SECRET_KEY,
    Attribute.KEY_TYPE: KeyType.AES,
    Attribute.VALUE_LEN: KEY_BYTES,
    Attribute.ENCRYPT: True,
    Attribute.DECRYPT: True,
    **OUT_OF_REACH,
}
"""What the key must be, whoever made it."""

FORM = "`pkcs11:token=…;object=…?module-path=/…&pin-source=file:/…` (RFC 7512; also `serial` and `id`)"
PIN_REFUSED = (
    "the HSM refuses the PIN: correct it, then start again. It was tried once and is not tried again,"
    " because an HSM locks after a few wrong ones"
)
PIN_LOCKED = (
    "the HSM's PIN is not set, expired or locked, or is so at the next wrong try: have it reset, or log in by hand"
)

T = TypeVar("T")
Key = Any
"""A key's handle. The driver puts its class together at run time."""


class PinRefused(RootRefused):
    """The HSM has counted a wrong PIN, or might lock itself at the next."""


class NoToken(RootRefused):
    """No token of this name is there."""


def create(uri: str, ask: Ask) -> "HsmRoot":
    """Make a root key in the HSM, and open it; raises `KeystoreRefused` for a name that is taken."""
    return _opened(*_parse(uri, ask), make=True)


def open_root(uri: str, ask: Ask) -> "HsmRoot":
    """Log in, find the root key, and prove that it works. The PIN is tried once.

    Raises:
        RootRefused: the URI, the module, the token, the PIN or the key is not as it must be.
        RootUnavailable: the HSM does not answer now.
        KeystoreRefused: the PIN file is not private.
    """
    return _opened(*_parse(uri, ask), make=False)


class HsmRoot:
    """A root key in an HSM. Here are only its name and the PIN, which a restarted HSM wants again."""

    def __init__(self, where: "Where", pin: Secret[str]) -> None:
        self._where = where
        self._pin: Secret[str] | None = pin

    def wrap(self, secret: Secret[bytes], bound_to: bytes) -> bytes:
        """See `keys.root.RootKey.wrap`. Raises `RootUnavailable` when the HSM does not answer."""
        iv = secrets.token_bytes(NONCE_BYTES)
        return VERSION + iv + self._use(lambda key: bytes(key.encrypt(secret.reveal(), **_gcm(iv, bound_to))))

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> Secret[bytes]:
        """See `keys.root.RootKey.unwrap`. Raises `RootUnavailable` when the HSM does not answer."""
        iv, sealed = wrapped[1 : 1 + NONCE_BYTES], wrapped[1 + NONCE_BYTES :]
        if wrapped[:1] != VERSION or len(sealed) < TAG_BYTES:
            raise RootRefused(NOT_THIS_ROOT)
        return self._use(lambda key: _unwrap(key, iv, sealed, bound_to))

    def _use(self, act: Callable[[Key], T]) -> T:
        return THREAD.call(lambda hsm: self._try_twice(hsm, act), CALL_SECONDS)

    def _try_twice(self, hsm: "Hsm", act: Callable[[Key], T]) -> T:
        with suppress(PKCS11Error):
            return act(self._key(hsm))
        with hsm.afresh(self._where):
            return act(self._key(hsm))

    def _key(self, hsm: "Hsm") -> Key:
        if self._pin is None:
            raise PinRefused(PIN_REFUSED)
        try:
            return hsm.key(self._where, self._pin)
        except PinRefused:
            self._pin = None
            raise
        except NoToken:  # it was there when this root was opened
            hsm.forget(self._where.module)
            raise _unavailable(self._where) from None


def _opened(where: "Where", pin: Secret[str], *, make: bool) -> HsmRoot:
    THREAD.call(lambda hsm: hsm.open(where, pin, make=make), OPEN_SECONDS)
    return HsmRoot(where, pin)


# --- the name of a key ---


class Where(NamedTuple):
    """Which key, in which token, behind which module."""

    module: str
    token: str
    object: str
    serial: str | None
    id: bytes | None


def _parse(uri: str, ask: Ask) -> tuple[Where, Secret[str]]:
    path, _, query = uri.partition(":")[2].partition("?")
    named = _attributes(path, ";", {"token", "object", "serial", "id"})
    options = _attributes(query, "&", {"module-path", "pin-source"})
    token, label = _text(named, "token"), _text(named, "object")
    serial = _text(named, "serial") if "serial" in named else None
    where = Where(_module(_text(options, "module-path")), token, label, serial, named.get("id"))
    return where, _pin(options, token, ask)


def _attributes(text: str, separator: str, allowed: Collection[str]) -> dict[str, bytes]:
    """One half of the URI, decoded. Messages quote nothing of it but the names we know: the rest may be the PIN."""
    found: dict[str, bytes] = {}
    for part in text.split(separator) if text else ():
        name, _, value = part.partition("=")
        if name == "pin-value":
            raise RootRefused("keys.root: a PIN does not stand in a URI: name a file of mode 0600 with `pin-source`")
        if name not in allowed:
            raise RootRefused(f"keys.root has an attribute that we do not know: it must be {FORM}")
        if name in found or not value or re.search(r"%(?![0-9A-Fa-f]{2})|#", value):
            raise RootRefused(f"keys.root: `{name}` is empty, given twice, or not percent-encoded as RFC 7512 says")
        found[name] = unquote_to_bytes(value)
    return found


def _text(attributes: Mapping[str, bytes], name: str) -> str:
    if name not in attributes:
        raise RootRefused(f"keys.root: `{name}` is missing: it must be {FORM}")
    text = attributes[name].decode(errors="surrogateescape")  # what is no UTF-8 is not printable either
    if not text.isprintable():
        raise RootRefused(f"keys.root: `{name}` is not a readable text")
    return text


def _module(path: str) -> str:
    """The real path of the module, so that one library under two names is started once."""
    if not path.startswith("/"):
        raise RootRefused("keys.root: `module-path` must be an absolute path")
    real = Path(path).resolve()
    if not real.is_file():
        raise RootRefused(f"keys.root: {path} does not exist: install the HSM's module, or correct `module-path`")
    about = real.stat()
    if about.st_uid not in {os.geteuid(), 0} or about.st_mode & 0o022:
        raise RootRefused(f"others could replace {real}, to which we tell the PIN: `chown root` and `chmod go-w` it")
    return str(real)


def _pin(options: Mapping[str, bytes], token: str, ask: Ask) -> Secret[str]:
    if "pin-source" not in options:
        pin = ask(f"PIN of the HSM token {token}")
    else:
        source = re.sub(r"^file:(//(?=/))?", "", _text(options, "pin-source"))
        if not source.startswith("/") or source.startswith("//"):
            raise RootRefused("keys.root: `pin-source` must be an absolute path, or `file:` and an absolute path")
        pin = read_private_line(Path(source))
    # A slip of the pen must not cost one of the few tries that an HSM allows.
    if not pin.reveal() or not pin.reveal().isprintable():
        raise RootRefused("the PIN of the HSM is empty or holds an invisible character: write it anew, on one line")
    return pin


# --- inside the one thread ---


class Hsm:
    """Libraries, sessions and handles of keys; nobody but the one thread meets them.

    A token has one session, whoever uses it: PKCS#11 logs a process in and out of a token as a whole.
    """

    def __init__(self) -> None:
        self._libraries: dict[str, Any] = {}
        self._sessions: dict[tuple[str, str, bytes], pkcs11.Session] = {}
        self._keys: dict[Where, Key] = {}

    def open(self, where: Where, pin: Secret[str], *, make: bool) -> None:
        """Find the key in a new session; make it there first, if told to."""
        with self.afresh(where):
            if make:
                _make(self._session(where, pin, rw=True), where)
            self.key(where, pin)

    def key(self, where: Where, pin: Secret[str]) -> Key:
        """The key's handle; where there is none yet, logs in, looks for it and tries it out."""
        if where not in self._keys:
            sought = {Attribute.LABEL: where.object} | ({} if where.id is None else {Attribute.ID: where.id})
            key = _the_one(list(self._session(where, pin).get_objects(sought)), where)
            _prove(key)
            self._keys[where] = key
        return self._keys[where]

    def forget(self, module: str) -> None:
        """End every session of a module, and the module itself; its next use starts it afresh."""
        self._sessions = {name: session for name, session in self._sessions.items() if name[0] != module}
        self._keys = {where: key for where, key in self._keys.items() if where.module != module}
        if module in self._libraries:
            # The driver finalizes under the interpreter's lock, and a dead HSM would stop the whole process. So it is
            # done without the lock first, and the driver finds nothing left to do.
            with suppress(AttributeError):  # a module need not export more than C_GetFunctionList
                ctypes.CDLL(module).C_Finalize(None)
            with suppress(PKCS11Error):
                self._libraries[module].finalize()

    @contextmanager
    def afresh(self, where: Where) -> Iterator[None]:
        """Without any earlier session, so that the PIN is really looked at; the driver's errors become refusals."""
        self.forget(where.module)
        try:
            yield
        except (pkcs11.MechanismInvalid, pkcs11.MechanismParamInvalid, pkcs11.TemplateInconsistent):
            line = "does not make or use AES-256-GCM keys as we need them: see its policy"
            raise RootRefused(f"the HSM token `{where.token}` {line}") from None
        except PKCS11Error:
            self.forget(where.module)
            raise _unavailable(where) from None

    def _session(self, where: Where, pin: Secret[str], *, rw: bool = False) -> pkcs11.Session:
        token = _token(self._library(where.module), where)
        name = (where.module, token.label, token.serial)
        if name not in self._sessions:
            self._sessions[name] = self._log_in(token, where, pin, rw=rw)
        return self._sessions[name]

    def _log_in(self, token: pkcs11.Token, where: Where, pin: Secret[str], *, rw: bool) -> pkcs11.Session:
        _require_tries_left(token.flags)
        try:
            return token.open(user_pin=pin.reveal(), rw=rw)
        except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange):
            raise PinRefused(PIN_REFUSED) from None
        except (pkcs11.PinExpired, pkcs11.PinLocked, pkcs11.UserPinNotInitialized):
            raise PinRefused(PIN_LOCKED) from None
        except PKCS11Error:  # not tried again in this call: who knows what else an HSM says of a wrong PIN
            self.forget(where.module)
            raise _unavailable(where) from None

    def _library(self, module: str) -> Any:
        try:
            ctypes.CDLL(module).C_GetFunctionList  # noqa: B018 # the driver would not tell this from a dead HSM
        except (OSError, AttributeError):
            raise RootRefused(f"keys.root: {module} is no PKCS#11 module, or does not load on this machine") from None
        self._libraries[module] = pkcs11.lib(module)  # starts it, unless it is started
        return self._libraries[module]


def _require_tries_left(flags: TokenFlag) -> None:
    """The last try is left to a person."""
    if flags & (TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_LOCKED):
        raise PinRefused(PIN_LOCKED)


def _token(library: Any, where: Where) -> pkcs11.Token:
    found: list[pkcs11.Token] = []
    for slot in library.get_slots(token_present=True):
        with suppress(PKCS11Error, UnicodeDecodeError):  # a broken neighbour is none of our business
            token = slot.get_token()
            if token.label == where.token and where.serial in {None, token.serial.decode()}:
                found.append(token)
    if not found:
        name = f"`{where.token}`" + (f" with the serial number {where.serial}" if where.serial else "")
        raise NoToken(f"the HSM has no token {name}: `pkcs11-tool --module {where.module} -L` lists them")
    if len(found) > 1:
        raise RootRefused(f"the HSM has several tokens `{where.token}`: add `;serial=…` to keys.root")
    return found[0]


def _make(session: pkcs11.Session, where: Where) -> None:
    """Make the key, for encryption and decryption only, unless its name is taken."""
    if list(session.get_objects({Attribute.LABEL: where.object})):
        name = f"an object `{where.object}` exists already in the HSM token `{where.token}`"
        raise KeystoreRefused(f"{name}: it is not replaced")
    use = MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT
    session.generate_key(
        KeyType.AES, KEY_BYTES * 8, where.id, where.object, store=True, capabilities=use, template=OUT_OF_REACH
    )


def _the_one(found: list[pkcs11.Object], where: Where) -> Key:
    name = f"object `{where.object}` in the HSM token `{where.token}`"
    if not found:
        raise RootRefused(f"there is no {name}: `keys init` makes it, once; later it comes from the HSM's own backup")
    if len(found) > 1:
        raise RootRefused(f"there are several of the {name}: add `;id=…` to keys.root, or remove all others")
    wrong = [attribute.name for attribute, value in ROOT_KEY.items() if _read(found[0], attribute) != value]
    if wrong:
        raise RootRefused(
            f"the {name} cannot be the root key, for its {', '.join(wrong)}:"
            " it must be an AES key of 256 bits for encryption, private, sensitive and not extractable"
        )
    return found[0]


def _read(key: pkcs11.Object, attribute: Attribute) -> Any:
    with suppress(pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive):
        return key[attribute]
    return None


def _prove(key: Key) -> None:
    """Seal and open a probe; raises `RootRefused` where no wrap would be safe, or the driver's error."""
    iv, probe = secrets.token_bytes(NONCE_BYTES), secrets.token_bytes(KEY_BYTES)
    sealed = key.encrypt(probe, **_gcm(iv, b"probe"))
    if key.decrypt(sealed, **_gcm(iv, b"probe")) == probe:
        try:
            key.decrypt(sealed, **_gcm(iv, b"other"))
        except PKCS11Error:
            return
    raise RootRefused(
        "this HSM's AES-GCM does not give back what it encrypted, or does not check associated data:"
        " it cannot hold the root key"
    )


def _unwrap(key: Key, iv: bytes, sealed: bytes, bound_to: bytes) -> Secret[bytes]:
    with suppress(PKCS11Error):
        return Secret(bytes(key.decrypt(sealed, **_gcm(iv, bound_to))))
    _prove(key)  # an HSM may answer a wrong tag with any error; if it still works, the wrap is meant
    raise RootRefused(NOT_THIS_ROOT)


def _gcm(iv: bytes, bound_to: bytes) -> dict[str, Any]:
    parameters = GCMParams(iv, aad=bound_to, tag_bits=TAG_BYTES * 8)
    return {"mechanism": Mechanism.AES_GCM, "mechanism_param": parameters}


def _unavailable(where: Where) -> RootUnavailable:
    return RootUnavailable(
        f"the HSM does not answer for its token `{where.token}`: see that it is on and in reach"
        f" (`pkcs11-tool --module {where.module} -L` asks it)"
    )


# --- the one thread ---


class OneThread:
    """Runs calls one after another, in a thread that starts with the first.

    It is a daemon, unlike an executor's thread, for which the interpreter waits when it ends: while an HSM hangs,
    so would every command.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[Hsm], Any], Future[Any]]] = SimpleQueue()
        self._starting = Lock()
        self._process: int | None = None
        self._hanging: Future[Any] | None = None

    def call(self, act: Callable[[Hsm], T], seconds: float) -> T:
        """What `act` gives or raises; `RootUnavailable` after so many seconds, or while an earlier call hangs."""
        self._start()
        if self._hanging is not None and not self._hanging.done():
            raise RootUnavailable("the HSM still hangs in an earlier call: see that it is on and in reach")
        outcome: Future[T] = Future()
        self._calls.put((act, outcome))
        try:
            return outcome.result(seconds)
        except TimeoutError:
            if not outcome.cancel():  # it runs, and nobody but the HSM can end it
                self._hanging = outcome
            raise RootUnavailable(f"the HSM does not answer within {seconds:g} seconds") from None

    def _start(self) -> None:
        if self._process not in {None, os.getpid()}:
            raise RootRefused("an HSM does not follow into a forked process: open the root key after the fork")
        with self._starting:
            if self._process is None:
                Thread(target=self._serve, name="hsm", daemon=True).start()
                self._process = os.getpid()

    def _serve(self) -> None:
        hsm = Hsm()
        while True:
            act, outcome = self._calls.get()
            if outcome.set_running_or_notify_cancel():
                try:
                    outcome.set_result(act(hsm))
                except BaseException as error:  # noqa: BLE001 # it belongs to the caller, who waits for it
                    outcome.set_exception(error)
            del act, outcome  # what a call held, a plaintext key too, does not stay until the next one


THREAD = OneThread()
