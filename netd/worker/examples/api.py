"""An API whose clients authenticate: over HTTP they get a token, and the token makes a WebSocket theirs.

    API_SECRET=at-least-32-characters... python -m netd.worker.examples.api --socket var/worker.sock
    curl -d '{"userId": "ada"}' http://127.0.0.1:3000/auth              {"token": "eyJ..."}
    wscat -c ws://127.0.0.1:3000/app
    > {"type": "authenticate", "token": "eyJ..."}
    < {"type": "authenticated", "userId": "ada"}
    > {"type": "whoami"}
    < {"type": "you", "userId": "ada"}

Who is authenticated hears the channel user:ID; what is published there (POST /channels/user:ada, another worker,
netctl) reaches all of a user's connections. Handlers are `async def` here: nothing in them blocks.

Anyone gets a token for any name: a real one asks for a password first.
"""

from __future__ import annotations

import json
import os
import secrets
import time

import jwt

from netd.worker import Request, Response, Session, Worker, run

SECRET = os.environ.get("API_SECRET") or secrets.token_hex(32)
HOUR = 3600
worker = Worker("api")


@worker.http_request
async def request(request: Request) -> Response:
    if (request.method, request.path) != ("POST", "/auth"):
        return Response(404, "Not Found")
    try:
        user = request.json()["userId"]
        if not isinstance(user, str) or not 0 < len(user) <= 50:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        return Response(400, {"error": "say {userId: NAME}"})
    return Response(body={"token": jwt.encode({"userId": user, "exp": time.time() + HOUR}, SECRET, "HS256")})


@worker.message
async def message(session: Session, data: str | bytes, token: bytes | None) -> None:
    try:
        said = json.loads(data)
        kind = said["type"]
    except (ValueError, KeyError, TypeError, RecursionError):
        await worker.send(session, {"type": "error", "message": "say {type: authenticate | whoami}"})
        return
    if kind == "authenticate":
        user = user_of(said.get("token"))
        if user is None:
            await worker.send(session, {"type": "auth-error", "message": "Invalid token"})
            return
        await worker.set_token(session, said["token"])
        await worker.subscribe(session, f"user:{user}")
        await worker.send(session, {"type": "authenticated", "userId": user})
    elif (user := user_of(token)) is not None:
        await worker.send(session, {"type": "you", "userId": user})
    else:
        await worker.send(session, {"type": "error", "message": "Authentication required"})


def user_of(token: str | bytes | None) -> str | None:
    """Whose token this is; None for none, one of somebody else's making, or one that has expired."""
    try:
        return str(jwt.decode(token or "", SECRET, ["HS256"])["userId"])
    except (jwt.InvalidTokenError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    run(worker)
