"""The rooms: imports point downwards only, third parties live in one room each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

AGENT = Path(__file__).resolve().parent.parent / "agent"

# Lowest first; a room may import itself and what stands before it, except as FORBIDDEN says.
LAYERS = [
    ["agent", "agent.errors"],
    [
        "agent.address",
        "agent.durable",
        "agent.logs",
        "agent.niceness",
        "agent.redaction",
        "agent.shipped",
    ],
    ["agent.config"],
    ["agent.config_words"],
    ["agent.config_conflicts"],
    ["agent.choices"],
    ["agent.trial_words"],
    ["agent.config_file"],
    ["agent.contract"],
    ["agent.link"],
    ["agent.sensors"],
    ["agent.telemetry"],
    ["agent.ota"],
    ["agent.vision", "agent.daemon"],
    ["agent.operator"],
    ["agent.doctor", "agent.demo", "agent.evaluate"],
    ["agent.bench"],  # plays with the demo's broker
    ["agent.cli"],
    ["agent.__main__"],
]
HOMES = {
    "paho": ("agent.daemon.mqtt", "agent.operator", "agent.demo", "agent.bench", "agent.doctor"),
    "tuf": ("agent.ota.trust", "agent.operator"),
    "securesystemslib": ("agent.ota.trust", "agent.operator"),
    "cryptography": ("agent.operator",),
    "cv2": ("agent.vision", "agent.bench.raw", "agent.evaluate.masks"),
    "numpy": ("agent.vision", "agent.bench", "agent.evaluate.masks"),
    "ai_edge_litert": ("agent.vision.engines",),
    "tflite_runtime": ("agent.vision.engines",),
    "ddsketch": ("agent.telemetry.latency",),
    "prometheus_client": ("agent.telemetry",),
    "picamera2": ("agent.vision.cameras",),
    "amqtt": ("agent.demo",),
    "rich": (
        *("agent.demo", "agent.vision.detect", "agent.bench", "agent.evaluate"),
        "agent.operator",
    ),
    "pycocotools": ("agent.evaluate.average_precision",),
}
# Loaded by the control process: small enough to say so.
CONTROL = "agent.daemon.app"
HEAVY = ("numpy", "cv2", "ai_edge_litert", "tflite_runtime", "tuf", "cryptography")


def modules():
    for path in sorted(AGENT.rglob("*.py")):
        parts = path.relative_to(AGENT.parent).with_suffix("").parts
        yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            if node.module == "agent":
                yield from (f"agent.{alias.name}" for alias in node.names)


def layer_of(module):
    best = max(
        (room for rooms in LAYERS for room in rooms if (module + ".").startswith(room + ".")),
        key=len,
    )
    if best == "agent" and module != "agent":
        if module.startswith("agent.__"):
            return 0 if module == "agent.__version__" else len(LAYERS) - 1
        pytest.fail(f"{module} is in no layer")
    return next(number for number, rooms in enumerate(LAYERS) if best in rooms)


def room_of(module):
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize(("path", "module"), list(modules()), ids=lambda value: str(value)[-40:])
def test_imports_point_downwards(path, module):
    for imported in imports_of(path):
        if imported.startswith("agent"):
            if room_of(imported) == room_of(module):
                continue
            assert layer_of(imported) <= layer_of(module), f"{module} imports {imported}"
            if layer_of(imported) == layer_of(module):
                pytest.fail(f"{module} imports {imported}, a neighbour of the same layer")


@pytest.mark.parametrize(("path", "module"), list(modules()), ids=lambda value: str(value)[-40:])
def test_third_parties_live_in_one_room(path, module):
    for imported in imports_of(path):
        homes = HOMES.get(imported.split(".")[0])
        if homes is not None:
            assert module.startswith(homes), f"{module} imports {imported}"


def test_control_process_imports_no_array_library():
    code = f"import {CONTROL}, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=AGENT.parent
    ).stdout.split()
    assert CONTROL in loaded
    assert not set(HEAVY) & set(loaded)
    assert not [name for name in loaded if name.startswith("agent.vision")]


def test_files_stay_small():
    sizes = {module: len(path.read_text().splitlines()) for path, module in modules()}
    assert not {module: size for module, size in sizes.items() if size > 400}
