"""Edge TPUs on PCIe, and graphics processors at all the places where they have been seen."""

import msgspec
import pytest
from sensor_trees import BOARDS, NAMES, expected, grow

from agent.sensors.accel import AccelReader
from agent.sensors.files import BoardFiles
from agent.sensors.replay import open_board
from agent.sensors.thermal import ThermalReader


def look(files):
    return msgspec.to_builtins(AccelReader(files).read(ThermalReader(files).read().temps_c))


@pytest.fixture
def on(tmp_path):
    return lambda files: look(BoardFiles(grow(tmp_path, files)))


def gpu(load=None, freq=None):
    return {"kind": "gpu", "load_ratio": load, "freq_hz": freq}


@pytest.mark.parametrize("board", NAMES)
def test_every_board(board):
    accel = expected(board).get("accel")
    if accel is not None:
        accel.pop("note", None)
    assert look(open_board(BOARDS / board).files) == accel


@pytest.mark.parametrize(
    "folder",
    [
        "sys/devices/gpu.0",
        "sys/devices/57000000.gpu",
        "sys/devices/platform/gpu.0",
        "sys/devices/platform/17000000.ga10b",
        "sys/devices/platform/17000000.gv11b",
        "sys/devices/platform/17000000.gpu",
        "sys/devices/platform/bus@0/17000000.gpu",
    ],
)
@pytest.mark.parametrize(
    ("said", "load"), [("452", 0.452), ("1000", 1.0), ("1001", None), ("-1", None), ("n/a", None)]
)
def test_load_at_each_place(on, folder, said, load):
    assert on({f"{folder}/load": said}) == gpu(load)


@pytest.mark.parametrize(
    "name",
    ["57000000.gpu", "17000000.gp10b", "17000000.gv11b", "17000000.ga10b", "gpu-gpc-0"],
)
def test_clock_by_the_name_of_the_device(on, name):
    files = {f"sys/class/devfreq/{name}/cur_freq": "1386000000"}
    assert on(files | {"sys/class/devfreq/15340000.vic/cur_freq": "1"}) == gpu(None, 1_386_000_000)


def test_clock_by_the_name_in_the_device_tree(on):
    """A later release may call the device anything."""
    folder = "sys/class/devfreq/tegra-gpu"
    files = {f"{folder}/device/of_node/name": "gb10b\0", f"{folder}/cur_freq": "900"}
    assert on(files | {f"{folder}/device/load": "7"}) == gpu(0.007, 900)


def test_a_clock_and_a_load_that_cannot_be_read(on):
    folder = "sys/class/devfreq/17000000.gpu"
    assert on({f"{folder}/governor": "nvhost_podgov"}) == gpu()
    assert on({f"{folder}/cur_freq": 2**63, f"{folder}/device/load": 1001}) == gpu()


def test_other_devices_with_clocks(on):
    assert (
        on({"sys/class/devfreq/15340000.vic/cur_freq": "1", "sys/class/devfreq/dmc": None}) is None
    )


APEX = "sys/class/apex/apex_"
TRIPS = {f"trip_point{n}_temp": 85000 + 5000 * n for n in range(3)}


def apex(number, temp, trips=TRIPS):
    files = {f"{APEX}{number}/{name}": value for name, value in trips.items()}
    return files | {f"{APEX}{number}/temp": temp}


@pytest.mark.parametrize(
    ("temp", "degrees", "throttled"),
    [
        (84999, 84.999, False),
        (85000, 85.0, True),
        (-87900, None, None),  # google-coral/edgetpu, issue 843
        (-89700, None, None),
        (166050, None, None),
        ("", None, None),
    ],
)
def test_heat_of_an_edgetpu(on, temp, degrees, throttled):
    said = on(apex(0, temp))
    assert (said["temp_c"], said["throttled"]) == (degrees, throttled)
    assert said["trip_points_c"] == [85.0, 90.0, 95.0]


def test_a_driver_without_these_files(on):
    """The staging driver of older kernels (google-coral/edgetpu, issue 498)."""
    said = on({f"{APEX}0/status": "ALIVE"})
    assert (said["temp_c"], said["trip_points_c"], said["throttled"]) == (None, [], None)


@pytest.mark.parametrize("first", ["0", "garbage", "-87900"])
def test_a_trip_point_that_is_none(on, first):
    said = on(apex(0, 50000, TRIPS | {"trip_point0_temp": first}))
    assert said["throttled"] is None


def test_an_edgetpu_comes_before_a_graphics_processor(on, tmp_path):
    files = apex(1, 91000) | apex(0, 40000) | {"sys/devices/gpu.0/load": "5"}
    assert on(files)["name"] == "apex_0"
    board = BoardFiles(tmp_path)
    both = AccelReader(board).edgetpus(ThermalReader(board).read().temps_c)
    assert [(one.name, one.throttled) for one in both] == [("apex_0", False), ("apex_1", True)]
