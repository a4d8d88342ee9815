"""Forks, what they start, and signals to all of it."""

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path


def fork(work: Callable[[], None], log: Path) -> int:
    """Do ``work`` in a forked process with a process group of its own, its output appended to ``log``; its id."""
    sys.stdout.flush()
    if pid := os.fork():
        with contextlib.suppress(ProcessLookupError):
            os.setpgid(pid, pid)  # here too: before it has a group of its own, a kill would hit this script's
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it dies with this script
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it has ended meanwhile
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, queue = [], [pid]
    while queue:
        found += (below := children.get(queue.pop(), []))
        queue += below
    return found


def signal_groups(pids: Sequence[int], number: int) -> None:
    """Send a signal to the process groups of these processes."""
    for pid in pids:
        try:
            os.killpg(os.getpgid(pid), number)
        except ProcessLookupError:
            continue


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
