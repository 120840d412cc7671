"""Pictures and expected results that the project brings itself: the shipped model's golden ones."""

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

BUNDLE = Path(__file__).resolve().parents[2] / "models" / "default"
RUNTIMES = {"litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
SIDE = 300


def need(runtime):
    if not importlib.util.find_spec(RUNTIMES[runtime]):
        pytest.skip(f"{runtime} is not installed")


def any_runtime():
    """The one that is installed."""
    return next(name for name, module in RUNTIMES.items() if importlib.util.find_spec(module))


def write_golden(folder):
    """Write the golden pictures; return {file name: its expected detections}."""
    folder.mkdir(exist_ok=True)
    labels = (BUNDLE / "labels.txt").read_text(encoding="utf-8").splitlines()
    entries = {}
    with np.load(BUNDLE / "golden.npz", allow_pickle=False) as golden:
        for at, picture in enumerate(golden["inputs"]):
            name = f"golden{at}.png"
            assert cv2.imwrite(str(folder / name), picture[:, :, ::-1])
            entries[name] = [
                {
                    "label": labels[int(golden["classes"][at][row])],
                    "class_id": int(golden["classes"][at][row]),
                    "score": round(float(golden["scores"][at][row]), 4),
                    "box": (golden["boxes"][at][row][[1, 0, 3, 2]].clip(0, 1) * SIDE).tolist(),
                }
                for row in range(int(golden["count"][at]))
                if golden["scores"][at][row] >= 0.4
            ]
    return entries


def as_expected(entries):
    """Our own form, for the model `default`."""
    return {"expected": {"default": {name: {"detections": rows} for name, rows in entries.items()}}}


def as_coco(entries):
    """COCO's form, with ids that begin at 0 and are not the model's."""
    names = sorted({row["label"] for rows in entries.values() for row in rows})
    annotations = []
    for image_id, rows in enumerate(entries.values()):
        for row in rows:
            x_min, y_min, x_max, y_max = row["box"]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": 7 + names.index(row["label"]),
                    "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
                    "area": (x_max - x_min) * (y_max - y_min),
                    "iscrowd": 0,
                    "segmentation": [[0, 0, 1, 1, 0, 1]],
                }
            )
    return {
        "info": {"year": 2024},
        "images": [{"id": at, "file_name": name} for at, name in enumerate(entries)],
        "annotations": annotations,
        "categories": [{"id": 7 + at, "name": name} for at, name in enumerate(names)],
    }


def write_json(path, document):
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
