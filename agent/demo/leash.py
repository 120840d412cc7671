"""A child on a leash: `python leash.py PARENT_PID COMMAND…` becomes COMMAND.

The kernel sends it SIGTERM when the parent dies, even by SIGKILL, so that no broker is left
behind on a board. Run as a file and with nothing of the agent imported, as it stands in the
way of every start.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; kept across execve(2) of ordinary programs


def main() -> None:
    """Fasten the leash, then become the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the leash was on
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - the command is the parent's own


main()
