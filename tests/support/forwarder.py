"""Links with delay and loss for kernels without netem: packets carried from one TUN device to another.

    python -m tests.support.forwarder DELAY_SECONDS FD:FD:LOSS ...

Each pair of descriptors is a link's two ends, LOSS the share of packets lost (0..1) each way. Prints "ready" and runs
until its standard input is closed, so it cannot outlive whoever started it.
"""

from __future__ import annotations

import ctypes
import heapq
import os
import random
import select
import sys
import time

_PR_SET_TIMERSLACK = 29
_LARGEST = 2048
_MOST_QUEUED = 65536
"""Packets in all links together; more are dropped, as a full queue would."""
_BATCH = 64


def main() -> None:
    # timers 50 us late, the default, add up over twenty links
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    delay = float(sys.argv[1])
    other: dict[int, int] = {}
    loss: dict[int, float] = {}
    for link in sys.argv[2:]:
        left, right, share = link.split(":")
        for one, two in ((int(left), int(right)), (int(right), int(left))):
            other[one], loss[one] = two, float(share)
            os.set_blocking(one, False)
    print("ready", flush=True)
    stdin = sys.stdin.fileno()
    watched = [*other, stdin]
    queue: list[tuple[float, int, int, bytes]] = []
    serial = 0
    clock = time.monotonic
    while True:
        timeout = max(0.0, queue[0][0] - clock()) if queue else None
        # select takes microseconds where poll and epoll round to milliseconds
        ready, _, _ = select.select(watched, (), (), timeout)
        now = clock()
        while queue and queue[0][0] <= now:
            _, _, to, packet = heapq.heappop(queue)
            _write(to, packet)
        for fd in ready:
            if fd == stdin:
                return
            for _ in range(_BATCH):
                try:
                    packet = os.read(fd, _LARGEST)
                except BlockingIOError:
                    break
                if len(queue) >= _MOST_QUEUED or (loss[fd] and random.random() < loss[fd]):
                    continue
                serial += 1
                heapq.heappush(queue, (clock() + delay, serial, other[fd], packet))


def _write(fd: int, packet: bytes) -> None:
    try:
        os.write(fd, packet)
    except (BlockingIOError, OSError):
        return  # the device is down or its queue full: the packet is lost, as on any link


if __name__ == "__main__":
    main()
