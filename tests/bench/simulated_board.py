"""A power meter as files, kept up to date by a process: so much at rest, more while a worker runs.

Run with the folder of an INA226 and the process whose children are looked at.
"""

import sys
import time
from pathlib import Path

import psutil

REST_UW, WORK_UW = 3_000_000, 5_000_000
EVERY_S = 0.01
LOOK_EVERY_S = 0.05


def has_worker(pid):
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if any("agent.vision.worker" in word for word in child.cmdline()):
                return True
        except psutil.Error:  # it has just ended
            continue
    return False


def main():
    folder, pid = Path(sys.argv[1]), int(sys.argv[2])
    look_at, is_working = 0.0, False
    while True:
        if time.monotonic() >= look_at:
            is_working = has_worker(pid)
            look_at = time.monotonic() + LOOK_EVERY_S
        new = folder / "power1_input.new"
        new.write_text(f"{WORK_UW if is_working else REST_UW}\n")
        with (folder / "power1_input").open("r+b") as file:  # a sensor's file stays the same one
            file.write(new.read_bytes())
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main()
