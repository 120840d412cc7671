"""The command line: parse, pick the room, turn errors into sentences and exit codes.

Rooms are imported where their command is run, so that `run` stays free of numpy, OpenCV
and TFLite, and `--help` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agent import __version__
from agent.bench.arguments import add_bench
from agent.config import DEFAULT_CONFIG_PATH, Config, ModelConfig
from agent.config_file import load_config, parse_model
from agent.errors import EXIT_OK, AgentError, exit_code_of
from agent.logs import configure_logging
from agent.operator.arguments import add_repo
from agent.operator.fleet_arguments import add_fleet
from agent.vision.arguments import add_bundle_actions

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns.
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001

DESCRIPTION = "Quantized TFLite inference on camera frames, published over MQTT."


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = build_parser().parse_args(argv)
    configure_logging(arguments.log_level)
    command: Callable[[argparse.Namespace], int] = arguments.command
    return exit_code_of(lambda: command(arguments))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all commands."""
    parser = argparse.ArgumentParser(prog="edge-agent", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"edge-agent {__version__}")
    parser.add_argument(
        "--log-level",
        default="INFO",
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        metavar="LEVEL",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_demo(commands)
    _add_check(commands)
    _add_detect(commands)
    _add_eval(commands)
    _add_model(commands)
    _add_schema(commands)
    add_bench(commands, find_config)
    _add_sensors(commands)
    add_repo(commands, find_config)
    add_fleet(commands, find_config)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"settings (default {DEFAULT_CONFIG_PATH})"
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runtime", default="auto", choices=["auto", "litert", "tflite-runtime"])
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, edgetpu, delegate:PATH")
    parser.add_argument("--threads", type=int, default=0, help="0: chosen by cores")
    parser.add_argument("--labels", default="", metavar="FILE", help="one label per line")
    parser.add_argument("--threshold", type=float, metavar="SCORE", help="lowest score, 0 to 1")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def _add_run(commands: Commands) -> None:
    parser = commands.add_parser("run", help="run the daemon")
    _add_config(parser)
    parser.set_defaults(command=_run)


def _add_demo(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo", help="play the shipped clip through the real daemon and a local broker"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="how long (default 15)")
    parser.set_defaults(command=_demo)


def _add_check(commands: Commands) -> None:
    parser = commands.add_parser("check", help="examine configuration, camera, model and broker")
    _add_config(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument(
        "--config-only", action="store_true", help="the configuration alone: exit code 0 or 78"
    )
    parser.set_defaults(command=_check)


def _add_detect(commands: Commands) -> None:
    parser = commands.add_parser("detect", help="run a model on still images")
    parser.add_argument("model", help="a shipped name, a .tflite file, or a folder with a manifest")
    parser.add_argument("images", nargs="+", metavar="image")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write pictures with boxes drawn")
    _add_model_options(parser)
    parser.set_defaults(command=_detect)


def _add_eval(commands: Commands) -> None:
    parser = commands.add_parser("eval", help="hold models against what they should find")
    parser.add_argument("models", nargs="+", metavar="model", help="as for detect")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="or one picture")
    parser.add_argument(
        "--expected",
        type=Path,
        metavar="FILE",
        help="expected results or COCO annotations (JSON), a pose CSV, or a mask or folder of them",
    )
    parser.add_argument(
        "--iou", type=_share, default=0.5, help="overlap from which boxes match (default 0.5)"
    )
    parser.add_argument(
        "--tolerance", default="", metavar="NAME", help="which of the file's (default: by runtime)"
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="write what was found, for a later --expected"
    )
    _add_model_options(parser)
    parser.set_defaults(command=_eval)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def _add_model(commands: Commands) -> None:
    parser = commands.add_parser("model", help="look at a model, or make a bundle of it")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    inspect = actions.add_parser("inspect", help="say what a model is and how it would be used")
    inspect.add_argument("model", help="a shipped name, a .tflite file, a folder, or a bundle")
    _add_model_options(inspect)
    inspect.set_defaults(command=_inspect)
    tune = actions.add_parser("tune", help="measure how a model runs best here, and remember it")
    tune.add_argument("model", help="as for inspect, or a name in [models]")
    _add_config(tune)
    _add_model_options(tune)
    tune.set_defaults(command=_tune)
    add_bundle_actions(actions, _add_model_options, _model_config)


def _add_schema(commands: Commands) -> None:
    parser = commands.add_parser("schema", help="print JSON Schemas and the AsyncAPI document")
    parser.add_argument(
        "name", nargs="?", default="all", help="all, asyncapi, or one payload, such as detections"
    )
    parser.set_defaults(command=_schema)


def _add_sensors(commands: Commands) -> None:
    parser = commands.add_parser("sensors", help="read once what the board's sensors say")
    parser.add_argument(
        "--root",
        type=_folder,
        default=Path("/"),
        metavar="DIR",
        help="of a recorded board, or of another system (default: this board)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="DIR",
        help="write the board's sensor files there, for a test; NAME.tar.gz: one file to send",
    )
    _add_config(parser)
    parser.set_defaults(command=_sensors)
    actions = parser.add_subparsers(metavar="ACTION", title="what a board without sensors needs")
    calibrate = actions.add_parser(
        "calibrate",
        help="fit the estimate to a meter's readings",
        description="Both readings at once from a terminal, or one after the other: an idle board's"
        " first, then that of a busy one, which this command makes busy itself.",
    )
    calibrate.add_argument("--idle-w", type=_watts, metavar="W", help="the meter's, nothing to do")
    calibrate.add_argument("--load-w", type=_watts, metavar="W", help="the meter's, all cores busy")
    calibrate.add_argument(
        "--seconds", type=_seconds, default=30.0, help="of watching the load, each (default 30)"
    )
    # Suppressed: its default would undo a --config given before the word `calibrate`.
    calibrate.add_argument(
        "--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="settings"
    )
    calibrate.set_defaults(command=_calibrate)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text)


def _watts(text: str) -> float:
    from agent.sensors.calibrate import parse_watts

    watts = parse_watts(text)
    if watts is None:
        raise argparse.ArgumentTypeError(f"{text} is not a board's power in watts")
    return watts


def _seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 3600")
    return value


def find_config(path: Path | None) -> tuple[Config, list[str]]:
    """Load the named file, else the default one, else the defaults themselves."""
    if path is None and not DEFAULT_CONFIG_PATH.exists():
        return Config(), []
    return load_config(path or DEFAULT_CONFIG_PATH)


def _run(arguments: argparse.Namespace) -> int:
    from agent.daemon.app import run_daemon

    return run_daemon(lambda: find_config(arguments.config))


def _demo(arguments: argparse.Namespace) -> int:
    from agent.demo.demo import run_demo

    return run_demo(arguments.seconds)


def _check(arguments: argparse.Namespace) -> int:
    if arguments.config_only:
        # Before each start of the service: nothing that takes time is loaded.
        from agent.doctor.report import report
        from agent.doctor.settings import check_config

        return report([check_config(arguments.config)[1]], as_json=arguments.json)
    from agent.doctor.doctor import run_check

    return run_check(arguments.config, as_json=arguments.json)


def _detect(arguments: argparse.Namespace) -> int:
    from agent.vision.detect import run_detect

    return run_detect(
        _model_config(arguments), arguments.images, as_json=arguments.json, save=arguments.save
    )


def _eval(arguments: argparse.Namespace) -> int:
    from agent.evaluate.evaluate import run_eval

    return run_eval(
        [_model_config(arguments, model) for model in arguments.models],
        images=arguments.images,
        expected=arguments.expected,
        least_iou=arguments.iou,
        tolerance=arguments.tolerance,
        as_json=arguments.json,
        save=arguments.save,
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from agent.ota.bundle import is_bundle
    from agent.vision.bundles import run_inspect_bundle
    from agent.vision.inspect import run_inspect

    if is_bundle(Path(arguments.model)):
        bundle = Path(arguments.model)
        return run_inspect_bundle(bundle, _model_config(arguments), as_json=arguments.json)
    return run_inspect(_model_config(arguments), as_json=arguments.json)


def _tune(arguments: argparse.Namespace) -> int:
    from agent.vision.tune import run_tune

    config, _ = find_config(arguments.config)
    return run_tune(config, _model_config(arguments), as_json=arguments.json)


def _model_config(arguments: argparse.Namespace, model: str = "") -> ModelConfig:
    return parse_model(
        path=model or arguments.model,
        runtime=arguments.runtime,
        accelerator=arguments.accelerator,
        threads=arguments.threads,
        labels_file=arguments.labels,
        score_threshold=arguments.threshold,
    )


def _schema(arguments: argparse.Namespace) -> int:
    from agent.contract.schema import print_schema

    print_schema(arguments.name)
    return EXIT_OK


def _sensors(arguments: argparse.Namespace) -> int:
    from agent.sensors.command import run_record, run_sensors

    if arguments.record is not None:
        return run_record(arguments.root, arguments.record)
    return run_sensors(
        arguments.root, as_json_document=arguments.json, state_dir=_state_dir(arguments)
    )


def _calibrate(arguments: argparse.Namespace) -> int:
    from agent.sensors.calibrate import run_calibrate

    return run_calibrate(
        arguments.root,
        _state_dir(arguments),
        idle_w=arguments.idle_w,
        load_w=arguments.load_w,
        seconds=arguments.seconds,
    )


def _state_dir(arguments: argparse.Namespace) -> Path:
    """Return where state is kept; a configuration that nobody named need not be sound for this."""
    try:
        config, _ = find_config(arguments.config)
    except AgentError:
        if arguments.config is not None:
            raise
        config = Config()
    return Path(config.device.state_dir)
