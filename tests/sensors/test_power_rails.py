"""Totals of boards that measure their supplies, on trees that no fixture has."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_trees import chip, grow, silent

from agent.contract.reading import BoardIdentity
from agent.sensors.board import family_of
from agent.sensors.files import BoardFiles
from agent.sensors.power import LOOK_AGAIN_S, PowerReader


def board(name, *compatible):
    return BoardIdentity(
        id=name, family=family_of(name), soc=None, model=None, compatible=list(compatible)
    )


def ina3221(number, *rails, **more):
    """Rails are (label, mV, mA); None as a label: the channel has none."""
    files = {}
    for channel, (label, volt, curr) in enumerate(rails, 1):
        if label is not None:
            files[f"in{channel}_label"] = label
        files[f"in{channel}_input"], files[f"curr{channel}_input"] = volt, curr
    return chip(number, "ina3221", **files, **more)


def iio(bus, folder, *rails, **more):
    path = f"sys/bus/i2c/drivers/ina3221x/{bus}/{folder}"
    files = {f"{path}/{name}": text for name, text in more.items()}
    for channel, (label, volt, curr, power) in enumerate(rails):
        files[f"{path}/rail_name_{channel}"] = label
        files[f"{path}/in_voltage{channel}_input"] = volt
        files[f"{path}/in_current{channel}_input"] = curr
        if power is not None:
            files[f"{path}/in_power{channel}_input"] = power
    return files


def look(root, identity, at_s=0.0):
    return PowerReader(BoardFiles(root), identity, silent).read(at_s).power


AGX_XAVIER = ina3221(1, ("GPU", 12000, 100), ("CPU", 12000, 50), ("SOC", 12000, 200)) | ina3221(
    2, ("CV", 12000, 0), ("VDDRQ", 12000, 30), ("SYS5V", 5000, 1000)
)


def test_agx_xavier_has_six_rails_and_no_parent(tmp_path):
    power = look(grow(tmp_path, AGX_XAVIER), board("jetson-agx-xavier"))
    assert (power.kind, power.scope) == ("measured", "module_rails_sum")
    assert power.total_w == pytest.approx(1.2 + 0.6 + 2.4 + 0.0 + 0.36 + 5.0)
    assert set(power.in_total) == {"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}
    # The same module under a maker's own name.
    assert look(tmp_path, board("jetson-tegra194")).total_w == power.total_w


def test_one_of_six_that_fails_takes_the_total_along(tmp_path):
    grow(tmp_path, AGX_XAVIER)
    (tmp_path / "sys/class/hwmon/hwmon2/curr2_input").unlink()
    power = look(tmp_path, board("jetson-agx-xavier"))
    assert (power.kind, power.scope, power.total_w) == ("unavailable", "module_rails_sum", None)
    assert power.rails_unreadable == ["VDDRQ"]
    assert "VDDRQ unreadable" in power.reason
    assert (
        set(power.excluded_from_total) == set(power.rails) == {"GPU", "CPU", "SOC", "CV", "SYS5V"}
    )


def test_a_chip_that_is_not_there_at_all(tmp_path):
    files = {path: text for path, text in AGX_XAVIER.items() if "hwmon1" in path}
    power = look(grow(tmp_path, files), board("jetson-agx-xavier"))
    assert power.total_w is None
    assert power.reason.startswith("CV, VDDRQ, SYS5V missing")


def test_a_module_whose_input_has_lost_its_label(tmp_path):
    rails = [(None, 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 300)]
    power = look(grow(tmp_path, ina3221(0, *rails)), board("jetson-orin-nano"))
    assert (power.scope, power.total_w) == ("module_input", None)
    assert power.reason.startswith("VDD_IN missing")
    assert set(power.rails) == {"VDD_CPU_GPU_CV", "VDD_SOC"}


def test_tx2_nx(tmp_path):
    rails = iio("1-0040", "iio:device0", ("VDD_IN", 5000, 800, 4000), ("VDD_SOC", 5000, 100, 500))
    power = look(grow(tmp_path, rails), board("jetson-tx2-nx"))
    assert (power.total_w, power.scope, power.sensor) == (4.0, "module_input", "ina3221 VDD_IN")


def test_iio_under_its_other_name_with_limits_and_without_power(tmp_path):
    rails = [("POM_5V_IN", 5000, 3000, None), ("POM_5V_GPU", 5000, 20, None), ("NC", 0, 0, None)]
    limits = {
        "warn_current_limit_0": "2999 ma",
        "crit_current_limit_0": "32760 ma",
        "crit_current_limit_1": "0",
    }
    power = look(
        grow(tmp_path, iio("6-0040", "iio_device", *rails, **limits)), board("jetson-nano")
    )
    assert power.total_w == 15.0
    assert power.excluded_from_total == ["POM_5V_GPU", "NC"]
    assert power.alarms == ["POM_5V_IN:max"]


def test_a_nano_without_sensor(tmp_path):
    """The 2 GB kind has no INA3221."""
    power = look(tmp_path, board("jetson-nano"))
    assert (power.kind, power.scope, power.total_w) == ("unavailable", "none", None)
    assert power.reason


def test_igx_has_a_meter_that_is_not_at_the_input(tmp_path):
    """tegra234-p3740-0002.dtsi: rails of the carrier, and an INA219 of which nothing is said."""
    files = (
        ina3221(
            1, ("VDD_GPU_SOC", 12000, 200), ("VDD_CPU_CV", 12000, 100), ("VIN_SYS_5V0", 5000, 800)
        )
        | ina3221(2, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 100), ("NC", 0, 0))
        | ina3221(
            3, ("CVB_ATX_12V", 12000, 900), ("CVB_ATX_3V3", 3300, 10), ("CVB_ATX_5V", 5000, 40)
        )
        | chip(4, "ina219", in1_input=12000, curr1_input=1000, power1_input=12000000)
    )
    power = look(grow(tmp_path, files), board("jetson-agx-orin", "nvidia,p3740-0002+p3701-0008"))
    assert (power.scope, power.total_w) == ("module_rails_sum", pytest.approx(2.4 + 1.2 + 4.0))
    assert "ina219 (nothing says what it measures)" in power.excluded_from_total
    assert "VDDQ_VDD2_1V8AO (fed from VIN_SYS_5V0)" in power.excluded_from_total
    assert {"CVB_ATX_12V", "ina219"} < set(power.rails)


def test_thor_whose_input_cannot_be_read(tmp_path):
    """The sum of three rails is another quantity, so it does not stand in."""
    files = ina3221(
        3, ("VDD_GPU", 12000, -40), ("VDD_CPU_SOC_MSS", 12000, 300), ("VIN_SYS_5V0", 5000, 1000)
    ) | chip(5, "ina238", label="VIN", power1_input="garbage", in1_input="", curr1_input=1)
    power = look(grow(tmp_path, files), board("jetson-agx-thor"))
    assert (power.scope, power.total_w, power.reason) == ("board_input", None, "VIN unreadable")
    assert power.rails["VDD_GPU"].power_w == pytest.approx(-0.48)
    assert power.rails_unreadable == ["VIN"]
    assert power.excluded_from_total == ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"]


def test_the_board_s_input_goes_before_the_module_s(tmp_path):
    files = ina3221(0, ("VDD_IN", 5000, 1000), ("VIN", 12000, 500))
    power = look(grow(tmp_path, files), board("jetson-agx-thor"))
    assert (power.scope, power.total_w, power.in_total) == ("board_input", 6.0, ["VIN"])
    assert power.excluded_from_total == ["VDD_IN"]


def test_one_chip_through_two_drivers(tmp_path):
    """A rail is one rail; hwmon's is taken."""
    files = ina3221(0, ("VDD_IN", 5000, 1000)) | iio(
        "1-0040", "iio:device0", ("VDD_IN", 5000, 900, 4500), ("VDD_SOC", 5000, 100, 500)
    )
    power = look(grow(tmp_path, files), board("jetson-orin-nx"))
    assert (power.total_w, set(power.rails)) == (5.0, {"VDD_IN", "VDD_SOC"})


def test_labels_that_nobody_knows(tmp_path):
    power = look(grow(tmp_path, ina3221(0, ("A", 5000, 1), ("GPU", 5000, 2))), board("generic"))
    assert (power.kind, power.scope, power.total_w) == ("unavailable", "none", None)
    assert set(power.rails) == {"A", "GPU"}
    assert power.reason == "nothing says which of the rails make the total"


def test_chips_seen_through_links_and_by_their_bus_alone(tmp_path):
    """Real /sys/class/hwmon holds links; some containers have no /sys/class/hwmon."""
    bus = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon5"
    files = {
        path.replace("sys/class/hwmon/hwmon5", bus): text
        for path, text in ina3221(5, ("VDD_IN", 5000, 1000)).items()
    }
    grow(tmp_path, files)
    identity = board("jetson-orin-nano")
    assert look(tmp_path, identity).total_w == 5.0
    (tmp_path / "sys/class/hwmon").mkdir(parents=True)
    (tmp_path / "sys/class/hwmon/hwmon5").symlink_to(tmp_path / bus)
    power = look(tmp_path, identity)
    assert (power.total_w, list(power.rails)) == (5.0, ["VDD_IN"])


def test_a_chip_that_comes_late_and_goes(tmp_path):
    files = BoardFiles(tmp_path)
    reader = PowerReader(files, board("rpi-4b"), silent)
    assert reader.read(0.0).power.scope == "none"
    grow(tmp_path, chip(7, "ina226", in1_input=5000, curr1_input=600, power1_input=3000000))
    assert reader.read(LOOK_AGAIN_S / 2).power.scope == "none"
    assert reader.read(LOOK_AGAIN_S).power.total_w == 3.0
    for name in ("name", "in1_input", "curr1_input", "power1_input"):
        (tmp_path / "sys/class/hwmon/hwmon7" / name).unlink()
    files.close()  # as the kernel takes the files away from those who hold them
    gone = reader.read(LOOK_AGAIN_S + 1).power
    assert (gone.scope, gone.total_w, gone.reason) == ("board_input", None, "ina226 unreadable")
    assert reader.read(2 * LOOK_AGAIN_S).power.scope == "none"
    assert files.errors() == {}


def test_another_chip_under_the_same_number(tmp_path):
    reader = PowerReader(BoardFiles(tmp_path), board("jetson-orin-nx"), silent)
    grow(tmp_path, ina3221(1, ("VDD_IN", 5000, 1000)))
    reader = PowerReader(BoardFiles(tmp_path), board("jetson-orin-nx"), silent)
    assert reader.read(0.0).power.total_w == 5.0
    grow(tmp_path, {"sys/class/hwmon/hwmon1/name": "nvme"})
    assert reader.read(LOOK_AGAIN_S).power.rails == {}


WORDS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12),
    st.none(),
)


@given(
    name=st.sampled_from(["ina3221", "ina219", "ina238", "nvme"]),
    values=st.dictionaries(
        st.sampled_from(
            [
                *("in1_label", "in1_input", "curr1_input", "curr1_max_alarm", "power1_input"),
                *("in2_label", "in2_input", "curr2_input", "curr2_crit_alarm", "energy1_input"),
                "label",
            ]
        ),
        WORDS,
    ),
    identity=st.sampled_from(["jetson-agx-orin", "jetson-nano", "rpi-4b", "generic"]),
)
def test_any_files(name, values, identity):
    """Whatever the files say, a total is a number of rails that are there, or unknown."""
    with TemporaryDirectory() as folder:
        root = grow(Path(folder), chip(0, name, **values))
        files = BoardFiles(root)
        reader = PowerReader(files, board(identity), silent)
        looks = [reader.read(at_s).power for at_s in (0.0, 1.0)]
        files.close()
    for power in looks:
        assert (power.total_w is None) == (power.kind == "unavailable") == bool(power.reason)
        assert set(power.in_total) <= set(power.rails)
        assert (power.total_w is None) == (power.in_total == [])
