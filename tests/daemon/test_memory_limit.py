"""What workers may use, by fake roots, and which of them goes."""

import os

import pytest

from agent.daemon.processes import read_rss_bytes, read_state
from agent.daemon.workers.memory_limit import (
    LOOK_EVERY_S,
    MIB,
    UNLIMITED_BYTES,
    WARM_AFTER_S,
    Budget,
    WorkerMemory,
    read_budget,
)

GIB = 1 << 30


def root_with(folder, files):
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"{text}\n")
    return folder


MEMINFO = {"proc/meminfo": "MemTotal:         942080 kB\nMemFree: 1 kB"}  # a board with 1 GB
V2 = {"proc/self/cgroup": "0::/system.slice/edge-agent.service"}
V1 = {"proc/self/cgroup": "5:devices:/x\n4:cpu,memory:/docker/abc\n0::/"}
SERVICE = "sys/fs/cgroup/system.slice/edge-agent.service"
CONTAINER = "sys/fs/cgroup/memory/docker/abc"


@pytest.mark.parametrize(
    ("files", "share_mib", "most_mib"),
    [
        (MEMINFO, 460, 828),
        ({}, 0.5 * (UNLIMITED_BYTES >> 20), 0.9 * (UNLIMITED_BYTES >> 20)),
        ({**MEMINFO, **V2, f"{SERVICE}/memory.max": "max"}, 460, 828),
        ({**MEMINFO, **V2, f"{SERVICE}/memory.max": 512 * MIB}, 358.4, 460.8),
        (
            {
                **MEMINFO,
                **V2,
                f"{SERVICE}/memory.max": 512 * MIB,
                f"{SERVICE}/memory.high": 400 * MIB,
            },
            280,
            360,
        ),
        ({**MEMINFO, **V2, "sys/fs/cgroup/system.slice/memory.max": 256 * MIB}, 179.2, 230.4),
        ({**MEMINFO, **V2, f"{SERVICE}/memory.max": 4 * GIB}, 460, 828),
        ({**MEMINFO, **V1, f"{CONTAINER}/memory.limit_in_bytes": 300 * MIB}, 210, 270),
        ({**MEMINFO, **V1, f"{CONTAINER}/memory.limit_in_bytes": 9223372036854771712}, 460, 828),
        # Seen from inside a container, the folder is not where the file says; the topmost is.
        (
            {**MEMINFO, **V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": 300 * MIB},
            210,
            270,
        ),
        ({**MEMINFO, "proc/self/cgroup": "nonsense"}, 460, 828),
    ],
)
def test_the_budget_is_the_smallest_there_is(tmp_path, files, share_mib, most_mib):
    budget = read_budget(root_with(tmp_path, files))
    assert budget.share_bytes == pytest.approx(share_mib * MIB, abs=MIB)
    assert budget.most_bytes == pytest.approx(most_mib * MIB, abs=MIB)


def test_this_machine_has_a_budget():
    assert 0 < read_budget().share_bytes < UNLIMITED_BYTES


class Workers:
    """Sizes in MiB by process id, on a clock of their own."""

    def __init__(self, share, most):
        self.now = 0.0
        self.sizes = {}
        self.memory = WorkerMemory(
            Budget(share * MIB, most * MIB),
            read_rss=lambda pid: self.sizes[pid] and self.sizes[pid] * MIB,
            clock=lambda: self.now,
        )

    def look(self, **ready):
        """Look at all once; return the reasons by process id."""
        self.now += LOOK_EVERY_S
        reasons = {pid: self.memory.excess(pid, 0.0) for pid in self.sizes}
        return {pid: reason for pid, reason in reasons.items() if reason}

    def warm_up(self):
        self.now += WARM_AFTER_S
        assert self.look() == {}


def test_a_leak_is_noticed_at_the_third_look():
    workers = Workers(200, 400)
    workers.sizes[1] = 150
    workers.warm_up()
    workers.sizes[1] = 199
    assert [workers.look() for _ in range(5)] == [{}] * 5
    workers.sizes[1] = 260
    assert workers.look() == workers.look() == {}
    assert workers.look() == {1: "worker used 260 MiB of 200 MiB allowed; replaced"}


def test_what_a_camera_takes_that_comes_late_is_no_leak():
    workers = Workers(200, 400)
    workers.sizes[1] = 120
    workers.warm_up()
    workers.now += 60.0
    workers.memory.warm_up(1)
    workers.sizes[1] = 300
    workers.warm_up()
    assert [workers.look() for _ in range(5)] == [{}] * 5
    workers.sizes[1] = 390
    workers.look(), workers.look()
    assert 1 in workers.look(), "but what comes after it may be one"


def test_a_peak_is_no_leak():
    workers = Workers(200, 400)
    workers.sizes[1] = 150
    workers.warm_up()
    for size in [260, 260, 150] * 4:
        workers.sizes[1] = size
        assert workers.look() == {}


def test_a_big_model_is_no_leak_but_may_leak():
    workers = Workers(200, 400)
    workers.sizes[1] = 280
    workers.warm_up()
    workers.sizes[1] = 340
    assert [workers.look() for _ in range(5)] == [{}] * 5
    workers.sizes[1] = 360
    assert [bool(workers.look()) for _ in range(3)] == [False, False, True]


def test_what_needs_nearly_all_there_is_is_left_to_the_kernel():
    workers = Workers(200, 400)
    workers.sizes[1] = 420
    workers.warm_up()
    workers.sizes[1] = 430
    assert [workers.look() for _ in range(5)] == [{}] * 5


def test_of_several_the_one_that_has_grown_goes():
    workers = Workers(400, 600)
    workers.sizes.update({1: 200, 2: 80})
    workers.warm_up()
    workers.sizes[2] = 260
    assert [set(workers.look()) for _ in range(3)] == [set(), set(), {2}]
    workers.memory.forget(2)
    workers.sizes = {1: 200, 3: 90}
    assert [workers.look() for _ in range(5)] == [{}] * 5


def test_while_one_loads_there_is_more():
    workers = Workers(300, 600)
    workers.sizes[1] = 150
    workers.warm_up()
    workers.sizes[1] = 190
    assert workers.memory.excess(2, None) is None if workers.sizes.setdefault(2, 300) else None
    assert workers.memory.excess(2, None) is None
    for _ in range(5):
        workers.now += LOOK_EVERY_S
        assert workers.memory.excess(1, 0.0) is None


def test_a_worker_that_has_just_ended_is_not_over():
    workers = Workers(200, 400)
    workers.sizes[1] = None
    assert workers.look() == {}


def test_our_own_process_can_be_read():
    assert read_rss_bytes(os.getpid()) > MIB
    assert read_state(os.getpid()) in ("R", "S")
    assert read_rss_bytes(2**22 + 1) is None
    assert read_state(2**22 + 1) is None
