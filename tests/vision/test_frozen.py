"""Pictures that stand still, that are black, and those that only look so."""

from __future__ import annotations

import random
import subprocess
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.vision import frozen
from agent.vision.frozen import BLACK, FROZEN_S, PictureWatch

HEIGHT, WIDTH = 48, 64


def picture(seed=0, shape=(HEIGHT, WIDTH, 3)):
    return np.random.default_rng(seed).integers(30, 200, shape).astype(np.uint8)


class Watched:
    """A camera on a clock of its own, watched as `Capture` does it."""

    def __init__(self, hz=10.0):
        self.watch = PictureWatch()
        self.watch.begin(0.0)
        self.period_s = 1 / hz
        self.now = 0.0
        self.news = []  # (when, state, reason)
        self.reopened = []

    def show(self, pixels, for_s):
        """Show one picture, or what a function makes of the time, for a while."""
        until = self.now + for_s
        while self.now < until - 1e-9:
            frame = pixels(self.now) if callable(pixels) else pixels
            if self.watch.see(frame, self.now):
                self.news.append((self.now, self.watch.state, self.watch.reason))
            if self.watch.wants_reopen(self.now):
                self.reopened.append(self.now)
                self.watch.begin(self.now)
            self.now += self.period_s
        return self


def noisy(level, seed=1, count=32):
    """A static scene with noise of so many grey levels either way."""
    rng = np.random.default_rng(seed)
    scene = picture()
    frames = [
        (scene + rng.integers(-level, level + 1, scene.shape)).astype(np.uint8)
        for _ in range(count)
    ]
    choose = random.Random(seed)
    last = []

    def show(now):
        last[:] = [choose.choice([one for one in frames if not last or one is not last[0]])]
        return last[0]

    return show


def test_a_picture_that_stands_still_is_frozen_within_ten_seconds():
    camera = Watched().show(noisy(1), 30).show(picture(), 12)
    [(at, state, reason)] = camera.news
    assert state == "frozen"
    assert FROZEN_S <= at - 30 < 10
    assert "every frame is the same picture" in reason
    camera.show(noisy(1), 5)
    at, state, reason = camera.news[-1]
    assert (state, reason) == ("online", None)
    assert at - 42 < 1


@pytest.mark.parametrize("hz", [0.2, 0.5, 1, 5, 120])
def test_at_any_rate(hz):
    camera = Watched(hz).show(picture(), 100)
    at, state, _ = camera.news[0]
    assert state == "frozen"
    assert max(FROZEN_S, frozen.LEAST_LOOKS / hz) <= at <= max(10, 6 / hz)


def test_the_same_memory_with_the_same_picture_counts_as_well():
    frame = picture()
    camera = Watched().show(lambda now: frame, 10)
    assert camera.news[0][1] == "frozen"


def test_a_day_of_a_static_scene_with_the_least_noise_there_is():
    camera = Watched(hz=1 / frozen.LOOK_EVERY_S).show(noisy(1), 24 * 3600)
    assert camera.news == camera.reopened == []


def test_one_pixel_is_enough_wherever_it_is():
    """Also where no row is looked at: then the checksum tells."""
    scene = picture()
    rng = np.random.default_rng(3)

    def one_pixel(now):
        changed = scene.copy()
        changed[rng.integers(HEIGHT), rng.integers(WIDTH), rng.integers(3)] ^= 1
        return changed

    assert Watched(hz=2).show(one_pixel, 3600).news == []


def test_what_is_frozen_is_reopened_less_and_less():
    camera = Watched(hz=2).show(picture(), 4 * 3600)
    assert [round(at) for at in camera.reopened[:7]] == [20, 80, 200, 440, 920, 1880, 3680]
    assert {
        round(b - a) for a, b in zip(camera.reopened[6:], camera.reopened[7:], strict=False)
    } == {1800}
    assert len(camera.news) == 1, "and stays frozen meanwhile"


def test_a_hang_after_each_reopening_does_not_become_a_tight_loop():
    camera = Watched(hz=2)
    for seed in range(200):  # each reopening brings another picture, which then stands still
        count = len(camera.reopened)
        while len(camera.reopened) == count and camera.now < 7200:
            camera.show(picture(seed), 0.5)
    assert len(camera.reopened) < 12


def test_a_camera_that_worked_for_long_is_reopened_soon_again():
    camera = Watched(hz=2).show(picture(), 600)
    count = len(camera.reopened)
    camera.show(noisy(2), frozen.PROVEN_S + 10)
    start = camera.now
    camera.show(picture(5), 60)
    assert camera.reopened[count] - start == pytest.approx(frozen.REOPEN_AFTER_S, abs=1)


def test_a_picture_that_goes_on_by_itself_is_given_more_time():
    camera = Watched(hz=2)
    for seed in range(300):
        camera.show(picture(seed), 12)
    assert [state for _, state, _ in camera.news] == ["frozen", "online"] * 2
    assert camera.reopened == []
    camera.show(picture(), 30)
    assert camera.news[-1][1] == "frozen", "but not for ever"


def test_one_that_stands_still_for_some_seconds_is_never_taken_for_frozen():
    camera = Watched(hz=2)
    for seed in range(300):
        camera.show(picture(seed), 5 if seed % 7 else 7)
    camera.show(picture(), 9.5)
    assert camera.news == []


def test_a_loss_is_no_freeze():
    """What a camera did not show while it was away is not held against it."""
    camera = Watched().show(picture(), 5)
    camera.now += 3600
    camera.watch.begin(camera.now)
    camera.show(picture(), 5)
    assert camera.news == []


def test_still_frozen_after_it_was_opened_again():
    camera = Watched().show(picture(), 10)
    camera.watch.begin(camera.now)
    assert camera.watch.state == "frozen"
    camera.show(picture(), 5)
    assert len(camera.news) == 1
    camera.show(picture(1), 1)
    assert camera.news[-1][1] == "online"


def test_another_size_is_another_picture():
    camera = Watched().show(picture(), 5).show(picture(shape=(24, 32, 3)), 5)
    assert camera.news == []


def dark(now):
    """What a covered lens gives: noise about a low level."""
    rng = np.random.default_rng(round(now * 1000))
    return rng.integers(0, 8, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def test_darkness_is_told_and_light_ends_it():
    camera = Watched().show(noisy(1), 5).show(dark, 20)
    [(at, state, reason)] = camera.news
    assert (state, reason) == ("online", BLACK)
    assert 10 <= at - 5 <= 11
    camera.show(noisy(1), 2)
    assert camera.news[-1][1:] == ("online", None)


def test_a_short_darkness_is_none():
    camera = Watched()
    for _ in range(20):
        camera.show(dark, 9).show(noisy(1), 1)
    assert camera.news == []


def test_a_black_picture_without_noise_is_frozen_and_said_to_be_black():
    camera = Watched().show(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 12)
    assert [state for _, state, _ in camera.news] == ["frozen"]
    assert "the same black picture" in camera.news[0][2]
    camera.show(dark, 1)
    assert camera.news[-1][1:] == ("online", BLACK)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(1, 40)), max_size=40))
def test_frozen_means_unchanged_for_long_and_nothing_else(steps):
    """Against a slow reference: whenever it is frozen, nothing has changed for eight seconds."""
    watch = PictureWatch()
    watch.begin(0.0)
    pictures = [picture(seed, (8, 8, 3)) for seed in range(3)]
    now, last, since = 0.0, None, 0.0
    for which, for_s in steps:
        if which != last:
            last, since = which, now
        until = now + for_s
        while now < until:
            watch.see(pictures[which], now)
            is_looked_at = now - since >= frozen.LOOK_EVERY_S
            if watch.state == "frozen" and is_looked_at:
                assert now - since >= FROZEN_S - frozen.LOOK_EVERY_S
            if now - since > frozen.PATIENCE_MOST_S + 1:
                assert watch.state == "frozen"
            now += 0.25


def test_a_look_allocates_no_frame_and_few_are_taken():
    frames = [picture(seed, (720, 1280, 3)) for seed in range(2)]
    watch = PictureWatch()
    watch.begin(0.0)
    watch.see(frames[0], 0.0)
    tracemalloc.start()
    for number in range(300):
        watch.see(frames[number // 100 % 2], 1 + number / 30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < frames[0].nbytes / 8


def encode_static(path, level, *options, seconds=40, hz=15):
    """A static scene, with noise of so many grey levels, as H.264."""
    rng = np.random.default_rng(1)
    scene = cv2.GaussianBlur(picture(4, (180, 320, 3)), (0, 0), 4)
    scene = cv2.normalize(scene, None, 20, 230, cv2.NORM_MINMAX)
    bank = [
        np.clip(scene + np.round(rng.normal(0, level, scene.shape)), 0, 255).astype(np.uint8)
        for _ in range(40)
    ]
    command = ["ffmpeg", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "bgr24"]
    command += ["-s", "320x180", "-r", str(hz), "-i", "-", "-c:v", "libx264", *options]
    with subprocess.Popen(
        [*command, "-pix_fmt", "yuv420p", str(path)], stdin=subprocess.PIPE
    ) as it:
        for _ in range(seconds * hz):
            it.stdin.write(bank[rng.integers(len(bank))].tobytes())
    assert it.returncode == 0
    return path


@pytest.mark.parametrize(
    ("level", "options"),
    [(1.0, ("-g", "15", "-tune", "zerolatency")), (1.5, ()), (2.0, ("-crf", "32"))],
)
def test_a_static_scene_as_h264(tmp_path, level, options):
    """Encoders do not send what hardly changes: see the figures at the top of `frozen`."""
    path = encode_static(tmp_path / "static.mp4", level, "-preset", "veryfast", *options)
    frames = cv2.VideoCapture(str(path))
    camera = Watched(hz=15)
    while (got := frames.read())[0]:
        camera.show(got[1], camera.period_s)
    assert camera.now > 39
    assert camera.news == []
    camera.show(got_last := picture(9, (180, 320, 3)), 0.1).show(got_last, 18)
    assert camera.news[0][1] == "frozen"
