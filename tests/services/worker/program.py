"""A worker as a process of its own, on blocking sockets: what messages say is what it does. Run by tests, not a test.

/usr/bin/python program.py [--deaf] [--nobody] [--late FIFO] [SOCKET]
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

from netd.wire.framing import FrameDecoder, FrameLimits
from netd.wire.workers import (
    Done,
    Goodbye,
    Hello,
    HttpResponse,
    Message,
    Ping,
    Pong,
    Request,
    Response,
    Send,
    SessionClosed,
    SessionOpened,
    decode_to_worker,
    encode,
)


def act(data: str) -> str:
    if data == "/crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if data == "/exit":
        print("I was told to", flush=True)
        os._exit(3)
    if data == "/hang":
        time.sleep(600)
    if data == "/flood":
        print("\n".join(f"line {number}" for number in range(10_000)), flush=True)
    if data == "/self":
        with open("/proc/self/status", encoding="ascii") as file:
            status = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
        kept = {key: status[key] for key in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs", "Uid")}
        return json.dumps({**kept, "environment": dict(os.environ), "cwd": os.getcwd(), "stdin": sys.stdin.read()})
    return data.upper()


def main() -> None:
    arguments = sys.argv[1:]
    if "--deaf" in arguments:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        arguments.remove("--deaf")
    if "--nobody" in arguments:  # only now: what is imported may be out of its reach
        os.setgroups([])
        os.setuid(65534)
        arguments.remove("--nobody")
    if "--late" in arguments:  # not before somebody writes there
        at = arguments.index("--late")
        with open(arguments[at + 1], "rb") as fifo:
            fifo.read()
        del arguments[at : at + 2]
    path = arguments[0] if arguments else os.environ["NETD_WORKER_SOCKET"]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(encode(Hello(1, "program", os.getpid(), ["http_request", "message"])))
        print("connected", flush=True)
        decoder = FrameDecoder(FrameLimits(1 << 30))
        while data := sock.recv(65536):
            for message in map(decode_to_worker, decoder.receive(data)):
                match message:
                    case Ping(n):
                        sock.sendall(encode(Pong(n)))
                    case SessionOpened(n) | SessionClosed(n):
                        sock.sendall(encode(Done([n])))
                    case Message(n, session, text):
                        sock.sendall(encode(Send(session=session, data=act(text))) + encode(Done([n])))
                    case Request(n, request):
                        body = act(request.target).encode()
                        sock.sendall(encode(Response(n, HttpResponse(200, body=body))))
                    case Goodbye():
                        return


if __name__ == "__main__":
    main()
