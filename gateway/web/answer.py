"""What a script is answered: JSON, and a part of a list."""

from collections.abc import Sequence

import msgspec
from aiohttp import web


def answer(content: object, status: int = 200) -> web.Response:
    """A body of JSON."""
    return web.Response(status=status, body=msgspec.json.encode(content), content_type="application/json")


def listed(data: Sequence[object], *, has_more: bool) -> web.Response:
    """A part of a list, and whether there is more of it."""
    return answer({"object": "list", "data": data, "has_more": has_more})


def first(data: Sequence[object], limit: int) -> web.Response:
    """The same of what was looked for with one more than `limit`."""
    return listed(data[:limit], has_more=len(data) > limit)
