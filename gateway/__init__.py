"""The gateway: takes a card, hands back a token, charges it, and can say what happened.

    rules      the laws of the house: cards, money, charges, access; pure
    services   one use case a file; know ports, not sockets or databases
    store      PostgreSQL, and nothing else
    processor  the far side, and its double
    web        HTTP in, HTTP out
    the rest   the frame: settings, log, metrics, the embedded database, wiring, commands

Arrows go inward only: web and adapters know services, services know rules, rules know nobody.
"""
