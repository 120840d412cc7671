"""Any GStreamer pipeline, run by gst-launch-1.0 in a child process that sends raw frames.

For cameras that need GStreamer, first of all ribbon cable cameras on Jetson boards:

    gst:nvarguscamerasrc ! nvvidconv ! video/x-raw,format=BGRx

The pipeline is written up to, but without, its sink. A child process because GStreamer's
Python bindings come from apt and rarely match a virtual environment, and because a vendor's
plugin that crashes then takes only itself down.

Frames pass one pipe, at most one in it and one waiting: a leaky queue keeps the newest. Their
size is learnt from what `gst-launch-1.0 -v` says of the last pads (`-q` would hide it).
The sink does not wait for time stamps, so a pipeline that plays a file needs `identity
sync=true`. The child's arguments are visible to every user of the board, so a password in a
pipeline is not well kept there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from agent.errors import CameraError
from agent.redaction import redact
from agent.vision.cameras import Closing, EndOfStream, U8Image, fitting
from agent.vision.cameras.waiting import close_in_time

if TYPE_CHECKING:
    from agent.vision.cameras import Camera

PROGRAM = "gst-launch-1.0"
OPEN_TIMEOUT_S = 5.0  # for the first caps; Argus needs up to about three seconds
SHORT_WAIT_S = 1.0
FRAME_TIMEOUT_S = 4.0  # from the first byte of a frame to its last
STOP_TIMEOUT_S = 0.8  # for an end in good order; nvargus-daemon dislikes clients that vanish
MAX_PIPE_BYTES = 1 << 20  # /proc/sys/fs/pipe-max-size, without privileges
READ_BYTES = 1 << 16
# GStreamer pads the rows of packed RGB to four bytes (GstVideoInfo's default stride).
ROW_ALIGNMENT_BYTES = 4

MARKS = ("ERROR: ", "WARNING: erroneous pipeline: ")  # how gst-launch begins its errors

# Any of our own elements, as one thread's notes get lost in another's now and then: with three
# pipelines at once, the sink's own line was missing in about one start of a hundred.
_CAPS = re.compile(r"agent_[a-z]+\.GstPad:[a-z]+: caps = video/x-raw,.*format=\(string\)BGR\b.*")
_FIELD = re.compile(r"\b(width|height)=\(int\)(\d+)|\b(framerate)=\(fraction\)(\d+)/(\d+)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class GStreamerCamera:
    """One running pipeline."""

    live = True
    rate_hz: float | None = None
    silence_hint = f"try the pipeline with {PROGRAM}, and check the camera's cable"

    def __init__(self, pipeline: str, width: int = 0, height: int = 0) -> None:
        self._shown = redact(f"gst:{pipeline}")
        self._size: tuple[int, int] | None = None
        self._notes = b""  # the last, unfinished line of the child's stdout
        self._unfinished = ""  # likewise of its stderr
        self._error = ""  # the first one; those after it are its consequences
        self._frames, frames_out = os.pipe()
        os.set_blocking(self._frames, False)
        try:
            self._child = _Child(self._command(pipeline, width, height, frames_out), frames_out)
        except BaseException:
            os.close(self._frames)
            raise
        finally:
            os.close(frames_out)
        self._is_closed = False
        try:
            self._learn_size(time.monotonic() + OPEN_TIMEOUT_S)
        except EndOfStream as ended:
            self.close()
            raise CameraError(f"{self._shown}: it ended without a frame") from ended
        except BaseException:
            self.close()
            raise

    def read(self, buffer: U8Image | None) -> U8Image | None:
        """Return the newest frame; see `Camera.read`."""
        deadline = time.monotonic() + SHORT_WAIT_S
        if not self._learn_size(deadline) or not self._wait(deadline):
            return None
        assert self._size is not None
        width, height = self._size
        frame = fitting(buffer, height, width)
        row_bytes = width * 3
        stride_bytes = -(-row_bytes // ROW_ALIGNMENT_BYTES) * ROW_ALIGNMENT_BYTES
        if stride_bytes == row_bytes:
            self._fill(frame.data.cast("B"))
        else:
            raw = bytearray(stride_bytes * height)
            self._fill(memoryview(raw))
            padded = np.frombuffer(raw, np.uint8).reshape(height, stride_bytes)
            frame.reshape(height, row_bytes)[:] = padded[:, :row_bytes]
        return frame

    def close(self) -> Closing | None:
        """End the child and wait for its end."""
        if self._is_closed:
            return None
        self._is_closed = True
        os.close(self._frames)  # a child that is writing now gets EPIPE
        return close_in_time(self._shown, self._child.end)

    def _command(self, pipeline: str, width: int, height: int, frames_out: int) -> list[str]:
        try:
            elements = shlex.split(pipeline)
        except ValueError as error:
            raise CameraError(f"{self._shown}: a quote is not closed") from error
        if not elements:
            raise CameraError(f"{self._shown}: the pipeline is empty")
        program = shutil.which(PROGRAM)
        if program is None:
            raise CameraError(
                f"{self._shown}: {PROGRAM} is not installed; run `sudo apt install"
                " gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good`"
            )
        caps = "video/x-raw,format=BGR"
        scale = []
        if width and height:
            scale = ["!", "videoscale"]
            caps += f",width={width},height={height}"
        # fmt: off
        return [
            *_die_with_parent(), program, "-v", *elements, *scale, "!", "videoconvert",
            "!", "capsfilter", "name=agent_caps", f"caps={caps}",
            "!", "queue", "name=agent_queue", "leaky=downstream", "max-size-buffers=1",
            "max-size-bytes=0", "max-size-time=0",
            "!", "fdsink", "name=agent_sink", f"fd={frames_out}", "sync=false",
        ]
        # fmt: on

    def _learn_size(self, deadline: float) -> bool:
        """Wait until the child has said how large its frames are."""
        while self._size is None:
            if not self._pump(deadline, [self._child.stdout, self._child.stderr]):
                return False
        return True

    def _wait(self, deadline: float) -> bool:
        """Wait until there are bytes of a frame."""
        while True:
            ready = self._pump(deadline, [self._frames, self._child.stdout, self._child.stderr])
            if self._frames in ready:
                return True
            if not ready:
                return False

    def _fill(self, view: memoryview) -> None:
        """Read one whole frame into `view`."""
        deadline = time.monotonic() + FRAME_TIMEOUT_S
        filled = 0
        while filled < len(view):
            try:
                count = os.readv(self._frames, [view[filled:]])
            except BlockingIOError:
                if not self._wait(deadline):
                    raise CameraError(f"{self._shown}: stopped in the middle of a frame") from None
                continue
            if not count:
                self._ended()
            filled += count

    def _pump(self, deadline: float, descriptors: list[int]) -> list[int]:
        """Wait for any of these, and take in what the child says; [] at the deadline.

        Its stdout and stderr are always read as well: a child that cannot write there stops.
        """
        wait_s = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(descriptors, [], [], wait_s)
        if self._child.stderr in ready:
            self._take_errors()
        if self._child.stdout in ready:
            said = os.read(self._child.stdout, READ_BYTES)
            if not said:
                self._ended()
            *lines, self._notes = (self._notes + said).split(b"\n")
            for line in lines:
                self._note(line.decode("utf-8", "replace"))
        return ready

    def _note(self, line: str) -> None:
        found = _CAPS.search(line)
        if not found:
            return
        fields = {
            size or "framerate": (int(value or above), int(below or 1))
            for size, value, _, above, below in _FIELD.findall(found[0])
        }
        size = (fields["width"][0], fields["height"][0])
        if self._size not in (None, size):
            raise CameraError(
                f"{self._shown}: the frames' size changed to {size[0]}x{size[1]}; set width and"
                " height in [[camera]] to have one size always"
            )
        self._size = size
        above, below = fields.get("framerate", (0, 1))
        self.rate_hz = above / below if above and below else None
        # No larger than a frame, else several old ones would wait in it.
        wanted = min(MAX_PIPE_BYTES, size[0] * size[1] * 3)
        with contextlib.suppress(OSError):  # not allowed so much: the default works as well
            fcntl.fcntl(self._frames, fcntl.F_SETPIPE_SZ, wanted)

    def _take_errors(self) -> bool:
        """Take in what is on the child's stderr; False where there is no more."""
        try:
            text = os.read(self._child.stderr, READ_BYTES).decode("utf-8", "replace")
        except BlockingIOError:
            return False
        *lines, self._unfinished = (self._unfinished + _COLOUR.sub("", text)).split("\n")
        for line in lines:
            # The debug lines behind an error may quote whole addresses, so only these are taken;
            # "doesn't want to preroll" only says that there is another one.
            if not self._error and line.startswith(MARKS) and "want to preroll" not in line:
                self._error = redact(line.split(": ", 1)[1])
        return bool(text)

    def _ended(self) -> NoReturn:
        """The child has closed its side: say why."""
        status = self._child.wait(SHORT_WAIT_S)
        while self._take_errors():
            pass
        if status == 0:
            raise EndOfStream(f"{self._shown}: the pipeline ended")
        raise CameraError(f"{self._shown}: {self._error or f'it ended with status {status}'}")


class _Child:
    """The child process, which does not outlive this one.

    The kernel signals a child when the *thread* that started it ends (prctl(2),
    PR_SET_PDEATHSIG), so it is started by a thread that stays until the child is gone.
    """

    def __init__(self, command: list[str], frames_out: int) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._started = threading.Event()
        self._ended = threading.Event()
        threading.Thread(
            target=self._run, args=(command, frames_out), name="agent.gst-child", daemon=True
        ).start()
        self._started.wait()
        if self._process is None:
            raise CameraError(f"{PROGRAM} cannot be started: {self._failure}")
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.stdout: int = self._process.stdout.fileno()
        self.stderr: int = self._process.stderr.fileno()
        os.set_blocking(self.stderr, False)

    def wait(self, timeout_s: float) -> int | None:
        """Return the child's exit status, None where it still runs."""
        self._ended.wait(timeout_s)
        return self._process.returncode if self._process else None

    def end(self) -> None:
        """Ask the child to stop, then make it."""
        process = self._process
        assert process is not None
        for number in (signal.SIGINT, signal.SIGKILL):
            process.send_signal(number)
            if self._ended.wait(STOP_TIMEOUT_S):
                break
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def _run(self, command: list[str], frames_out: int) -> None:
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(frames_out,),
                # Error marks are translated otherwise.
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                # Ctrl-C at a terminal is for us; we end the child in order.
                start_new_session=True,
            )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        self._process.wait()
        self._ended.set()


def _die_with_parent() -> list[str]:
    """Return the command prefix that ties a child to us (util-linux, on every Debian).

    Without it an orphan ends at the next frame that it cannot write.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


if TYPE_CHECKING:
    _: type[Camera] = GStreamerCamera
