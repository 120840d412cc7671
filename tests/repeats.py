"""How often a test repeats what it proves: a few times, or as often as before a release.

`EDGE_AGENT_THOROUGH=1 scripts/test tests/vision` asks for the latter.
"""

from __future__ import annotations

import os

IS_THOROUGH = bool(os.environ.get("EDGE_AGENT_THOROUGH"))
# Of hypothesis, where a test does not say its own number.
EXAMPLES = 200 if IS_THOROUGH else 40


def repeats(few: int, thorough: int) -> int:
    """Return the number for this run."""
    return thorough if IS_THOROUGH else few
