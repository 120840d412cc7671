"""Writes the model bundle: the manifest and the files it vouches for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from default_model.flatbuffer import POST_PROCESS
from default_model.sources import COCO_SSD

NAME = "default"
VERSION = "1.0.0"
LICENCE = COCO_SSD.licence
MODEL_FILE = "model.tflite"
LABELS_FILE = "labels.txt"
GOLDEN_FILE = "golden.npz"
MANIFEST_FILE = "manifest.json"

_UPSTREAM = (
    "ssdlite_mobilenet_v2_coco of the TensorFlow detection model zoo, "
    "as lite_mobilenet_v2 of tfjs-models coco-ssd"
)
_CHANGES = [
    "pre-processing and post-processing graphs removed",
    "class heads cut from 91 columns to the 80 COCO classes, numbered 0 to 79",
    "weights and activations quantized to int8 after training",
    "converted to TFLite with the TFLite_Detection_PostProcess operator",
    "label list and TFLite metadata added",
]


def write_bundle(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write the files and, last, the manifest; each file is replaced in one step."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        _replace_file(directory / name, data)
    text = json.dumps(_manifest(files), indent=2, allow_nan=False) + "\n"
    _replace_file(directory / MANIFEST_FILE, text.encode())


def _manifest(files: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "schema": "edge-agent/manifest/1",
        "name": NAME,
        "version": VERSION,
        "release_counter": 1,
        "security_floor": 1,
        "task": "detection",
        "head": {"type": "ssd", "score_threshold": 0.4},
        "input": {"resize": "stretch", "color": "rgb", "mean": None, "std": None},
        "labels": LABELS_FILE,
        "custom_ops": [POST_PROCESS],
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in files.items()
        },
        # Measured spread between TFLite's kernels on these inputs, with a margin.
        "golden": {"file": GOLDEN_FILE, "score_tolerance": 0.08, "iou": 0.85},
        "license": LICENCE,
        "provenance": {
            "package": f"npm:{COCO_SSD.name}",
            "version": COCO_SSD.version,
            "sha256": COCO_SSD.sha256,
            "upstream": _UPSTREAM,
            "changes": _CHANGES,
        },
    }


def _replace_file(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
