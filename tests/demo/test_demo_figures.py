"""Percentiles, rates, holes in seq and labels, against plain reckoning."""

from __future__ import annotations

import random

import pytest
from made_results import detection, fed, result

from agent.demo.figures import Samples, detections_of


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101, 1000])
@pytest.mark.parametrize("percent", [50, 90, 99, 100])
def test_a_percentile_is_the_smallest_sample_that_enough_do_not_exceed(count, percent):
    values = [random.random() for _ in range(count)]
    samples = Samples()
    for value in values:
        samples.add(value)
    enough = [v for v in values if 100 * sum(w <= v for w in values) >= percent * count]
    assert samples.percentile(percent) == min(enough)
    assert samples.highest == max(values)
    assert samples.last == values[-1]


def test_no_samples_have_no_percentile():
    assert Samples().percentile(50) is None
    assert Samples().highest is None


def test_a_stream_without_holes_has_lost_nothing():
    figures = fed(*(result(seq) for seq in range(1, 31)))
    assert (figures.results, figures.lost, figures.repeated) == (30, 0, 0)
    assert figures.fps == pytest.approx(30.0)


def test_holes_in_seq_are_counted_one_by_one():
    assert fed(result(1), result(2), result(5), result(7)).lost == 3


def test_a_stream_that_does_not_begin_at_1_has_lost_its_beginning():
    assert fed(result(4)).lost == 3


def test_a_repeated_result_counts_once():
    figures = fed(result(1), result(2), result(2), result(3))
    assert (figures.results, figures.lost, figures.repeated) == (3, 0, 1)


def test_drops_are_summed():
    assert fed(result(1, dropped=2), result(2), result(3, dropped=1)).dropped == 3


def test_rates_of_the_last_second_tell_frames_from_results():
    # Every second frame gives way to a newer one.
    results = (result(seq, frame_id=2 * seq, captured_at=seq / 15) for seq in range(1, 60))
    fps_in, fps_out = fed(*results).fps_now
    assert fps_in == pytest.approx(30.0)
    assert fps_out == pytest.approx(15.0)


def test_one_result_has_no_rate():
    figures = fed(result(1))
    assert figures.fps is None
    assert figures.fps_now == (None, None)


def test_labels_count_results_and_keep_the_best_score():
    figures = fed(
        result(1, detections=[detection("cat", 0.5), detection("cat", 0.7)]),
        result(2, detections=[detection("cat", 0.6), detection(None, 0.4)]),
    )
    assert figures.labels["cat"].results == 2
    assert figures.labels["cat"].best_score == 0.7
    assert figures.labels["class 3"].results == 1


def test_detections_come_best_first():
    item = result(1, detections=[detection("cat", 0.5), detection("cup", 0.7)])
    assert [found.label for found in detections_of(item)] == ["cup", "cat"]
