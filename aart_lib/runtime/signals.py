"""Word of signals, and streams that never fail."""

import signal
import sys
import threading
from contextlib import contextmanager


@contextmanager
def on_signals(handler):
    """SIGINT and SIGTERM go to a handler for a while; only the main thread may ask for them."""
    own = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)} if own else {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def show_any_text() -> None:
    """What the console or the file behind the standard streams cannot show becomes a question mark, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
