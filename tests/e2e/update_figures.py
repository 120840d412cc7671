"""Prints what fetching a bundle costs the results of a board: `python tests/e2e/update_figures.py`.

The shipped model at 30 frames a second under a real broker; a bundle of 60 MB over HTTP, given out
at 2.5 MB a second. Latency is from capture to the encoded result, as each of them says.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "vision"), str(TESTS / "operator")]

import numpy as np  # noqa: E402
from bad_models import made_classifier  # noqa: E402
from brokers import mosquitto  # noqa: E402
from harness import CLIP, Agent, Subscriber  # noqa: E402
from made_repository import Site  # noqa: E402
from update_rig import UpdatedBoard  # noqa: E402

ROUNDS = 3
SECONDS = 24.0
BUNDLE_BYTES = 60 << 20
BYTES_A_SECOND = 5 << 19
PIECE = 64 << 10


class Slowly(SimpleHTTPRequestHandler):
    """A web server behind a line of so many bytes a second."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send a file."""
        while piece := source.read(PIECE):
            outputfile.write(piece)
            time.sleep(len(piece) / BYTES_A_SECOND)


def p99(board: UpdatedBoard, seconds: float) -> float:
    """Return the 99th percentile of the latency of all results of the next seconds, in ms."""
    since = len(board.subscriber.messages)
    time.sleep(seconds)
    found = board.subscriber.messages[since:]
    times = [m.json["latency_ms"] for m in found if m.topic.endswith("/detections")]
    return statistics.quantiles(times, n=100)[98]


def main() -> None:
    """Measure in turn with nothing beside, and while a bundle is fetched."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        broker = mosquitto(home).start()
        subscriber = Subscriber(broker.port)
        site = Site(home / "operator")
        site.home.mkdir()
        board = UpdatedBoard(home, broker, subscriber, site.init())
        board.factory = "default"
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Slowly, directory=str(site.folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        agent = Agent(home, board.config(str(CLIP), repository=url))
        try:
            measure(board)
        finally:
            agent.stop()
            server.shutdown()
            subscriber.close()
            broker.stop()


def measure(board: UpdatedBoard) -> None:
    """Print a line for each round, then the medians."""
    board.serves("default", 120)
    time.sleep(5)
    noise = np.random.default_rng(1).integers(0, 255, BUNDLE_BYTES, np.uint8)
    rows = []
    for number in range(ROUNDS):
        quiet = p99(board, SECONDS / 2)
        golden = {"input_0": noise, "class_ids_0": np.array([number])}
        deployment = board.order(board.publish(made_classifier(5), golden=golden))
        board.subscriber.wait(
            lambda order=deployment: any(
                one["phase"] == "downloading" for one in board.reports(order)
            ),
            60,
        )
        fetching = p99(board, BUNDLE_BYTES / BYTES_A_SECOND * 0.9)
        phase = board.reports(deployment)[-1]["phase"]
        board.end_of(deployment)
        quiet = statistics.median([quiet, p99(board, SECONDS / 2)])
        rows.append((quiet, fetching))
        print(f"p99 quiet {quiet:.1f} ms, fetching {fetching:.1f} ms (then {phase})")
    ratio = statistics.median(fetching / quiet for quiet, fetching in rows)
    print(f"median of {ROUNDS} rounds: {ratio:.2f}")


if __name__ == "__main__":
    main()
