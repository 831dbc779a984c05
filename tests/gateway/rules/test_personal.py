"""The contract of personal fields: what is taken, what is refused, and what a refusal may repeat."""

from typing import Any

import pytest

from gateway.errors import FieldNotTaken
from gateway.rules.personal import require_taken
from tests.cards import CANARY

NONE: dict[str, str] = {}
EMAIL = {"email": "receipts are sent there"}
ZIP = {"address.zip": "the issuer compares it"}
ADDRESS = {"address": "permits are posted"}
DEEP = {"household.members.birth_year": "the pool has a child's fare"}


def _refused(contract: dict[str, str], details: Any) -> tuple[str, ...]:
    try:
        require_taken("parks", contract, details)
    except FieldNotTaken as refused:
        return refused.pointers
    return ()


@pytest.mark.parametrize(
    ("contract", "details"),
    [
        (NONE, None),
        (NONE, {}),
        (EMAIL, {}),
        (EMAIL, {"email": "a@example.com"}),
        (EMAIL, {"email": {"home": ["a@example.com"]}}),
        (ZIP, {"address": {"zip": "94110"}}),
        (ZIP, {"address": {}}),
        (ZIP, {"address": [{"zip": "94110"}, {"zip": ["94110"]}]}),
        (ADDRESS, {"address": "12 Main St"}),
        (ADDRESS, {"address": {"street": "12 Main St", "zip": {"Any 1": None}}}),
        (ADDRESS | ZIP, {"address": {"street": "12 Main St"}}),
        (DEEP, {"household": {"members": [{"birth_year": 2015}, [{"birth_year": 2017}]]}}),
        ({"*": "a study"}, {"x": {"Jane Doe": 1}}),
        (EMAIL | {"*": "a study"}, {"phone": 1}),
    ],
)
def test_what_the_contract_names_is_taken(contract: dict[str, str], details: Any) -> None:
    """A field, everything below it, and each item of a list of them."""
    assert _refused(contract, details) == ()


@pytest.mark.parametrize(
    ("contract", "details", "pointers"),
    [
        (NONE, {"email": "a@example.com"}, ("/details/email",)),
        (EMAIL, {"email": "a@example.com", "phone": "1", "fax": "2"}, ("/details/phone", "/details/fax")),
        (EMAIL, {"phone": None}, ("/details/phone",)),
        (EMAIL, {"phone": {}}, ("/details/phone",)),
        (EMAIL, {"phone": []}, ("/details/phone",)),
        (EMAIL, {"e_mail": "x", "emails": "x", "emai": "x"}, ("/details/e_mail", "/details/emails", "/details/emai")),
        (EMAIL, {"Email": "x"}, ("/details",)),
        (ZIP, {"address": "12 Main St"}, ("/details/address",)),
        (ZIP, {"address": None}, ("/details/address",)),
        (ZIP, {"address": ["12 Main St"]}, ("/details/address/0",)),
        (ZIP, {"address": {"zip": "94110", "street": "x"}}, ("/details/address/street",)),
        (ZIP, {"address": [{"zip": "1"}, {"street": "x"}]}, ("/details/address/1/street",)),
        (ZIP, {"zip": "94110"}, ("/details/zip",)),
        (ZIP, {"address.zip": "94110"}, ("/details",)),
        (ZIP, {"work": {"address": {"zip": "94110"}}}, ("/details/work",)),
        (DEEP, {"household": {"members": {"name": "x"}}}, ("/details/household/members/name",)),
        (DEEP, {"household": {"pets": 1}}, ("/details/household/pets",)),
    ],
)
def test_anything_else_is_refused(contract: dict[str, str], details: Any, pointers: tuple[str, ...]) -> None:
    """By the first name that leads to no field; a name with nothing in it tells of a person, too."""
    assert _refused(contract, details) == pointers


@pytest.mark.parametrize(
    "name", [CANARY, "a" + CANARY, "Jane Doe", "a" * 41, "_a", "", "a/b", "a~1b", "a\n", "é", "\u0430ddress"]
)
def test_a_name_that_could_hold_a_number_is_not_repeated(name: str) -> None:
    """The pointer stops above it, once, wherever it stands."""
    assert _refused(EMAIL, {name: "x", name + "2": "y"}) == ("/details",)
    assert _refused(ZIP, {"address": {name: "x"}}) == ("/details/address",)
    assert _refused({f"{'a' * 40}.b": "r"}, {"a" * 40: {name: 1}}) == (f"/details/{'a' * 40}",)


def test_a_refusal_says_what_is_taken_and_why() -> None:
    """So that a page can explain itself; of a department that takes nothing, that."""
    with pytest.raises(FieldNotTaken) as refused:
        require_taken("parks", EMAIL | ZIP, {"phone": CANARY})
    assert refused.value.detail == (
        "parks takes address.zip (the issuer compares it), email (receipts are sent there),"
        " and nothing else of a person beside name and card."
    )
    with pytest.raises(FieldNotTaken) as refused:
        require_taken("parks", NONE, {"phone": CANARY})
    assert refused.value.detail == "parks takes nothing of a person beside name and card."


@pytest.mark.parametrize(
    ("contract", "consent", "pointers"),
    [
        (NONE, "I agree that the city keeps my card.", ()),
        (NONE, None, ()),
        (NONE, {}, ("/consent",)),
        (EMAIL, {"email": "a@example.org"}, ("/consent",)),
        ({"consent": "proof of what was agreed"}, {"version": 3, "ip": "192.0.2.1"}, ()),
        ({"consent.version": "which text"}, {"version": 3, "ip": "192.0.2.1"}, ("/consent/ip",)),
    ],
)
def test_a_consent_is_a_text_or_within_the_contract(
    contract: dict[str, str], consent: Any, pointers: tuple[str, ...]
) -> None:
    """An object would carry anything else past the contract."""
    if not pointers:
        require_taken("parks", contract, None, consent)
        return
    with pytest.raises(FieldNotTaken) as refused:
        require_taken("parks", contract, None, consent)
    assert refused.value.pointers == pointers
