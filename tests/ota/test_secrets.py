"""A26: what a board knows and must not tell, where updates are fetched.

The broker's password: `tests/daemon/test_mqtt_dial.py`, `tests/e2e/test_bad_input.py`; cameras':
`tests/vision/cameras/test_redaction.py`; in settings: `tests/test_config.py`.
"""

import time
from pathlib import Path

import pytest
from asking import QUICK, Board
from repository_simulator import Fault, Repository, WebServer

from agent.ota import steps
from agent.ota.fetching import UpdateProcess
from agent.ota.jobs import Resolved, to_line

PROJECT = Path(__file__).resolve().parents[2]
WORD = "pa55word"
BUNDLE = bytes(50_000)


@pytest.fixture
def repository():
    made = Repository()
    made.add("ssd", "1.0", BUNDLE)
    return made


@pytest.fixture
def server(repository):
    with WebServer(repository.files) as running:
        yield running


def with_password(url):
    return url.replace("://", f"://board:{WORD}@")


@pytest.fixture
def board(tmp_path, repository, server):
    return Board(tmp_path, repository, with_password(server.url))


FAULTS = {
    "401": Fault(status=401, body=b"board:pa55word is not welcome"),
    "elsewhere": Fault(status=302, headers=(("Location", f"http://board:{WORD}@127.0.0.2/"),)),
    "status line": Fault(status=999, headers=(("X", WORD),)),
    "page": Fault(body=b"<html>pa55word</html>"),
    "cut": Fault(cut_at=0.5),
    "endless": Fault(endless=True),
}


@pytest.mark.parametrize("where", ["timestamp", "targets/"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_url_s_password_is_in_no_refusal_and_no_log(board, server, caplog, fault, where):
    caplog.set_level(0)
    target = board.ask("ssd", "1.0").target
    assert server.requests[-1].headers["authorization"].startswith("Basic ")
    server.faults[where] = FAULTS[fault]
    said = board.ask("ssd", "1.0") if where == "timestamp" else board.fetch(target)
    assert not isinstance(said, Resolved)
    told = b"".join(map(to_line, [said, *board.events])).decode() + caplog.text
    assert WORD not in told
    assert "localhost" in told, "which mirror it was stays known"


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:1/",
        "https://localhost:{port}/",
        "http://repository.invalid/",
        "ftp://localhost/",
        "http://localhost:99999/",
        "http://[::1/",
    ],
)
def test_nor_where_there_is_no_repository(board, server, caplog, url):
    board.urls, board.limits = [with_password(url.format(port=server.port))], QUICK
    said = board.ask("ssd", "1.0")
    assert not isinstance(said, Resolved)
    assert WORD not in to_line(said).decode() + caplog.text


def test_other_processes_see_none_and_no_core_is_dumped(board, server):
    """What a job says goes through a pipe: arguments and environments are everybody's to read."""
    server.faults["timestamp"] = Fault(drip_head_s=0.01)
    update = UpdateProcess(board.job("ssd", "1.0"))
    try:
        ends = time.monotonic() + 30
        while not server.requests and time.monotonic() < ends:
            assert isinstance(update.poll(), steps.Working)
            time.sleep(0.005)
        process = Path(f"/proc/{update._process.pid}")
        for name in ("cmdline", "environ"):
            assert WORD.encode() not in (process / name).read_bytes()
        [core] = [line for line in (process / "limits").read_text().splitlines() if "core" in line]
        assert core.split()[4:6] == ["0", "0"]
    finally:
        update.stop()


def test_the_service_dumps_no_core():
    """It would hold the broker's password and the key of the board's certificate."""
    unit = (PROJECT / "systemd" / "edge-agent.service").read_text().splitlines()
    assert "LimitCORE=0" in unit
    for drop_in in (PROJECT / "systemd" / "edge-agent.service.d-examples").iterdir():
        assert "LimitCORE" not in drop_in.read_text(), drop_in.name
