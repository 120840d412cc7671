"""A throw-away copy of this machine's system to install into, and small wheels to install.

The copy is an overlay in a mount namespace of its own: what is written in it is memory, and gone
with its process. systemd does not run in it; `pretend_systemd` puts stand-ins for its commands on
the PATH, which really start and watch the service's process.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).with_name("stand_in_systemctl.py")
STARTS_WITHIN_S = 60.0
MAKE_ROOT = """
set -e
mount -t tmpfs -o size=50% tmpfs {base}
mkdir {base}/work {base}/root
{begin} {base}/upper
mount -t overlay overlay -o lowerdir=/,upperdir={base}/upper,workdir={base}/work {base}/root
mount --rbind /dev {base}/root/dev
mount -t proc proc {base}/root/proc
mount -t tmpfs tmpfs {base}/root/run
mount --bind {shared} {base}/root/mnt
mkdir -p {base}/root{project}
mount --bind {project} {base}/root{project}
mount -o remount,bind,ro {base}/root{project}
echo ready
exec cat
"""
# An agent of a few lines, with the parts of the real one's command line that an installation uses.
PROGRAM = """
import sys, time, pathlib
VERSION = "{version}"
def main():
    command = sys.argv[1]
    if command == "--version":
        print("edge-agent", VERSION)
    elif command == "check":
        {check}
    elif command == "run":
        run = pathlib.Path("/run/edge-agent")
        run.mkdir(exist_ok=True)
        with open(run / "runs", "a") as runs:
            runs.write(VERSION + chr(10))
        {run}
    return 0
"""
# Says that it is ready, in place of sd_notify(3), and goes on.
GOOD = (
    '(run / "says").write_text("1 of 1 cameras online; m on cpu"); '
    '(run / "ready").write_text(VERSION); time.sleep(1000)'
)
NO_MODEL = GOOD.replace("m on cpu", "no model runs")
DIES_SOON = '(run / "ready").write_text(VERSION); time.sleep(0.3); return 1'


def make_wheel(
    folder: Path, version: str, *, run: str = GOOD, check: str = "pass", mb: int = 0
) -> Path:
    """Write a wheel of a stand-in for the agent; `mb` megabytes of zeros go with it."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"edge_agent-{version}-py3-none-any.whl"
    about = f"edge_agent-{version}.dist-info"
    says = f"Metadata-Version: 2.1\nName: edge-agent\nVersion: {version}\n"
    is_pure = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        "agent_stand_in.py": PROGRAM.format(version=version, run=run, check=check).encode(),
        f"{about}/METADATA": says.encode(),
        f"{about}/WHEEL": is_pure.encode(),
        f"{about}/entry_points.txt": b"[console_scripts]\nedge-agent = agent_stand_in:main\n",
    }
    if mb:
        files["ballast.bin"] = bytes(mb << 20)
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    files[f"{about}/RECORD"] = "\n".join([*lines, f"{about}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


@dataclass
class Root:
    """The copy; commands run in it by `run`, files are read by `read`."""

    holder: subprocess.Popen[bytes]
    base: Path

    @property
    def pid(self) -> int:
        """The first process in the copy."""
        children = f"/proc/{self.holder.pid}/task/{self.holder.pid}/children"
        return int(Path(children).read_text().split()[0])

    @property
    def path(self) -> Path:
        """Where the copy is seen from outside; absolute links in it lead outside."""
        return Path(f"/proc/{self.pid}/root{self.base}/root")

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in the copy, in a process group of its own."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid"]
        enter += ["chroot", f"{self.base}/root"]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PIP_NO_INDEX": "1",
        }
        return subprocess.Popen(
            [*enter, *command], env=environment, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy; its output and errors are one text."""
        started = self.start(*command)
        said, _ = started.communicate(timeout=120)
        return subprocess.CompletedProcess(command, started.returncode, said)

    def shell(self, script: str) -> str:
        """Return what a line of shell prints; it must succeed."""
        done = self.run("bash", "-ec", script)
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    def install(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(PROJECT / "scripts" / "install"), *options)

    def save(self, folder: Path) -> None:
        """Keep what was written, for other copies to begin with."""
        subprocess.run(["cp", "-a", str(self.path.parent / "upper"), str(folder)], check=True)

    def limit(self, mb: int) -> None:
        """Set how much may be written from now on."""
        used = self.shell("du -sxm /opt | cut -f 1")
        enter = ["nsenter", f"--target={self.pid}", "--mount", "mount", "-o"]
        size = f"remount,size={int(used) + mb}m"
        subprocess.run([*enter, size, str(self.base)], check=True)

    def close(self) -> None:
        """End everything in the copy, and with it the copy."""
        assert self.holder.stdin is not None
        self.holder.stdin.close()
        self.holder.wait()


def why_not() -> str | None:
    """Return why there can be no throw-away root here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root: an installation makes a user, links and files of the system"
    for program in ("unshare", "nsenter", "setpriv", "flock", "useradd"):
        if shutil.which(program) is None:
            return f"needs {program}"
    probe = subprocess.run(
        ["unshare", "--mount", "bash", "-ec", "mount -t tmpfs t /mnt; cd /mnt; mkdir u w r;"
         "mount -t overlay o -o lowerdir=/,upperdir=u,workdir=w r"],
        capture_output=True, text=True,
    )  # fmt: skip
    if probe.returncode:
        return f"no overlay in a mount namespace of its own: {probe.stderr.strip()}"
    if not Path("/usr/bin/python3").exists():
        return "needs a Python of the system"
    return None


def make_root(base: Path, shared: Path, *, saved: Path | None = None) -> Root:
    """Make a copy whose /mnt is `shared`; with what was written into one that was saved."""
    begin = "mkdir" if saved is None else f"cp -a {saved}"
    script = MAKE_ROOT.format(base=base, shared=shared, project=PROJECT, begin=begin)
    # What is left in the copy, a service for instance, ends with its first process.
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", script]
    # Its `cat` ends, and so the copy, when this process has gone, however that came.
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n", "the throw-away root could not be made"
    holder.stdout.close()
    return Root(holder, base)


def pretend_systemd(root: Root) -> None:
    """Make it look as if systemd ran (sd_booted(3)), with stand-ins for what the scripts call."""
    root.shell("mkdir -p /run/systemd/system /usr/local/bin")
    for name in ("systemctl", "systemd-run"):
        shutil.copy(STAND_IN, root.path / "usr/local/bin" / name)
    shutil.copy("/bin/true", root.path / "usr/local/bin/journalctl")


def wait_for(claim, within_s: float = STARTS_WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def install(root: Root, which: str, *options: str) -> str:
    """Install a wheel; return what was said."""
    done = root.install("--wheels", f"/mnt/{which}", "--watch", "0", *options)
    assert done.returncode == 0, done.stdout
    return done.stdout


def refused(root: Root, which: str, *options: str) -> str:
    """Try to install a wheel that cannot be; return what was said."""
    done = root.install("--wheels", f"/mnt/{which}", "--watch", "1", *options)
    assert done.returncode == 1, done.stdout
    return done.stdout


def version(root: Root) -> str:
    """What the command says, and so what `current` leads to."""
    return root.shell("edge-agent --version").removeprefix("edge-agent ")


def serving(root: Root) -> str:
    """The version of the process that runs as the service."""
    said = ""

    def is_said() -> bool:
        nonlocal said
        try:
            said = (root.path / "run/edge-agent/ready").read_text()
        except FileNotFoundError:  # none runs at this moment
            return False
        return said != ""

    wait_for(is_said)
    return said


def runs(root: Root) -> list[str]:
    """Which versions the service was started with, in order."""
    return (root.path / "run/edge-agent/runs").read_text().split()


def kept(root: Root) -> list[str]:
    """The versions that are there, without their digits."""
    return sorted(
        path.name.split("-")[0] for path in (root.path / "opt/edge-agent/versions").iterdir()
    )
