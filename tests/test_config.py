"""Settings: all that is wrong is said at once, with key, value, what is allowed, a likely name."""

import errno
import math
import os
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import (
    SECTIONS,
    CameraConfig,
    Config,
    DeviceConfig,
    ModelConfig,
    SecondStage,
    device_id,
    mirrors_of,
)
from agent.config_file import load_config, parse_config, tomllib
from agent.errors import AgentError, ConfigError

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
        ('[device]\nid = "group"', "cannot be `group`"),
        ("[mqtt]\noutbox_max_mb = 0.0001", "must be a number from 0.01 to 4096"),
        (
            "[device]\ngroups = ['a b']",
            'device.groups[0] = "a b": must be letters, digits, - and _, at most 64 characters',
        ),
        (
            "[device]\ngroups = 3",
            "must be a list of names (letters, digits, - and _, at most 64 characters)",
        ),
        ('[device]\nid = "a\\n"', "must be letters, digits, - and _, at most 64 characters"),
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


TRIANGLE = "[[0, 0], [1, 0], [1, 1]]"


@pytest.mark.parametrize(
    ("section", "line", "problem"),
    [
        (
            "camera",
            "zones = [[[0, 0], [1, 0]]]",
            "camera[0].zones[0] = [[0, 0], [1, 0]]: must be a polygon: a list of 3 to 64 corners"
            " [x, y], each from 0 to 1",
        ),
        (
            "camera",
            f"masks = [{TRIANGLE}, [[0, 0], [1, 0], [1, 1.5]]]",
            "camera[0].masks[1][2] = [1, 1.5]: must be a corner [x, y], each from 0 to 1",
        ),
        (
            "camera",
            "zones = [[[0, 0, 0], [1, 0], ['a', 1]]]",
            "camera[0].zones[0][0] = [0, 0, 0]: must be a corner [x, y], each from 0 to 1",
        ),
        (
            "camera",
            "zones = [[0, 0], [1, 0], [1, nan]]",
            "camera[0].zones[2] = [1, nan]: must be a polygon: a list of 3 to 64 corners",
        ),
        (
            "camera",
            "zones = [0, 0]",
            "camera[0].zones = [0, 0]: must be a list, each a polygon: a list of 3 to 64 corners",
        ),
        ("camera", f"zones = [{[[0, 0]] * 65}]", "camera[0].zones[0] = [[0, 0], [0, 0]"),
        ("camera", "zones = 'all'", 'camera[0].zones = "all": must be a list, each a polygon'),
        (
            "camera",
            "region = [0, 0, 1, nan]",
            "camera[0].region = [0, 0, 1, nan]: must be a list [x_min, y_min, x_max, y_max],"
            " each from 0 to 1 or absent",
        ),
        ("camera", "region = [0, 0, 1]", "must be a list [x_min, y_min, x_max, y_max]"),
        (
            "camera",
            "region = [0.5, 0, 0.5, 1]",
            "camera[0].region = [0.5, 0, 0.5, 1]: holds nothing; x_min must be less than x_max,"
            " y_min less than y_max",
        ),
        ("camera", "region = [0, 1, 0.5, 0]", "holds nothing"),
        (
            "camera",
            "min_area = 0.5\nmax_area = 0.25",
            "camera[0].min_area = 0.5: must be at most camera[0].max_area, 0.25",
        ),
        (
            "camera",
            "confirm = [3, 2]",
            "camera[0].confirm = [3, 2]: nothing can be seen 3 times in 2 frames; the first number"
            " must not be greater than the second",
        ),
        ("camera", "confirm = 3", "must be a list [n, m] of whole numbers from 1 to 100"),
        ("camera", "confirm = [0, 2]", "must be a list [n, m] of whole numbers from 1 to 100"),
        ("camera", "motion = 5", "camera[0].motion = 5: must be a number from 0 to 1"),
        ("camera", "motion_look_s = 0", "must be a number from 0.1 to 86400"),
        ("camera", "model = 'a b'", "must be letters, digits, - and _, at most 64 characters"),
        (
            "model",
            "delegate_options = { Performance = 1.5 }",
            "model.delegate_options.Performance = 1.5: must be text in quotes, a whole number,"
            " true or false",
        ),
        (
            "model",
            "delegate_options = { 'a b' = [1] }",
            'model.delegate_options."a b" = [1]: must be text in quotes, a whole number, true or',
        ),
        ("model", "xnnpack = 'of'", 'must be one of "auto", "off", "on"; did you mean `off`?'),
        ("model", "xnnpack = true", "model.xnnpack = true: must be one of"),
        ("model", "nms = 'agnostc'", "did you mean `agnostic`?"),
        ("model", "deny = ['cat', 3]", "model.deny[1] = 3: must be text in quotes"),
        (
            "model",
            "deny = ['cat', 'dog']\nlabels = { dog = 0.5 }",
            'model.deny = ["cat", "dog"]: model.labels has a threshold for "dog", which would never'
            " be published; take it out of one of them",
        ),
        ("model", "max_detections = 0", "a whole number from 1 to 1000 or absent"),
        ("model", "iou_threshold = 2", "a number from 0 to 1 or absent"),
        (
            "model",
            "then = { model = 'x' }",
            "model.then: write each as a [[model.then]] section with double brackets",
        ),
        ("model", "then = [3]", "model.then[0] = 3: must be a section, [[model.then]]"),
        ("model", "[[model.then]]", "model.then[0].model: is missing; must be letters, digits"),
        (
            "model",
            "[[model.then]]\nmodel = 'x'\nbudget_ms = 0\n[models.x]",
            "model.then[0].budget_ms = 0: must be a number above 0, at most 60000",
        ),
        (
            "model",
            "[[model.then]]\nmodel = 'x'\nlable = []\n[models.x]",
            "model.then[0].lable = []: unknown key; did you mean `labels`?",
        ),
        ("models.x", "threads = -1", "models.x.threads = -1: must be a whole number from 0 to 64"),
        ("models.x", "only_listed = true", "models.x.only_listed = true: needs models.x.labels"),
        ("models.x", "labels_file = '/no/such'", 'models.x.labels_file = "/no/such": cannot be'),
        (
            "models.x",
            "labels = { keyboard = 2 }",
            "models.x.labels.keyboard = 2: must be a number",
        ),
        ("models.token", "threads = -1", "models.token.threads = -1: must be"),
        ("models.token", "password = 'geheim'", "models.token.password = ***: unknown key"),
        ("models.'a b'", "", 'models."a b": a model\'s name must be letters, digits, - and _'),
        ("models", "x = 3", "models.x = 3: must be a section, [models.x]"),
    ],
)
def test_keys_of_models_and_cameras(section, line, problem):
    heading = "[[camera]]" if section == "camera" else f"[{section}]"
    text = f"{heading}\n{line}"
    assert any(problem in found for found in faults(text)), faults(text)


def test_each_faulty_corner_is_named():
    assert faults("[[camera]]\nzones = [[[0, 0], [1, 2], [1, 1]], [[0, -1], [1, 0], [3, 3]]]") == [
        f"camera[0].{at}: must be a corner [x, y], each from 0 to 1"
        for at in ("zones[0][1] = [1, 2]", "zones[1][0] = [0, -1]", "zones[1][2] = [3, 3]")
    ]


def test_all_of_a_camera_s_new_keys():
    config, warnings = parse_config(
        """
        [[camera]]
        name = "door"
        model = "cats"
        region = [0.25, 0, 1, 0.5]
        zones = [[[0, 0.5], [1, 0.5], [1, 1], [0, 1]]]
        masks = [[[0, 0], [0.5, 0], [0, 0.5]], [[0, 0], [0.5, 0], [0, 0.5]]]
        min_area = 0.001
        max_area = 0.5
        confirm = [2, 3]
        motion = 0.01
        motion_look_s = 60

        [models.cats]
        path = "cats.tflite"
        """
    )
    assert warnings == []
    assert config.models == {"cats": ModelConfig(path="cats.tflite")}
    assert config.camera == (
        CameraConfig(
            name="door",
            model="cats",
            region=(0.25, 0, 1, 0.5),
            zones=(((0, 0.5), (1, 0.5), (1, 1), (0, 1)),),
            masks=(((0, 0), (0.5, 0), (0, 0.5)),) * 2,
            min_area=0.001,
            max_area=0.5,
            confirm=(2, 3),
            motion=0.01,
            motion_look_s=60.0,
        ),
    )


def test_a_model_s_new_keys_and_second_stages():
    config, warnings = parse_config(
        """
        [model]
        delegate_options = { Performance = "High", "Usb.MaxBulkInQueueLength" = 64, dfu = true }
        xnnpack = "off"
        deny = ["bird"]
        max_detections = 10
        iou_threshold = 0.6
        nms = "agnostic"

        [[model.then]]
        model = "breeds"
        labels = ["cat"]

        [[model.then]]
        model = "faces"
        margin = 0.5
        max_crops = 1
        budget_ms = 20

        [models.breeds]
        [models.faces]

        [models.yard]
        threads = 2
        [[models.yard.then]]
        model = "breeds"

        [[camera]]
        name = "a"
        source = "synthetic"
        [[camera]]
        name = "b"
        source = "synthetic"
        model = "yard"
        """
    )
    assert warnings == []
    breeds = SecondStage(model="breeds", labels=("cat",))
    assert config.model == ModelConfig(
        delegate_options={
            "Performance": "High",
            "Usb.MaxBulkInQueueLength": "64",
            "dfu": "True",
        },
        xnnpack="off",
        deny=("bird",),
        max_detections=10,
        iou_threshold=0.6,
        nms="agnostic",
        then=(breeds, SecondStage(model="faces", margin=0.5, max_crops=1, budget_ms=20.0)),
    )
    assert config.models["yard"] == ModelConfig(threads=2, then=(SecondStage(model="breeds"),))


def test_models_that_are_named_but_not_there():
    assert faults("""
        [[camera]]
        model = "brds"
        [model]
        [[model.then]]
        model = "breedz"
        [models.breeds]
        [[models.breeds.then]]
        model = "zzz"
    """) == [
        'camera[0].model = "brds": there is no section [models.brds]; did you mean `breeds`?',
        'model.then[0].model = "breedz": there is no section [models.breedz]; did you mean'
        " `breeds`?",
        'models.breeds.then[0].model = "zzz": there is no section [models.zzz]; known: breeds',
    ]
    assert faults('[[camera]]\nmodel = "cats"') == [
        'camera[0].model = "cats": there is no section [models.cats]'
    ]


def test_second_stages_have_none_of_their_own():
    """So nothing can go round in circles."""
    assert faults("""
        [model]
        [[model.then]]
        model = "a"
        [models.a]
        [[models.a.then]]
        model = "b"
        [models.b]
        [[models.b.then]]
        model = "b"
    """) == [
        f'{key} = "{name}": [models.{name}] has a second stage of its own, and there can be no'
        " third; name a model without [[models.NAME.then]]"
        for key, name in (
            ("model.then[0].model", "a"),
            ("models.a.then[0].model", "b"),
            ("models.b.then[0].model", "b"),
        )
    ]


def test_models_that_nothing_names_are_warned_of():
    _, warnings = parse_config(
        '[models.a]\n[[models.a.then]]\nmodel = "b"\n[models.b]\n[models.c]\n'
        '[[camera]]\nmodel = "c"'
    )
    assert warnings == ["[models.a]: no camera and no second stage names it, so it is never loaded"]


@pytest.mark.parametrize(
    ("text", "mirrors"),
    [
        ("", ()),
        ('repository = ""', ()),
        ('repository = "https://models.example/edge"', ("https://models.example/edge",)),
        ('repository = ["http://10.0.0.1:8080", "mqtt:"]', ("http://10.0.0.1:8080", "mqtt:")),
        ('repository = "file:///media/stick"', ("file:///media/stick",)),
    ],
)
def test_where_models_come_from(text, mirrors):
    config, _ = parse_config(f"[update]\n{text}\n")
    assert mirrors_of(config.update.repository) == mirrors


@pytest.mark.parametrize(
    "url", ["ftp://a/b", "models", "file://stick/models", "https:///x", "mqtt://h", "file:"]
)
def test_where_no_models_can_come_from(url):
    for value in (f'"{url}"', f'["https://a.example", "{url}"]'):
        with pytest.raises(ConfigError, match=r"update\.repository.* = .*must be https:"):
            parse_config(f"[update]\nrepository = {value}\n")


def test_a_root_that_is_missing_is_no_reason_not_to_serve_cameras(tmp_path):
    text = f'[update]\nrepository = "https://a.example"\nroot = "{tmp_path}/root.json"\n'
    config, warnings = parse_config(text)
    assert config.update.root == f"{tmp_path}/root.json"
    assert len(warnings) == 1
    assert "update.root" in warnings[0]
    assert "No such file" in warnings[0]
    (tmp_path / "root.json").write_text("{}")
    assert parse_config(text)[1] == []


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


SCALARS = st.one_of(st.text(max_size=5), st.integers(), st.floats(), st.booleans())
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.lists(inner, min_size=4, max_size=4)
)
KEYS = ["path", "id", "name", "fps", "url", "qos", "labels", "x", "then", "model", "deny", "zones"]
KEYS += ["masks", "region", "confirm", "motion", "nms", "a", "delegate_options", "min_area"]
TABLES = st.recursive(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    lambda inner: st.dictionaries(
        st.sampled_from(KEYS), st.one_of(VALUES, inner, st.lists(inner, max_size=2)), max_size=4
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from([*SECTIONS, "models", "modle", "update"]),
        st.one_of(VALUES, st.lists(TABLES, max_size=2), TABLES),
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


EXAMPLE = PROJECT / "systemd" / "agent.toml.example"


def test_shipped_example_is_the_manual():
    """Every key is in it, with its default, and it loads."""
    config, warnings = load_config(EXAMPLE)
    assert warnings == []
    assert config == Config(camera=(CameraConfig(),))
    text = EXAMPLE.read_text()
    table = tomllib.loads(text)
    for section, struct in SECTIONS.items():
        shown = table[section][0] if section == "camera" else table[section]
        for field in msgspec.structs.fields(struct):
            if field.default in (None, ()) and field.name not in shown:
                written = "# [[model.then]]" if field.name == "then" else f"# {field.name} = "
                assert written in text, f"{section}.{field.name} is not in the example"
            else:
                assert field.name in shown, f"{section}.{field.name} is not in the example"


def test_what_the_example_has_behind_a_hash_can_be_used():
    """Each key and section that is a comment is right once it is none."""
    lines = EXAMPLE.read_text().splitlines()
    keys = [re.match(r"# (\w+ = |\[+[\w.]+\]+$)", line) for line in lines]
    used = [line[2:] if key else line for key, line in zip(keys, lines, strict=True)]
    config, warnings = parse_config("\n".join(used))
    assert warnings == []
    [stage] = config.model.then
    assert config.models == {stage.model: ModelConfig(path=config.models[stage.model].path)}
    assert all(f"# {key} = " in EXAMPLE.read_text() for key in SecondStage.__struct_fields__)
    for name in ("max_detections", "iou_threshold", "nms", "score_threshold"):
        assert getattr(config.model, name) is not None
    assert config.camera[0].region == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.EACCES, 78), (errno.EIO, 69), (errno.EMFILE, 69)]
)
def test_a_disk_that_fails_is_no_fault_of_the_settings(tmp_path, monkeypatch, number, expected):
    def fail(*_args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(AgentError, match="cannot be read") as caught:
        load_config(tmp_path / "agent.toml")
    assert caught.value.exit_code == expected, "with 78 the service stays down"
