"""Logging to stderr: plain lines on a terminal, with syslog priorities under systemd."""

from __future__ import annotations

import logging
import os

# sd-daemon(3): a "<N>" prefix gives the journal the priority of a line.
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class JournalFormatter(logging.Formatter):
    """Prefix each line with its priority; the journal has the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one or more prefixed lines."""
        priority = PRIORITIES.get(record.levelno, 6)
        text = super().format(record)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def configure_logging(level: str) -> None:
    """Send all log records to stderr, once per process."""
    handler = logging.StreamHandler()
    if os.environ.get("JOURNAL_STREAM"):  # set by systemd for processes whose stderr is its own
        handler.setFormatter(JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
        )
    logging.basicConfig(level=level, handlers=[handler], force=True)
