"""Whatever is wrong with a source, it is a CameraError, and no part of a password is in it."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import CameraConfig
from agent.errors import CameraError
from agent.vision.cameras import open_camera


def refused(source: str) -> str:
    """Return all that a log could show of the refusal."""
    with pytest.raises(CameraError) as caught:
        open_camera(CameraConfig(source=source))
    return "".join(traceback.format_exception_only(caught.value))


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://admin:pa[ss@192.0.2.5/s",
        "rtsp://admin:geheim\u2100@192.0.2.5/s",
        "rtsp://admin:geheim/x@192.0.2.5/s",
        "http://admin:geheim#@192.0.2.5:x/s",
    ],
)
def test_a_malformed_address(source: str) -> None:
    with pytest.raises(CameraError, match="percent-encode special characters") as caught:
        open_camera(CameraConfig(source=source))
    said = "".join(traceback.format_exception(caught.value))
    assert "rtsp://admin:***@192.0.2.5" in said or "http://admin:***@192.0.2.5" in said
    for secret in ("geheim", "pa[ss"):
        assert secret not in said


def test_an_address_without_a_host() -> None:
    assert "has no host" in refused("rtsp:///s")


@pytest.mark.parametrize("source", ["file://[x/clip.mp4", f"picamera:{'9' * 5000}"])
def test_other_malformed_sources(source: str) -> None:
    assert "malformed; allowed are auto" in refused(source)


@pytest.mark.parametrize("source", ["x" * 5000, "/" + "x" * 5000, "a\0b"])
def test_a_name_no_file_can_have(source: str) -> None:
    assert len(refused(source)) < 600


def test_a_folder_we_may_not_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", forbidden)  # who runs the tests may be root
    said = refused(str(tmp_path / "clip.mp4"))
    assert "clip.mp4" in said
    assert "Permission denied; let the user that runs this read it" in said


# The bracket is never closed, so that no name is looked up.
@given(st.text(st.characters(exclude_characters="]")).map(lambda text: f"rtsp://joe:S3cr[{text}"))
def test_nothing_but_camera_errors_and_no_password(source: str) -> None:
    with pytest.raises(CameraError) as caught:
        open_camera(CameraConfig(source=f"{source}@/"))
    assert "S3cr" not in "".join(traceback.format_exception(caught.value))
