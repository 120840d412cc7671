"""What the board draws at rest, as `edge-agent bench --energy` measured and kept it.

It holds for the board, the sensor and the scope it was measured with, and for nothing else. The
file may come from another board (a cloned SD card) or be damaged: then there is no baseline, which
costs the net figures and nothing more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from agent.contract.reading import Scope
from agent.durable import write_durably

BASELINE_FILE = "power-baseline.json"
MAX_FILE_BYTES = 1 << 12
# No board that an agent runs on draws as much; it keeps infinities and slips of units out.
_Watts = Annotated[float, Meta(ge=-1000.0, le=1000.0)]


class Baseline(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mean power while nothing of the agent ran, of as many seconds before as after its work."""

    schema: Literal["edge-agent/power-baseline/1"] = "edge-agent/power-baseline/1"
    board: Annotated[str, Meta(max_length=64)]  # BoardIdentity.id
    scope: Scope
    sensor: Annotated[str, Meta(max_length=200)]
    idle_w: _Watts
    drift_w: _Watts  # the rest after the work less the rest before it
    seconds: Annotated[float, Meta(gt=0, le=86400.0)]
    samples: Annotated[int, Meta(ge=2)]
    measured_at: float  # Unix seconds

    def why_not(self, board: str, scope: str, sensor: str | None) -> str | None:
        """Return why it does not hold for what measures now; None: it does."""
        for what, then, now in (
            ("board", self.board, board),
            ("scope", self.scope, scope),
            ("sensor", self.sensor, sensor or ""),
        ):
            if then != now:
                return f"the baseline is of another {what}: {then}, here it is {now}"
        return None


def read_baseline(state_dir: Path) -> tuple[Baseline | None, str | None]:
    """Return the baseline, or None and why there is none; None and None: none was measured."""
    path = state_dir / BASELINE_FILE
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            return None, f"{path} is too long to be a baseline"
        return msgspec.json.decode(content, type=Baseline), None
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{path} cannot be read: {error.strerror}"
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return None, f"{path} is damaged: {error}"


def write_baseline(state_dir: Path, baseline: Baseline) -> Path:
    """Keep a baseline for daemons that start from now on; return its file.

    Raises:
        OSError: the disk took nothing.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir / BASELINE_FILE
    write_durably(path, msgspec.json.format(msgspec.json.encode(baseline), indent=1) + b"\n")
    return path
