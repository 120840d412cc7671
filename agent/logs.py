"""Logging to stderr: plain lines on a terminal, with syslog priorities under systemd.

Under systemd an uncaught exception is logged as well: its traceback would otherwise reach the
journal line by line as mere information.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from types import TracebackType

# sd-daemon(3): a "<N>" prefix gives the journal the priority of a line. Levels in between, which
# libraries may have, take that of the next lower one named here.
PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
DEBUG_PRIORITY = 7


class JournalFormatter(logging.Formatter):
    """Prefix each line with its priority; the journal has the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one or more prefixed lines."""
        priority = next((say for least, say in PRIORITIES if record.levelno >= least), None)
        prefix = f"<{DEBUG_PRIORITY if priority is None else priority}>"
        lines = super().format(record).splitlines() or [""]
        return "\n".join(prefix + line for line in lines)


def configure_logging(level: str | int) -> None:
    """Send all log records to stderr, once per process."""
    handler = logging.StreamHandler()
    if _is_journal():
        handler.setFormatter(JournalFormatter("%(name)s: %(message)s"))
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
        )
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _is_journal() -> bool:
    """Return whether stderr is the journal's: systemd.exec(5), JOURNAL_STREAM.

    The variable says which device and inode the journal is. Children inherit it, though their
    stderr may lead elsewhere.
    """
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or replaced by what is no file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("agent").critical("uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(uncaught: threading.ExceptHookArgs) -> None:
    if issubclass(uncaught.exc_type, SystemExit):  # ends its thread and is no fault
        return
    name = uncaught.thread.name if uncaught.thread else "?"
    error = uncaught.exc_value or uncaught.exc_type()
    logging.getLogger("agent").critical(
        "uncaught exception thread=%s",
        name,
        exc_info=(uncaught.exc_type, error, uncaught.exc_traceback),
    )
