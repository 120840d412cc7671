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
        ("[[camera]]\nfps = inf", "camera[0].fps = inf: must be a number from 0 to 1000"),
        ("camera = [1]", "camera[0] = 1: must be a section, [[camera]]"),
        ("[mqtt]\noutbox_max_mb = 0.0001", "must be a number from 0.01 to 4096"),
        (
            "[device]\ngroups = ['a b']",
            "must be a list of names (letters, digits, - and _, at most 64 characters)",
        ),
        ("[model]\nlabels = { keyboard = 2 }", "model.labels.keyboard = 2: must be a number"),
        ("[model]\nlabels = { 'a b' = 2 }", 'model.labels."a b" = 2: must be a number'),
        (f"[model]\nthreads = 0x{'f' * 6000}", "model.threads = 0xfff"),
        (f"[model]\nthreads = {'9' * 6000}", "not valid TOML"),
        ('[model]\nlabels_file = "a\\nb"', 'model.labels_file = "a\\nb": cannot be read'),
        ('[model]\nlabels_file = "a\\u0000b"', "not a path"),
    ],
)
def test_contradictions_and_odd_values(text, sentence):
    assert any(sentence in problem for problem in faults(text)), faults(text)


SECRETS = [
    '[[camera]]\nsourc = "rtsp://admin:geheim@h/x"',
    '[[camera]]\nsourc = "admin:geheim@h/x"',
    '[[camera]]\nsourc = "http://h/video?token=geheim"',
    '[[camera]]\n"rtsp://admin:geheim@h" = 1',
    '[[camera]]\nsource = ["rtsp://admin:geheim@h"]',
    'camera = ["rtsp://admin:geheim@h"]',
    'model = { camera = "rtsp://admin:geheim@h", other = [{ password = "geheim" }] }',
    'mqtt = [{ login = { api_token = "geheim" } }]',
    '[mqtt]\nurl = "mqtt://u:geheim@h"',
    '[mqtt]\nurl = "mqtt://geheim@h"',
    '[mqtt]\nurl = "geheim@h:1883"',
    '[mqtt]\nurl = "u:geheim@mqtt://h"',
    '[mqtt]\npassword = "geheim"',
    '[mqtt]\nPassPhrase = ["geheim"]',
    '[mqtt]\nsecret.word = "geheim"',
    '[mqtt]\nusername = "u"\npassword_file = "geheim"',
    '[mqtt]\nkey = "geheim"',
    '[mqtt]\nkey_file = "-----BEGIN PRIVATE KEY-----\\ngeheim"',
    f'[mqtt]\nusr = "{"x" * 5000}rtsp://admin:geheim@h"',
]


@pytest.mark.parametrize("text", SECRETS)
def test_no_fault_gives_a_secret_away(text):
    found = faults(text)
    assert found
    assert "geheim" not in "\n".join(found)
    assert all(problem.isprintable() for problem in found)


def test_hidden_values_are_stars():
    assert faults('[mqtt]\npassword = "hunter2"') == [
        "mqtt.password = ***: unknown key; did you mean `password_file`?"
    ]
    [problem] = faults('[[camera]]\nsourc = "rtsp://admin:geheim@h/x"')
    assert problem.startswith('camera[0].sourc = "rtsp://admin:***@h/x": unknown key')


def test_paths_of_secrets_are_shown():
    found = faults("[mqtt]\nusername='u'\npassword_file='/no/such'\nkey_file='my.key'")
    assert found == [
        "mqtt.cert_file, mqtt.key_file: a client certificate needs both",
        'mqtt.password_file = "/no/such": cannot be read: No such file or directory',
        'mqtt.key_file = "my.key": cannot be read: No such file or directory',
    ]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mqtt://u:geheim@h", "put them in username and password_file"),
        ("mqtt://h:99999", "a number from 1 to 65535"),
        ("mqtt://h:0", "a number from 1 to 65535"),
        ("mqtt://h:abc", "must be mqtt://host:port, or mqtts:// for TLS"),
        ("mqtt://h:", "must be mqtt://host:port"),
        ("mqtt://:1883", "must be mqtt://host:port"),
        ("mqtt://[::1", "in brackets"),
        ("mqtt://::1", "in brackets"),
        ("mqtt://[::1%]", "in brackets"),
        ("mqtt://[1:2]:1883", "neither a name nor an IP address"),
        ("mqtt://1883", "neither a name nor an IP address"),
        ("mqtt://192.168.1.256", "neither a name nor an IP address"),
        ("mqtt://a..b", "neither a name nor an IP address"),
        ("mqtt://h?x=1", "must be mqtt://host:port"),
        ("mqtt://h:1883/topic", "must be mqtt://host:port"),
        ("mqtt://h:1883\\u0000", "must be mqtt://host:port"),
        ("mqtt://h:1883\\n", "must be mqtt://host:port"),
        ("http://h", "must be mqtt://host:port"),
        ("h:abc", "must be mqtt://host:port"),
        ("", "must be mqtt://host:port"),
    ],
)
def test_a_broker_s_address_that_is_none(url, sentence):
    with pytest.raises(ConfigError) as caught:
        parse_config(f'[mqtt]\nurl = "{url}"')
    [problem] = caught.value.problems
    assert problem.startswith("mqtt.url = ")
    assert sentence in problem
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    "url",
    ["mqtt://[::1]:1883", "mqtts://[fe80::1%eth0]/", "mqtt://10.0.0.1", "mqtt://my_box.lan.:1"],
)
def test_a_broker_s_address(url):
    config, _ = parse_config(f'[mqtt]\nurl = "{url}"')
    assert config.mqtt.url == url


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        ("", "no empty level"),
        ("/edge", "no empty level"),
        ("edge/", "no empty level"),
        ("edge//farm", "no empty level"),
        ("$SYS/edge", "must not begin with $"),
        ("a\\u0000b", "control characters"),
        ("a\\u001bb", "control characters"),
        ("a\\u0085b", "control characters"),
        ("a\\uFFFEb", "control characters"),
        ("a b", "without spaces"),
        ("edge/#", "+ and #"),
        ("+/edge", "+ and #"),
        ("ä" * 101, "at most 200 bytes"),
    ],
)
def test_a_prefix_that_brokers_would_not_take(prefix, sentence):
    [problem] = faults(f'[mqtt]\nprefix = "{prefix}"')
    assert problem.startswith("mqtt.prefix = ")
    assert sentence in problem
    assert problem.isprintable()


@pytest.mark.parametrize("prefix", ["edge", "farm/east", "höfe/a$b", "ä" * 100])
def test_a_prefix(prefix):
    config, _ = parse_config(f'[mqtt]\nprefix = "{prefix}"')
    assert config.mqtt.prefix == prefix


@pytest.mark.parametrize(
    ("first", "second", "is_one_device"),
    [
        ("auto", "auto", True),
        ("/dev/video0", "/dev/video0", True),
        ("picamera", "picamera", True),
        ("picamera", "picamera:0", True),
        ("picamera:0", "picamera:1", False),
        ("/dev/video0", "/dev/video2", False),
        ("rtsp://h/x", "rtsp://h/x", False),
        ("synthetic", "synthetic", False),
        ("/clips/a.mp4", "/clips/a.mp4", False),
    ],
)
def test_two_cameras_do_not_share_a_device(first, second, is_one_device):
    text = f"""
        [[camera]]
        name = "door"
        source = "{first}"
        [[camera]]
        name = "yard"
        source = "synthetic"
        [[camera]]
        name = "porch"
        source = "{second}"
    """
    if not is_one_device:
        parse_config(text)
        return
    [problem] = faults(text)
    assert problem == (
        f'camera[2].source = "{second}": cameras "door" (camera[0]) and "porch" (camera[2])'
        " would share one device; give each its own"
    )


def test_faults_of_every_kind_come_in_the_order_of_the_file():
    found = faults("""
        [telemetry]
        interval_s = 0
        [[camera]]
        fps = -1
        [[camera]]
        [[camera]]
        [mqtt]
        password_file = "/no/such"
        [modle]
        [model]
        only_listed = true
        [device]
        x = 1
        id = "a b"
    """)
    assert [problem.split(":")[0].split(" ")[0] for problem in found] == [
        "telemetry.interval_s",
        "camera[0].fps",
        "camera[2].name",
        "camera[2].source",
        "mqtt.password_file",
        "mqtt.password_file",
        "modle",
        "model.only_listed",
        "device.x",
        "device.id",
    ]


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
