"""The command line of `edge-agent bench`; what it runs is imported when it is run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agent.config import Config

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns.
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001

FindConfig = Callable[[Path | None], tuple[Config, list[str]]]


def add_bench(commands: Commands, find_config: FindConfig) -> None:
    """Add the command; `find_config` loads the named configuration, else the default one."""
    parser = commands.add_parser("bench", help="measure the agent against the bare interpreter")
    parser.add_argument("--model", default="default")
    parser.add_argument("--clip", default="", metavar="FILE", help="video (default: the demo clip)")
    parser.add_argument("--seconds", type=float, help="per measurement (default 10; energy: 60)")
    parser.add_argument("--runs", type=int, default=3, help="repetitions; medians are printed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument(
        "--energy", action="store_true", help="energy per inference instead, as `bench energy`"
    )
    _add_energy_options(parser)
    parser.set_defaults(command=_bench, find_config=find_config)
    kinds = parser.add_subparsers(metavar="KIND", title="other measurements")
    recording = kinds.add_parser("recording", help="what latency figures cost for each frame")
    recording.add_argument("--seconds", type=float, default=10.0, help="in all (default 10)")
    recording.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures here as well"
    )
    recording.set_defaults(command=_bench_recording)
    heads = kinds.add_parser("heads", help="what decoding the outputs costs, per kind of head")
    heads.add_argument("--seconds", type=float, default=1.0, help="per row (default 1)")
    heads.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    heads.set_defaults(command=_bench_heads)
    cameras = kinds.add_parser("cameras", help="1, 2 and 4 cameras, and two engines against one")
    cameras.add_argument("--model", default="default")
    cameras.add_argument("--second", default="", metavar="MODEL", help="(default: the same)")
    cameras.add_argument("--clip", default="", metavar="FILE", help="video (default: demo clip)")
    cameras.add_argument("--seconds", type=float, default=10.0, help="per measurement")
    cameras.add_argument("--runs", type=int, default=3, help="repetitions; medians are printed")
    cameras.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    cameras.set_defaults(command=_bench_cameras)
    exchange = kinds.add_parser("exchange", help="what an update costs what runs; gap of a swap")
    exchange.add_argument("--model", default="default")
    exchange.add_argument("--other", default="", metavar="MODEL", help="(default: a copy)")
    exchange.add_argument("--clip", default="", metavar="FILE", help="video (default: demo clip)")
    exchange.add_argument("--fps", type=float, default=30.0)
    exchange.add_argument("--rounds", type=int, default=5, help="medians are printed")
    exchange.add_argument("--seconds", type=float, default=24.0, help="per part; two a round")
    exchange.add_argument("--swaps", type=int, default=10)
    exchange.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures here as well"
    )
    exchange.set_defaults(command=_bench_exchange)
    energy = kinds.add_parser("energy", help="energy per inference, where a sensor measures power")
    energy.add_argument("--model", default="default")
    energy.add_argument("--clip", default="", metavar="FILE", help="video (default: demo clip)")
    energy.add_argument("--seconds", type=float, help="of work (default 60)")
    energy.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    _add_energy_options(energy)
    energy.set_defaults(command=_bench_energy)


def _add_energy_options(parser: argparse.ArgumentParser) -> None:
    options = parser.add_argument_group("energy")
    options.add_argument(
        "--idle", type=float, default=10.0, metavar="S", help="at rest, before and after (10)"
    )
    options.add_argument("--fps", type=float, default=0.0, help="0: as fast as it can")
    options.add_argument("--save", action="store_true", help="keep the rest, for net in telemetry")
    options.add_argument("--config", type=Path, metavar="FILE", help="whose state_dir keeps it")
    options.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.energy:
        return _bench_energy(arguments)
    from agent.bench.bench import run_bench

    return run_bench(
        model=arguments.model,
        clip=arguments.clip,
        seconds=10.0 if arguments.seconds is None else arguments.seconds,
        runs=arguments.runs,
        json_file=arguments.json,
    )


def _bench_energy(arguments: argparse.Namespace) -> int:
    from agent.bench.energy import run_energy
    from agent.bench.energy_report import Plan

    plan = Plan(
        model=arguments.model,
        clip=arguments.clip,
        seconds=60.0 if arguments.seconds is None else arguments.seconds,
        idle_s=arguments.idle,
        fps=arguments.fps,
        root=arguments.root,
    )
    config, _ = arguments.find_config(arguments.config)
    return run_energy(
        plan,
        state_dir=Path(config.device.state_dir),
        save=arguments.save,
        json_file=arguments.json,
    )


def _bench_heads(arguments: argparse.Namespace) -> int:
    from agent.bench.heads import run_heads

    return run_heads(seconds=arguments.seconds, json_file=arguments.json)


def _bench_cameras(arguments: argparse.Namespace) -> int:
    from agent.bench.cameras import run_cameras

    return run_cameras(
        model=arguments.model,
        second=arguments.second,
        clip=arguments.clip,
        seconds=arguments.seconds,
        runs=arguments.runs,
        json_file=arguments.json,
    )


def _bench_recording(arguments: argparse.Namespace) -> int:
    from agent.bench.recording import run_recording

    return run_recording(seconds=arguments.seconds, json_file=arguments.json)


def _bench_exchange(arguments: argparse.Namespace) -> int:
    from agent.bench.exchange import run_exchange

    return run_exchange(
        model=arguments.model,
        other=arguments.other,
        clip=arguments.clip,
        fps=arguments.fps,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        swaps=arguments.swaps,
        json_file=arguments.json,
    )
