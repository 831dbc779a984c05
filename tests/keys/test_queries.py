"""SQL files: every query under its name, nothing lost and nothing invented."""

import re
from importlib.resources import files

import pytest

from keys.queries import load_queries


def test_the_queries_of_the_dek_table() -> None:
    """Each `-- name:` of the file is one query: complete, closed, and without the line that names it."""
    text = files("keys").joinpath("deks.sql").read_text(encoding="utf-8")
    queries = vars(load_queries("keys", "deks.sql"))

    assert list(queries) == re.findall(r"^-- name: (\w+)$", text, re.MULTILINE)
    assert len(queries) == text.count("-- name: ") > 20
    for query in queries.values():
        assert query.endswith(";")
        assert query in text
        assert "-- name:" not in query


def test_comments_go_with_their_query() -> None:
    """What is said of a query stands before it, and never in the one before."""
    queries = load_queries("keys", "deks.sql")

    assert queries.record_seen.startswith("-- The highest manifest version")
    assert queries.seen == "SELECT version, signing_key FROM gateway.key_manifest;"


def test_a_query_that_is_not_there() -> None:
    """A name that no query has is an error at once, and so is a file that is missing."""
    with pytest.raises(AttributeError, match="drop_everything"):
        _ = load_queries("keys", "deks.sql").drop_everything
    with pytest.raises(FileNotFoundError):
        load_queries("keys", "none.sql")
