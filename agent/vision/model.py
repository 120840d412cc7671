"""From a name or path to a model that is ready to run: bytes, engine, input plan, head, labels.

The file is opened once; the bytes that were hashed are the bytes that are loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.config import ModelConfig
from agent.contract.payloads import ModelIdentity
from agent.errors import ModelError
from agent.vision.engines import Engine, Tensor, TensorSpec, open_engine
from agent.vision.heads import Head
from agent.vision.heads.choose import Recognition, bind, recognise
from agent.vision.labels import read_labels
from agent.vision.manifest import Manifest
from agent.vision.model_files import ModelFiles, read_model
from agent.vision.preprocess import InputPlan, plan_input, require_image
from agent.vision.tflite_file import EDGETPU_CUSTOM_OP, SSD_CUSTOM_OP, TfliteFile, parse_tflite

DEFAULT_SCORE_THRESHOLD = 0.5
# Custom operators that the runtimes bring with them.
KNOWN_CUSTOM_OPS = frozenset({SSD_CUSTOM_OP, EDGETPU_CUSTOM_OP})
# Classes for which thresholds are kept where neither labels nor tensors tell the number.
UNKNOWN_CLASS_COUNT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A loaded model. The engine belongs to the inference thread, the plan to preprocess."""

    identity: ModelIdentity
    engine: Engine
    plan: InputPlan
    head: Head
    labels: tuple[str, ...]
    notes: tuple[str, ...]

    def label(self, class_id: int) -> str | None:
        """Return the label of a class, or None where the model has none."""
        return self.labels[class_id] if class_id < len(self.labels) else None

    def new_outputs(self) -> list[Tensor]:
        """Return memory for one set of outputs."""
        return [np.zeros(spec.shape, spec.dtype) for spec in self.engine.outputs]


def load_model(config: ModelConfig) -> Model:
    """Read, check, load and warm up a model.

    Raises:
        ModelError: one sentence that names the file and what is wrong with it.
    """
    files = read_model(config.path)
    try:
        return build_model(files, config)
    except ModelError as error:
        text = str(error)
        raise ModelError(text if files.where in text else f"{files.where}: {text}") from error


def build_model(files: ModelFiles, config: ModelConfig) -> Model:
    """Load read bytes on an engine and work out what goes in and comes out."""
    manifest = files.manifest
    file = parse_tflite(files.model, where=files.where)
    _refuse_custom_ops(file, manifest, config.accelerator)
    engine = open_engine(
        files.model,
        runtime=config.runtime,
        accelerator=config.accelerator,
        threads=config.threads,
    )
    if len(engine.inputs) != 1:
        names = ", ".join(spec.name for spec in engine.inputs)
        raise ModelError(f"has {len(engine.inputs)} inputs ({names}); one image input can be fed")
    image = engine.inputs[0]
    require_image(image)
    first_run = [np.zeros(spec.shape, spec.dtype) for spec in engine.outputs]
    engine.read_outputs(first_run)
    found = recognise(file, image, engine.outputs, first_run, manifest.head)
    labels = read_labels(config.labels_file, files, file, found.class_count)
    thresholds, notes = lowest_scores(config, manifest, found, labels)
    return Model(
        identity=ModelIdentity(
            name=manifest.name,
            version=manifest.version or file.version,
            sha256=files.sha256,
        ),
        engine=engine,
        plan=_plan(file, image, manifest, found.kind),
        head=bind(found, engine.outputs, thresholds, manifest.head),
        labels=labels,
        notes=notes,
    )


def _refuse_custom_ops(file: TfliteFile, manifest: Manifest, accelerator: str) -> None:
    for name in sorted(file.custom_ops):
        if name == EDGETPU_CUSTOM_OP and accelerator in ("auto", "cpu"):
            raise ModelError(
                "the model is compiled for the Edge TPU: use the uncompiled model, or a Coral with "
                'accelerator = "edgetpu"'
            )
        if name not in KNOWN_CUSTOM_OPS and name not in manifest.custom_ops:
            raise ModelError(
                f"the model needs the custom operator {name}, which no runtime here has: export "
                "it with built-in operators only"
            )


def _plan(file: TfliteFile, image: TensorSpec, manifest: Manifest, kind: str) -> InputPlan:
    """Fill in what the manifest leaves open: from the file's metadata, then from its family."""
    wanted = manifest.input
    mean, std = wanted.mean, wanted.std
    if mean is None and std is None and image.dtype == np.float32:
        mean, std = file.mean, file.std
        if mean is None and kind.startswith("yolo"):
            mean, std = (0.0,), (255.0,)  # ultralytics/engine/predictor.py preprocess: 0 to 1
    # Ultralytics letterboxes; SSD and classifiers are trained on stretched images.
    resize = wanted.resize or ("letterbox" if kind.startswith("yolo") else "stretch")
    return plan_input(image, resize=resize, color=wanted.color, mean=mean, std=std)


def lowest_score(config: ModelConfig, manifest: Manifest, kind: str) -> float:
    """Return the score from which a finding counts, where its label has no threshold of its own."""
    if config.score_threshold is not None:
        return config.score_threshold
    if manifest.head.score_threshold is not None:
        return manifest.head.score_threshold
    # A classifier's best guesses are shown whatever their scores.
    return 0.0 if kind == "classify" else DEFAULT_SCORE_THRESHOLD


def lowest_scores(
    config: ModelConfig, manifest: Manifest, found: Recognition, labels: Sequence[str]
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """Return float32[classes] with each class's lowest score, and notes on labels unknown here."""
    wanted = lowest_score(config, manifest, found.kind)
    above_any = 2.0
    count = found.class_count or len(labels) or UNKNOWN_CLASS_COUNT
    thresholds = np.full(count, above_any if config.only_listed else wanted, np.float32)
    notes = []
    for label, threshold in config.labels.items():
        matching = [index for index, known in enumerate(labels) if known == label]
        if not matching:
            close = difflib.get_close_matches(label, labels, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else ""
            notes.append(f"model.labels.{label}: the model has no such label{hint}")
        thresholds[[index for index in matching if index < count]] = threshold
    return thresholds, tuple(notes)
