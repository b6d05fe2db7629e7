"""A client that says each line of its input to the application and prints what comes back, in JSON.

    talk.py HOST:PORT       framed TCP; it does not connect again: who reads it is told of a connection that ends

A line that begins with "!" is said without it, and nothing is waited for.
"""

from __future__ import annotations

import json
import sys

from netd.client import SyncFramedClient

with SyncFramedClient(sys.argv[1], reconnect=False) as client:
    print(json.dumps({"session": client.hello().session}), flush=True)
    for line in sys.stdin:
        client.text(line.lstrip("!").rstrip("\n"))
        if not line.startswith("!"):
            print(json.dumps(client.receive(timeout=30).text), flush=True)
