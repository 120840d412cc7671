"""Metric families as they are collected for one scrape.

What is unknown is left out, so that nobody takes a 0 for it; a family without any sample is left
out as a whole. Names follow Prometheus' conventions: base units at the end, `_total` for counters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from agent.telemetry.latency import Buckets

# OpenMetrics names a family's unit besides; it is the last word of the name.
UNITS = frozenset(
    ("seconds", "bytes", "watts", "joules", "volts", "amperes", "celsius", "hertz", "ratio")
)
# Names come from device trees and drivers: what they may do to a scrape's size has an end.
MAX_LABEL_CHARACTERS = 200
MIB = 1 << 20
Labels = str | Sequence[str | None]


def label_text(text: str | None) -> str:
    """Return a label's value as UTF-8 can carry it; an empty one is the same as none."""
    return (text or "")[:MAX_LABEL_CHARACTERS].encode("utf-8", "replace").decode()


def unit_of(name: str) -> str:
    """Return the base unit that a family's name ends with, or nothing."""
    unit = name.rpartition("_")[2]
    return unit if unit in UNITS else ""


def scaled(value: float | None, factor: float) -> float | None:
    """Return a figure in another unit, if there is one."""
    return None if value is None else value * factor


def mib_in_bytes(value: float | None) -> float | None:
    """Return MiB as bytes; what is published was rounded already."""
    return None if value is None else round(value * MIB)


class Families(Collector):
    """The families of one scrape, in the order they were added."""

    def __init__(self) -> None:
        self._families: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        """Return what was added."""
        return self._families

    def gauge(self, name: str, text: str, value: float | None) -> None:
        """Add one value that holds now."""
        self.gauges(name, text, (), [((), value)])

    def gauges(
        self, name: str, text: str, labels: Labels, rows: Iterable[tuple[Labels, float | None]]
    ) -> None:
        """Add values that hold now; of rows with the same labels the last one counts."""
        family = GaugeMetricFamily(name, text, labels=_texts(labels), unit=unit_of(name))
        for values, value in _known(rows):
            family.add_metric(values, value)
        self._add(family)

    def counter(self, name: str, text: str, value: float | None) -> None:
        """Add one count; its name is given without `_total`."""
        self.counters(name, text, (), [((), value)])

    def counters(
        self, name: str, text: str, labels: Labels, rows: Iterable[tuple[Labels, float | None]]
    ) -> None:
        """Add counts that never fall while the process that counts lives."""
        family = CounterMetricFamily(name, text, labels=_texts(labels), unit=unit_of(name))
        for values, value in _known(rows):
            family.add_metric(values, value)
        self._add(family)

    def info(self, name: str, text: str, rows: Iterable[dict[str, str | None]]) -> None:
        """Add what is no number, as labels of a 1; the name is given without `_info`."""
        family = InfoMetricFamily(name, text)
        for row in rows:
            family.add_metric((), {label: label_text(value) for label, value in row.items()})
        self._add(family)

    def histograms(
        self, name: str, text: str, labels: Labels, rows: Iterable[tuple[Labels, Buckets]]
    ) -> None:
        """Add distributions; those in which nothing was counted yet as well."""
        family = HistogramMetricFamily(name, text, labels=_texts(labels), unit=unit_of(name))
        for values, buckets in rows:
            count = 0
            cumulative: list[tuple[str, float]] = []
            for bound, inside in zip((*buckets.bounds, math.inf), buckets.counts, strict=True):
                count += inside
                le = "+Inf" if bound == math.inf else repr(float(bound))
                cumulative.append((le, count))
            family.add_metric(_texts(values), cumulative, buckets.sum_s)
        self._add(family)

    def _add(self, family: Metric) -> None:
        if family.samples:
            self._families.append(family)


def _known(rows: Iterable[tuple[Labels, float | None]]) -> Iterable[tuple[list[str], float]]:
    """Return each set of labels once: a scrape with one twice would be refused as a whole."""
    by_labels = {
        tuple(_texts(values)): float(value)
        for values, value in rows
        if value is not None and math.isfinite(value)
    }
    return ((list(values), value) for values, value in by_labels.items())


def _texts(values: Labels) -> list[str]:
    return [label_text(values)] if isinstance(values, str) else [label_text(one) for one in values]
