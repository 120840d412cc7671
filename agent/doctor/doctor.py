"""`edge-agent check`: is everything there that `run` needs, and if not, what to do about it.

Each check ends in ok, warn or fail; only fail changes the exit code. Cameras and models are
tried in child processes with a time limit, because drivers and runtimes may hang or crash,
and because this process, like the daemon's, loads no array library. Nothing is changed: files
and messages that are written to try it out are taken away again. No message contains a password.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from agent.choices import CHOICES_FILE
from agent.config import DEFAULT_CONFIG_PATH, Config, ModelConfig
from agent.daemon.mqtt.dial import parse_address
from agent.doctor.accelerator import check_accelerator, check_runtime
from agent.doctor.access import check_descriptors, check_permissions
from agent.doctor.board import check_memory, examine_board
from agent.doctor.broker_verdict import examine_broker
from agent.doctor.check import Check
from agent.doctor.clock import examine_clock
from agent.doctor.network import check_wifi
from agent.doctor.report import report
from agent.doctor.service import check_service
from agent.doctor.settings import check_config, check_files
from agent.doctor.state import check_state
from agent.doctor.trials import check_camera, judge_model, try_model
from agent.doctor.updates import check_updates
from agent.vision.probe import ModelFound


def run_check(config_path: Path | None, *, as_json: bool) -> int:
    """Examine everything; return the exit code."""
    return report(examine(config_path), as_json=as_json)


def examine(config_path: Path | None) -> Iterator[Check]:
    """Yield the checks in the order of their dependence, each as soon as it is done."""
    config, check = check_config(config_path)
    yield check
    if config is not None:
        if config_path is None and DEFAULT_CONFIG_PATH.exists():
            config_path = DEFAULT_CONFIG_PATH
        yield check_files(config, config_path)
        yield from check_state(Path(config.device.state_dir), config.mqtt.outbox_max_mb)
        yield check_runtime(config.model)
        tasks: set[str] = set()
        yield from examine_models(config, tasks)
        yield check_permissions(config.camera)
        with ThreadPoolExecutor(len(config.camera), "agent.check") as pool:
            yield from pool.map(check_camera, config.camera)
        yield check_wifi(parse_address(config.mqtt.url))
        yield from examine_broker(config, tasks)
        yield from check_updates(config)
        yield check_memory(config)
    yield from examine_board()
    yield check_descriptors()
    yield from examine_clock(tls=config is not None and parse_address(config.mqtt.url).tls)
    yield check_service()


def examine_models(config: Config, tasks: set[str]) -> Iterator[Check]:
    """Yield the checks of each model and its accelerator; add to `tasks` what they do."""
    choices_file = Path(config.device.state_dir) / CHOICES_FILE
    engines = len({camera.model for camera in config.camera})
    for name, model in models_used(config).items():
        yield _of(name, check_accelerator(model))
        answer = try_model(model, choices_file=choices_file, engines=engines)
        if isinstance(answer, ModelFound):
            tasks.add(answer.task)
        yield _of(name, judge_model(answer, model))


def models_used(config: Config) -> dict[str, ModelConfig]:
    """Return the models that cameras and second stages name, by their names in [models]."""
    first = sorted({camera.model for camera in config.camera})
    models = {name: config.models[name] if name else config.model for name in first}
    second = [stage.model for model in models.values() for stage in model.then]
    return models | {name: config.models[name] for name in second}


def _of(name: str, check: Check) -> Check:
    """Return the check of one of several models under its own name."""
    if not name:
        return check
    return msgspec.structs.replace(check, name=f"{check.name} {name}")
