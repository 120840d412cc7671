"""Delegate plug-ins for tests: real shared libraries, compiled from one C source.

`tests/vision/engines/plugins/delegate.c` computes a few operators right (`RESHAPE`, `LOGISTIC`,
and `ADD` of float32 tensors of one size), so that a model's results stay what they are. Options,
all of them strings, as `delegate_options` has them:

mode: what it does apart from that.
    work: nothing; the default.
    none: takes no operator.
    no_create: cannot be created, and says `message`; "silent" says nothing, as libedgetpu.
    hang_create: its creation never ends.
    no_prepare: takes operators, and refuses with `message` while tensors are allocated.
    crash_prepare: SIGSEGV when it is shown the graph.
    error, abort, hang: after `after` runs of the model a run fails, SIGABRT ends the process,
        or a run never ends.
    gone: a run fails like `error`, and nothing can be created, like `no_create`: a device
        that was pulled out.
ops: operators to take, "RESHAPE,LOGISTIC,ADD"; default "RESHAPE". The default model has twelve
    RESHAPE and one LOGISTIC. An edgetpu-custom-op is always taken, and copies its input.
after: runs that go well first, counted for each engine; default "0". Opening an engine runs
    the model once already.
misbehave_file: a path; it misbehaves only while this file exists, so a test can pull a device
    out and plug it in again. Without this option it always does.
message: what it says when it refuses.

Built as "libedgetpu.so.1" in a folder of its own, it stands for the Edge TPU's library in
processes that are started with that folder in LD_LIBRARY_PATH.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent / "vision" / "engines" / "plugins" / "delegate.c"


def build_plugin(folder: Path, name: str = "libtestdelegate.so") -> Path:
    """Compile the plug-in into `folder`; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang) to build a delegate with")
    library = folder / name
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC"]
    done = subprocess.run(
        [compiler, *flags, "-o", library, SOURCE, "-lm"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return library
