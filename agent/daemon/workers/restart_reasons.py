"""Why a worker was replaced by another: few words, so that they can be counted by."""

from __future__ import annotations

from typing import Literal

# crashed: it ended, by a signal, an exception or its exit. model: its model was refused, or crashed
# the runtime while loading. hang, camera_hang: a stage stood still. silent: no word of it. memory:
# it used too much. slow_start: not ready in time. not_started: the kernel gave no process.
# accelerator_back, swap: it was asked to end, so that the next one may use the accelerator again,
# or load another model where that cannot be done beside the one that runs.
RestartReason = Literal[
    "crashed",
    "model",
    "hang",
    "camera_hang",
    "silent",
    "memory",
    "slow_start",
    "not_started",
    "accelerator_back",
    "swap",
]
HANGS = frozenset[RestartReason]({"hang", "camera_hang", "silent", "slow_start"})
# It was a camera's driver, or a leak: nothing that an accelerator does.
CLEARS_ACCELERATOR = frozenset[RestartReason]({"camera_hang", "memory"})
