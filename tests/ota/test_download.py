"""Bundles fetched over connections that break in every way, and what that costs (F30)."""

import copy
import os
import random
import resource
import shutil
import socket
import ssl
import stat

import msgspec
import pytest
from asking import QUICK, Board, run_process
from brokers import make_certificates
from repository_simulator import Fault, Repository, WebServer

from agent.ota.download import SYNC_EVERY_BYTES, Download
from agent.ota.jobs import Downloaded, Progress, sidecar

# More than is synced at once, and no multiple of anything.
BUNDLE = random.Random(7).randbytes(SYNC_EVERY_BYTES + 700_001)


@pytest.fixture(scope="module")
def made():
    repository = Repository()
    path = repository.add("ssd", "1.0", BUNDLE)
    return repository, path


@pytest.fixture
def server(made):
    with WebServer(dict(made[0].files)) as running:
        yield running


@pytest.fixture
def board(tmp_path, made, server):
    return Board(tmp_path, made[0], server.url)


@pytest.fixture
def target(board):
    return board.ask("ssd", "1.0").target


def whole(board, said):
    assert isinstance(said, Downloaded), said
    assert board.part.read_bytes() == BUNDLE
    return said


def test_from_start_to_end(board, target):
    said = whole(board, board.fetch(target))
    assert said.bytes_fetched == len(BUNDLE)
    assert board.part.stat().st_mode & 0o777 == 0o600
    assert isinstance(board.events[0], Progress)


def cut(board, server, target, part):
    """Have the mirror go away at this part of the file; all is well afterwards."""
    server.faults = {"targets/": Fault(cut_at=part, times=1), ".": Fault(status=503)}
    assert board.fetch(target).code == "E_NET"
    server.faults = {}
    have = board.part.stat().st_size
    assert have == int(len(BUNDLE) * part)
    return have


@pytest.mark.parametrize("percent", [1, 25, 50, 99])
def test_f30_cut_and_gone_on_with(board, server, target, percent, record_property):
    """Nothing that arrived is asked for again: what is wasted lies in the kernels' buffers."""
    server.faults["targets/"] = Fault(cut_at=percent / 100, times=1)
    said = whole(board, board.fetch(target))
    wasted = said.bytes_fetched - len(BUNDLE)
    record_property("bytes wasted", wasted)
    print(f"\nF30 cut at {percent} %: {wasted} bytes of {len(BUNDLE)} fetched twice")
    assert wasted == 0
    assert server.requests[-1].headers["range"] == f"bytes={len(BUNDLE) * percent // 100}-"
    assert server.requests[-1].headers["if-range"].startswith('"')


@pytest.mark.parametrize("percent", [1, 25, 50, 99])
def test_f30_gone_on_with_by_another_process(board, server, target, percent):
    have = cut(board, server, target, percent / 100)
    events, _ = run_process(board.download_job(target))
    said = whole(board, events[-1])
    assert said.bytes_fetched == len(BUNDLE) - have


def test_f30_many_cuts(board, server, target):
    server.faults["targets/"] = Fault(cut_at=300_000, times=12)
    said = whole(board, board.fetch(target))
    assert said.bytes_fetched == len(BUNDLE)


def test_f30_after_a_power_cut_only_what_was_synced_counts(board, server, target):
    """The file's end may be zeros then, or another file's: of another boot, it is fetched anew."""
    size = cut(board, server, target, 0.95)
    assert size > SYNC_EVERY_BYTES
    with board.part.open("r+b") as file:
        file.seek(SYNC_EVERY_BYTES + 65_536)
        file.write(bytes(size - SYNC_EVERY_BYTES - 65_536))
    known = msgspec.json.decode(sidecar(board.part).read_bytes())
    later = Download(board.download_job(target), boot="another boot")
    said = later.run([lambda: board.connect(server.url)])
    assert board.part.read_bytes() == BUNDLE
    assert said.bytes_fetched == len(BUNDLE) - known["synced"]
    assert known["synced"] >= SYNC_EVERY_BYTES


def test_f30_content_that_changed_under_its_name(board, server, target):
    server.faults["targets/"] = Fault(cut_at=0.5, tag='"first"', times=1)
    server.faults["."] = Fault(tag='"second"')
    said = whole(board, board.fetch(target))
    assert said.bytes_fetched == len(BUNDLE) + len(BUNDLE) // 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault(ignores_range=True),
        Fault(wrong_range=True, times=2),
        Fault(status=206, body=BUNDLE[: len(BUNDLE) // 2], times=1),
        Fault(status=416, times=1),
        Fault(status=206, headers=(("Content-Range", "bytes 7-9/10"),), body=b"abc", times=1),
        Fault(status=206, headers=(("Content-Range", "bytes 9-7/10"),), body=b"", times=1),
        Fault(status=206, headers=(("Content-Range", "lines 1-2"),), body=b"abc", times=1),
    ],
    ids=["200", "whole as 206", "no range", "416", "elsewhere", "backwards", "lines"],
)
def test_f30_servers_that_cannot_go_on(board, server, target, fault):
    cut(board, server, target, 0.5)
    server.faults["targets/"] = copy.copy(fault)
    whole(board, board.fetch(target))


def test_f30_a_server_that_sends_a_little_at_a_time(board, server, target):
    """Less than what was asked for is an answer too (RFC 9110, 15.3.7)."""
    have = cut(board, server, target, 0.9)
    some = BUNDLE[have : have + 1000]
    server.faults["targets/"] = Fault(
        status=206,
        body=some,
        headers=(("Content-Range", f"bytes {have}-{have + 999}/{len(BUNDLE)}"),),
        times=1,
    )
    said = whole(board, board.fetch(target))
    assert said.bytes_fetched == len(BUNDLE) - have


def test_poison_of_one_mirror_does_not_outlive_it(board, server, target, made):
    """Half a file of lies, then an honest mirror: it goes on, sees the hash, starts anew."""
    half = len(BUNDLE) // 2
    with WebServer({made[1]: bytes(len(BUNDLE))}) as liar:
        liar.faults["targets/"] = Fault(cut_at=half, times=1)
        liar.faults["."] = Fault(status=500)
        said = board.fetch(target, repository=[liar.url, server.url])
    said = whole(board, said)
    assert said.bytes_fetched == half + half + 1 + len(BUNDLE)


def test_goes_on_at_another_mirror(board, server, target, made):
    with WebServer(dict(made[0].files)) as first:
        first.faults["targets/"] = Fault(cut_at=0.5, times=1)
        first.faults["."] = Fault(status=503)
        said = whole(board, board.fetch(target, repository=[first.url, server.url]))
    assert said.bytes_fetched == len(BUNDLE)
    # Another server's tags are its own.
    assert "if-range" not in server.requests[-1].headers


def test_what_is_whole_is_not_fetched_again(board, server, target):
    whole(board, board.fetch(target))
    before = server.asked()
    assert whole(board, board.fetch(target)).bytes_fetched == 0
    assert server.asked() == before


def test_a_whole_file_that_is_damaged(board, target):
    whole(board, board.fetch(target))
    with board.part.open("r+b") as file:
        file.write(b"damage")
    assert whole(board, board.fetch(target)).bytes_fetched == len(BUNDLE)


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"sha256":"' + b"0" * 64 + b'"}'])
def test_a_part_file_of_unknown_origin_is_thrown_away(board, server, target, note):
    cut(board, server, target, 0.5)
    sidecar(board.part).write_bytes(note)
    assert whole(board, board.fetch(target)).bytes_fetched == len(BUNDLE)


def test_a_part_file_that_is_a_link_is_not_followed(board, target, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"keep")
    board.part.symlink_to(precious)
    assert board.fetch(target).code == "E_SYSTEM"
    assert precious.read_bytes() == b"keep"


def test_two_processes_do_not_share_a_part_file(board, target):
    first = Download(board.download_job(target))
    first._begin()
    said = board.fetch(target)
    first._end()
    assert said.code == "E_SYSTEM"
    assert not said.is_final
    whole(board, board.fetch(target))


def test_a_full_disk(board, target):
    """A limit on file sizes stands in for the disk: it too is an error of write(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        said = board.fetch(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said.code == "E_SIZE"
    assert board.part.stat().st_size <= 1_000_000


def test_more_than_anything_may_be(board, target):
    said = board.fetch(target, limits=msgspec.structs.replace(QUICK, most_bundle_bytes=1000))
    assert (said.code, said.is_final) == ("E_SIZE", True)
    assert not board.part.exists()


def lay_out(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_usb_stick(tmp_path, made):
    stick = tmp_path / "my stick"
    lay_out(stick, made[0].files)
    board = Board(tmp_path / "board", made[0], stick.as_uri())
    target = board.ask("ssd", "1.0").target
    board.part.write_bytes(BUNDLE[:1000])
    whole(board, board.fetch(target))


def test_usb_stick_pulled_out_and_put_back(tmp_path, made):
    stick = tmp_path / "stick"
    lay_out(stick, made[0].files)
    board = Board(tmp_path / "board", made[0], stick.as_uri())
    target = board.ask("ssd", "1.0").target
    stick.rename(tmp_path / "out")
    assert board.ask("ssd", "1.0").code == "E_NET"
    assert board.fetch(target).code == "E_NET"
    (tmp_path / "out").rename(stick)
    whole(board, board.fetch(target))


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "device"])
def test_usb_stick_with_something_else_than_files(tmp_path, made, kind):
    stick = tmp_path / "stick"
    lay_out(stick, made[0].files)
    trap = stick / "metadata/timestamp.json"
    trap.unlink()
    if kind == "pipe":
        os.mkfifo(trap)
    elif kind == "link":
        trap.symlink_to("/dev/zero")
    elif kind == "folder":
        trap.mkdir()
    else:
        try:
            os.mknod(trap, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("only root makes devices")
    board = Board(tmp_path / "board", made[0], stick.as_uri())
    assert board.ask("ssd", "1.0").code == "E_NET"


@pytest.mark.parametrize(
    "url", ["ftp://host/", "http://", "https:///x", "http://h:99999/", "file://host/x", "", "x"]
)
def test_urls_that_lead_nowhere(tmp_path, made, url):
    board = Board(tmp_path, made[0], url)
    assert board.ask("ssd", "1.0").code == "E_NET"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("tls"))


def tls_server(files, certificates):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    return WebServer(files, tls=context)


def test_https_with_an_authority_of_one_s_own(tmp_path, made, certificates):
    with tls_server(made[0].files, certificates) as server:
        board = Board(tmp_path, made[0], server.url)
        said = board.ask("ssd", "1.0", ca_file=str(certificates.ca))
        whole(board, board.fetch(said.target, ca_file=str(certificates.ca)))
        assert board.ask("ssd", "1.0").code == "E_NET"  # the system knows no such authority


def test_https_of_another_host(tmp_path, made, certificates):
    with tls_server(made[0].files, certificates) as server:
        board = Board(tmp_path, made[0], server.url.replace("localhost", "127.0.0.1"))
        said = board.ask("ssd", "1.0", ca_file=str(certificates.ca))
        assert said.code == "E_NET"
        assert "127.0.0.1" in said.message


def test_a06_https_with_a_clock_of_years_ago(tmp_path, made, certificates):
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not here")
    with tls_server(made[0].files, certificates) as server:
        board = Board(tmp_path, made[0], server.url)
        job = board.job("ssd", "1.0", ca_file=str(certificates.ca))
        events, _ = run_process(job, before=("faketime", "2020-01-01"))
        assert (events[-1].code, events[-1].is_final) == ("E_CLOCK", False)


def test_a_slow_handshake(tmp_path, made, certificates):
    # The kernel accepts, and nobody ever says a word.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}/"
        board = Board(tmp_path, made[0], url, limits=QUICK)
        assert board.ask("ssd", "1.0", ca_file=str(certificates.ca)).code == "E_SLOW"


def test_no_authorities(tmp_path, made, certificates, server):
    board = Board(tmp_path, made[0], server.url.replace("http:", "https:"))
    assert board.ask("ssd", "1.0", ca_file="/nowhere.pem").code == "E_NET"
