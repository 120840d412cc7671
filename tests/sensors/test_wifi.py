"""Which interface leads to a host, and whether a Wi-Fi sleeps."""

import fcntl

import pytest

from agent.sensors import wifi
from agent.sensors.wifi import IWREQ, interface_to, is_wireless, read_power_save


def test_loopback():
    assert interface_to("127.0.0.1", 1883) == "lo"
    assert interface_to("localhost", 1883) == "lo"


def test_a_name_that_nobody_knows():
    assert interface_to("no-such-host.invalid", 1883) is None


@pytest.mark.parametrize("mark", ["wireless", "phy80211"])
def test_wireless(tmp_path, mark):
    (tmp_path / "sys/class/net/wlan0" / mark).mkdir(parents=True)
    (tmp_path / "sys/class/net/eth0").mkdir()
    assert is_wireless("wlan0", tmp_path)
    assert not is_wireless("eth0", tmp_path)
    assert not is_wireless("lo")


@pytest.mark.parametrize(
    ("answer", "sleeps"), [("Power save: on", True), ("Power save: off\n", False)]
)
def test_iw_is_asked_first(answer, sleeps):
    asked = []
    assert read_power_save("wlan0", lambda *command: asked.append(command) or answer) is sleeps
    assert asked == [("iw", "dev", "wlan0", "get", "power_save")]


@pytest.mark.parametrize(("disabled", "sleeps"), [(0, True), (1, False)])
def test_the_driver_where_there_is_no_iw(monkeypatch, disabled, sleeps):
    def ioctl(_socket, request, argument):
        assert request == 0x8B2D
        name = IWREQ.unpack(argument)[0]
        assert name.rstrip(b"\0") == b"wlan0"
        return IWREQ.pack(name, 0, 0, disabled, 0)

    monkeypatch.setattr(wifi.fcntl, "ioctl", ioctl)
    assert read_power_save("wlan0", lambda *_: None) is sleeps


def test_no_wifi_at_all():
    assert IWREQ.size == 32  # struct iwreq, linux/wireless.h
    assert fcntl.ioctl
    assert read_power_save("lo", lambda *_: None) is None
