"""Take secrets out of camera sources before anything shows them.

Camera URLs carry passwords, and sources appear in logs, errors and status messages. Standard
library only, so that the control process can use it. Where it is unclear what is secret, more
is hidden rather than less: an `@` anywhere behind `://` counts as the end of credentials, and
of a URL's query only the values of parameters that are known to be harmless are shown.
"""

from __future__ import annotations

import re
import shlex

HIDDEN = "***"
# Query parameters that choose a stream (Dahua, Hikvision, Axis, mjpg-streamer) and hold no secret.
HARMLESS = frozenset(
    ("channel", "subtype", "stream", "resolution", "fps", "action", "width", "height")
)
# Properties and URL parameters that hold secrets: `user-pw` is rtspsrc's, `location-pw` and
# `proxy-pw` are of other GStreamer elements, `pwd` and `usr/pwd` are common in cameras' own URLs.
_NAMES = (
    r"(?:[\w-]*(?:pass|passwd|password|passphrase|pwd|token|secret|authorization|api[-_]?key)"
    r"|(?:[\w-]*[-_])?pw)"
)
# Only these separate words (`a`): a no-break space is as good a part of a password as any other.
_SPACE = re.compile(r"(?a)(\s+)")
# Where a message goes on after a source that it quotes.
_MARKS = r"[:;,.!\"')\]]{1,2}"
# What is already hidden is left, so that a message which quotes it keeps its other words.
_ASSIGNMENT = re.compile(rf"(?ai)(?<![\w-])({_NAMES})=(?!\*\*\*(?:{_MARKS})?(?:[\s&]|$))[^&]*")
_SPACED_ASSIGNMENT = re.compile(rf"(?ai)(?<![\w-])({_NAMES})\s*=\s*")
_CREDENTIALS = re.compile(
    rf"(?ai)\b(?!file:)([a-z][a-z0-9+.-]*://)(.*)@((?:(?!{_MARKS}\s)[^&])*)", re.DOTALL
)
_URL_AT_START = re.compile(r"(?ai)\s*[a-z][a-z0-9+.-]*://")
_TO_QUERY = re.compile(rf"(?ai)\b(?!file:)[a-z][a-z0-9+.-]*://(?:(?!{_MARKS}\s)[^?])*\?")
_SHOWABLE = re.compile(rf"(?a)(?:([^=&]*)=)?(\*\*\*|[\w.-]{{1,20}})(&|(?={_MARKS}\s)|{_MARKS}$|$)")


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
    return "".join(_redact_word(part) for part in _SPACE.split(joined))


def _redact_word(word: str) -> str:
    shown = _hide_queries(_CREDENTIALS.sub(_without_password, word))
    return _ASSIGNMENT.sub(rf"\1={HIDDEN}", shown)


def _without_password(found: re.Match[str]) -> str:
    scheme, credentials, rest = found.groups()
    if "?" in credentials:  # or the @ is in a query, and what follows belongs to a value there
        return f"{scheme}{HIDDEN}@{HIDDEN}"
    user, colon, _ = credentials.partition(":")
    # A single word before the @ may be a token, so it is hidden whole.
    return f"{scheme}{user}:{HIDDEN}@{rest}" if colon else f"{scheme}{HIDDEN}@{rest}"


def _hide_queries(text: str) -> str:
    """Hide the values in the queries of all URLs in `text`, which may go on as a message."""
    shown = []
    while found := _TO_QUERY.search(text):
        parameters, rest = _hide_values(text[found.end() :])
        shown += [text[: found.end()], parameters]
        text = rest
    return "".join([*shown, text])


def _hide_values(query: str) -> tuple[str, str]:
    """Return the parameters with their values hidden, and the message behind them."""
    shown = []
    while query:
        known = _SHOWABLE.match(query)
        if known and (known[2] == HIDDEN or (known[1] or "").lower() in HARMLESS):
            shown.append(known[0])
            query = query[known.end() :]
            if known[3] != "&":
                break
            continue
        parameter, ampersand, query = query.partition("&")
        name, _, value = parameter.partition("=")
        # Without a value it may be a token; one in base64 ends with an equals sign or two.
        shown.append((f"{name}=" if value.strip("=") else "") + HIDDEN + ampersand)
    return "".join(shown), query
