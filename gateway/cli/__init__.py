"""The command line; see `gateway.cli.main`.

SIGHUP asks a running `gateway api` to renew its workers, and would end one that has not come so far. So it is ignored
from here on, before the commands are imported, which takes its time: what it announces is read after that anyway.
"""

import signal
import sys

if sys.argv[1:2] == ["api"]:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
