"""Whether a bundle is for this board and this program: asked before a byte of it is fetched."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from agent.contract.updates import Floors
from agent.ota.jobs import Custom
from agent.ota.refusal import RefusalError

_NUMBERS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,5}")


def is_at_least(version: str, wanted: str) -> bool | None:
    """Return whether a version of this program is another one or later; None: not comparable.

    By the leading numbers: what follows them (`.dev3`, `rc1`, `+local`) counts as that release.
    """
    found, least = _NUMBERS.match(version), _NUMBERS.match(wanted)
    if found is None or least is None:
        return None
    have = [int(part) for part in found[0].split(".")]
    need = [int(part) for part in least[0].split(".")]
    width = max(len(have), len(need))
    return have + [0] * (width - len(have)) >= need + [0] * (width - len(need))


def is_for_board(boards: list[str] | tuple[str, ...], board: str) -> bool:
    """Return whether globs name a board; none at all name every board."""
    return not boards or any(fnmatchcase(board, glob) for glob in boards)


def require_fit(custom: Custom, *, board: str, agent: str, floors: Floors) -> None:
    """Check what was signed of a bundle against this board.

    Raises:
        RefusalError: E_COMPAT, or E_ROLLBACK for what is below the security floor; both are final.
    """
    title = f"{custom.name}@{custom.version}"
    if not is_for_board(custom.boards, board):
        names = ", ".join(custom.boards)
        raise RefusalError("E_COMPAT", f"{title} is for {names[:200]}; this is {board}")
    if custom.min_agent is not None and not is_at_least(agent, custom.min_agent):
        raise RefusalError(
            "E_COMPAT", f"{title} needs edge-agent {custom.min_agent}; this is {agent}"
        )
    if custom.security_floor > custom.release_counter:
        raise RefusalError("E_COMPAT", f"{title}: security_floor is above its release_counter")
    if custom.release_counter < floors.security_floor:
        raise RefusalError(
            "E_ROLLBACK",
            f"{title} is release {custom.release_counter}; this board takes none before "
            f"{floors.security_floor}",
        )
