"""The data inventory names every place where data can be: columns, API fields, log fields."""

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import pytest

from gateway.log import FIELDS
from gateway.web.openapi import document
from tests.system import System, owner

CLASSES = {"never", "secret", "personal", "accounting", "public"}


def inventory() -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    return tomllib.loads(files("gateway").joinpath("data_inventory.toml").read_text())


def names(section: Mapping[str, Mapping[str, Any]]) -> set[tuple[str, str]]:
    return {(place, field) for place, fields in section.items() for field in fields}


def test_every_entry_has_class_retention_and_reason() -> None:
    """An entry without a class, a retention or a reason is no entry."""
    for section in inventory().values():
        for fields in section.values():
            for entry in fields.values():
                assert set(entry) == {"class", "retention", "reason"}
                assert entry["class"] in CLASSES
                assert all(entry.values())


def test_inventory_equals_the_api() -> None:
    """Every field that the API takes or gives is in the inventory, and no other."""
    schemas = document()["components"]["schemas"]
    fields = {(schema, field) for schema, content in schemas.items() for field in content["properties"]}

    assert names(inventory()["api"]) == fields


def test_inventory_equals_the_log_schema() -> None:
    """Every field that a log line may hold is in the inventory, and no other."""
    assert set(inventory()["log"]["line"]) == set(FIELDS)


def test_nothing_personal_or_secret_is_logged_or_answered() -> None:
    """Log fields are public; what is never to exist has no column; no answer holds a secret."""
    listed = inventory()
    assert {entry["class"] for entry in listed["log"]["line"].values()} == {"public"}
    columns = [entry["class"] for table in listed["database"].values() for entry in table.values()]
    assert "never" not in columns
    for schema in ("TokenObject", "ChargeObject", "CardObject", "ListObject", "Problem"):
        assert not {"secret", "never"} & {entry["class"] for entry in listed["api"][schema].values()}


@pytest.mark.server
async def test_inventory_equals_the_database(system: System) -> None:
    """Every column of every table of ours is in the inventory, and no other."""
    connection = await owner(system)
    try:
        rows = await connection.fetch(
            "SELECT table_schema || '.' || table_name AS place, column_name FROM information_schema.columns"
            " WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
        )
    finally:
        await connection.close()

    assert names(inventory()["database"]) == {(row["place"], row["column_name"]) for row in rows}


@pytest.mark.server
async def test_schema_keeps_its_rules(system: System) -> None:
    """Departments lead every key and index of a department's table, and row-level security is on."""
    connection = await owner(system)
    try:
        keys = await connection.fetch(
            "SELECT i.indrelid::regclass::text AS place, i.indisunique AS is_unique, a.attname AS first"
            " FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
            " WHERE n.nspname IN ('gateway', 'audit')"
        )
        unprotected = await connection.fetch(
            "SELECT c.oid::regclass::text AS place FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname IN ('gateway', 'audit') AND c.relkind = 'r' AND NOT c.relrowsecurity"
        )
    finally:
        await connection.close()

    reference = {
        *("gateway.departments", "gateway.key_generations", "gateway.key_manifest", "gateway.fingerprint_versions"),
        *("gateway.migrations", "gateway.denied_certificates", "gateway.imports"),
        *("gateway.staff", "gateway.staff_sessions", "gateway.sign_in_tries"),
    }
    # Who may call is read before a department is known.
    before_department = {"gateway.applications", "gateway.api_keys"}
    assert {row["place"] for row in unprotected} == reference | before_department
    # A comparison is of several departments, and seen by who sees them all.
    reference.add("gateway.reconciliations")
    leading = {row["first"] for row in keys if row["is_unique"] and row["place"] not in reference}
    assert leading == {"department_id"}
