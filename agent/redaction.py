"""Take secrets out of camera sources before anything shows them.

Camera URLs carry passwords, and sources appear in logs, errors and status messages. Standard
library only, so that the control process can use it. Where it is unclear what is secret, more
is hidden rather than less: an `@` anywhere behind `://` counts as the end of credentials.
"""

from __future__ import annotations

import re
import shlex

HIDDEN = "***"
# Properties and URL parameters that hold secrets: `user-pw` is rtspsrc's, `location-pw` and
# `proxy-pw` are of other GStreamer elements, `pwd` and `usr/pwd` are common in cameras' own URLs.
_NAMES = (
    r"(?:[\w-]*(?:pass|passwd|password|passphrase|pwd|token|secret|authorization|api[-_]?key)"
    r"|(?:[\w-]*[-_])?pw)"
)
# What is already hidden is left, so that a message which quotes it keeps its other words.
_ASSIGNMENT = re.compile(rf"(?i)(?<![\w-])({_NAMES})=(?!\*\*\*(?:[\s&:;,]|$))[^&]*")
_SPACED_ASSIGNMENT = re.compile(rf"(?i)(?<![\w-])({_NAMES})\s*=\s*")
_CREDENTIALS = re.compile(r"(?i)\b(?!file:)([a-z][a-z0-9+.-]*://)(.*)@", re.DOTALL)
_URL_AT_START = re.compile(r"(?i)\s*[a-z][a-z0-9+.-]*://")


def redact(source: str) -> str:
    """Return a source, or a text that quotes one, without its passwords; never raises."""
    if _URL_AT_START.match(source):
        return _redact_word(source)
    joined = _SPACED_ASSIGNMENT.sub(r"\1=", source)
    if source.startswith("gst:"):
        try:
            return " ".join(_redact_word(word) for word in shlex.split(joined))
        except ValueError:  # a quote is not closed: no telling where a value ends
            return _redact_word(joined)
    return "".join(_redact_word(part) for part in re.split(r"(\s+)", joined))


def _redact_word(word: str) -> str:
    return _ASSIGNMENT.sub(rf"\1={HIDDEN}", _CREDENTIALS.sub(_without_password, word))


def _without_password(found: re.Match[str]) -> str:
    scheme, credentials = found.groups()
    user, colon, _ = credentials.partition(":")
    # A single word before the @ may be a token, so it is hidden whole.
    return f"{scheme}{user}:{HIDDEN}@" if colon else f"{scheme}{HIDDEN}@"
