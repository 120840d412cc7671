"""One model for another between two frames, and back when the new one fails.

    running ──install──▶ on trial ──first good frame──▶ good ──Keep──▶ kept
       ▲                     │ its run or decoder raises   │
       └─────────────────────┴───────── or Revert ─────────┘

A `Setup` is a model and all that is of its size or speaks in its name. Each frame is given one
when it is taken from its slot and keeps it to its end, so a result is of one model whatever is
exchanged meanwhile, and no stage ever stops for it: frames under way finish with the model they
began with. The model before stays loaded until the new one has proved itself.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue

from agent.link import Ready, SwapFailed, Swapped
from agent.vision.cascade import Cascade
from agent.vision.encode import Origin
from agent.vision.engines import Tensor
from agent.vision.filter import Filter
from agent.vision.model import Model
from agent.vision.recurrent import State

log = logging.getLogger(__name__)

OUTPUT_SETS = 2
INVOKES_KEPT, INVOKES_ENOUGH = 512, 100
# A new model is said to run when no frame has come for this long: cameras may be away, files at
# their end, or nothing moves.
NO_FRAME_S = 10.0

# Looks by the heartbeat, after which frames that were under way with a model have ended as well.
LOOKS_BEFORE_TRIM = 2

Say = Callable[[Ready | Swapped | SwapFailed], None]


def give_memory_back() -> None:
    """Return what the allocator keeps of freed memory to the system; malloc_trim(3), of glibc.

    After models of 5 and 17 MB had been exchanged a worker kept 60 MiB that nothing used any more.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # 1 to 18 ms, without the interpreter
    if trim is not None:
        trim(0)


@dataclass(slots=True, kw_only=True, eq=False)
class Setup:
    """What changes as one; its queues hold the memory that goes round between the stages."""

    model: Model
    origin: Origin
    cascade: Cascade | None = None
    states: Mapping[str, State] = field(default_factory=dict)  # of a recurrent model, by camera
    # Which findings count for a camera; some remember what this very model has found before.
    keeps: Mapping[str, Filter | None] = field(default_factory=dict)
    ready: Ready | None = None  # said ahead of its first result, unless it has been said
    token: str = ""  # of the swap that brought it
    is_answered: bool = True  # that swap is, or there was none
    load_ms: float = 0.0
    hold_s: float = 0.0  # for which the one before is held after the first good frame
    is_withdrawn: bool = False  # it has failed: what it has under way is dropped
    invoke_s: deque[float] = field(default_factory=lambda: deque(maxlen=INVOKES_KEPT))
    free_tensors: SimpleQueue[Tensor] = field(default_factory=SimpleQueue)
    free_outputs: SimpleQueue[list[Tensor]] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        self.free_tensors.put(self.model.plan.new_tensor())
        for _ in range(OUTPUT_SETS):
            self.free_outputs.put(self.model.new_outputs())

    def invoke_p99_s(self) -> float | None:
        """Return the 99th percentile of the last invokes, None before there are enough."""
        times = sorted(self.invoke_s.copy())
        return times[int(len(times) * 0.99)] if len(times) >= INVOKES_ENOUGH else None


class Switch:
    """Which setup the next frame gets, and which one it falls back to.

    `current` is read for each frame without a lock; what changes it is rare.
    """

    def __init__(
        self,
        first: Setup,
        say: Say,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        trim: Callable[[], None] = give_memory_back,
    ) -> None:
        self.current = first
        self._say = say
        self._clock_ns = clock_ns
        self._trim = trim
        self._lock = threading.Lock()
        # Guarded by the lock.
        self._held: Setup | None = None  # the one before, loaded still
        self._unsaid: Setup | None = None  # the current one, while it is to be announced
        self._swapped_ns = 0
        self._hold_until_ns: int | None = None  # None: for good, or nothing is held
        self._trims_in: int | None = None  # looks; None: nothing was let go of
        self._last_done_ns: int | None = None  # of the postprocess thread

    @property
    def is_busy(self) -> bool:
        """Whether a swap has not been answered yet."""
        return not self.current.is_answered

    def install(self, setup: Setup) -> None:
        """Give this setup to all frames from the next one on; hold the one before."""
        with self._lock:
            setup.is_answered = False
            self._let_go()
            self._held, self.current = self.current, setup
            self._unsaid, self._swapped_ns = setup, self._clock_ns()

    def revert(self, token: str) -> None:
        """Go back to the setup that is held; answered when it has given a frame."""
        with self._lock:
            held = self._held
            if held is not None:
                self._back_to(held)
                held.token, held.is_answered = token, False
                held.load_ms, held.hold_s = 0.0, 0.0
        if held is None:
            self._say(SwapFailed(token=token, code="nothing_held", reason="no model is held"))

    def keep(self) -> None:
        """Let go of the setup before."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        """Forget the setup that is held; the lock is held, too."""
        if self._held is not None:
            self._held, self._trims_in = None, LOOKS_BEFORE_TRIM
        self._hold_until_ns = None

    def withdraw(self, setup: Setup, error: Exception) -> bool:
        """Go back as a setup has failed on a frame; False: there is nothing to go back to."""
        with self._lock:
            if setup.is_withdrawn:
                return True  # a frame that was under way
            held = self._held
            if held is None or setup is not self.current:
                return False
            setup.is_withdrawn = True
            self._back_to(held)
        reason = f"{type(error).__name__}: {error}"
        log.error("model failed, the one before goes on token=%s reason=%s", setup.token, reason)
        self._say(SwapFailed(token=setup.token, code="frame_failed", reason=reason[:1000]))
        return True

    def _back_to(self, held: Setup) -> None:
        was_said = self._unsaid is not self.current
        self.current, self._held, self._hold_until_ns = held, None, None
        self._trims_in = LOOKS_BEFORE_TRIM
        self._unsaid, self._swapped_ns = held if was_said else None, self._clock_ns()

    def note_good(self, setup: Setup) -> None:
        """A frame's findings are there; before its result is sent. For the postprocess thread."""
        if self._unsaid is setup:
            self._announce(setup)

    def note_done(self, setup: Setup, done_ns: int) -> None:
        """A frame's result is out, if it has one. For the postprocess thread."""
        if not setup.is_answered:
            gap_ns = None if self._last_done_ns is None else done_ns - self._last_done_ns
            self._answer(setup, gap_ns)
        self._last_done_ns = done_ns

    def check(self) -> None:
        """Do what waits for no frame; for the heartbeat's thread."""
        with self._lock:
            if self._hold_until_ns is not None and self._clock_ns() > self._hold_until_ns:
                self._let_go()
            if self._trims_in is not None:
                self._trims_in = self._trims_in - 1 if self._trims_in else None
            is_due = self._trims_in == 0
        if is_due:
            self._trim()
        setup = self.current
        if setup.is_answered or self._clock_ns() - self._swapped_ns < NO_FRAME_S * 1e9:
            return
        self._announce(setup)
        self._answer(setup, None)

    def _announce(self, setup: Setup) -> None:
        """Say which model runs from now on, once; ahead of its first result, so under the lock."""
        with self._lock:
            if self._unsaid is setup:
                self._unsaid = None
                if setup.ready is not None:
                    self._say(setup.ready)

    def _answer(self, setup: Setup, gap_ns: int | None) -> None:
        """Answer the swap that brought this setup, once."""
        with self._lock:
            if setup.is_answered or setup.is_withdrawn:
                return
            setup.is_answered = True
            if setup.hold_s > 0:
                self._hold_until_ns = self._clock_ns() + int(setup.hold_s * 1e9)
            else:
                self._let_go()
        gap_ms = None if gap_ns is None else round(gap_ns / 1e6, 1)
        identity = setup.model.identity
        log.info("model swapped name=%s sha256=%s", identity.name, identity.sha256[:12])
        self._say(Swapped(token=setup.token, model=identity, gap_ms=gap_ms, load_ms=setup.load_ms))
