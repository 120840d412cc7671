"""From a name or path to a model that is ready to run: bytes, engine, input plan, head, labels.

The file is opened once; the bytes that were hashed are the bytes that are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.choices import Choice
from agent.config import ModelConfig
from agent.contract.manifest import Manifest, TensorManifest, TensorsManifest
from agent.contract.payloads import ModelIdentity
from agent.errors import ModelError
from agent.vision.accelerate import Chooser, explain, open_wanted
from agent.vision.engines import Engine, Tensor, TensorSpec
from agent.vision.heads import Decoded, Found, Head, Limits, Look
from agent.vision.heads.choose import recognise
from agent.vision.labels import label_counts, read_labels
from agent.vision.model_files import ModelFiles, read_model
from agent.vision.notes import model_notes
from agent.vision.preprocess import InputPlan, plan_input, require_image
from agent.vision.recurrent import wire
from agent.vision.tflite_file import EDGETPU_CUSTOM_OP, SSD_CUSTOM_OP, TfliteFile, parse_tflite

DEFAULT_SCORE_THRESHOLD = 0.5
# A classifier's best guesses are shown whatever their scores. MoveNet and PoseNet give scores
# of points, of which a figure's is the mean; 0.3 is what MoveNet's model card recommends.
FAMILY_SCORE_THRESHOLDS = {"classify": 0.0, "movenet": 0.3, "posenet": 0.3}
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
    reason: str | None = None  # why it does not run where it was wanted
    is_fallback: bool = False  # an accelerator was wanted and may come back
    image_input: int = 0  # position of the image among the inputs
    feedback: tuple[tuple[int, int], ...] = ()  # (input, output) positions of recurrent state
    head_outputs: tuple[int, ...] = ()  # positions that the head reads; empty: all
    limits: Limits | None = None  # that the head was bound to

    def label(self, class_id: int) -> str | None:
        """Return the label of a class, or None where the model has none."""
        return self.labels[class_id] if class_id < len(self.labels) else None

    def new_outputs(self) -> list[Tensor]:
        """Return memory for one set of outputs."""
        return [np.zeros(spec.shape, spec.dtype) for spec in self.engine.outputs]

    def decode(self, outputs: list[Tensor]) -> Decoded:
        """Decode one set of outputs."""
        chosen = self.head_outputs
        return self.head.decode([outputs[at] for at in chosen] if chosen else outputs)


def load_model(
    config: ModelConfig,
    *,
    choice: Choice | None = None,
    chooser: Chooser | None = None,
    avoid: str = "",
    manifest_sha256: str = "",
) -> Model:
    """Read, check, load and warm up a model; see `open_wanted` for the other arguments.

    manifest_sha256: of an installed bundle, see `read_model`

    Raises:
        ModelError: one sentence that names the file and what is wrong with it.
    """
    files = read_model(config.path, manifest_sha256=manifest_sha256)
    try:
        return build_model(files, config, choice=choice, chooser=chooser, avoid=avoid)
    except ModelError as error:
        raise explain(error, files) from error


def build_model(
    files: ModelFiles,
    config: ModelConfig,
    *,
    choice: Choice | None = None,
    chooser: Chooser | None = None,
    avoid: str = "",
) -> Model:
    """Load read bytes on an engine and work out what goes in and comes out."""
    manifest = files.manifest
    _refuse_custom_ops(parse_tflite(files.plain.data, where=files.plain.where), manifest)
    opened = open_wanted(files, config, choice=choice, chooser=chooser, avoid=avoid)
    engine = opened.engine
    file = parse_tflite(opened.used.data, where=opened.used.where)
    if not engine.outputs:
        raise ModelError("has no outputs, so there is nothing to find; convert it again")
    if manifest.tensors not in (None, tensors_of(engine)):
        raise ModelError("has other inputs or outputs than its manifest says; is it its model?")
    wiring = wire(engine.inputs, engine.outputs, manifest.head.state)
    image = engine.inputs[wiring.image]
    require_image(image, size=(manifest.input.height, manifest.input.width))
    first_run = [np.zeros(spec.shape, spec.dtype) for spec in engine.outputs]
    engine.read_outputs(first_run)
    found = recognise(
        Look(
            file=file,
            image=image,
            outputs=tuple(engine.outputs[at] for at in wiring.outputs),
            first_run=[first_run[at] for at in wiring.outputs],
            wanted=manifest.head,
            folder=files.folder,
            files=manifest.files,
            label_counts=label_counts(config.labels_file, files, file),
        )
    )
    if manifest.task not in (None, found.task):
        raise ModelError(
            f"its manifest calls this a {manifest.task} model, but its head gives {found.task}: "
            "correct `task` or `head.type`"
        )
    labels = read_labels(config.labels_file, files, file, found.class_count) or found.labels
    thresholds = lowest_scores(config, manifest, found, labels)
    limits = _limits(config, manifest, found, thresholds)
    return Model(
        identity=ModelIdentity(
            name=manifest.name,
            version=manifest.version or file.version,
            sha256=opened.used.sha256,
        ),
        engine=engine,
        plan=_plan(file, image, manifest, found),
        head=Head(
            kind=found.kind,
            task=found.task,
            class_count=found.class_count,
            why=found.why,
            decode=found.bind(limits),
            keypoint_names=found.keypoint_names,
            read_as=found.read_as,
        ),
        labels=labels,
        notes=model_notes(config, found, labels),
        reason=opened.reason,
        is_fallback=opened.is_fallback,
        image_input=wiring.image,
        feedback=wiring.feedback,
        head_outputs=wiring.outputs if wiring.feedback else (),
        limits=limits,
    )


def tensors_of(engine: Engine) -> TensorsManifest:
    """Return a loaded model's inputs and outputs, as a manifest lists them."""

    def listed(spec: TensorSpec) -> TensorManifest:
        return TensorManifest(name=spec.name[:256], shape=spec.shape, dtype=str(spec.dtype))

    return TensorsManifest(
        inputs=tuple(map(listed, engine.inputs)), outputs=tuple(map(listed, engine.outputs))
    )


def _refuse_custom_ops(file: TfliteFile, manifest: Manifest) -> None:
    for name in sorted(file.custom_ops - KNOWN_CUSTOM_OPS):
        if name not in manifest.custom_ops:
            raise ModelError(
                f"the model needs the custom operator {name}, which no runtime here has: export "
                "it with built-in operators only"
            )


def _plan(file: TfliteFile, image: TensorSpec, manifest: Manifest, found: Found) -> InputPlan:
    """Fill in what the manifest leaves open: from the file's metadata, then from its family."""
    wanted = manifest.input
    mean, std = wanted.mean, wanted.std
    if mean is None and std is None and image.dtype == np.float32:
        mean, std = file.mean, file.std
        if mean is None and found.normalization is not None:
            mean, std = (found.normalization[0],), (found.normalization[1],)
    resize = wanted.resize or found.resize
    return plan_input(image, resize=resize, color=wanted.color, mean=mean, std=std)


def _limits(
    config: ModelConfig,
    manifest: Manifest,
    found: Found,
    thresholds: npt.NDArray[np.float32],
) -> Limits:
    """Settle each limit: the configuration's word, else the manifest's, else the family's."""
    head = manifest.head
    iou = config.iou_threshold if config.iou_threshold is not None else head.iou_threshold
    nms = config.nms or head.nms
    return Limits(
        thresholds=thresholds,
        iou_threshold=found.iou_threshold if iou is None else iou,
        max_detections=config.max_detections or head.max_detections,
        is_agnostic=found.is_agnostic if nms is None else nms == "agnostic",
        top_k=head.top_k,
    )


def lowest_score(config: ModelConfig, manifest: Manifest, kind: str) -> float:
    """Return the score from which a finding counts, where its label has no threshold of its own."""
    if config.score_threshold is not None:
        return config.score_threshold
    if manifest.head.score_threshold is not None:
        return manifest.head.score_threshold
    return FAMILY_SCORE_THRESHOLDS.get(kind, DEFAULT_SCORE_THRESHOLD)


def lowest_scores(
    config: ModelConfig, manifest: Manifest, found: Found, labels: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Return float32[classes] with each class's lowest score."""
    wanted = lowest_score(config, manifest, found.kind)
    above_any = 2.0
    count = found.class_count or len(labels) or UNKNOWN_CLASS_COUNT
    thresholds = np.full(count, above_any if config.only_listed else wanted, np.float32)
    wishes = [*config.labels.items(), *((label, above_any) for label in config.deny)]
    for label, threshold in wishes:
        matching = [index for index, known in enumerate(labels) if known == label]
        thresholds[[index for index in matching if index < count]] = threshold
    return thresholds
