"""What the demo says at the end, and when it calls a run a failure."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from made_results import detection, fed, result

import agent.demo.demo
from agent.contract.payloads import Gap
from agent.demo.lines import line
from agent.demo.story import Story
from agent.demo.subscriber import Received
from agent.demo.summary import CLIP_S, SHOWN, plain, summary_rows, verdict
from agent.demo.usage import Use
from agent.demo.view import Scene

ALL_SHOWN = [detection(label, 0.9) for label in SHOWN]
CLIP = Path(agent.demo.demo.__file__).with_name("clip.mp4")


def scene(*results, seconds=10.0, now=None):
    story = Story(spawned_at=0.0, seconds=seconds, figures=fed(*results))
    return Scene(now=story.figures.last_at if now is None else now, broker="a broker", story=story)


def run_of(count, detections=ALL_SHOWN):
    return [result(seq, detections=detections) for seq in range(1, count + 1)]


def test_the_summary_holds_every_figure():
    use = {
        "control": Use(cpu_percent=3.25, pss_mib=20.0),
        "worker": Use(cpu_percent=None, pss_mib=None),
    }
    text = "\n".join(plain(summary_rows(scene(*run_of(100)), use)))
    assert "100 in 3.3 s, 30.0 per second" in text
    assert "p50 50.0 ms, p99 99.0 ms, max 100.0 ms" in text
    assert "queue 0.1, preprocess 0.5, inference 50.0, postprocess 0.2 ms" in text
    assert "0 dropped for newer ones, 0 lost" in text
    assert "person 100 times (best 0.90)" in text
    assert "control process  3.2 % of a core, 20.0 MiB" in text
    assert "worker process   - % of a core, - MiB" in text
    assert "default 1.0.0 000000000000 on cpu:xnnpack" in text


def test_results_the_daemon_gave_up_are_named():
    it = scene(result(1), result(4))
    gap = Gap(
        device="demo", boot_id="b", stream="s", from_seq=2, to_seq=3, count=2, reason="queue_full"
    )
    it.story.take(Received(at=0.0, unix_at=0.0, payload=gap))
    assert "2 lost (2 of them given up by the daemon" in str(summary_rows(it, {}))


def test_a_good_run_has_no_verdict():
    assert verdict(fed(*run_of(30)), seconds=CLIP_S, silent_s=0.1) == ""


@pytest.mark.parametrize(
    ("figures", "seconds", "silent_s", "expected"),
    [
        (fed(), 4.0, 0.0, "no result"),
        (fed(result(1), result(3)), 4.0, 0.0, "1 results were lost"),
        (fed(*run_of(30)), 10.0, 5.0, "stopped 5.0 s before"),
        (fed(*run_of(30, [])), 4.0, 0.0, "nothing was detected"),
        (fed(*run_of(30, ALL_SHOWN[:2])), CLIP_S, 0.0, "cup not seen"),
    ],
)
def test_a_bad_run_is_called_one(figures, seconds, silent_s, expected):
    assert expected in verdict(figures, seconds=seconds, silent_s=silent_s)


def test_a_short_run_need_not_show_everything():
    assert verdict(fed(*run_of(30, ALL_SHOWN[:1])), seconds=4.0, silent_s=0.0) == ""


def test_results_after_the_end_are_not_counted():
    story = Story(spawned_at=0.0, seconds=1.0)
    for seq in range(1, 61):
        story.take(Received(at=seq / 30, unix_at=seq / 30 + 0.01, payload=result(seq)))
    assert story.figures.results == 31
    assert story.figures.latency.percentile(50) == pytest.approx(10.0)


def test_a_line_says_rate_latency_and_labels():
    it = scene(*run_of(31, [detection("person", 0.93), detection("cat", 0.71)]))
    assert line(it) == "   1.0s  30.0 fps  p50 16.0 ms  p99 31.0 ms  person 0.93, cat 0.71"
    quiet = scene(*run_of(31), now=4.0)
    assert line(quiet) == "   4.0s  no result for 3.0 s"


@pytest.mark.parametrize("width", [1, 12, 30, 45, 60, 80, 200])
def test_the_live_view_fits_any_width(width):
    console_of = pytest.importorskip("rich.console", reason="rich is not installed").Console
    from agent.demo.screen import draw

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = console_of(file=out, width=width, height=24, force_terminal=True, color_system=None)
    console.print(draw(scene(*run_of(10)), width, 24))
    out.seek(0)
    lines = out.read().splitlines()
    assert max(map(len, lines)) <= max(width, 1)
    if width >= 45:
        assert any("person" in text and "0.90" in text for text in lines)


def test_the_clip_is_as_long_as_the_verdict_thinks():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    capture = cv2.VideoCapture(str(CLIP))
    seconds = capture.get(cv2.CAP_PROP_FRAME_COUNT) / capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    assert seconds == pytest.approx(CLIP_S)
