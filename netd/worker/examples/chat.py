"""A chat server: a room is a channel, chat:ROOM, and whoever is in it hears what is said there.

    netd --config dev.toml &  python -m netd.worker.examples.chat --socket var/worker.sock
    wscat -c ws://127.0.0.1:3000/app
    > {"type": "join", "room": "lobby"}
    < {"type": "user-joined", "userId": "3f0c...", "room": "lobby"}
    > {"type": "message", "room": "lobby", "text": "hello"}
    < {"type": "chat-message", "userId": "3f0c...", "text": "hello", "timestamp": 1765000000000}

Any client will do: a WebSocket on /app, framed TCP, operations with text. What a client sends that is no message of
this chat is answered, and harms nobody.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from netd.worker import Session, Worker, run

log = logging.getLogger("chat")
worker = Worker("chat")


@worker.message
def message(session: Session, data: str | bytes, token: bytes | None) -> None:
    try:
        said = json.loads(data)
        kind, room = said["type"], said["room"]
        if not isinstance(room, str) or not 0 < len(room) <= 50 or not room.isprintable():
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        worker.send(session, {"type": "error", "message": "say {type: join | leave | message, room: NAME}"})
        return
    match kind:
        case "join":
            worker.subscribe(session, channel_of(room))
            tell(room, {"type": "user-joined", "userId": session.id, "room": room})
        case "leave":
            worker.unsubscribe(session, channel_of(room))
            tell(room, {"type": "user-left", "userId": session.id, "room": room})
        case "message":
            now = round(time.time() * 1000)
            tell(room, {"type": "chat-message", "userId": session.id, "text": said.get("text"), "timestamp": now})
        case _:
            worker.send(session, {"type": "error", "message": f"cannot {ascii(kind)[:50]}"})


@worker.session_closed
def closed(session: Session, token: bytes | None) -> None:
    # it is in no room any more: netd has seen to that
    log.info("user %s disconnected", session)


def tell(room: str, what: dict[str, Any]) -> None:
    worker.send_to_channel(channel_of(room), json.dumps(what))


def channel_of(room: str) -> str:
    """In a namespace of its own, so that nobody joins a channel that is no room."""
    return f"chat:{room}"


if __name__ == "__main__":
    run(worker)
