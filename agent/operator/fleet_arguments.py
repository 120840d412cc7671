"""The command lines of `edge-agent fleet`; what they run is imported then."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import UsageError
from agent.operator.arguments import above_zero, extra, model, word
from agent.operator.broker_arguments import FindConfig, add_broker, broker_of
from agent.operator.shares import parse_share, parse_waves

if TYPE_CHECKING:
    from agent.operator.arguments import Commands
    from agent.operator.fleet_commands import Look
    from agent.operator.rollout_commands import How, Which

HALT_ON = "2%"
WAVES = "1,10%,100%"


def add_fleet(commands: Commands, find_config: FindConfig) -> None:
    """Add the command; `find_config` loads the named configuration, else the default one."""
    parser = commands.add_parser("fleet", help="see all boards, and ask them for models")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_looks(actions)
    rollout = _action(actions, "rollout", _rollout, "ask boards for a model, wave by wave")
    rollout.add_argument("model", nargs="?", type=model, metavar="NAME@VERSION")
    _add_which(rollout)
    rollout.add_argument(
        "--repo", type=Path, metavar="DIR",
        help="the repository: the model must be there, and VERSION may be a channel",
    )  # fmt: skip
    rollout.add_argument(
        "--waves", type=_waves, default=_waves(WAVES), metavar="LIST",
        help=f"boards or shares, each with those before it (default {WAVES})".replace("%", "%%"),
    )  # fmt: skip
    rollout.add_argument(
        "--halt-on", type=_share, default=_share(HALT_ON), metavar="SHARE",
        help=f"of the boards asked so far that went wrong (default {HALT_ON})".replace("%", "%%"),
    )  # fmt: skip
    rollout.add_argument(
        "--resume",
        nargs="?",
        type=_id,
        const="",
        metavar="ID",
        help="go on with one that was interrupted",
    )
    _add_how(rollout)
    rollback = _action(actions, "rollback", _rollback, "ask boards for what they ran before")
    _add_which(rollback)
    rollback.add_argument(
        "--rollout", type=_id, default="", metavar="ID", help="the boards of a rollout"
    )
    rollback.add_argument(
        "--factory", action="store_true", help="to the model that their settings name"
    )
    _add_how(rollback)
    for name, command, says in (
        ("pin", _pin, "keep boards on a model, whatever their groups are asked for"),
        ("unpin", _unpin, "let boards follow their groups again"),
    ):
        pin = _action(actions, name, command, says)
        pin.add_argument("devices", nargs="+", type=word, metavar="BOARD")
        pin.add_argument(
            "--model", type=model, metavar="NAME@VERSION", help="(default: what runs there)"
        )
        pin.add_argument("--engine", default="", metavar="NAME", help="in [models]")
        pin.add_argument("--dry-run", action="store_true", help="say it, and change nothing")
    for action in actions.choices.values():
        add_broker(action, find_config)


def _add_looks(actions: Commands) -> None:
    found = _action(actions, "list", _list, "all boards: model, update, latency, power, health")
    found.add_argument(
        "--wait", type=_seconds, default=12.0, metavar="S",
        help="for telemetry, which is not retained (default 12; 0: at once, without it)",
    )  # fmt: skip
    watch = _action(actions, "watch", _watch, "the same, live, until Ctrl-C")
    watch.add_argument("--seconds", type=_seconds, metavar="S", help="and no longer than this")
    for parser in (found, watch):
        parser.add_argument("--group", action="append", default=[], type=word, help="repeatable")
        parser.add_argument("--model", default="", metavar="NAME[@VERSION]", help="that runs")
        parser.add_argument("--offline", action="store_true", help="only boards that are not there")
        parser.add_argument("--wrong", action="store_true", help="only boards to be looked at")
        parser.add_argument("--engine", default="", metavar="NAME", help="in [models]")


def _action(
    actions: Commands, name: str, command: Callable[[argparse.Namespace], int], says: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=says, description=says)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(command=command)
    return parser


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=_words, default=[], metavar="A,B", help="boards")
    parser.add_argument("--groups", type=_words, default=[], metavar="A,B", help="of [device]")
    parser.add_argument("--all", action="store_true", help="every board of the broker")
    parser.add_argument("--engine", default="", metavar="NAME", help="in [models]")


def _add_how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait", type=_seconds, default=1800.0, metavar="S",
        help="how long a wave may take; who said nothing by then is silent (default 1800)",
    )  # fmt: skip
    parser.add_argument(
        "--pace", type=above_zero, default=20.0, metavar="N", help="boards asked a second (20)"
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="where rollouts are kept")
    parser.add_argument("--dry-run", action="store_true", help="say it, and change nothing")


def _words(text: str) -> list[str]:
    return [word(part) for part in text.split(",")]


def _id(text: str) -> str:
    """Read a rollout's id; nothing stands for none, which argparse hands in as well."""
    return word(text) if text else ""


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 7 * 86_400:
        raise argparse.ArgumentTypeError(f"{text}: must be seconds from 0 to 604800")
    return value


def _waves(text: str) -> list[tuple[float, bool]]:
    try:
        return parse_waves(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def _share(text: str) -> float:
    try:
        return parse_share(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def _look(arguments: argparse.Namespace) -> Look:
    from agent.operator.fleet_commands import Look
    from agent.operator.fleet_rows import Filter

    return Look(
        mqtt=broker_of(arguments),
        filter=Filter(
            groups=arguments.group,
            model=arguments.model,
            is_offline=arguments.offline,
            is_wrong=arguments.wrong,
        ),
        engine=arguments.engine,
        as_json=arguments.json,
    )


def _list(arguments: argparse.Namespace) -> int:
    from agent.operator.fleet_commands import run_list

    return run_list(_look(arguments), wait_s=arguments.wait)


def _watch(arguments: argparse.Namespace) -> int:
    from agent.operator.fleet_commands import run_watch

    return run_watch(_look(arguments), seconds=arguments.seconds)


def _which(arguments: argparse.Namespace) -> Which:
    from agent.operator.rollout_commands import Which

    return Which(devices=arguments.devices, groups=arguments.groups, is_all=arguments.all)


def _how(arguments: argparse.Namespace) -> How:
    from agent.operator.rollout_commands import How

    return How(
        mqtt=broker_of(arguments),
        wait_s=arguments.wait,
        boards_a_second=arguments.pace,
        state=arguments.state,
        dry_run=arguments.dry_run,
        as_json=arguments.json,
    )


def _names_boards(arguments: argparse.Namespace) -> bool:
    return bool(arguments.devices or arguments.groups or arguments.all)


def _require_boards(arguments: argparse.Namespace, others: str = "") -> None:
    if not _names_boards(arguments):
        raise UsageError(f"which boards? --devices, --groups{others} or --all")


def _rollout(arguments: argparse.Namespace) -> int:
    from agent.operator.rollout_commands import Wish, run_resume, run_rollout

    if arguments.resume is not None:
        if arguments.model is not None or _names_boards(arguments):
            raise UsageError("--resume goes on with what was begun; name no model and no boards")
        return run_resume(_how(arguments), arguments.resume)
    if arguments.model is None:
        raise UsageError("which model? NAME@VERSION, or --resume")
    _require_boards(arguments)
    name, version = arguments.model
    if arguments.repo is not None:
        with extra():
            from agent.operator.metadata import read_repository
            from agent.operator.repo import resolve

            version = resolve(read_repository(arguments.repo).targets, name, version)
    elif not any(character.isdigit() for character in version):
        # Boards know of no channels, and would look for such a version for days.
        raise UsageError(f"{name}@{version}: is {version} a channel? then it takes --repo DIR")
    how = dataclasses.replace(_how(arguments), waves=arguments.waves, halt_on=arguments.halt_on)
    wish = Wish(name=name, version=version, engine=arguments.engine)
    return run_rollout(how, _which(arguments), wish)


def _rollback(arguments: argparse.Namespace) -> int:
    from agent.operator.rollout_commands import Wish, run_rollback

    if not arguments.rollout:
        _require_boards(arguments, ", --rollout")
    elif _names_boards(arguments):
        raise UsageError("--rollout names the boards: those it was given to; or name others alone")
    wish = Wish(action="factory" if arguments.factory else "rollback", engine=arguments.engine)
    return run_rollback(_how(arguments), _which(arguments), wish, arguments.rollout)


def _pin(arguments: argparse.Namespace) -> int:
    return _set_pin(arguments, pinned=True)


def _unpin(arguments: argparse.Namespace) -> int:
    return _set_pin(arguments, pinned=False)


def _set_pin(arguments: argparse.Namespace, *, pinned: bool) -> int:
    from agent.operator.rollout_commands import How, Which, Wish, run_pin

    name, version = arguments.model or (None, None)
    return run_pin(
        How(mqtt=broker_of(arguments), dry_run=arguments.dry_run, as_json=arguments.json),
        Which(devices=arguments.devices),
        Wish(name=name, version=version, engine=arguments.engine),
        pinned=pinned,
    )
