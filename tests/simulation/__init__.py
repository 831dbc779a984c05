"""The product's own coroutines in a simulated world, where a seed decides everything that is left to chance.

`python -m tests.simulation --seeds 2000` runs that many worlds: api processes, workers, residents who click twice, a
database that loses commits, a processor that loses everything. What is real: `gateway.services` and `gateway.rules`,
with the vault and its cipher. What is a model: the database (`memory`, which a differential test holds to
PostgreSQL), the processor (`processor`), time (`loop`) and death (`replica`).

    swarm       what a seed makes go wrong, and how badly
    city        one world, and what everybody in it shares
    storm       a whole run: storm, heal, then the question whether all of it came out right
    checker     what right means, as invariants
    coverage    what must have happened in a run of many seeds for it to count as evidence
    mutants     bugs planted in the product, to see whether any of this would notice
"""
