"""A grant to one of the staff, as two officers sign it: who, which person, what they may do, and where.

The payload of the officers' act has one spelling for each grant. What is carried out is read back from it, and a
payload in any other spelling is refused: nobody approves one thing and gets another.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

from gateway.errors import GrantRefused
from gateway.rules.staff import Role, require_grantable

PERSON_MAX = 40
PERSON = re.compile(rf"[A-Z0-9][A-Z0-9.-]{{0,{PERSON_MAX - 1}}}")
"""No letter of another alphabet that looks like one of these: one person has one number."""
LEADING_ZEROS = re.compile(r"\A0+(?=[A-Z0-9])")
SUBJECT_MAX = 255
"""OpenID Connect Core 1.0 §2: `sub` has at most 255 ASCII characters."""
BETWEEN = ","


@dataclass(frozen=True, slots=True)
class Grant:
    """Grantable, or it is not made: raises `GrantRefused`."""

    username: str
    person: str
    roles: frozenset[Role]
    departments: frozenset[str]
    oidc_subject: str | None = None
    """Who they are at the city's own provider."""

    def __post_init__(self) -> None:
        require_grantable(self.username, self.person, self.roles, self.departments)
        if not PERSON.fullmatch(self.person):
            raise GrantRefused(
                f"a personnel number has at most {PERSON_MAX} of A-Z, 0-9, `.` and `-`, a letter or digit first"
            )
        if self.oidc_subject is not None:
            _require_subject(self.oidc_subject)

    @classmethod
    def of(
        cls,
        username: str,
        person: str,
        roles: Collection[str],
        departments: Collection[str],
        oidc_subject: str | None = None,
    ) -> Self:
        """As somebody asks for it: one person's number is one, however it is typed."""
        return cls(username, _canonical(person), frozenset(map(_role, roles)), frozenset(departments), oidc_subject)

    @classmethod
    def of_payload(cls, payload: Mapping[str, str | int]) -> Self:
        """The grant that was signed; raises `GrantRefused` for a payload that `payload()` would not have made."""
        told = {name: str(value) for name, value in payload.items()}
        try:
            roles, departments = (told[name].split(BETWEEN) for name in ("roles", "departments"))
            grant = cls.of(told["username"], told["person"], roles, departments, told.get("oidc_subject"))
        except KeyError as missing:
            raise GrantRefused(f"the request says nothing of {missing.args[0]}: ask anew") from None
        if grant.payload() != payload:
            raise GrantRefused("the request is not spelled as `gateway staff add` spells it: ask anew")
        return grant

    def payload(self) -> dict[str, str]:
        """What the officers sign."""
        told = {
            "username": self.username,
            "person": self.person,
            "roles": BETWEEN.join(sorted(self.roles)),
            "departments": BETWEEN.join(sorted(self.departments)),
        }
        return told if self.oidc_subject is None else told | {"oidc_subject": self.oidc_subject}


def _canonical(person: str) -> str:
    return LEADING_ZEROS.sub("", unicodedata.normalize("NFKC", person).upper().strip())


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise GrantRefused(f"a role is one of {', '.join(Role)}") from None


def _require_subject(subject: str) -> None:
    if not (1 <= len(subject) <= SUBJECT_MAX and subject.isascii() and subject.isprintable()):
        raise GrantRefused(f"a provider's subject has 1 to {SUBJECT_MAX} printable ASCII characters")
