"""The checker finds every kind of damage that is planted, and nothing where none is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from reliability.checker import Findings, Heard, Named, Put, check

STREAMS = ("camera/door/detections", "camera/yard/detections", "telemetry")


def put(stream: str, seq: int, at: float | None = None) -> Put:
    return Put(stream, seq, f"{stream}-{seq}", float(seq) if at is None else at)


def hear(one: Put, at: float = 0.0) -> Heard:
    return Heard(one.stream, one.seq, one.digest, at)


def note(stream: str, first: int, last: int, reason: str = "queue_full") -> Named:
    count = None if reason == "restart" else last - first + 1
    return Named(stream, first, last, reason, count)  # type: ignore[arg-type]


@st.composite
def clean_runs(draw: Callable[..., object]) -> tuple[list[Put], list[Heard]]:
    """Runs in which all is well: streams interleaved, some records delivered again later."""
    lengths = draw(st.tuples(*[st.integers(1, 40) for _ in STREAMS]))
    order = draw(
        st.permutations([s for s, n in zip(STREAMS, lengths, strict=True) for _ in range(n)])
    )
    seqs = dict.fromkeys(STREAMS, 0)
    puts = []
    for stream in order:
        seqs[stream] += 1
        puts.append(put(stream, seqs[stream], at=float(len(puts))))
    heard = [hear(one) for one in puts]
    # A reconnect sends the tail of what was heard again.
    cut = draw(st.integers(0, len(heard)))
    again = draw(st.integers(0, cut))
    return puts, heard[:cut] + heard[cut - again : cut] + heard[cut:]


@given(clean_runs())
def test_a_clean_run_has_no_findings_but_its_repeats(run):
    puts, heard = run
    findings = check(puts, heard)
    assert findings.violations() == []
    assert (findings.produced, findings.received) == (len(puts), len(puts))
    assert findings.duplicates == len(heard) - len(puts)


@given(clean_runs(), st.data())
def test_every_planted_loss_is_found(run, data):
    puts, heard = run
    missing = set(data.draw(st.lists(st.sampled_from(puts), min_size=1)))
    keys = {one.key for one in missing}
    findings = check(puts, [one for one in heard if one.key not in keys])
    assert set(findings.lost) == set(findings.unnamed) == keys
    assert len(findings.violations()) == 2


@given(clean_runs(), st.data())
def test_a_loss_that_a_gap_names_is_allowed_for_its_reason_alone(run, data):
    puts, heard = run
    one = data.draw(st.sampled_from(puts))
    rest = [other for other in heard if other.key != one.key]
    findings = check(puts, rest, [note(one.stream, one.seq, one.seq)])
    assert findings.named == [one.key]
    assert findings.violations(["queue_full"]) == []
    assert findings.violations(["too_large"]) != []
    assert findings.violations() != []


@given(clean_runs(), st.data())
def test_a_gap_that_stops_one_short_leaves_an_unnamed_number(run, data):
    puts, heard = run
    stream = data.draw(st.sampled_from(STREAMS))
    last = max(one.seq for one in puts if one.stream == stream)
    assume(last >= 2)
    rest = [one for one in heard if one.stream != stream]
    findings = check(puts, rest, [note(stream, 1, last - 1)])
    assert findings.unnamed == [(stream, last)]
    assert any("named by no gap" in words for words in findings.violations(["queue_full"]))


@given(clean_runs(), st.data())
def test_every_planted_reorder_is_found(run, data):
    puts, _ = run
    stream = data.draw(st.sampled_from(STREAMS))
    of_stream = [hear(one) for one in puts if one.stream == stream]
    assume(len(of_stream) >= 2)
    early, late = sorted(data.draw(st.permutations(range(len(of_stream))))[:2])
    of_stream[early], of_stream[late] = of_stream[late], of_stream[early]
    rest = [hear(one) for one in puts if one.stream != stream]
    findings = check(puts, of_stream + rest)
    # Of a swap, all between the two and the earlier one come behind the later one.
    assert len(findings.reordered) == late - early
    assert findings.violations()


@given(clean_runs(), st.data())
def test_a_wrong_payload_is_found_and_counts_as_nothing_received(run, data):
    puts, _ = run
    index = data.draw(st.integers(0, len(puts) - 1))
    heard = [hear(one) for one in puts]
    heard[index] = replace(heard[index], digest="flipped")
    findings = check(puts, heard)
    assert findings.wrong == findings.lost == [puts[index].key]


@given(clean_runs(), st.data())
def test_a_number_that_is_used_for_two_payloads_is_found(run, data):
    puts, heard = run
    one = data.draw(st.sampled_from(puts))
    again = replace(one, digest="another")
    findings = check([*puts, again], [*heard, Heard(*again.key, "another")])
    assert findings.reused == [one.key]
    assert findings.violations()


@given(st.integers(1, 50), st.floats(0, 5), st.floats(0.1, 3))
def test_only_what_was_put_just_before_a_sudden_end_is_excused(count, age_s, window_s):
    puts = [put(STREAMS[0], seq, at=float(seq)) for seq in range(1, count + 1)]
    killed_at = puts[-1].at + age_s
    gap = note(STREAMS[0], count, count + 1000, "restart")
    heard = [hear(one) for one in puts[:-1]]
    findings = check(puts, heard, [gap], sudden_ends=[killed_at], window_s=window_s)
    excused = puts[-1].at >= killed_at - window_s
    assert (findings.violations() == []) == excused
    assert findings.named == [puts[-1].key]


def test_numbers_that_a_restart_steps_over_must_be_named_too():
    puts = [put(STREAMS[0], seq) for seq in (1, 2, 1001)]
    heard = [hear(one) for one in puts]
    assert len(check(puts, heard).unnamed) == 998
    named = check(puts, heard, [note(STREAMS[0], 1, 1000, "restart")])
    assert named.violations() == []
    assert named.named_but_heard == 2


def test_a_record_that_nobody_put_is_wrong():
    assert check([put("a", 1)], [hear(put("a", 1)), hear(put("a", 2))]).wrong == [("a", 2)]


def test_a_count_that_is_not_the_range_is_found():
    puts = [put("a", 1), put("a", 2)]
    for gap in (
        Named("a", 1, 2, "queue_full", 3),
        Named("a", 1, 2, "queue_full", None),
        Named("a", 1, 2, "restart", 2),
        Named("a", 2, 1, "queue_full", 0),
    ):
        assert check(puts, [hear(one) for one in puts], [gap]).miscounted == [gap]


def test_the_same_gap_heard_twice_names_once_and_nothing_at_all_is_fine():
    gap = note("a", 1, 1)
    assert check([put("a", 1)], [], [gap, gap]).violations(["queue_full"]) == []
    assert check([], []) == Findings()
