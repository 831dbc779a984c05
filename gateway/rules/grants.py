"""A grant to one of the staff, as two officers sign it: who, which person, what they may do, and where.

The payload of the officers' act has one spelling for each grant. What is carried out is read back from it, and a
payload in any other spelling is refused: nobody approves one thing and gets another.
"""

import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

from gateway.errors import GrantRefused
from gateway.rules.staff import Role, require_grantable

PERSON_MAX = 40
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
        if len(self.person) > PERSON_MAX:
            raise GrantRefused(f"a personnel number has at most {PERSON_MAX} characters")
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
    return " ".join(unicodedata.normalize("NFKC", person).upper().split())


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise GrantRefused(f"a role is one of {', '.join(Role)}") from None


def _require_subject(subject: str) -> None:
    if not (1 <= len(subject) <= SUBJECT_MAX and subject.isascii() and subject.isprintable()):
        raise GrantRefused(f"a provider's subject has 1 to {SUBJECT_MAX} printable ASCII characters")
