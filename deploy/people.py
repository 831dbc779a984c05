"""The demo's people: two key officers, and four of the staff, each granted by one officer and approved by the other.

What `keys officer add`, `gateway staff add`, `keys approve` and `gateway staff add --request` do for each of them is
done here in one go, so that the root is opened once. Passwords and TOTP secrets of the staff are kept in files, so
that a second start finds the same people; the demo itself never signs in as any of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.cli.owner import Owner, as_owner
from gateway.cli.staff import ACT, Factors, carry_out
from gateway.config import Config
from gateway.rules import totp
from gateway.rules.grants import Grant
from gateway.rules.passwords import new_password
from gateway.rules.staff import EVERYWHERE, Role
from keys import acts
from keys.cli.acting import with_officer
from keys.cli.bench import Bench, now
from keys.cli.signing_in import ask_for, folder, sign_in
from keys.files import read_private_line, write_private
from keys.keystore import open_keystore
from keys.manifest import Act
from keys.officers import (
    Officer,
    OfficerKey,
    acknowledge,
    create_officer_key,
    officer_of,
    open_officer_key,
    with_acknowledgement,
)
from keys.queries import load_queries
from keys.rotation import Rotation
from keys.secret import Secret
from keys.settings import Settings, load

NAMES = {
    Role.FINANCE: ("f.alvarez", "1001"),
    Role.APPROVER: ("a.chen", "1002"),
    Role.RECORDS: ("r.okafor", "1003"),
    Role.AUDITOR: ("u.novak", "1004"),
}
REASON = "the demo begins"

Signer = tuple[OfficerKey, Officer]


@dataclass(frozen=True, slots=True)
class Person:
    """One of the staff, and the files with what they sign in with."""

    role: Role
    folder: Path

    @property
    def username(self) -> str:
        """How they are called."""
        return NAMES[self.role][0]

    @property
    def password(self) -> Path:
        """Their password."""
        return self.folder / f"{self.role}.password"

    @property
    def totp(self) -> Path:
        """Their TOTP secret, in base32."""
        return self.folder / f"{self.role}.totp"

    @property
    def has_factors(self) -> bool:
        """Whether both files are there."""
        return self.password.exists() and self.totp.exists()

    def grant(self) -> Grant:
        """All departments, as the contract of the demo has it."""
        return Grant.of(self.username, NAMES[self.role][1], [self.role], [EVERYWHERE])

    def make_factors(self) -> None:
        """New ones, whatever was there."""
        write_private(self.password, new_password().reveal().encode(), replace=True)
        write_private(self.totp, totp.base32(totp.new_seed()).reveal().encode(), replace=True)

    def told(self) -> dict[str, str]:
        """As `demo.json` has it."""
        kept = {"password": self.password, "totp_secret": self.totp}
        return {"username": self.username} | {name: read_private_line(path).reveal() for name, path in kept.items()}


def people(folder: Path) -> list[Person]:
    """All of them."""
    return [Person(role, folder) for role in NAMES]


async def employ(settings: Path, staff: Sequence[Person], officers: Mapping[str, tuple[Path, Path]]) -> str:
    """Grant to each who has no account yet; gives who is new. `officers` are two, with key and passphrase file.

    Nobody has an account without officers, so where everybody has one there is nothing to do and no root to open.
    """
    config = load(settings, Config, {})
    async with as_owner(config) as owner:
        listed = await owner.connection.fetch(load_queries("gateway.store", "accounts.sql").usernames)
    known = {row["username"] for row in listed}
    missing = [person for person in staff if person.username not in known or not person.has_factors]
    if not missing:
        return "there already"
    of_keys = load(settings, Settings, {})
    bench = Bench(of_keys, open_keystore(of_keys.keys, of_keys.database, of_keys.environment))
    async with bench.changing() as rotation:
        first, second = [await _signer(rotation, name, *files) for name, files in officers.items()]
        for person in missing:
            async with as_owner(config) as owner:
                await _employ(bench, rotation, owner, config, person, first, second)
    return ", ".join(person.username for person in missing)


async def _signer(rotation: Rotation, name: str, key_file: Path, passphrase_file: Path) -> Signer:
    if any(officer.name == name for officer in rotation.manifest.officers):
        return sign_in(rotation.manifest, str(key_file), str(passphrase_file))
    key, when = _key(key_file, read_private_line(passphrase_file)), now()
    officer = with_acknowledgement(officer_of(name, key, when), acknowledge(key, name, when), when)
    await rotation.change(with_officer(rotation.manifest, officer), Act("add-officer", name), when)
    return key, officer


def _key(path: Path, passphrase: Secret[str]) -> OfficerKey:
    """Made, or the one that a start left which broke off before the manifest named it."""
    return open_officer_key(path, passphrase) if path.exists() else create_officer_key(path, passphrase)


async def _employ(
    bench: Bench, rotation: Rotation, owner: Owner, config: Config, person: Person, first: Signer, second: Signer
) -> None:
    person.make_factors()
    act_id = ask_for(bench, rotation, ACT, person.grant().payload(), REASON, first)
    kept, (key, officer) = folder(bench), second
    asked = kept.find(act_id).request
    kept.put_approval(acts.approve(asked, rotation.manifest.officers, key, officer.name, now()))
    await carry_out(bench, rotation, owner, config, act_id, Factors.of(str(person.password), str(person.totp)))
