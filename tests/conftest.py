"""What every test can rely on, however the suite was started."""

from __future__ import annotations

import gc
import signal

from hypothesis import settings


def pytest_configure() -> None:
    """No test is judged by its time, and programs that tests start end on Ctrl-C.

    Hypothesis would fail an example that takes 0.2 s: on a busy machine any may.

    A shell without job control starts what it puts into the background (`make test &`, nohup) with SIGINT ignored, and
    that is inherited by every child. A handler is not (execve(2)); ours does nothing, as the shell wanted.
    """
    settings.register_profile("netd", deadline=None)
    settings.load_profile("netd")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    gc.disable()


def pytest_collection_finish() -> None:
    """Nothing that the suite is made of is garbage, and to look through it all while it grows takes seconds."""
    gc.freeze()
    gc.enable()
