"""SQL lives in `.sql` files; this reads one, once, into its named queries.

A query starts at a line `-- name: <name>`; the comment lines after it say what it is for.
"""

from importlib.resources import files
from types import SimpleNamespace


def load_queries(package: str, file: str) -> SimpleNamespace:
    """The queries of a file, each an attribute."""
    text = files(package).joinpath(file).read_text(encoding="utf-8")
    queries = {}
    for part in text.split("-- name: ")[1:]:
        name, _, body = part.partition("\n")
        queries[name.strip()] = body.strip()
    return SimpleNamespace(**queries)
