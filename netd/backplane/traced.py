"""Messages of channels as the hub is given them, and those among them that a client may hear twice. Pure.

    on the machine it was said on, without Redis   no offset, origin   ->  the client moves, with its place before it
    on another machine, later                      offset, origin      ->  and knows it

Rules:
- what is delivered without an offset has an origin, and so has what may be that once more: what its node says it has
  delivered so (`Said.loose`), and what comes from a history and not from the lane;
- what comes on the lane as always has none, so that it costs nothing. Where Redis takes a message from a connection
  that its node has given up already, and a client has moved since, that one comes twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from netd.hub.history import Publication

if TYPE_CHECKING:
    from netd.backplane.envelopes import Said
    from netd.wire.messages import Message


class _Traced(Publication):
    """With its origin."""

    origin: str = ""

    def event(self) -> Message:
        return structs.replace(super().event(), origin=self.origin)


def traced(publication: Publication, node: str, sequence: int) -> Publication:
    """The same with its origin: the node's random id, as the machine's name is none of a client's business."""
    return _Traced(**structs.asdict(publication), origin=f"{node.rpartition('.')[2]}:{sequence}"[-128:])


def publication_of(said: Said, epoch: str | None, offset: int, *, again: bool) -> Publication:
    """`again`: it may be one that was delivered without its offset."""
    found = Publication(
        said.channel,
        said.data,
        said.sender,
        said.priority,
        said.ephemeral,
        said.time,
        offset if epoch is not None else None,
        epoch,
    )
    return traced(found, said.node, said.sequence) if again and epoch is not None else found
