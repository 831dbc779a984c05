"""Staff: which accounts may be, what their roles allow, and how a name is written."""

import pytest

from gateway.errors import GrantRefused, NotFound, NotPermitted
from gateway.rules.staff import (
    EVERYWHERE,
    PERMISSIONS,
    SHARED_NAMES,
    TOXIC,
    USERNAME,
    Account,
    Permission,
    Role,
    Staff,
    canonical_name,
    require_grantable,
)


def somebody(*roles: Role, departments: tuple[str, ...] = ("parks",)) -> Staff:
    """Signed in, with these roles."""
    return Staff("st_1", "a.chen", frozenset(roles), frozenset(departments))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("permission", Permission)
def test_a_role_carries_its_permissions_and_no_other(role: Role, permission: Permission) -> None:
    """What is in the table is allowed, and nothing else."""
    if permission in PERMISSIONS[role]:
        somebody(role).require(permission)
    else:
        with pytest.raises(NotPermitted):
            somebody(role).require(permission)


def test_only_an_approver_decides() -> None:
    """The one permission that moves money belongs to one role."""
    assert {role for role in Role if Permission.REFUNDS_DECIDE in PERMISSIONS[role]} == {Role.APPROVER}


def test_departments_are_those_of_the_grant() -> None:
    """Another department looks like none; all of them is a grant of its own."""
    parks, everywhere = somebody(Role.FINANCE), somebody(Role.FINANCE, departments=(EVERYWHERE,))
    parks.require_department("parks")
    everywhere.require_department("utilities")
    with pytest.raises(NotFound):
        parks.require_department("utilities")
    assert parks.among(["parks", "utilities"]) == {"parks"}
    assert everywhere.among(["parks", "utilities"]) == {"parks", "utilities"}


@pytest.mark.parametrize(("one", "other"), [(one, other) for one in Role for other in Role if one < other], ids=str)
def test_toxic_pairs_are_refused(one: Role, other: Role) -> None:
    """Nobody gets two roles of which one watches the other, whichever is named first."""
    pair = (one, other)
    for roles in (pair, pair[::-1]):
        if frozenset(pair) in TOXIC:
            with pytest.raises(GrantRefused):
                require_grantable("a.chen", "P-1", roles, ["parks"])
        else:
            require_grantable("a.chen", "P-1", roles, ["parks"])
    assert (frozenset(pair) in TOXIC) == (Role.AUDITOR in pair or set(pair) == {Role.FINANCE, Role.APPROVER})


@pytest.mark.parametrize(
    "name", ["ab", "A.Chen", "1chen", "a chen", "a" * 32, "a.chen\n", "\u0430.chen", *sorted(SHARED_NAMES)]
)
def test_a_name_that_is_nobodys_is_refused(name: str) -> None:
    """Too short or long, of other characters, or that of an office."""
    with pytest.raises(GrantRefused):
        require_grantable(name, "P-1", [Role.FINANCE], ["parks"])


@pytest.mark.parametrize(
    ("person", "roles", "departments"),
    [
        ("", [Role.FINANCE], ["parks"]),
        (" ", [Role.FINANCE], ["parks"]),
        ("P\n1", [Role.FINANCE], ["parks"]),
        ("P-1", [], ["parks"]),
        ("P-1", [Role.FINANCE], []),
        ("P-1", [Role.FINANCE], [EVERYWHERE, "parks"]),
    ],
)
def test_half_a_grant_is_refused(person: str, roles: list[Role], departments: list[str]) -> None:
    """A grant names a person, a role and a department, or all of them."""
    with pytest.raises(GrantRefused):
        require_grantable("a.chen", person, roles, departments)


@pytest.mark.parametrize(
    "typed",
    [
        "a.chen",
        "A.Chen",
        " a.chen ",
        "\ta.CHEN\n",
        "\uff41.\uff43hen",
        "\uff21.\uff23\uff28\uff25\uff2e",
        "\u00a0a.chen\u3000",
        "a\u2024chen",
    ],
)
def test_a_name_has_one_spelling(typed: str) -> None:
    """Case, spaces around it and other forms of its letters do not make another name."""
    assert canonical_name(typed) == "a.chen"


@pytest.mark.parametrize("typed", ["\u0430.chen", "a.chen\u200b", "a. chen", "a.chen\0", "\ud800", ""])
def test_what_is_another_name_is_nobodys(typed: str) -> None:
    """Look-alikes of another script and hidden characters are no way to an account."""
    assert not USERNAME.fullmatch(canonical_name(typed))


def test_no_factor_is_shown() -> None:
    """Neither an account nor who is signed in shows what they prove themselves by."""
    account = Account("st_1", True, "$argon2id$kept", ("$argon2id$earlier",), b"sealed seed")
    signed_in = Staff("st_1", "a.chen", frozenset(), frozenset(), b"digest of a session")
    assert "argon2" not in repr(account)
    assert "sealed" not in repr(account)
    assert "digest" not in repr(signed_in)
