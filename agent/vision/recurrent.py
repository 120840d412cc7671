"""Which input is the image, and which outputs are fed back into the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.errors import ModelError
from agent.vision.engines import Engine, Tensor, TensorSpec

WORD = re.compile(r"[a-z]+|[0-9]+")
IN_OR_OUT = frozenset(
    {
        *("in", "input", "inputs", "prev", "previous", "old", "init", "initial"),
        *("out", "output", "outputs", "next", "new", "final"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Positions among a model's inputs and outputs."""

    image: int
    feedback: tuple[tuple[int, int], ...]  # (input, output)
    outputs: tuple[int, ...]  # what is published: all that are not fed back, or else all


class State:
    """What a recurrent model remembers of one camera; belongs to the inference thread."""

    def __init__(self, engine: Engine, feedback: Sequence[tuple[int, int]]) -> None:
        self._feedback = tuple(feedback)
        # Real zero, in the tensor's own numbers.
        self._memory = [
            np.full(engine.inputs[at].shape, engine.inputs[at].zero_point, engine.inputs[at].dtype)
            for at, _ in feedback
        ]

    def feed(self, engine: Engine) -> None:
        """Give the engine what it said last."""
        for (at, _), memory in zip(self._feedback, self._memory, strict=True):
            engine.load_input(memory, at)

    def keep(self, outputs: Sequence[Tensor]) -> None:
        """Remember what the engine says now."""
        for (_, at), memory in zip(self._feedback, self._memory, strict=True):
            np.copyto(memory, outputs[at])


def wire(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], named: Mapping[str, str]
) -> Wiring:
    """Tell the image from recurrent state; `named` is the manifest's input -> output.

    What the manifest leaves open is paired where only one output can hold what an input takes:
    the same shape, dtype and quantization, and, where several have those, the same name apart
    from the words for in and out.

    Raises:
        ModelError: an input is neither the image nor paired with one output.
    """
    feedback = dict(_named_pair(inputs, outputs, *pair) for pair in named.items())
    if len(set(feedback.values())) != len(feedback):
        raise ModelError("manifest: head.state feeds one output into two inputs; give each its own")
    left = [at for at in range(len(inputs)) if at not in feedback]
    image = _image_among(inputs, outputs, left)
    for at in left:
        if at != image:
            free = [to for to in range(len(outputs)) if to not in feedback.values()]
            rivals = [one for one in left if one not in (image, *feedback)]
            feedback[at] = _pair(inputs, outputs, at, free, rivals)
    kept = [at for at in range(len(outputs)) if at not in feedback.values()]
    return Wiring(
        image=image,
        feedback=tuple(sorted(feedback.items())),
        outputs=tuple(kept or range(len(outputs))),
    )


def _named_pair(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], source: str, target: str
) -> tuple[int, int]:
    """Return the positions of a pair that the manifest names."""
    at, to = _find(inputs, source, "input"), _find(outputs, target, "output")
    if not _is_same_kind(inputs[at], outputs[to]):
        raise ModelError(
            f'manifest: head.state pairs "{source}" ({_show(inputs[at])}) with "{target}" '
            f"({_show(outputs[to])}); shape, type and quantization must be the same"
        )
    return at, to


def _find(specs: Sequence[TensorSpec], name: str, kind: str) -> int:
    for same in (lambda own: own == name, lambda own: _plain_name(own) == name):
        found = [at for at, spec in enumerate(specs) if same(spec.name)]
        if len(found) == 1:
            return found[0]
    known = ", ".join(f'"{spec.name}"' for spec in specs)
    raise ModelError(f'manifest: head.state: the model has no {kind} "{name}"; it has {known}')


def _plain_name(name: str) -> str:
    """Return a name without what SavedModel exporters put round it: "serving_default_x:0"."""
    return name.removeprefix("serving_default_").split(":", 1)[0]


def _image_among(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], left: Sequence[int]
) -> int:
    """Return the input that is the picture: the one shaped like one that no output resembles."""
    if len(left) == 1:
        return left[0]
    images = [at for at in left if is_image(inputs[at])]
    if len(images) > 1:
        fed_back = [at for at in images if any(_is_same_kind(inputs[at], one) for one in outputs)]
        images = [at for at in images if at not in fed_back]
    if len(images) == 1:
        return images[0]
    names = ", ".join(f'"{spec.name}" {_show(spec)}' for spec in inputs)
    raise ModelError(
        f"the model has {len(inputs)} inputs ({names or 'none'}) and "
        f"{'none of them is' if not images else 'more than one of them may be'} the image: one "
        "image input can be fed, and every other input must be paired with an output in "
        "head.state of the manifest"
    )


def _pair(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    at: int,
    free: Sequence[int],
    rivals: Sequence[int],
) -> int:
    """Return the output that is fed back into an input; `rivals` are the inputs still open."""
    spec = inputs[at]
    fitting = [to for to in free if _is_same_kind(spec, outputs[to])]
    alike = [one for one in rivals if _is_same_kind(spec, inputs[one])]
    if len(fitting) > 1 or len(alike) > 1:
        stem = _stem(spec.name)
        fitting = [to for to in fitting if _stem(outputs[to].name) == stem]
        if [one for one in alike if _stem(inputs[one].name) == stem] != [at]:
            fitting = []
    if len(fitting) == 1 and not spec.is_dynamic:
        return fitting[0]
    known = ", ".join(f'"{outputs[to].name}" {_show(outputs[to])}' for to in free)
    raise ModelError(
        f'input "{spec.name}" ({_show(spec)}) is not the image, and which output is fed back into '
        f"it cannot be told (outputs: {known or 'none are left'}); say so in head.state of the "
        f'manifest: {{"{spec.name}": "<output>"}}'
    )


def is_image(spec: TensorSpec) -> bool:
    """Return whether an input can be one image from a camera; see `require_image`."""
    shape = spec.shape
    return len(shape) == 4 and shape[0] == 1 and shape[3] in (1, 3) and min(shape[1:3]) > 1


def _is_same_kind(one: TensorSpec, other: TensorSpec) -> bool:
    """Return whether one tensor's stored numbers mean the same in the other."""
    return (one.shape, one.dtype, one.scale, one.zero_point) == (
        other.shape,
        other.dtype,
        other.scale,
        other.zero_point,
    )


def _stem(name: str) -> frozenset[str]:
    """Return the words of a name that are not words for in or out."""
    return frozenset(WORD.findall(_plain_name(name).lower())) - IN_OR_OUT


def _show(spec: TensorSpec) -> str:
    quantized = f", scale {spec.scale:g}, zero point {spec.zero_point}" if spec.scale else ""
    return f"{spec.dtype} {list(spec.shape)}{quantized}"
