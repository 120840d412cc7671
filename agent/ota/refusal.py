"""Why a board does not take a model: a code for programs, a sentence for people.

The codes are what `model/reported` says, so they are part of the contract.
"""

from __future__ import annotations

import errno
from typing import Literal

from agent.errors import AgentError

Code = Literal[
    "E_BUDGET",  # slower or larger than its manifest allows on this board
    "E_BUNDLE",  # the file is no bundle, or not as strictly as it must be one
    "E_CLOCK",  # nothing vouches for the time, so nothing for how fresh the repository is
    "E_COMPAT",  # for other boards, or a newer agent
    "E_CONFLICT",  # a version that is known here, with other content
    "E_CRASH",  # of the process that ran it
    "E_DENIED",  # was rolled back here before, under the same deployment id
    "E_DESIRED",  # the order makes no sense
    "E_DISABLED",  # by this board's own settings
    "E_ENGINE",  # for a model that this board does not have
    "E_FRAME",  # its run or its decoder failed on a frame of this board
    "E_FREEZE",  # the repository's word has expired
    "E_GOLDEN",  # other answers than its manifest promises
    "E_HANG",
    "E_HASH",  # other bytes than were promised
    "E_JSON",  # not strict JSON, or not of the expected form
    "E_LOOP",  # too many steps for one order
    "E_MEMORY",  # needs more than there is, or ever more
    "E_NAN",  # gives no numbers
    "E_NET",
    "E_PINNED",  # a group's, on a board that does not listen to groups
    "E_RECALLED",  # by an order, while it was on trial
    "E_REPLAY",  # an order that is older than the last one
    "E_ROLLBACK",  # older than what this board has seen
    "E_SELFTEST",
    "E_SIG",  # not signed by whom this board trusts
    "E_SIZE",  # more than was promised, or more than anything may be
    "E_SLOW",  # the repository, or what lies between
    "E_SPACE",
    "E_SYSTEM",  # the kernel did not do what it was asked to
    "E_UNPROVEN",  # could not show for so long that it works, through no fault of its own
]
# What may be otherwise tomorrow without anybody changing the order or the repository's targets.
PASSING: frozenset[Code] = frozenset(
    {"E_CLOCK", "E_FREEZE", "E_NET", "E_SLOW", "E_SPACE", "E_SYSTEM"}
)

MOST_CHARACTERS = 1000


class RefusalError(AgentError):
    """Something that was to be installed is not; what runs goes on running.

    code: what `model/reported` says
    is_final: whether trying again without another order is of no use; by default, of the code
    """

    def __init__(self, code: Code, message: str, *, is_final: bool | None = None) -> None:
        # It may quote what came from outside, and goes to logs, terminals and the broker.
        shown = "".join(
            each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in message
        )
        super().__init__(shown if len(shown) <= MOST_CHARACTERS else f"{shown[:MOST_CHARACTERS]}…")
        self.code: Code = code
        self.is_final = code not in PASSING if is_final is None else is_final


def of_disk(error: OSError, where: str) -> RefusalError:
    """Return what an error of the disk means; all of it may pass."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RefusalError("E_SPACE", f"{where}: the disk is full")
    return RefusalError("E_SYSTEM", f"{where}: {error.strerror or error}")
