"""The command lines of `edge-agent repo`; what they run is imported then."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agent.errors import UnavailableError
from agent.operator.broker_arguments import FindConfig, add_broker, broker_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.operator.repo_commands import Call

    # argparse has no public name for what add_subparsers returns.
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001

WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
MODEL = re.compile(r"([A-Za-z0-9_-]{1,64})@([A-Za-z0-9][A-Za-z0-9.+_-]{0,63})")


def add_repo(commands: Commands, find_config: FindConfig) -> None:
    """Add the command; `find_config` loads the named configuration, else the default one."""
    parser = commands.add_parser("repo", help="keep a repository of signed models")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    init = _repo_action(actions, "init", _init, "make a repository and its keys")
    init.add_argument("--passphrase", action="store_true", help="ask for one for the new keys")
    publish = _repo_action(actions, "publish", _publish, "add a bundle")
    publish.add_argument("bundle", type=Path, help="made by `edge-agent model pack`")
    publish.add_argument("--to", type=word, metavar="CHANNEL", help="promote it at once")
    promote = _repo_action(actions, "promote", _promote, "let a channel mean a version")
    promote.add_argument("model", type=model, metavar="NAME@VERSION", help="or NAME@CHANNEL")
    promote.add_argument("--to", type=word, metavar="CHANNEL", required=True, help="such as stable")
    rotate = _repo_action(actions, "rotate-keys", _rotate, "replace keys; by the root keys")
    rotate.add_argument("role", choices=("root", "targets", "online"))
    rotate.add_argument(
        "--replace", action="append", default=[], metavar="KEY",
        help="such as root-2; repeatable (default: all of the role)",
    )  # fmt: skip
    rotate.add_argument(
        "--new-keys", type=Path, metavar="DIR", help="where the new ones go (default: first --keys)"
    )
    rotate.add_argument("--passphrase", action="store_true", help="ask for one for the new keys")
    refresh = _repo_action(actions, "refresh", _refresh, "sign timestamp and snapshot anew")
    refresh.add_argument(
        "--also", action="append", default=[], choices=("root", "targets"),
        help="sign these anew too, for another year or two; repeatable",
    )  # fmt: skip
    status = _repo_action(actions, "status", _status, "what is in it, and how long it is good for")
    status.add_argument("--verify", action="store_true", help="read every bundle")
    says = "answer boards that reach nothing but the broker; needs no key"
    serve = actions.add_parser("serve-mqtt", help=says, description=says)
    serve.add_argument("repository", type=Path, help="its folder")
    serve.add_argument(
        "--most",
        type=above_zero,
        default=2000.0,
        metavar="KB",
        help="a second, for all boards (2000)",
    )
    serve.set_defaults(command=_serve_mqtt)
    add_broker(serve, find_config)


def _repo_action(
    actions: Commands, name: str, command: Callable[[argparse.Namespace], int], says: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=says, description=says)
    parser.add_argument("repository", type=Path, help="its folder, which a web server serves")
    parser.add_argument(
        "--keys", type=Path, action="append", default=[], metavar="DIR",
        help="a folder with keys, such as a memory stick; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--passphrase-file", type=Path, metavar="FILE", help="of keys; its first line"
    )
    if name != "status":
        parser.add_argument("--dry-run", action="store_true", help="say it, and change nothing")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(command=command, dry_run=False)
    return parser


def word(text: str) -> str:
    """Read a name of a device, a group or a channel."""
    if not WORD.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text}: must be 1 to 64 letters, digits, _ and -")
    return text


def model(text: str) -> tuple[str, str]:
    """Read NAME@VERSION."""
    found = MODEL.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text}: must be NAME@VERSION, such as door@1.4.0")
    return found[1], found[2]


def above_zero(text: str) -> float:
    """Read a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return value


@contextmanager
def extra() -> Iterator[None]:
    """Say which extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "agent":
            raise
        raise UnavailableError(
            f'this needs pip install "edge-agent[operator]" ({package} is missing)'
        ) from error


def _call(arguments: argparse.Namespace) -> Call:
    from agent.operator.repo_commands import Call

    return Call(
        folder=arguments.repository,
        keys=tuple(arguments.keys),
        passphrase_file=arguments.passphrase_file,
        dry_run=arguments.dry_run,
        as_json=arguments.json,
    )


def _init(arguments: argparse.Namespace) -> int:
    with extra():
        from agent.operator.repo_commands import run_init

    return run_init(_call(arguments), with_passphrase=arguments.passphrase)


def _publish(arguments: argparse.Namespace) -> int:
    with extra():
        from agent.operator.repo_commands import run_publish

    return run_publish(_call(arguments), arguments.bundle, channel=arguments.to)


def _promote(arguments: argparse.Namespace) -> int:
    with extra():
        from agent.operator.repo_commands import run_promote

    name, version = arguments.model
    return run_promote(_call(arguments), name=name, version=version, channel=arguments.to)


def _rotate(arguments: argparse.Namespace) -> int:
    with extra():
        from agent.operator.repo_commands import run_rotate

    return run_rotate(
        _call(arguments),
        role=arguments.role,
        replace=arguments.replace,
        new_keys=arguments.new_keys,
        with_passphrase=arguments.passphrase,
    )


def _refresh(arguments: argparse.Namespace) -> int:
    with extra():
        from agent.operator.repo_commands import run_refresh

    return run_refresh(_call(arguments), also=arguments.also)


def _status(arguments: argparse.Namespace) -> int:
    with extra():
        from agent.operator.repo_commands import run_status

    return run_status(_call(arguments), verify=arguments.verify)


def _serve_mqtt(arguments: argparse.Namespace) -> int:
    from agent.operator.serve_mqtt import run_serve_mqtt

    settings = broker_of(arguments)
    return run_serve_mqtt(arguments.repository, settings, most_kb_s=arguments.most)
