"""A grant and its payload: one spelling, both ways, and nothing else is read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GrantRefused
from gateway.rules.grants import PERSON, PERSON_MAX, SUBJECT_MAX, Grant
from gateway.rules.staff import Role

CHEN = Grant.of("a.chen", "4711", ["approver"], ["utilities", "parks"])
PAYLOAD = {"username": "a.chen", "person": "4711", "roles": "approver", "departments": "parks,utilities"}


def test_what_the_officers_sign() -> None:
    """Every field in one spelling, sorted; a subject of the provider only where there is one."""
    assert CHEN.payload() == PAYLOAD
    with_subject = Grant.of("a.chen", "4711", ["approver"], ["*"], "00u1abc")
    assert with_subject.payload() == PAYLOAD | {"departments": "*", "oidc_subject": "00u1abc"}


@given(
    st.from_regex(r"\A[a-z]\.[a-z0-9]{2,8}\Z"),
    st.from_regex(PERSON, fullmatch=True),
    st.sampled_from([{"finance"}, {"approver"}, {"auditor"}, {"finance", "records"}, {"approver", "records"}]),
    st.one_of(st.just({"*"}), st.sets(st.from_regex(r"\A[a-z_]{1,8}\Z"), min_size=1, max_size=4)),
    st.none() | st.text("abc!~ 09", min_size=1, max_size=SUBJECT_MAX),
)
def test_a_payload_is_read_back_as_the_same_grant(
    username: str, person: str, roles: set[str], departments: set[str], subject: str | None
) -> None:
    """Whatever may be granted."""
    grant = Grant.of(username, person, roles, departments, subject)
    assert Grant.of_payload(grant.payload()) == grant


@pytest.mark.parametrize("typed", [" 4711", "4711 ", "\uff14\uff17\uff11\uff11", "4711\n"])
def test_a_person_has_one_number_however_it_is_typed(typed: str) -> None:
    """Or one person had two accounts."""
    assert Grant.of("a.chen", typed, ["approver"], ["parks"]).person == "4711"
    assert Grant.of("b.ito", "e-12.b", ["records"], ["parks"]).person == "E-12.B"


@pytest.mark.parametrize(
    ("typed", "person"),
    [("05001", "5001"), ("0005001", "5001"), ("5001", "5001"), ("50-010", "50-010"), ("0-7", "0-7"), ("00", "0")],
)
def test_leading_zeros_make_nobody_another_person(typed: str, person: str) -> None:
    """Of the whole number, not of its parts."""
    assert Grant.of("a.chen", typed, ["approver"], ["parks"]).person == person


@pytest.mark.parametrize(
    "person", ["\u041047", "\u0391-1", "47\u0661", "4 711", "-4711", ".1", "47_11", "47/11", "é1"]
)
def test_a_look_alike_is_no_number(person: str) -> None:
    """Letters and digits of other alphabets would give one person two accounts."""
    with pytest.raises(GrantRefused, match="personnel number"):
        Grant.of("a.chen", person, ["approver"], ["parks"])


@pytest.mark.parametrize(
    "other",
    [
        {"roles": "approver,approver"},
        {"roles": "records,approver"},
        {"roles": "approver, records"},
        {"departments": "utilities,parks"},
        {"departments": "parks,parks"},
        {"person": " 4711"},
        {"person": "04711"},
        {"person": "\uff14\uff17\uff11\uff11"},
        {"person": 4711},
        {"more": "of it"},
        {"oidc_subject": ""},
        {"oidc_subject": 7},
    ],
)
def test_a_payload_in_another_spelling_is_refused(other: dict[str, str | int]) -> None:
    """What would be read back otherwise than it stands there is not what two people approved."""
    with pytest.raises(GrantRefused):
        Grant.of_payload(PAYLOAD | other)


@pytest.mark.parametrize("gone", PAYLOAD)
def test_a_payload_that_lacks_something_is_refused(gone: str) -> None:
    """And the refusal says what."""
    with pytest.raises(GrantRefused, match=f"says nothing of {gone}"):
        Grant.of_payload({name: value for name, value in PAYLOAD.items() if name != gone})


@pytest.mark.parametrize(
    "other",
    [
        {"roles": "finance,approver"},
        {"roles": "approver,finance"},
        {"roles": "auditor,records"},
        {"roles": "owner"},
        {"roles": ""},
        {"departments": "*,parks"},
        {"username": "admin"},
        {"username": "A.Chen"},
        {"person": ""},
        {"person": "1" * (PERSON_MAX + 1)},
        {"oidc_subject": "ü"},
        {"oidc_subject": "1" * (SUBJECT_MAX + 1)},
    ],
)
def test_what_nobody_may_have_is_not_read_back_either(other: dict[str, str]) -> None:
    """Two officers' signatures do not make it grantable."""
    with pytest.raises(GrantRefused):
        Grant.of_payload(PAYLOAD | other)


@pytest.mark.parametrize("first", Role)
@pytest.mark.parametrize("second", Role)
def test_toxic_pairs_are_refused_by_every_way_in(first: Role, second: Role) -> None:
    """Finance with approver, and auditor with anything."""
    toxic = {first, second} == {Role.FINANCE, Role.APPROVER} or (first != second and Role.AUDITOR in {first, second})
    if toxic:
        with pytest.raises(GrantRefused, match="at once"):
            Grant.of("a.chen", "4711", [first, second], ["parks"])
    else:
        assert Grant.of("a.chen", "4711", [first, second], ["parks"]).roles == {first, second}
