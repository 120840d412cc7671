"""`edge-agent check`: is everything there that `run` needs, and if not, what to do about it.

Each check ends in ok, warn or fail; only fail changes the exit code. Cameras and models are
tried in child processes with a time limit, because drivers and runtimes may hang or crash,
and because this process, like the daemon's, loads no array library. Nothing is changed but
for one message published below the device's own topic. No message contains a password.
"""

from __future__ import annotations

import grp
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from agent.choices import CHOICES_FILE, most_threads
from agent.config import (
    DEFAULT_CONFIG_PATH,
    CameraConfig,
    Config,
    ModelConfig,
    device_id,
)
from agent.config_file import load_config
from agent.daemon.mqtt import probe
from agent.doctor.accelerator import check_accelerator, check_runtime
from agent.doctor.broker import round_trip
from agent.doctor.check import Check
from agent.errors import EXIT_CONFIG, EXIT_OK, EXIT_UNAVAILABLE, BrokerError, ConfigError
from agent.redaction import redact
from agent.sensors.clock import read_clock_synced
from agent.sensors.coral import HOW_TO_INSTALL
from agent.trial_words import ALONE_WITHIN_S, TRIAL_WITHIN_S, signal_name
from agent.vision.probe import Answer, CameraFound, ModelFound, ModelQuestion, Refused

# A camera may take 5 s to open and 12 s for its first frame, and is then read for 2 s; the
# rest is a slow board importing OpenCV.
CAMERA_LIMIT_S = 40.0
# A trial of the accelerator and of each of two runtimes, waiting for others, and the load itself.
MODEL_LIMIT_S = 3 * TRIAL_WITHIN_S + ALONE_WITHIN_S + 20.0
BROKER_LIMIT_S = 10.0
BLACK_BELOW = 8.0  # mean of 0 to 255; a covered lens gives noise of less than this
SLOW_BELOW = 0.7  # of the rate asked for; in the dark many cameras halve theirs
MIB = 1 << 20
DISK_LOW_MIB = 100
# Resident with the shipped model and one 720p camera: 28 MiB and 97 MiB, measured on x86-64.
MEMORY_NEEDED_MIB = 160
COLORS = {"ok": "\033[32m", "warn": "\033[33m", "fail": "\033[31m"}


class Report(Struct, frozen=True, kw_only=True):
    """The document that `--json` prints."""

    ok: bool
    checks: list[Check]


def run_check(config_path: Path | None, *, as_json: bool) -> int:
    """Examine everything; return the exit code."""
    checks = []
    for found in examine(config_path):
        # Once more for all: messages of libraries may quote what they were given.
        check = msgspec.structs.replace(found, message=redact(found.message))
        checks.append(check)
        if not as_json:
            _print(check, is_colored=sys.stdout.isatty())
    failed = [check.name for check in checks if check.state == "fail"]
    if as_json:
        report = msgspec.json.encode(Report(ok=not failed, checks=checks))
        print(msgspec.json.format(report, indent=2).decode())
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


def examine(config_path: Path | None) -> Iterator[Check]:
    """Yield the checks in the order of their dependence, each as soon as it is done."""
    config, check = check_config(config_path)
    yield check
    if config is not None:
        yield check_runtime(config.model)
        used = models_used(config)
        for name, model in used.items():
            yield _of(name, check_accelerator(model))
            checked = check_model(
                model,
                choices_file=Path(config.device.state_dir) / CHOICES_FILE,
                engines=len({camera.model for camera in config.camera}),
            )
            yield _of(name, checked)
        yield check_permissions(config.camera)
        with ThreadPoolExecutor(len(config.camera), "agent.check") as pool:
            yield from pool.map(check_camera, config.camera)
        yield check_broker(config)
        yield from check_state_dir(Path(config.device.state_dir))
        yield check_memory(config)
    yield check_clock(read_clock_synced())


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


def check_config(path: Path | None) -> tuple[Config | None, Check]:
    """Return the settings where they can be used."""
    if path is None and not DEFAULT_CONFIG_PATH.exists():
        message = f"there is no {DEFAULT_CONFIG_PATH}, so all settings are the defaults"
        return Config(), Check(name="config", state="ok", message=message)
    path = path or DEFAULT_CONFIG_PATH
    try:
        config, warnings = load_config(path)
    except ConfigError as error:
        remedy = f"correct {path}; everything else is checked once it can be read"
        return None, Check(name="config", state="fail", message=str(error), remedy=remedy)
    if warnings:
        message = "\n".join([f"{path}:", *(f"  {warning}" for warning in warnings)])
        remedy = "nothing needs to be done; these keys are for a later version"
        return config, Check(name="config", state="warn", message=message, remedy=remedy)
    return config, Check(name="config", state="ok", message=str(path))


def check_model(
    config: ModelConfig, *, choices_file: Path | None = None, engines: int = 1
) -> Check:
    """Load and run the model in a child, in the way that is remembered or found out now."""
    question = ModelQuestion(
        config=config,
        most_threads=most_threads(engines),
        choices_file=str(choices_file or ""),
    )
    answer = _ask("model", question, MODEL_LIMIT_S)
    if not isinstance(answer, ModelFound):
        return Check(
            name="model",
            state="fail",
            message=_reason(answer),
            remedy=_remedy(answer, config),
        )
    name = " ".join(filter(None, [answer.name, answer.version]))
    message = (
        f"{name}: {answer.task}, {answer.invoke_ms:g} ms per run (median) "
        f"on {answer.accelerator}, {answer.runtime}"
    )
    if answer.delegated is not None:
        message += ", {} of {} operators on the accelerator".format(*answer.delegated)
    if answer.choice is not None:
        when = "remembered" if answer.is_remembered else "measured just now"
        message += f"\n{when}: {answer.choice.describe()}"
    doubts = [*filter(None, [answer.reason]), *answer.notes]
    if doubts:
        message = "\n".join([message, *doubts])
        remedy = "see [model] in the configuration"
        return Check(name="model", state="warn", message=message, remedy=remedy)
    return Check(name="model", state="ok", message=message)


def _remedy(answer: Answer, config: ModelConfig) -> str:
    """Return what to do about a model that cannot be used."""
    if "SIGSEGV" in _reason(answer) and config.accelerator.startswith(("auto", "edgetpu")):
        return f'{HOW_TO_INSTALL}, if it was the Edge TPU; accelerator = "cpu" will tell'
    return f"see `edge-agent model inspect {config.path}`"


def check_camera(config: CameraConfig) -> Check:
    """Open the camera in a child and look at what comes."""
    name, source = f"camera {config.name}", redact(config.source)
    answer = _ask("camera", config, CAMERA_LIMIT_S)
    if not isinstance(answer, CameraFound):
        reason = _reason(answer)
        message = reason if source in reason else f"{source}: {reason}"
        remedy = "look at the camera, its cable, and `source` in the configuration"
        return Check(name=name, state="fail", message=message, remedy=remedy)
    message = f"{source}: {answer.width}x{answer.height}"
    if answer.live and answer.fps is not None:
        message += f", {answer.fps:g} frames/s"
    elif not answer.live:
        message += f", {answer.frames} frames read"
    message += f", brightness {answer.brightness:g} of 255"
    doubts, remedies = [], []
    if answer.brightness < BLACK_BELOW:
        doubts.append("the picture is black")
        remedies.append("look for a lens cap, a shutter or a dark room")
    wanted = (config.width or answer.width, config.height or answer.height)
    if wanted != (answer.width, answer.height):
        doubts.append(f"{wanted[0]}x{wanted[1]} was asked for")
        remedies.append("set width and height to a size the camera has")
    if answer.live and answer.fps is not None and answer.fps < config.fps * SLOW_BELOW:
        doubts.append(f"{config.fps:g} frames/s were asked for")
        remedies.append("give it more light, or a smaller size")
    if doubts:
        message = f"{message}; {'; '.join(doubts)}"
        return Check(name=name, state="warn", message=message, remedy="; ".join(remedies))
    return Check(name=name, state="ok", message=message)


def _ask(what: str, question: CameraConfig | ModelQuestion, limit_s: float) -> Answer:
    """Return a child's answer; its silence is an answer, too."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", "agent.vision.probe", what],
            input=msgspec.json.encode(question),
            capture_output=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Refused(f"did not answer within {limit_s:g} s and was given up")
    try:
        lines = child.stdout.strip().splitlines() or [b""]
        answer: Answer = msgspec.json.decode(lines[-1], type=Answer)
        return answer
    except msgspec.MsgspecError:
        pass
    if child.returncode < 0:
        return Refused(f"its driver or runtime crashed ({signal_name(-child.returncode)})")
    last = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return Refused(f"could not be tried: {''.join(last) or 'no reason given'}")


def _reason(answer: Answer) -> str:
    return answer.reason if isinstance(answer, Refused) else "gave an answer to another question"


def check_permissions(cameras: tuple[CameraConfig, ...], dev: Path = Path("/dev")) -> Check:
    """Whether this user may use the video devices that are configured."""
    sources = [camera.source for camera in cameras]
    devices = [
        node
        for node in sorted(dev.glob("video[0-9]*"))
        if "auto" in sources or f"/dev/{node.name}" in sources
    ]
    closed = [node for node in devices if not os.access(node, os.R_OK | os.W_OK)]
    if closed:
        groups = ", ".join(sorted({_group(node) for node in closed}))
        return Check(
            name="permissions",
            state="fail",
            message=f"this user may not use {', '.join(node.name for node in closed)} "
            f"(group {groups})",
            remedy=f"sudo usermod -aG {groups.split(', ')[0]} $USER, then log in again",
        )
    message = f"{len(devices)} video devices can be used" if devices else "no video device needed"
    return Check(name="permissions", state="ok", message=message)


def _group(path: Path) -> str:
    number = path.stat().st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def check_broker(config: Config) -> Check:
    """Connect as the daemon would, then send one message to ourselves."""
    settings = config.mqtt
    try:
        protocol = probe(settings, BROKER_LIMIT_S)
    except BrokerError as error:
        remedy = "results wait in memory meanwhile; start the broker or correct [mqtt]"
        return Check(name="broker", state="fail", message=str(error), remedy=remedy)
    topic = f"{settings.prefix}/{device_id(config.device)}/check"
    trip = round_trip(settings, protocol, topic, BROKER_LIMIT_S)
    message = f"{settings.url}, MQTT {protocol}; {trip.message}"
    return Check(name="broker", state=trip.state, message=message, remedy=trip.remedy)


def check_state_dir(path: Path) -> Iterator[Check]:
    """Whether the agent can keep what it learns, and how much."""
    existing = next(place for place in [path, *path.absolute().parents] if place.exists())
    remedy = f"sudo install -d -o $USER {path}, or set device.state_dir"
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        message = f"{path} cannot be written, so models are measured anew at every start"
        yield Check(name="state_dir", state="warn", message=message, remedy=remedy)
    else:
        state = "can be written" if existing == path else "can be created"
        yield Check(name="state_dir", state="ok", message=f"{path} {state}")
    free_mib = shutil.disk_usage(existing).free // MIB
    yield Check(
        name="disk",
        state="ok" if free_mib >= DISK_LOW_MIB else "warn",
        message=f"{free_mib} MiB free for {path}",
        remedy=None if free_mib >= DISK_LOW_MIB else f"free at least {DISK_LOW_MIB} MiB",
    )


def check_memory(config: Config) -> Check:
    """Whether both processes and a full outbox fit."""
    available_mib = psutil.virtual_memory().available // MIB
    needed_mib = MEMORY_NEEDED_MIB + round(config.mqtt.outbox_max_mb * 1e6 / MIB)
    is_enough = available_mib >= needed_mib
    return Check(
        name="memory",
        state="ok" if is_enough else "warn",
        message=f"{available_mib} MiB available, about {needed_mib} MiB needed",
        remedy=None if is_enough else "stop other programs, or lower mqtt.outbox_max_mb",
    )


def check_clock(is_synced: bool | None) -> Check:
    """Whether `captured_at` can be believed."""
    if is_synced:
        return Check(name="clock", state="ok", message="synchronized")
    return Check(
        name="clock",
        state="warn",
        message="not synchronized, so times in results may be wrong"
        if is_synced is False
        else "the kernel does not say whether it is synchronized",
        remedy="sudo timedatectl set-ntp true, or install an NTP client",
    )
