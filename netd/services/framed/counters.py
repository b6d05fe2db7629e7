"""The framed service's metrics, read when somebody scrapes them: nothing here is touched for a message.

Labels are words from fixed lists: modes, reasons (exchange.REJECTED), close codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from netd.services.framed.exchange import Exchange

_SUMS = (
    ("connections", "accepted", "Framed clients that were let in."),
    ("bytes_in", "received_bytes", "Bytes received from framed clients."),
    ("bytes_out", "sent_bytes", "Bytes sent to framed clients."),
    ("messages_in", "received_messages", "Messages received from framed clients."),
    ("messages_out", "sent_messages", "Messages taken into the outboxes of framed clients."),
    ("dropped", "dropped_messages", "Messages dropped because a framed client did not read."),
    ("backpressure", "backpressure", "Times that half of what may wait for a framed client did."),
    ("drains", "drains", "Times that such a client had read it."),
)
MODES = ("operations", "channel", "echo")


class Collector:
    """For a Prometheus registry; of the exchange, so that it outlives generations."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise collect once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        exchange = self._exchange
        totals = exchange.totals()
        for field, name, what in _SUMS:
            yield CounterMetricFamily(f"netd_framed_{name}", what, value=getattr(totals, field))
        here = GaugeMetricFamily("netd_framed_connections", "Framed clients that are here, by mode.", labels=("mode",))
        for mode in MODES:
            here.add_metric((mode,), exchange.by_mode[mode])
        yield here
        rejected = CounterMetricFamily("netd_framed_rejected", "Framed clients not let in, by reason.", labels=("why",))
        for why, count in exchange.rejections.items():
            rejected.add_metric((why,), count)
        yield rejected
        closes = CounterMetricFamily("netd_framed_closed", "Connections that ended, by close code.", labels=("code",))
        for code, count in exchange.closes.items():
            closes.add_metric((str(code),), count)
        yield closes
