"""Models and cameras, each tried in a child process with a time limit.

Drivers and runtimes may hang or crash, and this process, like the daemon's, loads no array
library.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from agent.choices import most_threads
from agent.config import CameraConfig, ModelConfig
from agent.doctor.check import Check, fail, ok, warn
from agent.redaction import redact
from agent.sensors.coral import HOW_TO_INSTALL
from agent.trial_words import ALONE_WITHIN_S, TRIAL_WITHIN_S, signal_name
from agent.vision.probe import Answer, CameraFound, ModelFound, ModelQuestion, Refused

# A camera may take 5 s to open and 12 s for its first frame, and is then read for 2 s; the
# rest is a slow board importing OpenCV.
CAMERA_LIMIT_S = 40.0
# A trial of the accelerator and of each of two runtimes, waiting for others, and the load itself.
MODEL_LIMIT_S = 3 * TRIAL_WITHIN_S + ALONE_WITHIN_S + 20.0
BLACK_BELOW = 8.0  # mean of 0 to 255; a covered lens gives noise of less than this
SLOW_BELOW = 0.7  # of the rate asked for; in the dark many cameras halve theirs


def try_model(config: ModelConfig, *, choices_file: Path | None = None, engines: int = 1) -> Answer:
    """Load and run the model in a child, in the way that is remembered or found out now."""
    question = ModelQuestion(
        config=config,
        most_threads=most_threads(engines),
        choices_file=str(choices_file or ""),
    )
    return ask("model", question, MODEL_LIMIT_S)


def judge_model(answer: Answer, config: ModelConfig) -> Check:
    """Say what a model's trial showed."""
    if not isinstance(answer, ModelFound):
        return fail("model", _reason(answer), _remedy(answer, config))
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
        return warn("model", "\n".join([message, *doubts]), "see [model] in the configuration")
    return ok("model", message)


def check_model(
    config: ModelConfig, *, choices_file: Path | None = None, engines: int = 1
) -> Check:
    """Try the model and say what that showed."""
    answer = try_model(config, choices_file=choices_file, engines=engines)
    return judge_model(answer, config)


def _remedy(answer: Answer, config: ModelConfig) -> str:
    """Return what to do about a model that cannot be used."""
    if "SIGSEGV" in _reason(answer) and config.accelerator.startswith(("auto", "edgetpu")):
        return f'{HOW_TO_INSTALL}, if it was the Edge TPU; accelerator = "cpu" will tell'
    return f"see `edge-agent model inspect {config.path}`"


def check_camera(config: CameraConfig) -> Check:
    """Open the camera in a child and look at what comes."""
    name, source = f"camera {config.name}", redact(config.source)
    answer = ask("camera", config, CAMERA_LIMIT_S)
    if not isinstance(answer, CameraFound):
        reason = _reason(answer)
        message = reason if source in reason else f"{source}: {reason}"
        remedy = "look at the camera, its cable, and `source` in the configuration"
        return fail(name, message, remedy)
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
        return warn(name, f"{message}; {'; '.join(doubts)}", "; ".join(remedies))
    return ok(name, message)


def ask(what: str, question: CameraConfig | ModelQuestion, limit_s: float) -> Answer:
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
