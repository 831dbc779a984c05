"""The card processor's double: the far side of every charge, as a server process of its own.

It knows nothing of the gateway (it imports nothing outside this package) and remembers on its own disk, so
that what it shows is a second opinion about every cent. `protocol` is what goes over the wire, `judgement` what
is allowed, `book` what is remembered, `acquirer` what is done, `faults` what goes wrong and when, `later` what
arrives after its time; `settlement` and `deposits` are finance's files, `discrepancies` what is planted in them;
`door`, `exchange`, `wire` and `control` are HTTP; `server` puts them together.
"""
