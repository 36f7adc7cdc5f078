"""End the process within a second of SIGINT or SIGTERM, whatever it is doing.

The first signal raises KeyboardInterrupt in the main thread, which unwinds and releases what it holds. That may take
long: a worker may be waiting for the Hub, or the main thread may be inside Rust code, which sees no exception. So a
thread, woken by Python's C signal handler (`set_wakeup_fd`), ends the process after `GRACE_SECONDS`. Nothing is lost,
because a build may be killed at any instant.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

#: Time for an orderly end. Stopping between two batches takes 50 ms.
GRACE_SECONDS = 0.4

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignals:
    """Makes SIGINT and SIGTERM end this process with exit code 1.

    Args:
        say: prints the message for the user. Called once, by the first thread that ends the process.
    """

    def __init__(self, say: Callable[[], None]) -> None:
        self.came = False
        self._say = say
        self._said = threading.Lock()
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._interrupt)
        threading.Thread(target=self._end_after_signal, args=(read,), name="signals", daemon=True).start()

    def say(self) -> None:
        if self._said.acquire(blocking=False):
            self._say()

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if not self.came:  # a second signal must not interrupt the orderly end
            self.came = True
            raise KeyboardInterrupt

    def _end_after_signal(self, read: int) -> None:
        while (got := os.read(read, 1)) and got[0] not in _SIGNALS:
            pass
        time.sleep(GRACE_SECONDS)
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # the progress bar hides the cursor
        self.say()
        sys.stderr.flush()
        os._exit(1)
