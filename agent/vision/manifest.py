"""The manifest beside a model, read; what it may say is in `agent.contract.manifest`."""

from __future__ import annotations

import msgspec

from agent.contract.manifest import Manifest
from agent.errors import ModelError

MAX_MANIFEST_BYTES = 1 << 20


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Parse manifest.json.

    Raises:
        ModelError: naming the key that is wrong.
    """
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"{where}: {error}") from error
