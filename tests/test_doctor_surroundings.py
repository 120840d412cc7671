"""The clock, the network, certificates and the service, each with what to do."""

import time

import pytest
from brokers import make_certificates
from coral_trees import write

from agent.address import Address
from agent.config import MqttConfig
from agent.doctor import certificates
from agent.doctor.certificates import (
    DAY_S,
    Validity,
    check_certificates,
    read_own,
    read_peer,
)
from agent.doctor.clock import NOT_BEFORE, check_clock, check_rtc, examine_clock, find_client
from agent.doctor.network import check_wifi
from agent.doctor.service import UNIT, check_service

TODAY = 1_795_260_710.0


def sound(check):
    assert (check.remedy is None) is (check.state == "ok"), check
    return check


@pytest.mark.parametrize(
    ("is_synced", "client", "state", "said", "remedy"),
    [
        (True, "chrony", "ok", "synchronized by chrony", None),
        (True, None, "ok", "synchronized", None),
        (False, None, "warn", "times in results may be wrong", "timedatectl set-ntp true"),
        (False, "systemd-timesyncd", "warn", "2026-11-21", "timesyncd.conf"),
        (False, "chrony", "warn", "2026-11-21", "chronyc sources"),
        (False, "ntpd", "warn", "2026-11-21", "servers that ntpd uses"),
        (None, None, "warn", "nobody says", "timedatectl set-ntp true"),
    ],
)
def test_clock(is_synced, client, state, said, remedy):
    check = sound(check_clock(is_synced, client, wall_clock=lambda: TODAY))
    assert check.state == state
    assert said in check.message
    assert remedy is None or remedy in check.remedy


def test_clock_before_any_certificate():
    check = check_clock(False, None, tls=True, wall_clock=lambda: 86400.0 * 365)
    assert "1971-01-01" in check.message
    assert "no certificate is valid yet" in check.message
    assert "certificate" not in check_clock(False, None, wall_clock=lambda: 0.0).message


def test_who_sets_the_clock(tmp_path):
    assert find_client(tmp_path) is None
    write(tmp_path / "proc/1/comm", "systemd\n")
    write(tmp_path / "proc/812/comm", "chronyd\n")
    assert find_client(tmp_path) == "chrony"
    write(tmp_path / "proc/812/comm", "systemd-timesyn\n")
    assert find_client(tmp_path) == "systemd-timesyncd"
    (tmp_path / "proc/812/comm").unlink()
    (tmp_path / "run/systemd/timesync").mkdir(parents=True)
    assert find_client(tmp_path) == "systemd-timesyncd"


@pytest.mark.parametrize(
    ("seconds", "is_synced", "state", "said", "remedy"),
    [
        (None, False, "warn", "no real-time clock", "RTC module"),
        (None, True, "ok", "no real-time clock", None),
        ("0\n", False, "warn", "1970-01-01: it has lost its time", "battery"),
        ("0\n", True, "ok", "has lost its time", None),
        (f"{NOT_BEFORE + 1}\n", False, "ok", "keeps the time", None),
        ("?", None, "ok", "keeps the time", None),
    ],
)
def test_rtc(tmp_path, seconds, is_synced, state, said, remedy):
    if seconds is not None:
        write(tmp_path / "sys/class/rtc/rtc0/since_epoch", seconds)
    check = sound(check_rtc(is_synced, tmp_path))
    assert check.state == state
    assert said in check.message
    assert remedy is None or remedy in check.remedy


def test_clocks_of_this_machine():
    assert [sound(check).name for check in examine_clock(tls=True)] == ["clock", "rtc"]


BROKER = Address(host="broker.lan", port=1883, tls=False)


@pytest.mark.parametrize(
    ("interface", "sleeps", "state", "said"),
    [
        ("eth0", True, "ok", "broker.lan is reached by eth0"),
        (None, True, "ok", "no way to broker.lan is known now"),
        ("wlan0", True, "warn", "a Wi-Fi that saves power"),
        ("wlan0", False, "ok", "does not save power"),
        ("wlan0", None, "ok", "does not tell"),
    ],
)
def test_wifi(tmp_path, interface, sleeps, state, said):
    (tmp_path / "sys/class/net/wlan0/wireless").mkdir(parents=True)
    check = sound(
        check_wifi(BROKER, tmp_path, way=lambda *_: interface, sleeps=lambda _name: sleeps)
    )
    assert check.state == state
    assert said in check.message
    if state == "warn":
        assert "powersave 2" in check.remedy
        assert "iw dev wlan0 set power_save off" in check.remedy


def valid(begins_days=-10.0, ends_days=100.0, what="the broker's certificate"):
    return Validity(
        what=what,
        renew="renew it",
        begins=TODAY + begins_days * DAY_S,
        ends=TODAY + ends_days * DAY_S,
    )


@pytest.mark.parametrize(
    ("found", "state", "said", "remedy"),
    [
        ([valid()], "ok", "the first to end, in 100 days", None),
        ([valid(), valid(ends_days=60, what="mine")], "ok", "mine is the first", None),
        ([valid(ends_days=29)], "warn", "ends in 29 days", "renew it"),
        ([valid(ends_days=-3), valid()], "fail", "ended 3 days ago", "renew it"),
        (
            [valid(begins_days=5)],
            "fail",
            "is not valid before 2026-11-26",
            "set this board's clock",
        ),
        ([], "ok", "cannot be read here", None),
    ],
)
def test_certificates(found, state, said, remedy):
    check = sound(check_certificates(found, lambda: TODAY))
    assert check.state == state
    assert said in check.message
    assert remedy is None or remedy in check.remedy


def test_dates_are_read_from_the_files(tmp_path, monkeypatch):
    made = make_certificates(tmp_path)
    settings = MqttConfig(
        ca_file=str(made.ca), cert_file=str(made.client), key_file=str(made.client_key)
    )
    client, authority = read_own(settings)
    for one, path in ((client, made.client), (authority, made.ca)):
        assert str(path) in one.what
        assert one.ends - one.begins == pytest.approx(2 * DAY_S, abs=60)
        assert one.begins == pytest.approx(time.time(), abs=600)
    monkeypatch.setattr(certificates, "ask", lambda *_: None)  # openssl is not installed
    assert [one.what for one in read_own(settings)] == [authority.what]


def test_files_that_are_no_certificates(tmp_path):
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert list(read_own(MqttConfig(ca_file=str(rubbish), cert_file=str(rubbish)))) == []
    assert list(read_own(MqttConfig(ca_file=str(tmp_path / "none")))) == []
    assert list(read_peer({})) == list(read_peer(None)) == []


SHOWN = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "User": "edge-agent",
    "NRestarts": "0",
    "NeedDaemonReload": "no",
}


def service(tmp_path, facts, *, booted=True, user="edge-agent"):
    if booted:
        (tmp_path / "run/systemd/system").mkdir(parents=True)
    answer = None if facts is None else "\n".join(f"{key}={facts[key]}" for key in facts)
    return sound(check_service(tmp_path, lambda *_: answer, user))


def test_service(tmp_path):
    check = service(tmp_path, SHOWN)
    assert (check.state, check.message) == ("ok", f"{UNIT} is active and enabled")


@pytest.mark.parametrize(
    ("changes", "user", "said", "remedy"),
    [
        ({"LoadState": "not-found"}, "edge-agent", "not installed", "scripts/install"),
        ({"UnitFileState": "disabled"}, "edge-agent", "does not start with", "systemctl enable"),
        ({"UnitFileState": ""}, "edge-agent", "is not enabled", "systemctl enable"),
        ({"LoadState": "masked"}, "edge-agent", "masked", "unmask"),
        ({"ActiveState": "failed"}, "edge-agent", "has failed", "journalctl"),
        ({"NRestarts": "57"}, "edge-agent", "57 times", "journalctl"),
        ({"NeedDaemonReload": "yes"}, "edge-agent", "has changed", "daemon-reload"),
        ({}, "pi", "and this check as pi", "sudo -u edge-agent edge-agent check"),
    ],
)
def test_service_that_is_not_as_it_should_be(tmp_path, changes, user, said, remedy):
    check = service(tmp_path, SHOWN | changes, user=user)
    assert check.state == "warn"
    assert said in check.message
    assert remedy in check.remedy


def test_service_without_systemd(tmp_path):
    assert service(tmp_path, None, booted=False).state == "ok"
    assert "no systemd" in service(tmp_path, None, booted=False).message
    assert service(tmp_path, None).message == "systemd does not answer"
