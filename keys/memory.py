"""What the operating system may do with the memory of a process that holds keys."""

import ctypes
import resource
import sys

PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """No core file of this process, and no other process of its user may read its memory; root still may."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
