from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from hypothesis import example, given
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
        ("http://cam/v?user=a&pwd=b&size=4", "http://cam/v?user=***&pwd=***&size=***"),
        (
            "rtsp://cam/cam/realmonitor?channel=1&subtype=0&loginpas=x",
            "rtsp://cam/cam/realmonitor?channel=1&subtype=0&loginpas=***",
        ),
        ("rtsp://joe:pw@cam/1?Channel=2", "rtsp://joe:***@cam/1?Channel=2"),
        ("rtsp://joe:p?w@cam/1", "rtsp://***@***"),
        ("http://cam/v?p=ab@cd&fps=5", "http://***@***&fps=5"),
        ("http://cam/v?action=stream;pwd=b", "http://cam/v?action=***"),
        ("http://cam/v?0123abcd", "http://cam/v?***"),
        ("http://cam/v?dG9rZW4=&x", "http://cam/v?***&***"),
        ("http://cam/v?key=***: x&y=1", "http://cam/v?key=***: x&y=1"),
        ("http://cam/v?key=***:secret", "http://cam/v?key=***"),
        ("http://cam/v?", "http://cam/v?"),
        ("file:///clips/a?b=c.mp4", "file:///clips/a?b=c.mp4"),
        (
            "gst:souphttpsrc location=http://cam/v?key=abc ! x",
            "gst:souphttpsrc location=http://cam/v?key=*** ! x",
        ),
        (
            'source = "http://a/?p=x" and http://b/?auth=y',
            'source = "http://a/?p=*** and http://b/?auth=***',
        ),
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
    # Behind a question mark, what follows an @ may be the rest of a parameter's value.
    assert "camera.example" in shown or "?" in password


@given(PASSWORDS, st.sampled_from(["user-pw", "password", "proxy-pw", "location-pw", "token"]))
def test_a_password_in_a_pipeline_is_never_shown(password: str, name: str) -> None:
    quoted = shlex.quote(f"{name}={password}")
    assert "S3cr" not in redact(f"gst:rtspsrc {quoted} ! fakesink")
    assert "S3cr" not in redact(f"gst:rtspsrc location=rtsp://joe:{password}@cam ! fakesink")
    # Not closed quotes and all, as a user may write it.
    assert "S3cr" not in redact(f"gst:rtspsrc {name}={password}")


VALUES = PRINTABLE.filter(lambda text: len(text) >= 3 and not set("&*") & set(text))
KEYS = ["p", "psw", "pswd", "loginpas", "auth", "key", "sid", "", "channel_key"]


@example("@00", "p", "rtsp", False)
@example("\x8500", "p", "rtsp", True)
@given(VALUES, st.sampled_from(KEYS), st.sampled_from(["rtsp", "https", "HTTP"]), st.booleans())
def test_a_value_in_a_query_is_never_shown(
    value: str, key: str, scheme: str, is_in_text: bool
) -> None:
    before = f"{scheme}://joe@cam.example/video?channel=1&"
    word = f"{before}{key}={value}&subtype=0"
    shown = redact(f"cannot open {word}: refused" if is_in_text else word)
    # What is around it holds short texts of its own.
    around = f"cannot open {redact(before)}{key}=***&***&subtype=0: refused"
    assert value not in shown or value in around
    assert "S3cr" not in redact(f"{before}{key}=S3cr{value}&subtype=0")


@given(st.text())
def test_it_never_raises(text: str) -> None:
    redact(text)
    redact("gst:" + text)


@given(PASSWORDS)
def test_a_message_about_a_redacted_source_is_left_whole(password: str) -> None:
    for source in (
        f"rtsp://joe:{password}@cam/1",
        f"rtsp://cam/1?channel=1&key={password}",
        f"rtsp://cam/1?key={password}&channel=1",
        "gst:rtspsrc user-pw=a location=rtsp://a:b@c",
        "gst:rtspsrc location=http://cam/?channel=1",
    ):
        for message in (
            f"{redact(source)}: the server doesn't answer; is it on? x=1 & so on",
            f'source = "{redact(source)}": unknown, is it?',
        ):
            assert redact(message) == message


def test_it_needs_neither_numpy_nor_opencv() -> None:
    code = (
        "import sys, agent.redaction; bad = {'numpy', 'cv2', 'msgspec'} & set(sys.modules);"
        " assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
