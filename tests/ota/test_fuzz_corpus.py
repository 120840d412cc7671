"""A28: what fuzzers have been given, and all that made them stumble once, with every reader."""

import pytest
from fuzz import CORPUS, TARGETS

FILES = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
SEEDS = [seed for _, seeds in TARGETS.values() for seed in seeds]


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_a_refusal_comes_of_it(target):
    read, _ = TARGETS[target]
    for raw in FILES + SEEDS:
        read(raw)
        read(raw[: len(raw) // 2])
