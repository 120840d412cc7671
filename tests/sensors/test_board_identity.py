"""Which board it is: strings of device trees, and what is left where there are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_trees import BOARDS, grow

from agent.sensors.board import identify, parse_l4t, read_board_model
from agent.sensors.files import BoardFiles


def tree(root, *compatible, model=None):
    folder = root / "proc/device-tree"
    folder.mkdir(parents=True, exist_ok=True)
    if compatible:
        (folder / "compatible").write_bytes("".join(f"{one}\0" for one in compatible).encode())
    if model is not None:
        (folder / "model").write_bytes(f"{model}\0".encode())
    return identify(BoardFiles(root))


@pytest.mark.parametrize(
    ("compatible", "board", "soc"),
    [
        (["raspberrypi,model-zero-2-w", "brcm,bcm2837"], "rpi-zero-2w", "bcm2837"),
        (["raspberrypi,model-zero-w", "brcm,bcm2835"], "rpi-zero-w", "bcm2835"),
        (["raspberrypi,2-model-b", "brcm,bcm2836"], "rpi-2b", "bcm2836"),
        (["raspberrypi,3-model-b", "brcm,bcm2837"], "rpi-3b", "bcm2837"),
        (["raspberrypi,3-model-b-plus", "brcm,bcm2837"], "rpi-3b-plus", "bcm2837"),
        (["raspberrypi,4-model-b", "brcm,bcm2711"], "rpi-4b", "bcm2711"),
        (["raspberrypi,400", "brcm,bcm2711"], "rpi-400", "bcm2711"),
        (["raspberrypi,4-compute-module", "brcm,bcm2711"], "rpi-cm4", "bcm2711"),
        (["raspberrypi,4-compute-module-s", "brcm,bcm2711"], "rpi-cm4s", "bcm2711"),
        (["raspberrypi,5-model-b", "brcm,bcm2712"], "rpi-5", "bcm2712"),
        (["raspberrypi,500", "brcm,bcm2712"], "rpi-500", "bcm2712"),
        (["raspberrypi,5-compute-module", "brcm,bcm2712d0"], "rpi-cm5", "bcm2712"),
        (["acme,gateway", "raspberrypi,5-compute-module", "brcm,bcm2712"], "rpi-cm5", "bcm2712"),
        (["kunbus,revpi-connect-se", "brcm,bcm2711"], "rpi-bcm2711", "bcm2711"),
        (["nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,tegra210"], "jetson-nano", "tegra210"),
        (["nvidia,p3542-0000+p3448-0003", "nvidia,tegra210"], "jetson-nano", "tegra210"),
        (["nvidia,jetson-nano", "nvidia,tegra210"], "jetson-nano", "tegra210"),
        (["nvidia,p2371-2180", "nvidia,tegra210"], "jetson-tegra210", "tegra210"),
        (["nvidia,quill", "nvidia,tegra186"], "jetson-tx2", "tegra186"),
        (["nvidia,p2771-0000", "nvidia,tegra186"], "jetson-tx2", "tegra186"),
        (["nvidia,p2597-0000+p3310-1000", "nvidia,tegra186"], "jetson-tx2", "tegra186"),
        (["acme,box", "nvidia,tegra186"], "jetson-tx2", "tegra186"),
        (["nvidia,p3509-0000+p3636-0001", "nvidia,tegra186"], "jetson-tx2-nx", "tegra186"),
        (["nvidia,p3509-0000+p3668-0001", "nvidia,tegra194"], "jetson-xavier-nx", "tegra194"),
        (["nvidia,p3449-0000+p3668-0000", "nvidia,tegra194"], "jetson-xavier-nx", "tegra194"),
        (
            ["nvidia,galen", "nvidia,jetson-xavier", "nvidia,p2822-0000+p2888-0001"],
            "jetson-agx-xavier",
            "tegra194",
        ),
        (["nvidia,p2972-0000", "nvidia,tegra194"], "jetson-agx-xavier", "tegra194"),
        (["nvidia,jetson-xavier-nx", "nvidia,tegra194"], "jetson-xavier-nx", "tegra194"),
        (["nvidia,tegra194"], "jetson-tegra194", "tegra194"),
        (["nvidia,p3768-0000+p3767-0005-super"], "jetson-orin-nano", "tegra234"),
        (["nvidia,p3768-0000+p3767-0003", "nvidia,tegra234"], "jetson-orin-nano", "tegra234"),
        (["nvidia,p3509-0000+p3767-0004", "nvidia,tegra234"], "jetson-orin-nano", "tegra234"),
        (["nvidia,p3768-0000+p3767-0001-super"], "jetson-orin-nx", "tegra234"),
        (["nvidia,p3509-0000+p3767-0000", "nvidia,tegra234"], "jetson-orin-nx", "tegra234"),
        (["nvidia,p3768-0000+p3767-0009", "nvidia,tegra234"], "jetson-tegra234", "tegra234"),
        (
            ["connecttech,boson", "nvidia,p3767-0001", "nvidia,tegra234"],
            "jetson-orin-nx",
            "tegra234",
        ),
        (["nvidia,p3737-0000+p3701-0008", "nvidia,tegra234"], "jetson-agx-orin", "tegra234"),
        (["nvidia,p4071-0000+p3834-0008", "nvidia,tegra264"], "jetson-agx-thor", "tegra264"),
        (["acme,thor-box", "nvidia,tegra264"], "jetson-agx-thor", "tegra264"),
        (["google,imx8mq-phanbell", "fsl,imx8mq"], "coral-dev-board", "imx8mq"),
        (["fsl,imx8mq-phanbell", "fsl,imx8mq"], "coral-dev-board", "imx8mq"),
        (["fsl,imx8mq-evk", "fsl,imx8mq"], "generic", "imx8mq"),
        (["radxa,rock-5b", "rockchip,rk3588"], "generic", None),
        (["acme,p3701", "rockchip,rk3588"], "generic", None),
    ],
)
def test_compatible(tmp_path, compatible, board, soc):
    found = tree(tmp_path, *compatible)
    assert (found.id, found.soc, found.compatible) == (board, soc, compatible)


@pytest.mark.parametrize(
    ("model", "board", "soc"),
    [
        ("Raspberry Pi 4 Model B Rev 1.5", "rpi-4b", "bcm2711"),
        ("Raspberry Pi 5", "rpi-5", "bcm2712"),
        ("Raspberry Pi 500 Rev 1.0", "rpi-500", "bcm2712"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "rpi-zero-2w", "bcm2837"),
        ("Raspberry Pi Compute Module 5 Lite Rev 1.0", "rpi-cm5", "bcm2712"),
        ("NVIDIA Orin NX Developer Kit", "jetson-orin-nx", "tegra234"),
        ("Jetson-AGX", "jetson-agx-xavier", "tegra194"),
        ("quill", "jetson-tx2", "tegra186"),
        ("Google i.MX8MQ Phanbell", "coral-dev-board", "imx8mq"),
        ("Something Else", "generic", None),
    ],
)
def test_model_alone(tmp_path, model, board, soc):
    found = tree(tmp_path, model=model)
    assert (found.id, found.soc, found.model) == (board, soc, model)


def test_a_carrier_board_with_a_name_of_its_own(tmp_path):
    """The chip says Jetson, the maker's string nothing, and the model's text the module."""
    found = tree(tmp_path, "acme,rugged", "nvidia,tegra194", model="ACME with Xavier NX")
    assert (found.id, found.family) == ("jetson-xavier-nx", "jetson")


def test_compatible_goes_before_the_model(tmp_path):
    found = tree(tmp_path, "nvidia,p3767-0000", model="Orin Nano carrier of ACME")
    assert found.id == "jetson-orin-nx"


def test_files_of_older_jetsons(tmp_path):
    folder = tmp_path / "proc/device-tree"
    tree(tmp_path, "acme,box", "nvidia,tegra210")
    (folder / "nvidia,boardids").write_bytes(b"3448:0000\0")
    assert identify(BoardFiles(tmp_path)).id == "jetson-nano"
    (folder / "nvidia,boardids").unlink()
    (folder / "nvidia,dtsfilename").write_bytes(b"/dts/tegra210-p3448-0000-p3449-0000-b00.dts\0")
    assert identify(BoardFiles(tmp_path)).id == "jetson-nano"


def test_the_other_place_of_the_device_tree(tmp_path):
    folder = tmp_path / "sys/firmware/devicetree/base"
    folder.mkdir(parents=True)
    (folder / "compatible").write_bytes(b"raspberrypi,4-model-b\0brcm,bcm2711\0")
    (folder / "model").write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    found = identify(BoardFiles(tmp_path))
    assert (found.id, found.model) == ("rpi-4b", "Raspberry Pi 4 Model B Rev 1.4")


def test_machines_without_device_tree(tmp_path):
    """What runs this test says nothing: only files below the root do."""
    assert identify(BoardFiles(tmp_path)).id == "generic"
    grow(tmp_path, {"proc/cpuinfo": "processor\t: 0\nvendor_id\t: AuthenticAMD"})
    grow(tmp_path, {"sys/class/dmi/id/product_name": "NUC11"})
    found = identify(BoardFiles(tmp_path))
    assert (found.id, found.family, found.model, found.soc) == ("x86", "x86", "NUC11", None)
    grow(tmp_path, {"sys/class/powercap/intel-rapl:0": None})
    assert identify(BoardFiles(tmp_path)).id == "x86-rapl"


def test_rapl_that_a_container_hides(tmp_path):
    """The links are there, and lead nowhere."""
    folder = tmp_path / "sys/class/powercap"
    folder.mkdir(parents=True)
    (folder / "intel-rapl:0").symlink_to("../../devices/virtual/powercap/intel-rapl:0")
    assert identify(BoardFiles(tmp_path)).id == "x86-rapl"


def test_a_jetson_with_dmi_is_a_jetson(tmp_path):
    grow(tmp_path, {"sys/class/dmi/id/product_name": "NVIDIA Jetson"})
    assert tree(tmp_path, "nvidia,p3701-0005", "nvidia,tegra234").id == "jetson-agx-orin"


def test_a_jetson_in_a_container_that_hides_the_device_tree(tmp_path):
    name = "NVIDIA Jetson AGX Orin Developer Kit"
    grow(tmp_path, {"sys/class/dmi/id/product_name": name})
    grow(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1"})
    found = identify(BoardFiles(tmp_path))
    assert (found.id, found.family, found.soc) == ("jetson-agx-orin", "jetson", "tegra234")
    assert (found.model, found.l4t, found.compatible) == (name, "36.4.3", [])


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3"),
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref", "32.7.1"),
        ("# R39 (release), REVISION: 0, GCID: 1", "39.0"),
        ("# R36 (release), GCID: 38968081", None),
        ("REVISION: 4.3", None),
        ("", None),
    ],
)
def test_releases(text, version):
    assert parse_l4t(text) == version


def test_a_release_on_a_board_that_is_no_jetson(tmp_path):
    grow(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"})
    assert not isinstance(tree(tmp_path, "raspberrypi,4-model-b").l4t, str)
    assert tree(tmp_path, "nvidia,p3834-0008").l4t == "36.4.3"


@given(raw=st.binary(max_size=200), model=st.binary(max_size=300), release=st.text(max_size=200))
def test_any_bytes(tmp_path_factory, raw, model, release):
    root = tmp_path_factory.getbasetemp() / "any-board"
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/nv_tegra_release").write_text(release, encoding="utf-8")
    folder = root / "proc/device-tree"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compatible").write_bytes(raw)
    (folder / "model").write_bytes(model)
    found = identify(BoardFiles(root))
    assert found.id
    assert all(found.compatible)
    assert found.model is None or "\0" not in found.model


def test_names_for_people(tmp_path):
    assert read_board_model(BOARDS / "rpi-4b") == "Raspberry Pi 4 Model B Rev 1.4"
    assert read_board_model(tmp_path) is None
    grow(tmp_path, {"sys/class/dmi/id/product_name": "NUC11"})
    assert read_board_model(tmp_path) == "NUC11"
