"""On whose behalf each command of `gateway` acts; see `keys.cli.actors`, which has those of `keys` and the check."""

from collections.abc import Mapping

from keys.cli.actors import NOBODY, Actors

OWNER: Actors = ("owner",)

ACTORS: Mapping[str, Actors] = {
    "api": ("api",),
    "worker": ("worker",),
    "admin": ("admin",),
    "stub": ("stub",),
    "reseal": ("reseal",),
    "migrate": OWNER,
    "compare": OWNER,
    "import": NOBODY,  # whoever has the API key; nothing of the gateway's own is read
    "openapi": NOBODY,
    "states": NOBODY,
    "close verify": NOBODY,
    "bench": NOBODY,  # of a gateway that serves: it starts one of its own
    "app list": OWNER,
    "app revoke": OWNER,
    # A new key's digest is made with the key of the process that will check it; so is what is sealed for staff.
    **dict.fromkeys(("app add", "app rotate"), ("owner", "api")),
    "staff add": ("owner", "keys", "admin"),
    **dict.fromkeys(("staff disable", "staff list"), OWNER),
    **dict.fromkeys(
        (f"department {verb}" for verb in ("list", "allow", "forbid", "service", "disable", "enable")), OWNER
    ),
    **dict.fromkeys((f"department {verb}" for verb in ("gl", "cutoff", "fee-cost", "show")), OWNER),
    "access report": ("owner", "keys"),
}
