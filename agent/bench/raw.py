"""The yardstick: the bare interpreter on this clip's frames, and what decoding them costs.

A process of its own (`python -m agent.bench.raw MODEL CLIP SECONDS RUNTIME XNNPACK THREADS`),
so that it imports nothing of the pipeline's and shares no state with it. Prints one JSON line.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import cv2

from agent.config import CameraConfig, ModelConfig
from agent.config_file import parse_model
from agent.vision.cameras import EndOfStream, open_camera
from agent.vision.engines import Tensor
from agent.vision.model import Model, load_model
from agent.vision.preprocess import preprocess

# Enough different frames that the post-processing operator's work is the clip's own.
TENSORS = 30


def measure(config: ModelConfig, clip: str, seconds: float) -> dict[str, float]:
    """Return invoke times in ms and CPU seconds per frame of decode + invoke."""
    cv2.setNumThreads(1)
    model = load_model(config)
    tensors = _tensors(model, clip)
    engine = model.engine
    times_ms: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for tensor in tensors:
            engine.load_input(tensor)
            started = time.perf_counter_ns()
            engine.invoke()
            times_ms.append((time.perf_counter_ns() - started) / 1e6)
    paced_ms = _paced_ms(model, tensors, seconds)
    decode_cpu_ms, invoke_cpu_ms = _cpu_ms(model, clip, tensors)
    ordered = sorted(times_ms)
    return {
        "invoke_p50_ms": statistics.median(ordered),
        "invoke_p99_ms": ordered[int(len(ordered) * 0.99)],
        "invoke_at_30_fps_p50_ms": statistics.median(paced_ms),
        "invokes": len(ordered),
        "decode_cpu_ms": decode_cpu_ms,
        "invoke_cpu_ms": invoke_cpu_ms,
    }


def _paced_ms(model: Model, tensors: list[Tensor], seconds: float) -> list[float]:
    """Invoke 30 times a second: after each pause caches are cold, for the bare interpreter too."""
    times_ms: list[float] = []
    due = time.perf_counter()
    until = due + seconds
    while due < until:
        time.sleep(max(0.0, due - time.perf_counter()))
        due += 1 / 30
        model.engine.load_input(tensors[len(times_ms) % len(tensors)])
        started = time.perf_counter_ns()
        model.engine.invoke()
        times_ms.append((time.perf_counter_ns() - started) / 1e6)
    return times_ms


def _tensors(model: Model, clip: str) -> list[Tensor]:
    camera = open_camera(CameraConfig(source=clip, loop=True))
    tensors = []
    for _ in range(TENSORS):
        pixels = camera.read(None)
        tensor = model.plan.new_tensor()
        if pixels is not None:
            preprocess(pixels, model.plan, tensor)
        tensors.append(tensor)
    camera.close()
    return tensors


def _cpu_ms(model: Model, clip: str, tensors: list[Tensor]) -> tuple[float, float]:
    """Return process CPU ms per frame of decoding alone and of invoking alone."""
    camera = open_camera(CameraConfig(source=clip))
    buffer = camera.read(None)
    frames = 0
    started = time.process_time()
    try:
        while True:
            buffer = camera.read(buffer)
            frames += 1
    except EndOfStream:
        decode = (time.process_time() - started) / frames
    camera.close()
    started = time.process_time()
    for tensor in tensors:
        model.engine.load_input(tensor)
        model.engine.invoke()
    invoke = (time.process_time() - started) / len(tensors)
    return decode * 1e3, invoke * 1e3


if __name__ == "__main__":
    model_path, clip_path, lasting, runtime, xnnpack, threads = sys.argv[1:]
    settings = parse_model(
        path=model_path, runtime=runtime, xnnpack=xnnpack, threads=int(threads), accelerator="cpu"
    )
    print(json.dumps(measure(settings, clip_path, float(lasting))))
