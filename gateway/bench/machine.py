"""What processes take of the machine, as the kernel counts it in /proc; with them, all that they have started."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PARENT, CPU_TIMES = 1, slice(11, 15)
"""Places in /proc/<pid>/stat behind the program's name: ppid; utime, stime, cutime and cstime (proc(5))."""


def cpu_s(roots: Iterable[int]) -> float:
    """Processor seconds of these processes and their descendants so far, ended children included."""
    stats = _stats()
    return sum(sum(map(int, stats[pid][CPU_TIMES])) for pid in _family(roots, stats)) / TICKS_PER_S


def resident_bytes(roots: Iterable[int]) -> int:
    """Memory of these processes and their descendants that lies in RAM, shared pages counted in each."""
    return sum(_resident(pid) for pid in _family(roots, _stats()))


def descriptors(pid: int) -> int | None:
    """Open files of a process; None where the kernel does not let us look (it forbids dumps, and we are not root)."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a listing, not paths
    except OSError:
        return None


def _family(roots: Iterable[int], stats: Mapping[int, Sequence[str]]) -> set[int]:
    family = set(roots) & stats.keys()
    while grown := {pid for pid, stat in stats.items() if int(stat[PARENT]) in family} - family:
        family |= grown
    return family


def _stats() -> dict[int, list[str]]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended since
                continue
    return found


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
