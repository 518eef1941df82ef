"""The daemon's numbers for Prometheus, over HTTP: looked up when somebody asks, so that they cost nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tracekit import __version__
from tracekit.errors import UsageError
from tracekitd.catalog import Catalog
from tracekitd.scrape import Server
from tracekitd.stats import Stats
from tracekitd.watch import Watch
from tracekitd.writer import Writer


class Collector:
    """What prometheus_client asks at each scrape."""

    def __init__(self, stats: Stats, catalog: Catalog, writer: Writer, watch: Watch) -> None:
        self._stats, self._catalog, self._writer, self._watch = stats, catalog, writer, watch

    def collect(self) -> Iterator[Any]:
        """Yield every metric, see `prometheus_client.registry.Collector`."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        stats, writer = self._stats, self._writer
        yield InfoMetricFamily("tracekitd", "This daemon.", {"version": __version__})
        for name, text, value in (
            ("messages", "Messages of recorders.", stats.messages),
            ("received_bytes", "Bytes of them.", stats.bytes),
            ("batches", "Batches taken.", stats.batches),
            ("duplicates", "Batches that were here already, sent again after a reconnect.", stats.duplicates),
            ("commits", "Groups of batches that became durable together.", stats.commits),
            ("commit_seconds", "From the first batch of each until it was durable.", stats.commit_secs),
            ("syncs", "Times that the spool was synced.", writer.num_syncs),
            ("sync_seconds", "What that took.", writer.sync_secs),
            ("failed_syncs", "Times that the disk refused to sync; what was not synced was written anew.",
             writer.failed_syncs),
        ):  # fmt: skip
            yield CounterMetricFamily(f"tracekitd_{name}", text, value=value)
        rows = CounterMetricFamily("tracekitd_rows", "Rows received, by table.", labels=["table"])
        for table, count in list(stats.rows.items()):
            rows.add_metric([table], count)
        lost = CounterMetricFamily("tracekitd_lost_rows", "Rows that will never come.", labels=["table", "reason"])
        for (table, reason), count in list(stats.lost.items()):
            lost.add_metric([table, reason], count)
        refused = CounterMetricFamily("tracekitd_refused_streams", "Streams ended with an error.", labels=["status"])
        for status, count in list(stats.refused.items()):
            refused.add_metric([status], count)
        yield from (rows, lost, refused)
        yield GaugeMetricFamily("tracekitd_queued_bytes", "Received, not yet durable.", value=stats.queued_bytes)
        lag = GaugeMetricFamily("tracekitd_lag_seconds", "Age of the oldest batch that is not durable.")
        lag.add_metric([], stats.lag_secs())
        behind = GaugeMetricFamily("tracekitd_lag_batches", "Batches received, not yet durable.")
        engines = self._catalog.engines()
        behind.add_metric([], sum(engine.received_seq - engine.durable_seq for engine in engines))
        yield from (lag, behind)
        for name, text, trainer in (("engines", "Engines", False), ("trainers", "Trainers", True)):
            states = GaugeMetricFamily(f"tracekitd_{name}", f"{text} seen, by state.", labels=["state"])
            own = [engine for engine in engines if engine.trainer == trainer]
            found = Counter("ended" if e.ended else "connected" if e.open else "away" for e in own)
            for state in ("connected", "away", "ended"):
                states.add_metric([state], found[state])
            yield states
        yield from self._of_trainers()
        stalls = CounterMetricFamily("tracekitd_stall_seconds", "That lossless recorders cost.", labels=["engine"])
        for engine, secs in list(self._watch.stall_secs.items()):
            stalls.add_metric([str(engine)], secs)
        yield stalls

    def _of_trainers(self) -> Iterator[Any]:
        """Yield what trainers compute again against what engines reported."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        mismatch = self._watch.mismatch
        assert mismatch is not None  # where there are metrics, it is compared from the beginning
        outcomes = CounterMetricFamily("tracekitd_annotations", "With old_logprobs, by outcome.", labels=["outcome"])
        for outcome, count in list(mismatch.outcomes.items()):
            outcomes.add_metric([outcome], count)
        yield outcomes
        yield GaugeMetricFamily("tracekitd_annotations_waiting", "For their rollouts.", value=mismatch.num_waiting)
        text = "Tokens without a finite ratio; they are in no other metric of mismatch."
        yield CounterMetricFamily("tracekitd_mismatch_not_finite_tokens", text, value=mismatch.num_not_finite)
        totals = list(mismatch.total.items())
        for name, text, field in (
            ("tokens", "Tokens compared.", "num_tokens"),
            ("ratio_sum", "Sum of e^(old_logprob - rollout_logprob).", "ratio"),
            ("kl_sum_nats", "Sum of e^d - d - 1 of the same d.", "kl"),
        ):
            sums = CounterMetricFamily(f"tracekitd_mismatch_{name}", text, labels=["engine"])
            for engine, total in totals:
                sums.add_metric([str(engine)], getattr(total, field))
            yield sums
        newest = [(engine, sums) for engine, sums in list(mismatch.newest.items()) if sums.num_tokens]
        for name, text, field in (
            ("ratio_mean", "Mean ratio over the newest train step that was annotated.", "ratio"),
            ("kl_nats", "mismatch_kl over the newest train step that was annotated.", "kl"),
        ):
            mean = GaugeMetricFamily(f"tracekitd_mismatch_{name}", text, labels=["engine"])
            for engine, sums in newest:
                mean.add_metric([str(engine)], getattr(sums, field) / sums.num_tokens)
            yield mean
        if mismatch.train_step is not None:
            text = "That step, of the trainer."
            yield GaugeMetricFamily("tracekitd_mismatch_train_step", text, value=mismatch.train_step)


def check_metrics(address: str) -> tuple[str, int]:
    """Return host and port of the HTTP server.

    Raises:
        UsageError: it is not an address, or prometheus_client is missing.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"metrics are served at HOST:PORT, not {address}")
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise UsageError("metrics need prometheus_client: pip install prometheus-client") from None
    return host.strip("[]"), int(port)


def serve(address: str, collector: Collector) -> Server:
    """Serve metrics from a thread; return the server, to be shut down, which knows its port.

    Raises:
        UsageError: as `check_metrics`, or the address cannot be had.
    """
    host, port = check_metrics(address)
    from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app

    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    try:
        return Server(host, port, make_wsgi_app(registry))
    except OSError as error:
        raise UsageError(f"cannot serve metrics at {address}: {error.strerror}") from None
