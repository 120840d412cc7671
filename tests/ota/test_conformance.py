"""A27: the TUF project's own black-box suite against our client; all passes, nothing is excepted.

It is in no package registry. To run it:

    git clone https://github.com/theupdateframework/tuf-conformance
    PYTHONPATH=tuf-conformance scripts/test tests/ota/test_conformance.py -s

with `faketime` for its repositories of days gone by (Debian: apt-get install faketime) and the
extra `dev`, whose `cryptography` it signs with. It takes two to five minutes.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = Path(__file__).resolve().parent / "conformance_client.py"
# As of commit eec841c: fewer would mean that something was left out.
LEAST_PASSED = 113


def test_whole_suite(tmp_path):
    found = importlib.util.find_spec("tuf_conformance")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tuf_conformance is not here; see above")
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not here")
    folder = Path(found.submodule_search_locations[0])
    command = [sys.executable, "-m", "pytest", folder, "-q", "-p", "no:randomly"]
    command += ["-p", "no:cacheprovider", "--rootdir", tmp_path, "-c", os.devnull]
    command += ["--entrypoint", f"{sys.executable} {CLIENT}"]
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(folder.parent)},
    )
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", done.stdout)}
    print(f"\ntuf-conformance: {counts}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "xfailed" not in counts
    assert counts["passed"] >= LEAST_PASSED
