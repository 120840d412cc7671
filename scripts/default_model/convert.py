"""Turns the SSDLite MobileNetV2 graph into an int8 TFLite detector.

    image f32[1,300,300,3] -> backbone -> box encodings, class scores -> PostProcess op

Changes to the published network: pre- and post-processing graphs cut off, class heads cut
from 91 columns to the 80 COCO classes, weights and activations quantized to int8, the box
decoding and non-maximum suppression done by TFLite's own custom operator.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from default_model.coco import HEAD_COLUMNS, LABELS
from default_model.graph import GraphModel, Weights, replay, restore_residual_adds
from default_model.images import INPUT_SIZE_PX, U8Image

MAX_DETECTIONS = 50

# ssdlite_mobilenet_v2_coco pipeline.config of the TensorFlow detection model zoo.
_FEATURE_MAPS = 6
_HEAD_WIDTH = 91
_BOX_CODER_SCALES = {"y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0}

# Low enough to leave the choice to the application, high enough to keep NMS cheap.
_SCORE_THRESHOLD = 0.1
_NMS_IOU_THRESHOLD = 0.5

_INPUT_NODE = "Preprocessor/sub"
_ANCHORS = "Postprocessor/ExpandDims"


class Detector(Protocol):
    """A tf.function from image to boxes, classes, scores and count."""

    def __call__(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the outputs for one image."""
        ...

    def get_concrete_function(self) -> object:
        """Return the traced graph."""
        ...


def build_detector(model: GraphModel) -> Detector:
    """Return the whole detector as a float tf.function.

    In: image float32[1,300,300,3] RGB, -1..1. Out: boxes float32[1,50,4] (ymin, xmin, ymax,
    xmax as shares of the image), classes float32[1,50], scores float32[1,50], count
    float32[1]. Its outputs are placeholders until converted: see `_post_process`.
    """
    graph = restore_residual_adds(GraphModel(model.nodes, trim_class_heads(model.weights)))
    anchors = center_size(model.weights[_ANCHORS].reshape(-1, 4))
    post_process = _post_process()
    heads = [
        f"BoxPredictor_{level}/{kind}/BiasAdd"
        for kind in ("BoxEncodingPredictor", "ClassPredictor")
        for level in range(_FEATURE_MAPS)
    ]
    image_spec = tf.TensorSpec([1, INPUT_SIZE_PX, INPUT_SIZE_PX, 3], tf.float32, "image")

    @tf.function(input_signature=[image_spec])
    def detect(image: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = replay(graph, {_INPUT_NODE: image}, heads)
        encodings = _join_levels(outputs[:_FEATURE_MAPS], 4)
        logits = _join_levels(outputs[_FEATURE_MAPS:], len(LABELS))
        results = post_process(encodings, tf.sigmoid(logits), tf.constant(anchors))
        return dict(zip(("boxes", "classes", "scores", "count"), results, strict=True))

    return detect


def trim_class_heads(weights: Weights) -> Weights:
    """Return the weights with each class head cut from 91 to the 80 used columns.

    Scores are unchanged: the head ends in a sigmoid per class, not in a softmax.
    """
    trimmed = dict(weights)
    for level in range(_FEATURE_MAPS):
        for kind in ("weights", "biases"):
            name = f"BoxPredictor_{level}/ClassPredictor/{kind}"
            head = weights[name]
            lead = head.shape[:-1]
            per_anchor = head.reshape(*lead, -1, _HEAD_WIDTH)[..., list(HEAD_COLUMNS)]
            trimmed[name] = np.ascontiguousarray(per_anchor.reshape(*lead, -1))
    return trimmed


def center_size(yxyx: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return boxes float32[n,4] as (center y, center x, height, width)."""
    top_left, bottom_right = yxyx[:, :2], yxyx[:, 2:]
    centers = (top_left + bottom_right) / 2
    return np.concatenate([centers, bottom_right - top_left], axis=1).astype(np.float32)


def to_int8_tflite(detector: Detector, calibration: Iterable[U8Image]) -> bytes:
    """Return a .tflite with int8 weights and activations, uint8 input and float32 outputs.

    Args:
        detector: from `build_detector`.
        calibration: uint8[300,300,3] RGB pictures to measure activation ranges with.
    """

    def samples() -> Iterator[list[npt.NDArray[np.float32]]]:
        for image in calibration:
            yield [image[np.newaxis].astype(np.float32) * np.float32(2 / 255) - 1]

    module = tf.Module()
    module.detect = detector
    with tempfile.TemporaryDirectory() as saved_model:
        # Not from_concrete_functions: it inlines the placeholder of the custom operator.
        tf.saved_model.save(module, saved_model, signatures=detector.get_concrete_function())
        converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
        converter.allow_custom_ops = True
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = samples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.float32
        return bytes(converter.convert())


def _join_levels(levels: Iterable[tf.Tensor], width: int) -> tf.Tensor:
    """Concatenate the per-level maps [1,h,w,anchors*width] to float32[1,1917,width]."""
    return tf.concat([tf.reshape(level, [1, -1, width]) for level in levels], axis=1)


def _post_process() -> Callable[..., tuple[tf.Tensor, ...]]:
    """Return a function the converter replaces by the TFLite_Detection_PostProcess operator.

    Attributes as read by tensorflow/lite/kernels/detection_postprocess.cc, `Init`.
    """
    integers = {
        "max_detections": MAX_DETECTIONS,
        "max_classes_per_detection": 1,
        "detections_per_class": 100,
        "num_classes": len(LABELS),
    }
    floats = {
        "nms_score_threshold": _SCORE_THRESHOLD,
        "nms_iou_threshold": _NMS_IOU_THRESHOLD,
        **_BOX_CODER_SCALES,
    }
    # Class-agnostic suppression: per-class leaves doubles such as horse + sheep on one animal.
    attributes = [("use_regular_nms", "b: false")]
    attributes += [(key, f"i: {value}") for key, value in integers.items()]
    attributes += [(key, f"f: {value}") for key, value in floats.items()]
    implements = 'name: "TFLite_Detection_PostProcess" ' + " ".join(
        f'attr {{ key: "{key}" value {{ {value} }} }}' for key, value in attributes
    )

    @tf.function(experimental_implements=implements)
    def post_process(
        encodings: tf.Tensor, scores: tf.Tensor, anchors: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        del encodings, scores, anchors
        return (
            tf.zeros([1, MAX_DETECTIONS, 4]),
            tf.zeros([1, MAX_DETECTIONS]),
            tf.zeros([1, MAX_DETECTIONS]),
            tf.zeros([1]),
        )

    return post_process
