"""One finding of `edge-agent check`."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

State = Literal["ok", "warn", "fail"]


class Check(Struct, frozen=True, kw_only=True):
    """One finding; `remedy` says what to do."""

    name: str
    state: State
    message: str
    remedy: str | None = None
