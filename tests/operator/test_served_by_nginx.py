"""systemd/repository: the shipped web server's settings with a real nginx, and the units."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from brokers import free_port, is_listening

SHIPPED = Path(__file__).resolve().parent.parent.parent / "systemd" / "repository"
NGINX = os.environ.get("NGINX") or shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
MAIN = """
daemon off;
user root;
pid {home}/nginx.pid;
error_log {home}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {home}/t1; proxy_temp_path {home}/t2; fastcgi_temp_path {home}/t3;
    uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;
    include {home}/site.conf;
}}
"""


@pytest.fixture
def web(site, tmp_path):
    if NGINX is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    site.folder.mkdir()
    port = free_port()
    settings = (SHIPPED / "nginx.conf").read_text()
    settings = settings.replace("listen 80;", f"listen 127.0.0.1:{port};")
    settings = re.sub(r"    listen \[::\].*\n", "", settings)
    (tmp_path / "site.conf").write_text(settings.replace("/srv/models", str(site.folder)))
    (tmp_path / "main.conf").write_text(MAIN.format(home=tmp_path))
    tmp_path.chmod(0o755)
    process = subprocess.Popen([NGINX, "-p", tmp_path, "-c", tmp_path / "main.conf"])
    while not is_listening(port):
        assert process.poll() is None, (tmp_path / "error.log").read_text()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)


def get(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_boards_get_everything_and_nothing_is_cached_that_changes(site, web, board):
    site.init()
    one = board()
    bundle = site.publish()
    assert one.fetch(web) == bundle.read_bytes()
    site.rotate("online")
    site.publish("1.1.0", 2)
    assert one.fetch(web, "door/1.1.0.tar") is not None
    (path,) = site.folder.glob("targets/door/*.1.0.0.tar")
    address = f"{web}/{path.relative_to(site.folder)}"
    status, headers, content = get(address, Range="bytes=512-1023")
    assert (status, content) == (206, bundle.read_bytes()[512:1024])
    assert "immutable" in headers["Cache-Control"]
    assert headers["ETag"]
    status, headers, _ = get(f"{web}/metadata/timestamp.json")
    assert headers["Cache-Control"] == "no-cache"
    status, headers, _ = get(f"{web}/metadata/3.root.json")
    assert status == 404
    assert "Cache-Control" not in headers
    for private in (".lock", "online-1.key", "metadata/.lock", "metadata/timestamp.json.new"):
        (site.folder / private).touch()
        assert get(f"{web}/{private}")[0] == 404


def test_units_are_sound():
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    units = sorted(SHIPPED.glob("edge-agent-repository.*"))
    assert len(units) == 2
    said = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True
    ).stderr
    # The program is where the operator puts it, which is not here.
    assert [line for line in said.splitlines() if "is not executable" not in line] == []
    scored = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=15", units[0]],
        capture_output=True, text=True,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stdout
