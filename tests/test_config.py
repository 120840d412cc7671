"""Settings: all that is wrong is said at once, with key, value, what is allowed, a likely name."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import SECTIONS, CameraConfig, Config, DeviceConfig, device_id
from agent.config_file import load_config, parse_config, tomllib
from agent.errors import ConfigError

PROJECT = Path(__file__).resolve().parent.parent


def faults(text):
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return caught.value.problems


def test_empty_is_all_defaults():
    assert parse_config("") == (Config(), [])


def test_every_fault_in_one_go():
    found = faults("""
        [modle]
        [device]
        id = "a b"
        [model]
        threads = -1
        runtime = "litertt"
        labels = { person = 1.5 }
        [[camera]]
        name = "door"
        fsp = 3
        publish = "detection"
        [mqtt]
        url = "http://broker"
        qos = 2
    """)
    said = "\n".join(found)
    assert len(found) == 9
    assert "modle: unknown section; did you mean `model`?" in said
    assert 'device.id = "a b": must be letters, digits' in said
    assert "model.threads = -1: must be a whole number from 0 to 64" in said
    assert 'model.runtime = "litertt"' in said
    assert "did you mean `litert`?" in said
    assert "model.labels.person = 1.5: must be a number from 0 to 1" in said
    assert "camera[0].fsp = 3: unknown key; did you mean `fps`?" in said
    assert "did you mean `detections`?" in said
    assert "must be mqtt://host:port, or mqtts:// for TLS" in said
    assert "mqtt.qos = 2: must be one of 0, 1" in said


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[camera]\nname = 'x'", "double brackets"),
        ("camera = 3", "double brackets"),
        ("model = 3", "must be a section"),
        ("[[camera]]\nname='a'\n[[camera]]\nname='a'", "already used"),
        ("[mqtt]\ncert_file = '/etc/hostname'\nurl='mqtts://h'", "needs both"),
        ("[mqtt]\nca_file = '/etc/hostname'", "must be mqtts://"),
        ("[mqtt]\npassword_file = '/etc/hostname'", "needs mqtt.username"),
        ("[mqtt]\nusername='u'\npassword_file = '/no/such'", "No such file"),
        ("[model]\nlabels_file = '/no/such'", "No such file"),
        ("[model]\nonly_listed = true", "nothing would be left"),
        ("[mqtt", "not valid TOML"),
        ("[model]\nscore_threshold = nan", "must be a number from 0 to 1"),
        ("[[camera]]\nfps = inf", "must be a number from 0 to 1000"),
    ],
)
def test_contradictions_and_odd_values(text, sentence):
    assert any(sentence in problem for problem in faults(text)), faults(text)


def test_reserved_keys_are_read_with_a_warning():
    config, warnings = parse_config(
        '[mqtt]\ndiscovery = "off"\n[telemetry]\nprometheus = ""\n[update]\nenabled = true\n'
    )
    assert config == Config()
    assert len(warnings) == 3
    assert all("does not act on it yet" in warning for warning in warnings)


def test_file_that_is_no_text(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path)
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than"):
        load_config(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "absent.toml")


@given(
    st.dictionaries(
        st.sampled_from([*SECTIONS, "modle", "update"]),
        st.one_of(
            st.integers(),
            st.lists(st.integers(), max_size=2),
            st.dictionaries(
                st.sampled_from(["path", "id", "name", "fps", "url", "qos", "labels", "x"]),
                st.one_of(st.text(max_size=5), st.integers(), st.floats(), st.booleans()),
                max_size=4,
            ),
        ),
        max_size=4,
    )
)
def test_whatever_is_written_gives_settings_or_sentences(table):
    def value(item):
        if isinstance(item, bool):
            return str(item).lower()
        if isinstance(item, float):
            return "nan" if math.isnan(item) else repr(item).replace("e", "e")
        if isinstance(item, int):
            return str(item)
        if isinstance(item, str):
            return '"' + "".join(f"\\U{ord(c):08x}" for c in item) + '"'
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        return "{" + ", ".join(f"{key} = {value(one)}" for key, one in item.items()) + "}"

    text = "\n".join(f"{key} = {value(item)}" for key, item in table.items())
    if any("\\U0000d" in text for _ in (0,)):
        return  # surrogates are not TOML
    try:
        config, _ = parse_config(text)
    except ConfigError as error:
        assert error.problems
        assert error.exit_code == 78
    else:
        assert isinstance(config, Config)


def test_device_id_is_stable_and_never_the_machine_id():
    first = device_id(DeviceConfig())
    assert first == device_id(DeviceConfig())
    machine = Path("/etc/machine-id")
    if machine.exists() and machine.read_text().strip():
        assert machine.read_text().strip() not in first
    assert device_id(DeviceConfig(id="porch")) == "porch"


def test_shipped_example_is_the_manual():
    """Every key is in it, with its default, and it loads."""
    path = PROJECT / "systemd" / "agent.toml.example"
    config, warnings = load_config(path)
    assert warnings == []
    assert config == Config(camera=(CameraConfig(),))
    text = path.read_text()
    table = tomllib.loads(text)
    for section, struct in SECTIONS.items():
        shown = table[section][0] if section == "camera" else table[section]
        for key in struct.__struct_fields__:
            assert key in shown or f"# {key} = " in text, f"{section}.{key} is not in the example"
