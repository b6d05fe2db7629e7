"""`netctl metrics`: the daemon's counters and gauges."""

from __future__ import annotations

from typing import Any

import click

from netd.cli.options import call, common_options, invocation, not_found


@click.command(short_help="Counters and gauges (Prometheus).")
@click.argument("prefix", required=False, default="")
@common_options
def metrics(prefix: str) -> None:
    """The daemon's counters and gauges in Prometheus' text form; only those whose names begin with PREFIX, if given.

    With --json, one object: {"metrics": [{"name", "type", "help", "samples": [{"name", "labels", "value"}]}]}.
    """
    page = call(lambda client: client.metrics())
    lines = lines_of(page, prefix)
    if prefix and not lines:
        raise not_found(f"cannot find a metric whose name begins with {prefix!r}: netctl metrics prints all")
    if invocation().json:
        from netd.cli.output import print_json

        print_json({"metrics": [family for family in families(page) if family["name"].startswith(prefix)]})
        return
    from netd.cli.output import printable_lines

    click.echo(printable_lines("\n".join(lines)))


def lines_of(page: str, prefix: str) -> list[str]:
    """The lines about metrics whose name begins so, with their HELP and TYPE."""

    def name(line: str) -> str:
        words = line.split(" ", 3)
        return words[2] if line.startswith("# ") and len(words) > 2 else line

    return [line for line in page.splitlines() if name(line).startswith(prefix)]


def families(page: str) -> list[dict[str, Any]]:
    """The text form as plain data. Values that JSON has no number for (NaN, +Inf) are text. Raises ProtocolError."""
    import math

    from prometheus_client.parser import text_string_to_metric_families

    from netd.errors import ProtocolError

    try:
        return [
            {
                "name": family.name,
                "type": family.type,
                "help": family.documentation,
                "samples": [
                    {
                        "name": sample.name,
                        "labels": dict(sample.labels),
                        "value": sample.value if math.isfinite(sample.value) else str(sample.value),
                    }
                    for sample in family.samples
                ],
            }
            for family in text_string_to_metric_families(page)
        ]
    except ValueError as error:
        raise ProtocolError(f"cannot read the daemon's metrics: {error}") from error
