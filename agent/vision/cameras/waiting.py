"""Time limits for calls that have none: such a call runs in a thread that may be left behind.

Name servers, drivers and libraries can keep a call for ever, and nothing ends a thread from
outside; but whoever asked need not wait with it.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from agent.redaction import redact

CLOSE_LIMIT_S = 2.0

T = TypeVar("T")
Closing = threading.Thread  # one that is in a library's close, and may be there for ever
_log = logging.getLogger(__name__)


def finish_in_time(
    work: Callable[[], T],
    limit_s: float,
    *,
    name: str,
    discard: Callable[[T], object] = lambda _: None,
) -> T:
    """Return what `work` returns, or raise what it raises, but wait no longer than `limit_s`.

    `discard` is given a result that comes later, in the thread called `name`.

    Raises:
        TimeoutError: it takes longer.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # for the thread that asked
            future.set_exception(error)

    def discard_late(late: concurrent.futures.Future[T]) -> None:
        if late.exception() is None:
            discard(late.result())

    threading.Thread(target=run, name=name, daemon=True).start()
    concurrent.futures.wait([future], limit_s)
    if future.done():
        return future.result()
    future.add_done_callback(discard_late)
    raise TimeoutError


def close_in_time(what: str, close: Callable[[], None]) -> Closing | None:
    """Run a library's own close, but no longer than CLOSE_LIMIT_S; whatever it raises is logged.

    Some wait for ever on hardware that went away; such a thread is left behind, and returned.
    """

    def run() -> None:
        try:
            close()
        except Exception as error:  # foreign, and nothing can be done about it
            _log.warning("camera close failed camera=%s reason=%s", what, redact(str(error)))

    thread = threading.Thread(target=run, name="agent.camera-close", daemon=True)
    thread.start()
    thread.join(CLOSE_LIMIT_S)
    if not thread.is_alive():
        return None
    _log.warning("camera does not close camera=%s waited_s=%g", what, CLOSE_LIMIT_S)
    return thread
