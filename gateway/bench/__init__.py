"""`gateway bench`: the gateway beside its yardsticks, in turn, on one machine; what counts are ratios of one run.

A whole system is started in a folder that is removed at the end; nothing here meets a gateway that serves, and
nothing of the product but the command imports this package.

    system certificates machine     what is started, with which certificates, and what it takes of the machine
    load pages demand               generators of load (processes of their own): lean, and aiohttp; what they send
    yardsticks processor openbao    the servers to compare with, and the far side of a charge (processes, too)
    rows rewrap                     what is compared inside PostgreSQL: COPY, the bare loop
    course growth soak              rounds of windows; the same at several sizes; the same for a long time
    layers without                  the same with each safety layer and without it; the api without one (a process)
    profile                         where the CPU time of a token goes, the api being watched (a process)
    report plot                     ratios, targets, spread; a drawing of them
"""
