"""Who else is there, where they are found, and questions that all of them answer. Pure: `now` is a monotonic clock's
seconds.

Rules:
- where clients find a node is the first TCP port that it listens on; one of all addresses is told with its host's name;
- a node is there from its first sign of life until it says goodbye or Redis has not seen it for `expiry`;
- a question is answered once: when every node that was there has answered, or is gone, or when its time is over. What
  comes later is ignored;
- at most MAX_ASKED questions wait; one more is answered with what is known here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_ANY = ("0.0.0.0", "[::]", "")
MAX_ASKED = 10_000
MAX_NODES = 1024
"""Further ones are not known, and not asked."""


def found_at(listening: Iterable[str], host: str) -> str | None:
    """Where clients find a node that listens on these ("10.0.0.1:3000", "[::]:3000", "unix:/..."); None: on no port."""
    for address in listening:
        where, colon, port = address.rpartition(":")
        if colon and port.isdecimal() and "/" not in where and not where.startswith("unix"):
            return f"{host if where in _ANY else where}:{port}"
    return None


@dataclass(slots=True)
class _Question:
    waiting: set[str]
    total: int
    until: float
    answer: Callable[[int], None]


class Questions:
    """Those that wait for answers."""

    def __init__(self) -> None:
        self._asked: OrderedDict[int, _Question] = OrderedDict()
        self._last = 0

    def __len__(self) -> int:
        return len(self._asked)

    def ask(self, nodes: Iterable[str], here: int, until: float, answer: Callable[[int], None]) -> int:
        """The number that the question is to carry. 0: there are too many; it was answered with `here`."""
        if len(self._asked) >= MAX_ASKED:
            answer(here)
            return 0
        self._last += 1
        self._asked[self._last] = _Question(set(nodes), here, until, answer)
        return self._last

    def waits(self, ask: int, node: str) -> bool:
        """Whether this node's answer is still to come."""
        question = self._asked.get(ask)
        return question is not None and node in question.waiting

    def answered(self, ask: int, node: str, count: int) -> None:
        if not self.waits(ask, node):
            return
        question = self._asked[ask]
        question.waiting.discard(node)
        question.total += count
        if not question.waiting:
            self._finish(ask)

    def gone(self, node: str) -> None:
        """It will not answer any more."""
        for ask in [ask for ask, question in self._asked.items() if node in question.waiting]:
            self.answered(ask, node, 0)

    def expire(self, now: float) -> None:
        """Answer those whose time is over."""
        for ask in [ask for ask, question in self._asked.items() if question.until <= now]:
            self._finish(ask)

    def finish_all(self) -> None:
        """Nobody will answer any more."""
        for ask in list(self._asked):
            self._finish(ask)

    def _finish(self, ask: int) -> None:
        question = self._asked.pop(ask, None)
        if question is not None:
            question.answer(question.total)
