"""Many boards with the real updater: a bad bundle is halted at the limit, a good one reaches all.

`python tests/fleet/figures.py 200` measures the same at its full size, as does FLEET_BOARDS=200.
"""

import os

import figures

BOARDS = int(os.environ.get("FLEET_BOARDS", "24"))
FAST = {"times": 200.0, "pace": 200.0, "counted": False, "telemetry_s": 0.5}


def test_a_bad_bundle_then_a_good_one(tmp_path, capsys):
    golden, crash, good, listed = rows = figures.measure(
        BOARDS, tmp_path, **(FAST if BOARDS < 100 else {})
    )
    with capsys.disabled():
        print("", *figures.table(rows), sep="\n")
    assert (golden["state"], golden["asked"], golden["failed"]) == ("halted", 1, 1)
    assert (crash["state"], crash["failed"] > 0) == ("halted", True)
    if BOARDS >= 100:  # the limit is 2 %: of the second wave the first one that goes back
        assert crash["asked"] <= BOARDS // 10
    assert (good["state"], good["done"], good["failed"]) == ("finished", BOARDS, 0)
    assert (listed["boards"], listed["done"], listed["versions"]) == (BOARDS, BOARDS, ["2.2"])
    assert not any(row.get("broker_dropped") for row in rows)
