"""How findings are shown, and the exit code they make."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from agent.doctor.check import Check
from agent.errors import EXIT_CONFIG, EXIT_OK, EXIT_UNAVAILABLE
from agent.redaction import redact

COLORS = {"ok": "\033[32m", "warn": "\033[33m", "fail": "\033[31m"}


class Report(Struct, frozen=True, kw_only=True):
    """The document that `--json` prints."""

    ok: bool
    checks: list[Check]


def report(findings: Iterable[Check], *, as_json: bool) -> int:
    """Print each finding as soon as it is there; return the exit code of all."""
    checks = []
    for found in findings:
        # Once more for all: messages of libraries may quote what they were given.
        check = msgspec.structs.replace(found, message=redact(found.message))
        checks.append(check)
        if not as_json:
            _print(check, is_colored=sys.stdout.isatty())
    failed = [check.name for check in checks if check.state == "fail"]
    if as_json:
        document = msgspec.json.encode(Report(ok=not failed, checks=checks))
        print(msgspec.json.format(document, indent=2).decode())
    else:
        print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "nothing failed")
    if "config" in failed:
        return EXIT_CONFIG
    return EXIT_UNAVAILABLE if failed else EXIT_OK


def _print(check: Check, *, is_colored: bool) -> None:
    state = f"{check.state:<4}"
    if is_colored:
        state = f"{COLORS[check.state]}{state}\033[0m"
    first, *rest = check.message.splitlines() or [""]
    print(f"{state}  {check.name:<16} {first}")
    for line in [*rest, *([f"→ {check.remedy}"] if check.remedy else [])]:
        print(f"{'':<22} {line}")
    sys.stdout.flush()
