"""Notes about what is missing: what of them belongs on disk, at no cost when nothing changes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.daemon.outbox.gap_notes import MOST_HANDED_OUT, GapNotes
from agent.daemon.outbox.records import GapNote

STEPS = st.lists(
    st.sampled_from(("add", "grow", "take", "told", "saved", "disk lost")), max_size=40
)


@settings(deadline=None)
@given(steps=STEPS)
def test_the_disk_follows_exactly_what_is_not_told_yet(steps):
    notes = GapNotes(keeps_handed_out=True)
    disk: dict[tuple[str, str, int], int] = {}
    waiting: dict[tuple[str, str, int], int] = {}
    out: list[GapNote] = []
    seq = 0
    for step in steps:
        if step in ("add", "grow"):
            seq += 1 if step == "grow" else 2
            notes.add("s", seq, seq, "refused")
        elif step == "take":
            out += notes.take()
        elif step == "told" and out:
            notes.told(out.pop())
        elif step == "saved":
            written, deleted = notes.changes()
            disk.update((note.key, note.to_seq) for note in written)
            for key in deleted:
                del disk[key]
            notes.saved(written, deleted)
        elif step == "disk lost":
            disk.clear()
            notes.disk_lost()
        waiting = {note.key: note.to_seq for note in notes._all()}
        assert notes.is_saved == (disk == waiting)
        assert (notes.oldest_unsaved is None) == notes.is_saved
    written, deleted = notes.changes()
    assert {**disk, **{note.key: note.to_seq for note in written}}.keys() - set(deleted) == (
        waiting.keys()
    )


def test_notes_nobody_hears_are_kept_in_bounds(monkeypatch):
    notes = GapNotes(keeps_handed_out=True)
    for seq in range(0, 4 * MOST_HANDED_OUT, 2):
        notes.add("s", seq, seq, "refused")
        notes.take()
    assert notes.lowest("s") == 2 * MOST_HANDED_OUT
    notes.saved(*notes.changes())
    monkeypatch.setattr(GapNotes, "_all", None)  # to look whether all is saved costs no walk
    assert notes.is_saved
