"""A root key in an HSM: a real SoftHSM, of which each test has its own."""

import ctypes
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pkcs11
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pkcs11 import Attribute, KeyType, MechanismFlag, TokenFlag

from keys import root_pkcs11
from keys.errors import KeystoreRefused, RootRefused, RootUnavailable
from keys.files import write_private
from keys.primitives import new_key
from keys.root_pkcs11 import HsmRoot, Where, create, open_root
from keys.secret import Secret
from tests.keys.softhsm import MODULE, SoftHsm, logins, needs_softhsm

pytestmark = needs_softhsm

CHECKOUT = Path(__file__).parents[2]
HEAD = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from keys import root_pkcs11
from keys.errors import RootRefused, RootUnavailable
from keys.root_pkcs11 import create, open_root
from keys.secret import Secret

uri = sys.argv[1]
def nobody(what): raise RootRefused(what)
"""
BOUND = b"bound to"
NOT_OURS = r"^this root key does not open the key store: `keys.root` and `keys.store` do not belong together"
GONE = r"^the HSM does not answer for its token `gateway`: see that it is on"
WRONG_PIN = r"^the HSM refuses the PIN: correct it, then start again\. It was tried once and is not tried again"


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    """An HSM without a token."""
    hsm = SoftHsm(tmp_path / "hsm")
    monkeypatch.setenv("SOFTHSM2_CONF", str(hsm.configuration))
    return hsm


@pytest.fixture
def token(hsm: SoftHsm) -> Path:
    """The folder of its token `gateway`, still empty."""
    return hsm.initialise("gateway")


@pytest.fixture
def root(hsm: SoftHsm, token: Path) -> HsmRoot:
    """A root key in that token."""
    return create(hsm.uri(), nobody)


def nobody(what: str) -> Secret[str]:
    """Stands where no person can be asked."""
    raise RootRefused(f"the {what} is needed")


def in_session(hsm: SoftHsm, act: Callable[[Any], Any]) -> Any:
    """Do something in the token that the product does not do, in the product's own thread."""
    where = Where(str(Path(str(MODULE)).resolve()), "gateway", "", None, None)

    def inside(one: root_pkcs11.Hsm) -> Any:
        one.forget(where.module)
        return act(one._session(where, Secret(hsm.PIN), rw=True))

    return root_pkcs11.THREAD.call(inside, 5)


def make_object(hsm: SoftHsm, **other: Any) -> None:
    """An AES-256 key `root` as it must be, but for what is said otherwise."""
    template = dict(root_pkcs11.OUT_OF_REACH)
    template.update({Attribute[name]: value for name, value in other.pop("template", {}).items()})
    given = {"key_type": KeyType.AES, "key_length": 256, "label": "root", "store": True, "template": template} | other
    in_session(hsm, lambda session: session.generate_key(**given))


def python(hsm: SoftHsm, script: str) -> subprocess.Popen[str]:
    """A process of its own, with `uri` and `nobody` at hand."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", HEAD + script, hsm.uri()],
        env={**os.environ, **hsm.environment},
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- wraps ---


def test_what_a_root_wraps_it_unwraps(hsm: SoftHsm, root: HsmRoot) -> None:
    """A key comes back, from a root opened later too; wrapped twice it is not the same bytes; version 1 leads."""
    key = new_key()
    first, second = root.wrap(key, BOUND), root.wrap(key, BOUND)

    assert root.unwrap(first, BOUND).reveal() == open_root(hsm.uri(), nobody).unwrap(second, BOUND).reveal()
    assert root.unwrap(first, BOUND).reveal() == key.reveal()
    assert root.unwrap(root.wrap(key, b""), b"").reveal() == key.reveal()
    assert first[1:13] != second[1:13]
    assert (first[:1], len(first)) == (b"\x01", 61)


def test_the_format_is_plain_aes_gcm(hsm: SoftHsm, token: Path) -> None:
    """What the HSM makes, another AES-256-GCM opens: of a key that we know, for once, because we wrote it there."""
    value = secrets.token_bytes(32)
    known = {
        **root_pkcs11.ROOT_KEY,
        Attribute.TOKEN: True,
        Attribute.LABEL: "root",
        Attribute.VALUE: value,
        Attribute.ENCRYPT: True,
        Attribute.DECRYPT: True,
    }
    del known[Attribute.VALUE_LEN]
    in_session(hsm, lambda session: session.create_object(known))
    wrapped = open_root(hsm.uri(), nobody).wrap(Secret(b"key"), BOUND)

    assert AESGCM(value).decrypt(wrapped[1:13], wrapped[13:], BOUND) == b"key"
    with pytest.raises(InvalidTag):
        AESGCM(value).decrypt(wrapped[1:13], wrapped[13:], b"elsewhere")


def test_a_wrap_is_bound(hsm: SoftHsm, root: HsmRoot) -> None:
    """Bound to another purpose, under another key or in another token, a wrap does not open."""
    hsm.initialise("other")
    neighbour, stranger = create(hsm.uri(object_="root2"), nobody), create(hsm.uri("other"), nobody)
    wrapped = root.wrap(new_key(), BOUND)

    for opener, bound_to in ((root, b"elsewhere"), (root, b""), (neighbour, BOUND), (stranger, BOUND)):
        with pytest.raises(RootRefused, match=NOT_OURS):
            opener.unwrap(wrapped, bound_to)
    root.unwrap(wrapped, BOUND)


def test_every_bit_and_length_of_a_wrap_counts(root: HsmRoot, token: Path) -> None:
    """Altered, cut short or extended, a wrap does not open; and no HSM is restarted for it."""
    wrapped = root.wrap(new_key(), BOUND)
    altered = [
        wrapped[:index] + bytes([wrapped[index] ^ 1 << bit]) + wrapped[index + 1 :]
        for index in range(len(wrapped))
        for bit in range(8)
    ]
    altered += [wrapped[:length] for length in range(len(wrapped))]
    altered += [wrapped[1:], b"\x01" + wrapped, wrapped + b"\x00"]
    tried = logins(token)
    for one in altered:
        with pytest.raises(RootRefused, match=NOT_OURS) as caught:
            root.unwrap(one, BOUND)
        assert not isinstance(caught.value, RootUnavailable)

    root.unwrap(wrapped, BOUND)
    assert logins(token) == tried


def test_roots_live_side_by_side(hsm: SoftHsm, root: HsmRoot) -> None:
    """Opening another root, in this token or in another, ends sessions but breaks nobody's work."""
    hsm.initialise("other")
    wrapped = root.wrap(Secret(b"key"), BOUND)
    others = [create(hsm.uri(object_="root2"), nobody), create(hsm.uri("other"), nobody)]

    assert root.unwrap(wrapped, BOUND).reveal() == b"key"
    for other in others:
        assert other.unwrap(other.wrap(Secret(b"other"), BOUND), BOUND).reveal() == b"other"


def test_a_root_shows_nothing(root: HsmRoot, hsm: SoftHsm) -> None:
    """No attribute shows the PIN, and there is no key to show."""
    assert hsm.PIN not in repr(vars(root))
    assert "Secret(…)" in repr(vars(root))


# --- the key ---


def test_the_key_that_is_made(hsm: SoftHsm, root: HsmRoot) -> None:
    """AES-256, kept by the HSM, private, never extractable, its value unreadable, good for our two calls only."""

    def look(session: Any) -> dict[str, Any]:
        (key,) = session.get_objects({Attribute.LABEL: "root"})
        with pytest.raises(pkcs11.AttributeSensitive):
            key[Attribute.VALUE]
        names = (
            *("KEY_TYPE", "VALUE_LEN", "TOKEN", "PRIVATE", "SENSITIVE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE"),
            *("EXTRACTABLE", "ENCRYPT", "DECRYPT", "WRAP", "UNWRAP", "SIGN", "VERIFY", "DERIVE"),
        )
        return {name: key[Attribute[name]] for name in names}

    seen = in_session(hsm, look)
    assert (seen.pop("KEY_TYPE"), seen.pop("VALUE_LEN")) == (KeyType.AES, 32)
    yes = {"TOKEN", "PRIVATE", "SENSITIVE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE", "ENCRYPT", "DECRYPT"}
    assert {name for name, value in seen.items() if value} == yes


def test_a_root_is_never_replaced(hsm: SoftHsm, root: HsmRoot) -> None:
    """A second root of the same name is refused, under another id too, and the first still works."""
    wrapped = root.wrap(Secret(b"key"), BOUND)

    for uri in (hsm.uri(), hsm.uri(more=";id=%02")):
        with pytest.raises(KeystoreRefused, match=r"^an object `root` exists already in the HSM token `gateway`"):
            create(uri, nobody)
    assert open_root(hsm.uri(), nobody).unwrap(wrapped, BOUND).reveal() == b"key"


def test_any_object_keeps_its_name(hsm: SoftHsm, token: Path) -> None:
    """An object that is no key is not joined by a root of the same name."""
    data = {Attribute.CLASS: pkcs11.ObjectClass.DATA, Attribute.LABEL: "root", Attribute.TOKEN: True}
    in_session(hsm, lambda session: session.create_object(data))

    with pytest.raises(KeystoreRefused, match="exists already"):
        create(hsm.uri(), nobody)
    with pytest.raises(RootRefused, match="cannot be the root key, for its CLASS"):
        open_root(hsm.uri(), nobody)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"template": {"EXTRACTABLE": True}}, "EXTRACTABLE"),
        ({"template": {"SENSITIVE": False}}, "SENSITIVE"),
        ({"template": {"PRIVATE": False}}, "PRIVATE"),
        ({"template": {"SENSITIVE": False, "EXTRACTABLE": True}}, "EXTRACTABLE, SENSITIVE"),
        ({"key_length": 128}, "VALUE_LEN"),
        ({"key_type": KeyType.GENERIC_SECRET, "capabilities": MechanismFlag.SIGN}, "KEY_TYPE, ENCRYPT, DECRYPT"),
        ({"capabilities": MechanismFlag.WRAP | MechanismFlag.UNWRAP}, "ENCRYPT, DECRYPT"),
    ],
)
def test_a_key_that_is_not_as_it_must_be(hsm: SoftHsm, token: Path, other: dict[str, Any], named: str) -> None:
    """A key that could be read, is weaker, or is for another use, is no root key; the line names what is wrong."""
    make_object(hsm, **other)

    with pytest.raises(
        RootRefused, match=rf"^the object `root` in .* cannot be the root key, for its {named}: it must"
    ):
        open_root(hsm.uri(), nobody)


def test_namesakes(hsm: SoftHsm, root: HsmRoot) -> None:
    """Two keys of one name are refused, unless an id singles one out."""
    wrapped = root.wrap(Secret(b"key"), BOUND)
    make_object(hsm, id=b"\x02\xfe")

    with pytest.raises(RootRefused, match=r"^there are several of the object `root` in .*: add `;id=…` to keys.root"):
        open_root(hsm.uri(), nobody)
    second = open_root(hsm.uri(more=";id=%02%FE"), nobody)
    with pytest.raises(RootRefused, match=NOT_OURS):
        second.unwrap(wrapped, BOUND)
    with pytest.raises(RootRefused, match=r"^there is no object `root`"):
        open_root(hsm.uri(more=";id=%03"), nobody)


def test_an_id_is_given(hsm: SoftHsm, token: Path) -> None:
    """A root that is made with an id is found with it, and without."""
    wrapped = create(hsm.uri(more=";id=%0A"), nobody).wrap(Secret(b"key"), BOUND)

    for more in ("", ";id=%0a"):
        assert open_root(hsm.uri(more=more), nobody).unwrap(wrapped, BOUND).reveal() == b"key"


def test_an_hsm_without_aes_gcm(hsm: SoftHsm, root: HsmRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is made when a root is opened: an HSM that cannot do it is refused, and waiting is not advised."""

    def answer(_key: Any) -> None:
        raise pkcs11.MechanismInvalid

    monkeypatch.setattr(root_pkcs11, "_prove", answer)
    with pytest.raises(RootRefused, match=r"`gateway` does not make or use AES-256-GCM keys as we need") as caught:
        open_root(hsm.uri(), nobody)
    assert not isinstance(caught.value, RootUnavailable)


class Careless:
    """A key in an HSM that takes associated data and forgets it."""

    def encrypt(self, plaintext: bytes, **_: Any) -> bytes:
        """Seals nothing."""
        return plaintext

    def decrypt(self, sealed: bytes, **_: Any) -> bytes:
        """Opens anything, anywhere."""
        return sealed


class Garbling(Careless):
    """A key in an HSM that gives back something else."""

    def decrypt(self, sealed: bytes, **_: Any) -> bytes:
        """The wrong bytes."""
        return sealed[::-1]


@pytest.mark.parametrize(
    ("key", "reason"), [(Careless(), "does not check associated data"), (Garbling(), "does not give back")]
)
def test_an_hsm_with_an_aes_gcm_of_its_own(key: Careless, reason: str) -> None:
    """An HSM in which a wrap would not be bound, or would be lost, is found out by a probe."""
    with pytest.raises(RootRefused, match=reason):
        root_pkcs11._prove(key)


# --- the PIN ---


def test_a_wrong_pin_is_tried_once(hsm: SoftHsm, root: HsmRoot, token: Path) -> None:
    """One try is all it costs, to open and to create; the line says why, and does not show the PIN."""
    wrong = hsm.folder / "wrong"
    write_private(wrong, b"wr0ng-pin\n", replace=False)
    for act in (open_root, create):
        tried = logins(token)
        with pytest.raises(RootRefused, match=WRONG_PIN) as caught:
            act(hsm.uri(pin_file=wrong), nobody)
        assert logins(token) == tried + 1
        assert "pin" not in str(caught.value)
        assert not isinstance(caught.value, RootUnavailable)

    root.wrap(new_key(), BOUND)  # whoever is logged in with the right one goes on


def test_a_pin_that_changes_under_a_running_root(hsm: SoftHsm, root: HsmRoot, token: Path) -> None:
    """After a restart of the HSM the old PIN is tried once, and never again, however often the root is called."""
    wrapped = root.wrap(Secret(b"key"), BOUND)
    in_session(hsm, lambda session: session.set_pin(hsm.PIN, "an0ther-pin"))
    root_pkcs11.THREAD.call(lambda one: one.forget(str(Path(str(MODULE)).resolve())), 5)
    tried = logins(token)
    for _ in range(5):
        with pytest.raises(RootRefused, match=WRONG_PIN):
            root.unwrap(wrapped, BOUND)
    assert logins(token) == tried + 1

    write_private(hsm.pin_file, b"an0ther-pin", replace=True)
    assert open_root(hsm.uri(), nobody).unwrap(wrapped, BOUND).reveal() == b"key"


def test_the_last_try_is_left_to_a_person() -> None:
    """Where a wrong PIN would lock the token, or has locked it, nothing is tried; one that is merely low is."""
    for flag in (TokenFlag.USER_PIN_FINAL_TRY, TokenFlag.USER_PIN_LOCKED):
        with pytest.raises(
            RootRefused, match=r"^the HSM's PIN is not set, expired or locked, or is so at the next wrong try"
        ):
            root_pkcs11._require_tries_left(flag | TokenFlag.LOGIN_REQUIRED)

    root_pkcs11._require_tries_left(TokenFlag.USER_PIN_COUNT_LOW | TokenFlag.LOGIN_REQUIRED)


@pytest.mark.parametrize("content", ["", "\n", "s3cret-pin\r\n", "s3cret\tpin", "\ufeffs3cret-pin"])
def test_a_slip_of_the_pen_costs_no_try(hsm: SoftHsm, root: HsmRoot, token: Path, content: str) -> None:
    """An empty PIN, or one with an invisible character, is refused before the HSM hears of it."""
    write_private(hsm.pin_file, content.encode(), replace=True)
    tried = logins(token)

    with pytest.raises(RootRefused, match=r"^the PIN of the HSM is empty or holds an invisible character"):
        open_root(hsm.uri(), nobody)
    assert logins(token) == tried


def test_without_a_pin_file_a_person_is_asked(hsm: SoftHsm, root: HsmRoot) -> None:
    """The question names the token; where nobody answers, opening is refused."""
    asked: list[str] = []
    uri = hsm.uri().partition("&")[0]

    def person(what: str) -> Secret[str]:
        asked.append(what)
        return Secret(hsm.PIN)

    open_root(uri, person).wrap(new_key(), BOUND)
    assert asked == ["PIN of the HSM token gateway"]
    with pytest.raises(RootRefused, match=r"^the PIN of the HSM token gateway is needed$"):
        open_root(uri, nobody)


def test_a_pin_file_that_others_can_read(hsm: SoftHsm, root: HsmRoot, token: Path) -> None:
    """The PIN file is a private file like any other."""
    hsm.pin_file.chmod(0o640)
    tried = logins(token)

    for act in (open_root, create):
        with pytest.raises(KeystoreRefused, match=f"`chmod 0600 {hsm.pin_file}`"):
            act(hsm.uri(), nobody)
    assert logins(token) == tried


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}"])
def test_how_a_pin_file_is_named(hsm: SoftHsm, root: HsmRoot, form: str) -> None:
    """A path, or a file URI in either of its spellings, percent-encoded."""
    path = hsm.folder / "pin of ours"
    write_private(path, hsm.PIN.encode(), replace=False)

    open_root(f"{hsm.uri().partition('&')[0]}&pin-source={quote(form.format(path))}", nobody)


# --- the URI ---


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:token=gateway;object=root?module-path={module}&pin-value=hunter2",
        "pkcs11:token=gateway;object=root;pin-value=hunter2?module-path={module}",
        "pkcs11:token=gateway;object=root?pin-value=hunter2",
    ],
)
def test_a_pin_does_not_stand_in_a_uri(uri: str) -> None:
    """Wherever it stands, it is refused before anything else, with what to do instead, and is not shown."""
    for act in (create, open_root):
        with pytest.raises(RootRefused, match=r"a PIN does not stand in a URI: name a file of mode 0600") as caught:
            act(uri.format(module=MODULE), nobody)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("pkcs11:", "`token` is missing"),
        ("pkcs11:object=root?module-path={module}", "`token` is missing"),
        ("pkcs11:token=gateway?module-path={module}", "`object` is missing"),
        ("pkcs11:token=gateway;object=root", "`module-path` is missing"),
        ("pkcs11:token=gateway;object=root?module-path=softhsm.so", "`module-path` must be an absolute path"),
        ("pkcs11:token=gateway;object=root;token=x?module-path={module}", "`token` is empty, given twice"),
        ("pkcs11:token=;object=root?module-path={module}", "`token` is empty"),
        ("pkcs11:token;object=root?module-path={module}", "`token` is empty"),
        ("pkcs11:token=gate%2way;object=root?module-path={module}", "`token` is .* not percent-encoded"),
        ("pkcs11:token=gateway;object=root#hunter2?module-path={module}", "`object` is .* not percent-encoded"),
        ("pkcs11:token=gate%FF;object=root?module-path={module}", "`token` is not a readable text"),
        ("pkcs11:token=gate%0Away;object=root?module-path={module}", "`token` is not a readable text"),
        ("pkcs11:token=gateway;object=root;hunter2?module-path={module}", "an attribute that we do not know"),
        ("pkcs11:token=gateway;object=root?module-path={module}&hunter2", "an attribute that we do not know"),
        ("pkcs11:token=gateway;object=root?module-path={module}&pin=hunter2", "an attribute that we do not know"),
        ("pkcs11:token=gateway;object=root?pin-source=/p?module-path={module}", "`module-path` is missing"),
        ("pkcs11:token=gateway;object=root?module-path={module}&pin-source=pin", "`pin-source` must be an absolute"),
        ("pkcs11:token=gateway;object=root?module-path={module}&pin-source=|cat", "`pin-source` must be an absolute"),
        (
            "pkcs11:token=gateway;object=root?module-path={module}&pin-source=file://h/p",
            "`pin-source` must be an abs",
        ),
        (
            "pkcs11:token=gateway;object=root?module-path={module}&pin-source=//h/p",
            "`pin-source` must be an absolute",
        ),
    ],
)
def test_a_uri_of_no_form_that_we_know(uri: str, reason: str) -> None:
    """Each slip is named, and what we do not know is not quoted, for it may be the PIN."""
    for act in (create, open_root):
        with pytest.raises(RootRefused, match=reason) as caught:
            act(uri.format(module=MODULE), nobody)
        assert "hunter2" not in str(caught.value)


def test_a_module_that_is_not_there(hsm: SoftHsm) -> None:
    """A missing module, a folder, or a file that is no PKCS#11 module, each has its line."""
    text = hsm.folder / "module.so"
    text.write_text("no library")
    library = pkcs11._pkcs11.__file__
    for path, reason in (
        (hsm.folder / "missing.so", "does not exist: install the HSM's module, or correct `module-path`$"),
        (hsm.folder, "does not exist: install"),
        (text, "is no PKCS#11 module, or does not load on this machine$"),
        (library, "is no PKCS#11 module"),
    ):
        with pytest.raises(RootRefused, match=reason):
            open_root(f"pkcs11:token=gateway;object=root?module-path={path}&pin-source={hsm.pin_file}", nobody)


def test_a_module_that_others_could_replace(hsm: SoftHsm) -> None:
    """A library that others may write could tell them the PIN."""
    copy = hsm.folder / "module.so"
    shutil.copy(str(MODULE), copy)
    for mode in (0o775, 0o757):
        copy.chmod(mode)
        with pytest.raises(RootRefused, match=r"^others could replace .*`chmod go-w`"):
            open_root(f"pkcs11:token=gateway;object=root?module-path={copy}&pin-source={hsm.pin_file}", nobody)


def test_one_module_under_two_names(hsm: SoftHsm, root: HsmRoot) -> None:
    """A library is started once in a process, by whatever link it is reached."""
    link = hsm.folder / "link.so"
    link.symlink_to(str(MODULE))
    wrapped = root.wrap(Secret(b"key"), BOUND)
    linked = open_root(f"pkcs11:token=gateway;object=root?module-path={link}&pin-source={hsm.pin_file}", nobody)

    assert linked.unwrap(wrapped, BOUND).reveal() == root.unwrap(wrapped, BOUND).reveal() == b"key"


def test_what_is_not_in_the_hsm(hsm: SoftHsm, root: HsmRoot) -> None:
    """A token or an object that is not there is named, and so is how to look for it."""
    with pytest.raises(
        RootRefused, match=r"^the HSM has no token `gatewy`: `pkcs11-tool --module .* -L` lists them$"
    ):
        open_root(hsm.uri("gatewy"), nobody)
    with pytest.raises(RootRefused, match=r"^the HSM has no token `gateway` with the serial number 12:"):
        open_root(hsm.uri(more=";serial=12"), nobody)
    with pytest.raises(
        RootRefused, match=r"^there is no object `rot` in the HSM token `gateway`: `keys init` makes it"
    ):
        open_root(hsm.uri(object_="rot"), nobody)
    with pytest.raises(RootRefused, match=r"^the HSM has no token `gatewy`"):
        create(hsm.uri("gatewy"), nobody)


def test_twin_tokens(hsm: SoftHsm, root: HsmRoot) -> None:
    """Two tokens of one name are refused, unless a serial number singles one out."""
    serial = in_session(hsm, lambda session: session.token.serial.decode())
    wrapped = root.wrap(Secret(b"key"), BOUND)
    hsm.initialise("gateway")

    with pytest.raises(RootRefused, match=r"^the HSM has several tokens `gateway`: add `;serial=…` to keys.root$"):
        open_root(hsm.uri(), nobody)
    assert open_root(hsm.uri(more=f";serial={serial}"), nobody).unwrap(wrapped, BOUND).reveal() == b"key"


def test_labels_of_any_letters(hsm: SoftHsm) -> None:
    """Labels are percent-encoded, and a plus sign is a plus sign."""
    hsm.initialise("gate+way; é")

    assert create(hsm.uri("gate+way; é", "ro?ot & =1"), nobody).wrap(new_key(), BOUND)
    open_root(hsm.uri("gate+way; é", "ro?ot & =1"), nobody)


# --- an HSM that goes away ---


def test_gone_and_back(hsm: SoftHsm, root: HsmRoot, token: Path) -> None:
    """While the HSM is away, each call says so in a line of its own; when it is back, the next call works."""
    wrapped = root.wrap(Secret(b"key"), BOUND)
    for _ in range(2):
        with hsm.unplugged():
            for _ in range(2):
                for act in (lambda: root.unwrap(wrapped, BOUND), lambda: root.wrap(new_key(), BOUND)):
                    with pytest.raises(RootUnavailable, match=GONE):
                        act()
            with pytest.raises(RootUnavailable, match=GONE):
                open_root(hsm.uri(), nobody)
            with pytest.raises(RootUnavailable, match=GONE):
                create(hsm.uri(), nobody)
        assert root.unwrap(wrapped, BOUND).reveal() == b"key"


def test_restarted_between_two_calls(root: HsmRoot, token: Path) -> None:
    """An HSM that forgot its sessions while nobody looked is logged into again, once, and nobody notices."""
    wrapped = root.wrap(Secret(b"key"), BOUND)
    tried = logins(token)

    def restart(one: root_pkcs11.Hsm) -> None:
        for library in one._libraries.values():
            library.reinitialize()  # behind the back of what remembers the session

    root_pkcs11.THREAD.call(restart, 5)
    assert root.unwrap(wrapped, BOUND).reveal() == b"key"
    assert logins(token) == tried + 1


def test_a_token_that_is_removed(hsm: SoftHsm, root: HsmRoot, token: Path) -> None:
    """Of a token that was there when the root was opened, its absence may pass; it heals like any other."""
    wrapped = root.wrap(Secret(b"key"), BOUND)
    hsm.initialise("other")
    away = token.rename(hsm.folder / "away")
    for _ in range(2):
        with pytest.raises(RootUnavailable, match=GONE):
            root.unwrap(wrapped, BOUND)
    away.rename(token)

    assert root.unwrap(wrapped, BOUND).reveal() == b"key"


def test_a_key_that_is_destroyed(hsm: SoftHsm, root: HsmRoot) -> None:
    """A key that somebody destroyed in the HSM does not come back by itself, so waiting is not advised."""

    def destroy(session: Any) -> None:
        (key,) = session.get_objects({Attribute.LABEL: "root"})
        key.destroy()

    wrapped = root.wrap(new_key(), BOUND)
    in_session(hsm, destroy)
    with pytest.raises(
        RootRefused, match=r"^there is no object `root` .* later it comes from the HSM's own backup$"
    ) as c:
        root.unwrap(wrapped, BOUND)
    assert not isinstance(c.value, RootUnavailable)


def test_an_hsm_that_hangs(hsm: SoftHsm, root: HsmRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call waits so long and no longer, those behind it do not wait at all, and afterwards all is well."""
    wrapped = root.wrap(Secret(b"key"), BOUND)
    with hsm.hanging(), monkeypatch.context() as impatient:
        impatient.setattr(root_pkcs11, "CALL_SECONDS", 0.3)
        with pytest.raises(RootUnavailable, match=r"^the HSM does not answer within 0\.3 seconds$"):
            root.unwrap(wrapped, BOUND)
        for act in (lambda: root.unwrap(wrapped, BOUND), lambda: open_root(hsm.uri(), nobody)):
            with pytest.raises(RootUnavailable, match=r"^the HSM still hangs in an earlier call"):
                act()
    hanging = root_pkcs11.THREAD._hanging
    assert hanging is not None
    hanging.exception(timeout=5)

    assert root.unwrap(wrapped, BOUND).reveal() == b"key"


def test_a_dead_hsm_stops_nobody_else(root: HsmRoot) -> None:
    """A module is finalized before the driver does it: the driver would hold the interpreter's lock meanwhile."""
    module = root._where.module
    not_initialized = 0x190  # CKR_CRYPTOKI_NOT_INITIALIZED

    class Driver:
        answer = 0

        def finalize(self) -> None:
            self.answer = ctypes.CDLL(module).C_GetInfo(ctypes.create_string_buffer(128))

    def forget(one: root_pkcs11.Hsm) -> int:
        driver, one._libraries[module] = one._libraries[module], Driver()
        one.forget(module)
        seen, one._libraries[module] = one._libraries[module], driver
        one.forget(module)
        return int(seen.answer)

    assert root_pkcs11.THREAD.call(forget, 5) == not_initialized
    root.wrap(new_key(), BOUND)


# --- processes and threads ---


def test_a_hanging_hsm_does_not_hold_up_the_end(hsm: SoftHsm, root: HsmRoot) -> None:
    """A command says that the HSM does not answer, and ends, while the call still hangs."""
    script = """
root_pkcs11.CALL_SECONDS = 0.3
root = open_root(uri, nobody)
print("open", flush=True)
sys.stdin.readline()
try:
    root.wrap(Secret(b"key"), b"")
except RootUnavailable as refused:
    print(refused)
"""
    with python(hsm, script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with hsm.hanging():
            out, err = process.communicate("\n", timeout=20)

    assert (out, err, process.returncode) == ("the HSM does not answer within 0.3 seconds\n", "", 0)


def test_many_threads_at_once(hsm: SoftHsm, root: HsmRoot) -> None:
    """Eight threads with 200 calls each, on two roots, one of them opened again and again: no crash, no mix-up."""
    script = """
roots = [open_root(uri, nobody), create(uri.replace("object=root", "object=root2"), nobody)]
def work(worker):
    root = roots[worker % 2]
    for number in range(100):
        key, place = f"{worker} {number}".encode(), f"place {worker}".encode()
        assert root.unwrap(root.wrap(Secret(key), place), place).reveal() == key
        if number % 25 == 0:
            open_root(uri, nobody)
    return worker
with ThreadPoolExecutor(8) as pool:
    print(list(pool.map(work, range(8))))
"""
    with python(hsm, script) as process:
        out, err = process.communicate(timeout=60)

    assert (out, err, process.returncode) == ("[0, 1, 2, 3, 4, 5, 6, 7]\n", "", 0)


def test_a_forked_process(hsm: SoftHsm, root: HsmRoot) -> None:
    """Importing starts nothing, so a fork before the first call works; one after it is refused at once."""
    script = """
def in_child(act):
    child = os.fork()
    if child == 0:
        try:
            act()
        except RootRefused as refused:
            print(refused, flush=True)
        os._exit(0)
    os.waitpid(child, 0)

in_child(lambda: open_root(uri, nobody).wrap(Secret(b"key"), b""))
root = open_root(uri, nobody)
in_child(lambda: root.wrap(Secret(b"key"), b""))
root.wrap(Secret(b"key"), b"")
"""
    with python(hsm, script) as process:
        out, err = process.communicate(timeout=60)

    assert out == "an HSM does not follow into a forked process: open the root key after the fork\n"
    assert (err, process.returncode) == ("", 0)
