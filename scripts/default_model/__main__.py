"""Entry point of `scripts/build-default-model`."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import tensorflow as tf
from tqdm import tqdm

from default_model import bundle, coco, convert, flatbuffer, golden, metadata, sources
from default_model.fetch import FetchError, read_member
from default_model.graph import GraphModel, parse_graph_model
from default_model.images import calibration_views, decode_rgb, stretch
from default_model.pictures import read_astronaut, read_cat, read_coffee

_DEFAULT_OUTPUT = Path(__file__).resolve().parents[2] / "models" / "default"
_DESCRIPTION = "SSDLite MobileNetV2, COCO-80, int8"


def main(arguments: list[str] | None = None) -> int:
    """Build the bundle; return the exit status."""
    parser = argparse.ArgumentParser(prog="build-default-model", description=__doc__)
    parser.add_argument("--output", type=Path, default=_DEFAULT_OUTPUT, metavar="DIR")
    options = parser.parse_args(arguments)
    # One thread: float sums come in one order, so calibration gives the same ranges.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    try:
        files = _build()
    except FetchError as error:
        print(f"build-default-model: {error}", file=sys.stderr)
        return 1
    bundle.write_bundle(options.output, files)
    for name, data in files.items():
        print(f"{hashlib.sha256(data).hexdigest()}  {len(data):>8}  {name}")
    return 0


def _build() -> dict[str, bytes]:
    """Return the files of the bundle, in manifest order."""
    labels = coco.labels_text()
    model = _build_model(labels)
    pictures = [stretch(picture) for picture in (read_astronaut(), read_cat(), read_coffee())]
    return {
        bundle.MODEL_FILE: model,
        bundle.LABELS_FILE: labels.encode(),
        bundle.GOLDEN_FILE: golden.golden_npz(model, pictures),
    }


def _build_model(labels: str) -> bytes:
    detector = convert.build_detector(_read_graph())
    images = [
        decode_rgb(read_member(member))
        for member in tqdm(sources.CALIBRATION, desc="reading pictures", unit="file")
    ]
    views = list(calibration_views(images))
    tflite = convert.to_int8_tflite(detector, tqdm(views, desc="calibrating", unit="view"))
    description = metadata.model_metadata(
        name=bundle.NAME,
        version=bundle.VERSION,
        description=_DESCRIPTION,
        licence=bundle.LICENCE,
    )
    finished = flatbuffer.finish(tflite, _DESCRIPTION, description)
    return metadata.append_labels(finished, labels)


def _read_graph() -> GraphModel:
    shards = {
        path: read_member(member)
        for path, member in tqdm(sources.MODEL_SHARDS.items(), desc="reading weights", unit="file")
    }
    return parse_graph_model(read_member(sources.MODEL_JSON), shards)


if __name__ == "__main__":
    sys.exit(main())
