"""What time it is for signatures: a repository's word expires, so it takes a clock to believe it.

A slow clock believes what expired long ago (a freeze attack), a fast one nothing at all. So there
is a floor: the latest time at which a trusted clock and a repository that was valid then agreed.
It never goes back, and it is never ahead of what the repository itself vouched for: a clock that
is years ahead finds everything expired, agrees with nothing and leaves the floor where it is.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from agent.ota.refusal import RefusalError

# A time server is asked for soon after the start; who has none by then has none.
WAITS_S = 600.0
# 2026-11-01: nothing of this program ran before. A board without a battery starts years earlier.
NOT_BEFORE = 1_793_491_200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """The time to judge a repository by.

    at: Unix seconds
    is_trusted: whether something vouched for it; None where nobody will say. Only a trusted one
        raises the floor.
    """

    at: float
    is_trusted: bool | None


def decide(
    *, now: float, is_synced: bool | None, floor: float, waited_s: float, allow_floor: bool
) -> Time | None:
    """Return the time to judge a repository by, or None: wait, and ask again.

    Args:
        now: what the wall clock says, Unix seconds.
        is_synced: whether it is to be believed: `agent.sensors.clock.read_clock_synced`.
        floor: `Floors.time`.
        waited_s: for how long the clock has been waited for, on the monotonic clock.
        allow_floor: whether an unset clock will do in the end: see `is_local`.

    Raises:
        RefusalError: E_CLOCK, the clock was waited for long enough and may not be done without.
    """
    at = max(now, floor, NOT_BEFORE)
    if is_synced is not False:
        # Where nobody will say, as with another time service than systemd's in a sandbox, most
        # clocks are right; never to update would be worse than to be late for a freeze.
        return Time(at=at, is_trusted=is_synced)
    if waited_s < WAITS_S:
        return None
    if allow_floor:
        return Time(at=at, is_trusted=False)
    raise RefusalError(
        "E_CLOCK", f"the clock was not set within {WAITS_S:.0f} s; this board needs a time server"
    )


def is_local(url: str) -> bool:
    """Return whether a repository is on this board or its own network.

    Who serves such a one needs no internet, so there may be no time server either.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return True
    host = parts.hostname or ""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_private
    except ValueError:
        # RFC 6762 (.local), RFC 8375 (.home.arpa); a name without a dot is the network's own.
        return bool(host) and ("." not in host or host.endswith((".local", ".home.arpa")))
