"""The simulation's city on real ground: PostgreSQL, its driver, SQL and schema, TLS, and a clock that really passes.

`python -m tests.waters --seeds 300` runs that many seeds, several at a time, each in departments of its own. The
residents, their swarm of faults and the invariants are the simulation's (`tests.simulation`). What was a model there
is real here: the store with its pools, and the processor's double behind TLS. Replicas still live in one process, so
that they die and sleep at any named point. Two kinds of errors are looked for that no model shows: those of SQL,
isolation, driver and pool, and those of the model itself.

What a seed decides is the schedule: at the nth occasion of a kind at a place, does a fault strike. Which request
meets that occasion, it does not decide. So a seed that failed prints its tape, and fails again in some of the runs
that it is given.

    tempo      the product's times, twenty times as fast
    weather    what a seed makes go wrong
    chance     the schedule, and the tape
    strait     what lies between a replica and PostgreSQL, and breaks at a COMMIT
    harbour    what all seeds share: server, keys, certificate
    replica    an api process or a worker, and what is seen of its work
    far        the processor's double and its own truth
    city       one seed: what everybody in it shares
    evidence   tables and truth, in the shapes that the checker judges
    voyage     a whole run: storm, heal, verdict
    coverage   what must have happened for a run of many seeds to count
    mutants    bugs planted where the simulation has models, to see whether any of this would notice
"""
