"""Makes golden.npz: three pictures and what the model must find on them.

A device runs these before it trusts a model. Kernels round differently (XNNPACK, the
built-in and the reference ones disagree by a few hundredths of score), so results are
compared within the tolerances of the manifest, never bit by bit.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from default_model.images import U8Image

Arrays = dict[str, npt.NDArray[np.float32]]


def golden_npz(model: bytes, pictures: Sequence[U8Image]) -> bytes:
    """Return golden.npz for uint8[300,300,3] RGB pictures.

    Arrays: inputs uint8[n,300,300,3]; boxes float32[n,50,4] ymin, xmin, ymax, xmax as shares;
    classes float32[n,50]; scores float32[n,50]; count float32[n]. Rows from count on are 0.
    """
    interpreter = load(model)
    results = [detect(interpreter, picture) for picture in pictures]
    file = io.BytesIO()
    # numpy dates every member 1980-01-01, so equal arrays give equal bytes.
    np.savez_compressed(
        file,
        inputs=np.stack(pictures),
        boxes=np.stack([result["boxes"] for result in results]),
        classes=np.stack([result["classes"] for result in results]),
        scores=np.stack([result["scores"] for result in results]),
        count=np.stack([result["count"] for result in results]),
    )
    return file.getvalue()


def load(model: bytes) -> Interpreter:
    """Return a one-thread interpreter, ready for `detect`."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def detect(interpreter: Interpreter, picture: U8Image) -> Arrays:
    """Run the model on one uint8[300,300,3] RGB picture.

    Returns boxes float32[50,4], classes float32[50], scores float32[50], count float32[].
    """
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture[np.newaxis])
    interpreter.invoke()
    boxes, classes, scores, count = (
        interpreter.get_tensor(output["index"])[0].copy()
        for output in interpreter.get_output_details()
    )
    for rows in (boxes, classes, scores):
        # The operator leaves unused rows unwritten: whatever the memory held before.
        rows[int(count) :] = 0
    return {"boxes": boxes, "classes": classes, "scores": scores, "count": count}
