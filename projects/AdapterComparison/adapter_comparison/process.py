"""A training in a process of its own: signals reach it, and its memory is watched."""

import datetime
import logging
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exit:
    """How a training ended: its exit code, and its peak resident memory in MiB where that is known."""

    code: int
    peak_memory_mb: float | None = None


Train = Callable[[Sequence[str], Path], Exit]


class TrainingProcess:
    """Runs each training in a new process and passes signals on to it, so that it can save its state.

    Args:
        command: the words before the arguments, such as [python, tools/train_net.py].
    """

    def __init__(self, command: Sequence[str]):
        self.command = list(command)
        self.process: subprocess.Popen | None = None
        self.received: int | None = None  # the signal that came
        self.waiting: int | None = None  # one that came before there was a process

    def __call__(self, arguments: Sequence[str], log: Path) -> Exit:
        """Run one training to its end; its output is appended to ``log``.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM came. The training has ended by then.
        """
        command, self.process = [*self.command, *arguments], None
        with log.open("a", encoding="utf-8") as file, self._passing_signals_on():
            file.write(f"{datetime.datetime.now().isoformat(timespec='seconds')} $ {shlex.join(command)}\n")
            file.flush()
            # A session of its own: Ctrl-C reaches it once, through this process. The run's lock is inherited.
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, close_fds=False
            )
            if self.waiting is not None:
                self.process.send_signal(self.waiting)
            exit = _wait(self.process)
        if self.received is not None:
            raise KeyboardInterrupt
        return exit

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._pass_on) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        logger.warning("The training saves its state and stops. A second signal stops it at once.")
        if self.process is None:
            self.waiting = number
        elif self.process.returncode is None:
            self.process.send_signal(number)


def _wait(process: subprocess.Popen) -> Exit:
    """Wait for the end and watch the peak memory.

    The system's own figure (ru_maxrss) is no use: it is at least the memory of the process that started this one.
    """
    peak = None
    while True:
        try:
            return Exit(process.wait(timeout=0.5), peak)
        except subprocess.TimeoutExpired:
            peak = _resident_peak_mb(process.pid) or peak


def _resident_peak_mb(pid: int) -> float | None:
    """Peak memory of a running process; None on systems other than Linux, which do not report it."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else None
