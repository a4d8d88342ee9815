"""How a process that works for another one starts."""

import signal

from soma_det.utils.machine import use_one_core


def init_worker(_worker: int = 0) -> None:
    """One core for each; Ctrl-C reaches all processes, but only the first one decides when to stop."""
    use_one_core()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
