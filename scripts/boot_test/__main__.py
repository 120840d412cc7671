"""`scripts/boot-test`: tries each promise of the unit on a booted machine and prints a table."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from cases import BrokenError, Case, all_cases, memory
from machine import CannotBootError, Hierarchy, Machine, has_memory_controller
from service import Service

EXIT_SKIPPED = 77


def main() -> int:
    """Try everything; return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/boot-test", description=__doc__)
    parser.add_argument("--restarts", type=int, default=5, metavar="N", help="(default 5)")
    parser.add_argument("--only", default="", metavar="WORD", help="cases with this in their name")
    arguments = parser.parse_args()
    cases = all_cases(arguments.restarts)
    # Memory is limited by one hierarchy or the other; nothing else needs the legacy one.
    where: Hierarchy = "unified" if has_memory_controller() else "legacy"
    rows = []
    try:
        plan: list[tuple[Hierarchy, dict[str, Case]]] = [("unified", cases)]
        if where == "unified":
            cases["memory"] = memory
        else:
            plan.append((where, {"memory": memory}))
        for hierarchy, wanted in plan:
            chosen = {name: case for name, case in wanted.items() if arguments.only in name}
            if chosen:
                rows += try_all(hierarchy, chosen)
    except CannotBootError as error:
        print(f"skipped: systemd cannot be booted here: {error}", file=sys.stderr)
        return EXIT_SKIPPED
    print()
    for name, verdict, detail, took_s in rows:
        print(f"{verdict:<6} {name:<17} {took_s:6.1f} s  {detail}")
    return 1 if any(verdict != "ok" for _, verdict, _, _ in rows) else 0


def try_all(hierarchy: Hierarchy, cases: dict[str, Case]) -> list[tuple[str, str, str, float]]:
    """Boot once and try cases one after the other, each from a running service."""
    rows = []
    with Machine(hierarchy) as machine:
        version = machine.run("systemctl", "--version").stdout.splitlines()[0]
        print(f"booted {version}, {hierarchy} cgroups", flush=True)
        service = Service(machine)
        service.install()
        for name, case in cases.items():
            start = time.monotonic()
            try:
                if name != "ready" and not service.is_active:
                    service.start()
                verdict, detail = "ok", case(service)
            except (BrokenError, RuntimeError, OSError, subprocess.SubprocessError) as error:
                verdict, detail = "BROKEN", str(error)
            took_s = time.monotonic() - start
            print(f"{verdict:<6} {name} ({took_s:.1f} s): {detail}", flush=True)
            rows.append((name, verdict, detail.splitlines()[0] if detail else "", took_s))
    return rows


if __name__ == "__main__":
    sys.exit(main())
