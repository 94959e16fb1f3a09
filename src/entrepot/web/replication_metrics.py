"""What replication did, for Prometheus: read from the database, since runs happen in processes that nobody scrapes.

Every server answers the same, whichever machine the workers are on.
"""

import asyncio
import time
from collections.abc import Iterator
from datetime import datetime

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from entrepot.errors import Unavailable
from entrepot.replication.lag import read_ages
from entrepot.replication.records import Figures
from entrepot.replication.runs import Runs
from entrepot.storage.clock import Clock

_KEPT_SECONDS = 5.0
# A scrape must not wait for a database that is away: then what was read last is told.
_PATIENCE_SECONDS = 2.0
_TAGS = {"tags_copied": "copied", "tags_deleted": "deleted", "refused": "refused", "failed": "failed"}


class ReplicationMetrics(Collector):
    """The figures as they were some seconds ago."""

    def __init__(self, runs: Runs, clock: Clock) -> None:
        self._runs = runs
        self._clock = clock
        self._figures = Figures([], [], {})
        self._read_at = float("-inf")

    async def refresh(self) -> None:
        """Read the figures, unless that was done a moment ago."""
        if time.monotonic() - self._read_at < _KEPT_SECONDS:
            return
        self._read_at = time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                self._figures = await self._runs.read_figures()
        except (TimeoutError, Unavailable):
            return

    def collect(self) -> Iterator[Metric]:
        """Every figure."""
        yield from self._collect_rules()
        yield from self._collect_totals()
        unfinished = GaugeMetricFamily(
            "entrepot_replication_unfinished_runs", "Runs that have not ended.", labels=["status"]
        )
        for status, count in self._figures.unfinished.items():
            unfinished.add_metric([status], count)
        yield unfinished

    def _collect_rules(self) -> Iterator[Metric]:
        lag = _gauge("lag_seconds", "Age of the oldest push that is not here, as of the last listing; 0: all is here.")
        newest = _gauge("newest_lag_seconds", "Age of the newest push that is not here; 0: all is here.")
        count = _gauge("unreplicated_tags", "Tags that were not here at the last listing, up to 1000.")
        listed = _gauge("listed_timestamp_seconds", "When the source was last listed as a whole.")
        succeeded = _gauge("last_success_timestamp_seconds", "When a run last brought over all that it was about.")
        for rule in self._figures.rules:
            name, unreplicated = [rule["name"]], rule["unreplicated"] or {}
            oldest_age, newest_age = read_ages(unreplicated, self._clock())
            lag.add_metric(name, oldest_age)
            newest.add_metric(name, newest_age)
            count.add_metric(name, len(unreplicated))
            for family, at in ((listed, rule["listed_at"]), (succeeded, rule["succeeded_at"])):
                if isinstance(at, datetime):
                    family.add_metric(name, at.timestamp())
        yield from (lag, newest, count, listed, succeeded)

    def _collect_totals(self) -> Iterator[Metric]:
        runs = _counter("runs", "Runs that ended, by how.", "rule", "status")
        size = _counter("bytes", "Bytes copied from sources.", "rule")
        tags = _counter("tags", "Tags that differed, by what became of them.", "rule", "outcome")
        pushes = _counter("events", "Messages about pushes, by what became of them.", "source", "outcome")
        for subject, name, amount in self._figures.totals:
            kind, _, owner = subject.partition(":")
            what, _, how = name.partition("_")
            if kind == "source":
                pushes.add_metric([owner, name], amount)
            elif what == "runs":
                runs.add_metric([owner, how], amount)
            elif name == "bytes":
                size.add_metric([owner], amount)
            elif name in _TAGS:
                tags.add_metric([owner, _TAGS[name]], amount)
        yield from (runs, size, tags, pushes)


def _gauge(name: str, description: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"entrepot_replication_{name}", description, labels=["rule"])


def _counter(name: str, description: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"entrepot_replication_{name}", description, labels=labels)
