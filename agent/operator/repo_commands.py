"""`edge-agent repo …`: what each command reads, shows and writes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from agent.errors import EXIT_FAILURE, EXIT_OK, UnavailableError
from agent.operator import repo, repo_status, rotation
from agent.operator.bundles import examine
from agent.operator.changes import Write, apply, locked
from agent.operator.keys import KeyRing, name_of, new_passphrase, passphrases_from
from agent.operator.metadata import Repository, read_repository, require_repository
from agent.operator.repo_status import RepositoryStatus
from agent.operator.show import Cell, print_json, print_table, progress, say, size_text

Signed = tuple[list[Write], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What all the commands are told."""

    folder: Path
    keys: Sequence[Path]
    passphrase_file: Path | None
    dry_run: bool
    as_json: bool
    now: datetime | None = None

    @property
    def at(self) -> datetime:
        """Return the time that metadata are made at."""
        return (self.now or datetime.now(timezone.utc)).replace(microsecond=0)

    def ring(self) -> KeyRing:
        """Return the folders with keys."""
        return KeyRing(self.keys, passphrases_from(self.passphrase_file))


def run_init(call: Call, *, with_passphrase: bool) -> int:
    """Make a repository and its keys."""
    if len(call.keys) != 1:
        raise UnavailableError("repo init: name one folder for the new keys by --keys")
    is_locked = with_passphrase or call.passphrase_file is not None
    passphrase = new_passphrase(call.passphrase_file) if is_locked else None
    folder, keys = call.folder, call.keys[0]
    writes, made = repo.init(folder, keys, passphrase, call.at)
    names = ", ".join(f"{key.name}.key" for key in made)
    notes = [
        f"keys: {names} in {keys}",
        "take root-1, root-2 and root-3 to three places that are not this computer; two of them"
        " are needed again in two years, or when a key is lost",
        f"copy {folder / 'metadata' / '1.root.json'} to every board as /etc/edge-agent/root.json",
        "a daily `edge-agent repo refresh` keeps it fresh: systemd/repository/README.md",
    ]
    return _finish(call, (writes, notes), "init")


def run_publish(call: Call, path: Path, *, channel: str | None) -> int:
    """Examine a bundle and publish it."""
    bundle = examine(path)

    def publish(repository: Repository) -> Signed:
        return repo.publish(repository, bundle, call.ring(), call.at, channel)

    return _change(call, "publish", publish)


def run_promote(call: Call, *, name: str, version: str, channel: str) -> int:
    """Make a channel mean a version."""

    def promote(repository: Repository) -> Signed:
        meant = repo.resolve(repository.targets, name, version)
        return repo.promote(repository, name, meant, channel, call.ring(), call.at)

    return _change(call, "promote", promote)


def run_refresh(call: Call, *, also: Sequence[str]) -> int:
    """Sign timestamp and snapshot anew, and more if it is asked for."""
    return _change(
        call, "refresh", lambda repository: repo.refresh(repository, call.ring(), call.at, also)
    )


def run_rotate(
    call: Call,
    *,
    role: rotation.KeyRole,
    replace: Sequence[str],
    new_keys: Path | None,
    with_passphrase: bool,
) -> int:
    """Replace keys of a role."""
    if not call.keys:
        raise UnavailableError("repo rotate-keys: name the folders of the root keys by --keys")
    is_locked = (with_passphrase or call.passphrase_file is not None) and role != "online"
    passphrase = new_passphrase(call.passphrase_file) if is_locked else None
    into = new_keys or call.keys[0]

    def rotate(repository: Repository) -> Signed:
        planned = rotation.plan(repository, role, replace, passphrase)
        writes, notes = rotation.rotate(repository, planned, call.ring(), into, call.at)
        came = ", ".join(f"{key.name}.key" for key in planned.coming)
        went = ", ".join(name_of(key) for key in planned.going)
        return writes, [f"{came} in {into}; no longer used: {went}", *notes]

    return _change(call, "rotate-keys", rotate)


def run_status(call: Call, *, verify: bool) -> int:
    """Show how a repository fares; 1 if boards would refuse anything of it."""
    repository = read_repository(call.folder)
    if verify:
        total = sum(target.length for target in repository.targets.signed.targets.values())
        with progress("verify", total) as on_bytes:
            status = repo_status.status_of(repository, call.ring(), call.at, on_bytes)
    else:
        status = repo_status.status_of(repository, call.ring(), call.at, None)
    if call.as_json:
        print_json(status)
    else:
        _print_status(status)
    return EXIT_OK if status.ok else EXIT_FAILURE


def _change(call: Call, what: str, work: Callable[[Repository], Signed]) -> int:
    """Read, sign and write while no other command does; a dry run leaves not even the lock."""
    with contextlib.nullcontext() if call.dry_run else locked(_existing(call.folder)):
        return _finish(call, work(read_repository(call.folder)), what)


def _finish(call: Call, signed: Signed, what: str) -> int:
    writes, notes = signed
    if not call.dry_run:
        with progress(what, sum(write.size for write in writes)) as on_bytes:
            apply(writes, on_bytes)
    if call.as_json:
        files = [
            {"path": str(write.path), "bytes": write.size, "what": write.says} for write in writes
        ]
        print_json({"dry_run": call.dry_run, "written": files, "notes": notes})
        return EXIT_OK
    if writes:
        print_table(
            ("would write" if call.dry_run else "written", "size", ""),
            [(str(write.path), size_text(write.size), write.says) for write in writes],
        )
    for note in notes:
        say(note)
    if call.dry_run:
        say("a dry run: nothing was changed")
    return EXIT_OK


def _existing(folder: Path) -> Path:
    """Return a folder that is a repository: no other one gets a lock."""
    if not folder.is_dir():
        raise UnavailableError(f"{folder}: is not a folder")
    require_repository(folder)
    return folder


def _print_status(status: RepositoryStatus) -> None:
    soon = {line.split()[0] for line in status.soon}
    print_table(
        ("role", "version", "days left", "signed", "keys (* their file is here)"),
        [
            (
                role.role,
                "-" if role.version is None else str(role.version),
                _days(role.days_left, is_soon=role.role in soon),
                Cell(
                    f"{sum(key.signed for key in role.keys)} of {len(role.keys)},"
                    f" needs {role.threshold}",
                    "" if role.is_met else "bad",
                ),
                " ".join(f"{key.name}{'*' * key.here}" for key in role.keys),
            )
            for role in status.roles
        ],
    )
    print()
    print_table(
        ("model", "release", "floor", "channels", "boards", "size", "file"),
        [
            (
                Cell(f"{model.name}@{model.version}"),
                str(model.release_counter),
                str(model.security_floor),
                Cell(" ".join(model.channels) or "-"),
                Cell(" ".join(model.boards) or "all"),
                size_text(model.size),
                Cell(model.file, "" if model.file == "present" else "bad"),
            )
            for model in status.models
        ],
    )
    print()
    for line in [*status.problems, *status.soon]:
        print(line)
    if status.ok:
        print("boards take it")


def _days(left: float | None, *, is_soon: bool) -> Cell:
    if left is None:
        return Cell("-")
    return Cell(f"{left:.0f}", "bad" if left <= 0 else "busy" if is_soon else "good")
