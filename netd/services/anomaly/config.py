"""The [anomaly] section: how often sessions are looked at, how their scores are made, and who else may score. Pure.

Off by default: it costs CPU for every session, and what is normal for a session takes a while to learn.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr, StringConstraints, model_validator

from netd.section import Section, live, replace

_TARGET = re.compile(r"^[A-Za-z_][\w.-]*(:[A-Za-z_][\w.]*)?$")


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or not text.isascii() or not text.isprintable():
        raise ValueError(f'cannot ask {text!r} for scores: write "http://127.0.0.1:9100/scores" or "https://..."')
    if parts.username is not None or parts.password is not None:
        raise ValueError("cannot take a user or password in the url, which everybody sees: use anomaly.adapter.token")
    return text


def _target(text: str) -> str:
    if not _TARGET.match(text):
        raise ValueError(f'cannot ask {text!r} for scores: write "module:function" or an entry point of netd.anomaly')
    return text


def _command(words: list[str]) -> list[str]:
    if not words or not words[0] or any("\0" in word for word in words):
        raise ValueError('cannot start it: write the program and its arguments, ["/usr/bin/program", "--option"]')
    return words


Word = Annotated[str, StringConstraints(max_length=4096)]
Command = Annotated[list[Word], AfterValidator(_command)]
Url = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_url)]
Target = Annotated[str, StringConstraints(max_length=256), AfterValidator(_target)]

_NEEDS = {"command": "command", "http": "url", "python": "target"}


class AdapterConfig(Section):
    """Who scores. Whoever it is, coherence, entropy and anomaly are computed here first; an adapter may overrule
    them for the sessions that it answers about. While it fails, `fallback` says what counts."""

    use: Literal["builtin", "command", "http", "python"] = replace("builtin")
    """builtin: nobody else. command: a program that reads and writes JSON lines. http: a URL that takes a POST. python:
    a function in this process."""
    command: Command | None = replace(None)
    """With use = "command": the program and its arguments. It is started once, without capabilities, and again when
    it ends. No shell reads it. It ends with the daemon, and of a service it is kept from the daemon's own directories,
    as is `worker.command`."""
    url: Url | None = replace(None)
    """With use = "http": where the figures are posted."""
    token: SecretStr | None = replace(None)
    """With use = "http": sent as `Authorization: Bearer`."""
    target: Target | None = replace(None)
    """With use = "python": "module:function", or the name of an entry point in the group netd.anomaly. A `def` runs in
    a thread, an `async def` on Trio."""
    timeout: float = live(2.0, gt=0, le=60)
    """Seconds for one answer. A later one is not used, and counts as a failure."""
    max_answer: int = live(1_048_576, ge=1024, le=67_108_864)
    """Bytes of one answer; a longer one is not used, and counts as a failure."""
    fallback: Literal["builtin", "none"] = live("builtin")
    """What counts while the adapter fails: the built-in scores, or none."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for use, key in _NEEDS.items():
            given = getattr(self, key) is not None
            if self.use == use and not given:
                raise ValueError(f'cannot use = "{use}" without {key}')
        return self


class AnomalyConfig(Section):
    """The `[anomaly]` section: scores of sessions that behave unlike themselves. It costs CPU for every session, and is
    off by default. Times are in seconds."""

    enabled: bool = live(False)
    """Run the service."""
    interval: float = live(5.0, ge=0.2, le=3600)
    """From one sample of all sessions to the next. One that takes longer delays the next."""
    window: int = replace(32, ge=8, le=512)
    """Samples that are kept of a session, and of which its scores are made."""
    warmup: int = live(8, ge=4, le=512)
    """A session has no scores before so many samples (at most `window`)."""
    lags: int = live(4, ge=1, le=64)
    """Coherence is the mean autocorrelation of lags 1 to this."""
    bins: int = live(8, ge=2, le=64)
    """Entropy is that of a histogram of so many bins."""
    threshold: float = live(0.9, gt=0, le=1)
    """Sessions whose anomaly score is at least this raise the health warning anomaly.score."""
    max_sessions: int = live(10_000, ge=1, le=1_000_000)
    """Sessions that are watched, some 2.5 KB each while they are active. Past that, later ones are not, and counted
    in netd_anomaly_untracked."""
    adapter: AdapterConfig = live(default_factory=AdapterConfig)
    """Who scores."""
