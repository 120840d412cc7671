"""How far an engine's cameras have come, over all its workers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.link import Beat, ResultOut, Resume


@dataclass(slots=True)
class _Progress:
    next_seq: int = 1
    last_frame_id: int = 0


class StreamProgress:
    """Where each camera's numbers go on; `first_seq` where they do for the first worker."""

    def __init__(self, first_seq: Mapping[str, int]) -> None:
        self._cameras = {name: _Progress(next_seq=seq) for name, seq in first_seq.items()}

    def note_result(self, result: ResultOut) -> None:
        """A result has come."""
        progress = self._cameras.setdefault(result.camera, _Progress())
        progress.next_seq = result.seq + 1
        progress.last_frame_id = max(progress.last_frame_id, result.frame_id)

    def note_beat(self, beat: Beat) -> None:
        """Frames without a result count as well."""
        for name, counts in beat.cameras.items():
            progress = self._cameras.setdefault(name, _Progress())
            progress.last_frame_id = max(progress.last_frame_id, counts.last_frame_id)

    def resume(self, skip: int) -> dict[str, Resume]:
        """Return where the next worker goes on, a file behind its last processed frame."""
        return {
            name: Resume(
                next_seq=progress.next_seq, next_frame_id=progress.last_frame_id + 1, skip=skip
            )
            for name, progress in self._cameras.items()
        }
