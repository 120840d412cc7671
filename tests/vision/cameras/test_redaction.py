from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.redaction import redact

PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, categories=None))
# Recognisable whatever surrounds it, so that it cannot be in the output by chance.
PASSWORDS = PRINTABLE.map(lambda text: f"S3cr{text}Et")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://joe:pw@cam/1", "rtsp://joe:***@cam/1"),
        ("rtsp://token@cam/1", "rtsp://***@cam/1"),
        ("rtsp://joe:p@ss/w@cam/1", "rtsp://joe:***@cam/1"),
        ("http://cam/v?user=a&pwd=b&size=4", "http://cam/v?user=a&pwd=***&size=4"),
        ("rtsp://cam:554/1", "rtsp://cam:554/1"),
        ("/dev/video0", "/dev/video0"),
        ("file:///clips/a@b.mp4", "file:///clips/a@b.mp4"),
        ("images:/a@b", "images:/a@b"),
        (
            "gst:rtspsrc location=rtsp://joe:pw@cam/1 user-pw=abc ! decodebin",
            "gst:rtspsrc location=rtsp://joe:***@cam/1 user-pw=*** ! decodebin",
        ),
        (
            'gst:x location="rtsp://j:p w@cam" ! y',
            "gst:x location=rtsp://j:***@cam ! y",
        ),
        ("gst:rtspsrc user-pw = 'a b' ! x", "gst:rtspsrc user-pw=*** ! x"),
        ("cannot open rtsp://joe:pw@cam/1: refused", "cannot open rtsp://joe:***@cam/1: refused"),
    ],
)
def test_known_forms(source: str, shown: str) -> None:
    assert redact(source) == shown


@given(PASSWORDS, st.sampled_from(["rtsp", "rtsps", "http", "RTSP"]))
def test_a_password_in_a_url_is_never_shown(password: str, scheme: str) -> None:
    shown = redact(f"{scheme}://joe:{password}@camera.example:554/stream")
    assert "S3cr" not in shown
    assert "camera.example" in shown


@given(PASSWORDS, st.sampled_from(["user-pw", "password", "proxy-pw", "location-pw", "token"]))
def test_a_password_in_a_pipeline_is_never_shown(password: str, name: str) -> None:
    quoted = shlex.quote(f"{name}={password}")
    assert "S3cr" not in redact(f"gst:rtspsrc {quoted} ! fakesink")
    assert "S3cr" not in redact(f"gst:rtspsrc location=rtsp://joe:{password}@cam ! fakesink")
    # Not closed quotes and all, as a user may write it.
    assert "S3cr" not in redact(f"gst:rtspsrc {name}={password}")


@given(st.text())
def test_it_never_raises(text: str) -> None:
    redact(text)
    redact("gst:" + text)


@given(PASSWORDS)
def test_a_message_about_a_redacted_source_is_left_whole(password: str) -> None:
    for source in (f"rtsp://joe:{password}@cam/1", "gst:rtspsrc user-pw=a location=rtsp://a:b@c"):
        message = f"{redact(source)}: the server doesn't answer"
        assert redact(message) == message


def test_it_needs_neither_numpy_nor_opencv() -> None:
    code = (
        "import sys, agent.redaction; bad = {'numpy', 'cv2', 'msgspec'} & set(sys.modules);"
        " assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
