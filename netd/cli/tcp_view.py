"""Facts about one thing, a line each; and how the kernel's tcp_info of a connection looks to people.

What this kernel does not tell is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.cli.output import Column, duration, milliseconds, size, table
from netd.cli.trace_path import whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

# enum of include/net/tcp_states.h
_STATES = (
    *("", "ESTABLISHED", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT"),
    *("CLOSED", "CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING", "NEW-SYN-RECV"),
)
# enum tcp_ca_state of linux/tcp.h
_CONGESTION = ("open", "disorder", "congestion window reduced", "recovery", "loss")
# TCPI_OPT_* of linux/tcp.h
_OPTIONS = {1: "timestamps", 2: "SACK", 4: "window scaling", 8: "ECN", 16: "ECN seen", 32: "SYN data"}


def facts(rows: Sequence[tuple[str, object]], *, indent: int = 2, width: int | None = None) -> Table:
    """(what, how it is) below a heading; what is nothing is left out."""
    known = [row for row in rows if row[1]]
    made = table([Column("", style="dim"), Column("", narrow="wrap")], known, indent=indent, width=width)
    made.show_header = False
    return made


def tcp_table(info: Mapping[str, Any], *, width: int | None = None) -> Table:
    """The figures, a line each."""
    return facts(lines(info), width=width)


def lines(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how much) in words; "" where nothing is known."""
    get = {key: whole(value) for key, value in info.items()}.get
    options = get("options")
    return [
        ("state", _join(_word(_STATES, get("state")), _word(_CONGESTION, get("ca_state")))),
        ("round trip", _join(_ms(get("rtt_us")), _ms(get("rttvar_us"), "±"), _ms(get("min_rtt_us"), "least"))),
        ("window", " ".join((_count(get("snd_cwnd"), "segment"), _bytes(get("snd_mss"), "of"))).strip()),
        ("in flight", _join(_count(get("unacked"), "segment"), _bytes(get("notsent_bytes"), "not sent yet:"))),
        (
            "lost",
            _join(
                _count(get("lost"), "segment", "now"),
                " ".join((_count(get("total_retrans"), "retransmission"), _bytes(get("bytes_retrans"), "of"))).strip(),
                _count(get("dsack_dups"), "of them for nothing", plural=""),
            ),
        ),
        ("timeout", _join(_ms(get("rto_us")), _count(get("retransmits"), "in a row", plural=""))),
        ("delivery", f"{size(rate)}/s" if (rate := get("delivery_rate")) else ""),
        ("sent", _join(_bytes(get("bytes_sent")), _count(get("segs_out"), "segment"), _ago(get("last_data_sent_ms")))),
        ("acknowledged", _bytes(get("bytes_acked"))),
        (
            "received",
            _join(_bytes(get("bytes_received")), _count(get("segs_in"), "segment"), _ago(get("last_data_recv_ms"))),
        ),
        ("path MTU", _join(_count(get("pmtu"), "byte"), _count(get("reordering"), "segment", "may overtake"))),
        ("options", "" if options is None else _join(*(name for bit, name in _OPTIONS.items() if options & bit))),
    ]


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _word(words: tuple[str, ...], number: int | None) -> str:
    if number is None:
        return ""
    return words[number] if 0 <= number < len(words) else f"state {number}"


def _ms(microseconds: int | None, word: str = "") -> str:
    return "" if microseconds is None else f"{word} {milliseconds(microseconds / 1000)} ms".lstrip()


def _bytes(count: int | None, word: str = "") -> str:
    return "" if count is None else f"{word} {size(count)}".lstrip()


def _count(count: int | None, noun: str, more: str = "", *, plural: str = "s") -> str:
    if count is None:
        return ""
    return f"{count} {noun}{'' if count == 1 else plural} {more}".rstrip()


def _ago(milliseconds_: int | None) -> str:
    return "" if milliseconds_ is None else f"last {duration(milliseconds_ / 1000)} ago"
