"""The two kinds of failure of the spool: damage, and a disk that does not serve now."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

# SQLITE_ERROR covers a lost table as well as a passing fault; sqlite3 gives codes from Python
# 3.11 on only.
_DAMAGED_WORDS = ("no such", "malformed", "unsupported file format", "has no column")


class SpoolDamagedError(Exception):
    """The database cannot be used any more; the text says how that shows."""


class SpoolUnavailableError(Exception):
    """The disk does not let the database be used now; the text says why."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn what sqlite3 and the file system raise into the two kinds that matter."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if any(word in str(error) for word in _DAMAGED_WORDS):
            raise SpoolDamagedError(str(error)) from error
        raise SpoolUnavailableError(str(error)) from error
    except sqlite3.Error as error:
        raise SpoolDamagedError(str(error) or repr(error)) from error
    except OSError as error:
        raise SpoolUnavailableError(error.strerror or str(error)) from error
    except (OverflowError, ValueError, TypeError) as error:
        # A value that only damage can have put there: a number beyond 64 bits, another type.
        raise SpoolDamagedError(f"a value in it is impossible: {error}") from error
