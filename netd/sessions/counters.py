"""The metrics of a service with sessions, read when somebody scrapes them: nothing here is touched for a message.

Labels are words from fixed lists: modes, reasons (Exchange.reasons), close codes (0: one of the client's own).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client import Metric

    from netd.sessions.exchange import Exchange

_SUMS = (
    ("connections", "accepted", "{} clients that were let in."),
    ("bytes_in", "received_bytes", "Bytes received from {} clients."),
    ("bytes_out", "sent_bytes", "Bytes sent to {} clients."),
    ("messages_in", "received_messages", "Messages received from {} clients."),
    ("messages_out", "sent_messages", "Messages taken into the outboxes of {} clients."),
    ("dropped", "dropped_messages", "Messages dropped because a {} client did not read."),
    ("backpressure", "backpressure", "Times that half of what may wait for a {} client did."),
    ("drains", "drains", "Times that such a {} client had read it."),
)


class Collector:
    """For a Prometheus registry; of the exchange, so that it outlives generations."""

    def __init__(self, exchange: Exchange[Any, Any], name: str, modes: Sequence[str]) -> None:
        """`name` is the service's: netd_NAME_..."""
        self.exchange = exchange
        self.name = name
        self._modes = modes

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise collect once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        exchange, start = self.exchange, f"netd_{self.name}"
        totals = exchange.totals()
        for field, name, what in _SUMS:
            text = what.format(self.name)
            yield CounterMetricFamily(f"{start}_{name}", text[0].upper() + text[1:], value=getattr(totals, field))
        here = GaugeMetricFamily(
            f"{start}_connections", f"{self.name.capitalize()} clients that are here, by mode.", labels=("mode",)
        )
        for mode in self._modes:
            here.add_metric((mode,), exchange.by_mode[mode])
        yield here
        rejected = CounterMetricFamily(
            f"{start}_rejected", f"{self.name.capitalize()} clients not let in, by reason.", labels=("why",)
        )
        for why, count in exchange.rejections.items():
            rejected.add_metric((why,), count)
        yield rejected
        closes = CounterMetricFamily(f"{start}_closed", "Connections that ended, by close code.", labels=("code",))
        for code, count in exchange.closes.items():
            closes.add_metric((str(code),), count)
        yield closes
