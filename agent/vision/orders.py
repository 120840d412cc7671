"""What the parent asks of a worker whose model runs: another model, the one before, some frames.

Nothing here waits: a model is loaded by a thread of its own, one at a time, while frames flow.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from agent.errors import ModelError
from agent.link import FromWorker, Keep, LendFrames, Lent, Revert, Swap, SwapFailed
from agent.vision.assemble import Assembly
from agent.vision.lending import Lender
from agent.vision.pipeline import Pipeline

log = logging.getLogger(__name__)

MOST_CHARACTERS = 1000

Order = Swap | Revert | Keep | LendFrames


class Orders:
    """For the thread that listens to the parent; `look_after` for the heartbeat's.

    say: a message to the parent, and a descriptor to go with it
    """

    def __init__(
        self,
        pipeline: Pipeline,
        assembly: Assembly,
        say: Callable[[FromWorker, int | None], None],
    ) -> None:
        self._pipeline = pipeline
        self._assembly = assembly
        self._say = say
        self._lock = threading.Lock()
        self._is_loading = False  # a model that is not installed yet; guarded by the lock

    def obey(self, order: Order) -> None:
        """Do what is asked, or say why not."""
        match order:
            case Swap():
                self._swap(order)
            case Revert():
                self._revert(order)
            case Keep():
                self._pipeline.switch.keep()
            case LendFrames():
                self._lend(order)

    def look_after(self) -> None:
        """End what waits for frames that do not come."""
        self._pipeline.switch.check()
        lender = self._pipeline.lender
        if lender is not None:
            lender.check()

    def _lend(self, order: LendFrames) -> None:
        """Lend the next frames; one loan at a time."""
        lender = self._pipeline.lender
        if lender is not None and not lender.is_over:
            self._say(Lent(token=order.token, frames=0, size=0), None)
        else:
            self._pipeline.lender = Lender(order, self._say)

    def _revert(self, order: Revert) -> None:
        with self._lock:
            is_loading = self._is_loading
        if is_loading:  # it would take the place of what was gone back to
            self._refuse(order.token)
        else:
            self._pipeline.switch.revert(order.token)

    def _swap(self, swap: Swap) -> None:
        with self._lock:
            is_busy = self._is_loading or self._pipeline.switch.is_busy
            self._is_loading |= not is_busy
        if is_busy:
            self._refuse(swap.token)
            return
        threading.Thread(target=self._load, args=(swap,), name="agent.swap", daemon=True).start()

    def _refuse(self, token: str) -> None:
        self._say(SwapFailed(token=token, code="busy", reason="another swap is under way"), None)

    def _load(self, swap: Swap) -> None:
        try:
            setup = self._assembly.replacement(swap)
        except Exception as error:  # whatever it is, the model that runs goes on
            reason = str(error)
            if not isinstance(error, ModelError):
                log.exception("model not swapped token=%s", swap.token)
                reason = f"{type(error).__name__}: {error}"
            with self._lock:
                self._is_loading = False
            failed = SwapFailed(token=swap.token, code="refused", reason=reason[:MOST_CHARACTERS])
            self._say(failed, None)
            return
        with self._lock:  # so that it is never neither being loaded nor to be answered
            self._pipeline.switch.install(setup)
            self._is_loading = False


def decline(order: Order, say: Callable[[FromWorker], None]) -> None:
    """Answer before any model runs."""
    reason = "no model runs yet"
    match order:
        case Swap():
            say(SwapFailed(token=order.token, code="busy", reason=reason))
        case Revert():
            say(SwapFailed(token=order.token, code="nothing_held", reason=reason))
        case LendFrames():
            say(Lent(token=order.token, frames=0, size=0))
        case Keep():
            pass
