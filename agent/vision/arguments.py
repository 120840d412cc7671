"""The command lines of `edge-agent model pack` and `verify`; what they run is imported then."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from agent.config import ModelConfig
from agent.contract.manifest import AgentVersion, BoardGlob, Budget
from agent.contract.updates import Name, Version

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns.
    Actions: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001
    Configure: TypeAlias = Callable[[argparse.Namespace], ModelConfig]

BUDGET = re.compile(r"([^=]+)=([0-9.]+),([0-9.]+)")
PROVENANCE = re.compile(r"([A-Za-z0-9_.-]{1,64})=(.+)", re.DOTALL)


def add_bundle_actions(
    actions: Actions,
    add_model_options: Callable[[argparse.ArgumentParser], None],
    configure: Configure,
) -> None:
    """Add both; the model's options are those of `model inspect`."""
    _add_pack(actions, add_model_options, configure)
    verify = actions.add_parser(
        "verify",
        help="say whether boards would take a bundle",
        description="Checks all that a board checks, but for the signatures: the file and every"
        " hash in it, and the model in the self-test's own process, with its golden pictures and"
        " the budget for this board. Exit code 1: boards would refuse it.",
    )
    verify.add_argument("bundle", type=Path)
    verify.add_argument("--board", metavar="ID", help="that it must be for, such as rpi-5")
    verify.add_argument("--runtime", default="auto", choices=["auto", "litert", "tflite-runtime"])
    verify.add_argument("--json", action="store_true", help="one JSON document on stdout")
    verify.set_defaults(command=_verify)


def _add_pack(
    actions: Actions,
    add_model_options: Callable[[argparse.ArgumentParser], None],
    configure: Configure,
) -> None:
    pack = actions.add_parser(
        "pack",
        help="make a bundle of a model, to be published",
        description="What is not said is the model's own, or found out: `model inspect` shows it.",
    )
    pack.add_argument("model", help="a shipped name, a .tflite file, or a folder")
    pack.add_argument("-o", "--out", required=True, metavar="FILE", help="such as cats-1.2.0.tar")
    pack.add_argument("--name", type=_of(Name), help="letters, digits, _ and -")
    pack.add_argument("--version", type=_of(Version), help="such as 1.2.0")
    pack.add_argument(
        "--release-counter",
        type=_counter,
        metavar="N",
        help="orders releases of a name, and boards take none below their security floor (default:"
        " the time in seconds, which grows from one pack to the next, wherever it is done)",
    )
    pack.add_argument(
        "--security-floor",
        type=_counter,
        metavar="N",
        help="boards that ran this never go below that release again (default: the model's own, 0)",
    )
    pack.add_argument(
        "--boards", nargs="+", type=_of(BoardGlob), default=[], metavar="GLOB",
        help="that it is for, such as 'rpi-*'; `edge-agent sensors` shows ids (default: all)",
    )  # fmt: skip
    pack.add_argument("--min-agent", type=_of(AgentVersion), metavar="VERSION")
    pack.add_argument(
        "--golden", nargs="+", default=[], metavar="IMAGE",
        help="pictures of what it is for, whose answers boards compare (default: the model's own"
        " golden file, else the shipped model's pictures)",
    )  # fmt: skip
    pack.add_argument(
        "--budget", nargs="+", type=_budget, default=[], metavar="BOARD=MS,MIB",
        help="95 %% of runs and memory, by glob: 'rpi-4*=80,300' (default: measured, for this one)",
    )  # fmt: skip
    pack.add_argument(
        "--margin", type=_margin, default=2.0, help="of a measured budget (default 2)"
    )
    pack.add_argument("--licence", metavar="TEXT")
    pack.add_argument(
        "--provenance", nargs="+", type=_provenance, default=[], metavar="KEY=VALUE",
        help="such as dataset=cats-2026",
    )  # fmt: skip
    add_model_options(pack)
    pack.set_defaults(command=_pack, configure=configure)


def _of(kind: object) -> Callable[[str], str]:
    """Return what argparse calls to check a text against a type of the contract."""

    def parse(text: str) -> str:
        try:
            return str(msgspec.convert(text, kind))
        except msgspec.ValidationError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error

    return parse


def _counter(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 <= int(text[:20]) <= 2**53:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number up to 2**53")
    return int(text)


def _margin(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 100")
    return value


def _budget(text: str) -> tuple[str, Budget]:
    found = BUDGET.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text}: give BOARD=MS,MIB, such as rpi-5=40,300")
    try:
        numbers = {"p95_ms": float(found[2]), "rss_mib": float(found[3])}
        return msgspec.convert(found[1], BoardGlob), msgspec.convert(numbers, Budget)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def _provenance(text: str) -> tuple[str, str]:
    found = PROVENANCE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text}: give KEY=VALUE")
    return found[1], found[2]


def _pack(arguments: argparse.Namespace) -> int:
    from agent.vision.pack import PackRequest, run_pack

    return run_pack(
        PackRequest(
            config=arguments.configure(arguments),
            out=arguments.out,
            name=arguments.name,
            version=arguments.version,
            release_counter=arguments.release_counter,
            security_floor=arguments.security_floor,
            boards=tuple(arguments.boards),
            min_agent=arguments.min_agent,
            golden=tuple(arguments.golden),
            budget=dict(arguments.budget),
            margin=arguments.margin,
            license=arguments.licence,
            provenance=dict(arguments.provenance),
            as_json=arguments.json,
        )
    )


def _verify(arguments: argparse.Namespace) -> int:
    from agent.vision.bundles import run_verify

    config = ModelConfig(runtime=arguments.runtime, accelerator="cpu")
    return run_verify(arguments.bundle, config, board=arguments.board, as_json=arguments.json)
