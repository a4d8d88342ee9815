"""Starts a target, kills it at a random moment, and says what the kill hit."""

import mmap
import os
import random
import signal
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.engine import TrainerBase
from interruption_differences import PARTIAL
from interruption_processes import descendants, fork, is_alive, signal_groups
from interruption_targets import Target, tail


class IterationCounter:
    """The iteration that forked trainings are at, in memory that they share with this process."""

    def __init__(self):
        self.shared = mmap.mmap(-1, 8)
        before_step = TrainerBase.before_step

        def counting(trainer: TrainerBase) -> None:
            self.set(trainer.iter)
            before_step(trainer)

        TrainerBase.before_step = counting

    def set(self, iteration: int) -> None:
        """Note an iteration; -1 for none."""
        self.shared[:] = struct.pack("q", iteration)

    def get(self) -> int:
        """The latest one."""
        return struct.unpack("q", self.shared[:])[0]


def partial_files(folder: Path) -> set[tuple[str, int]]:
    """Files below a folder that are being written, or were when a process was killed."""
    found = set()
    for pattern in PARTIAL:
        for path in folder.rglob(pattern):
            try:
                found.add((str(path), path.stat().st_mtime_ns))
            except FileNotFoundError:  # it has its place by now
                continue
    return found


@dataclass
class Killer:
    """Starts a target, kills it at a random moment, and says so.

    Attributes:
        seconds: how long an undisturbed run takes.
        running: processes that were started and not killed.
        below: what the latest of them had started when it was last looked at.
        lost: iterations, of each kill.
        kinds: of moments, counted.
    """

    target: Target
    seconds: float
    rng: random.Random
    counter: IterationCounter
    running: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)

    def attempt(self, folder: Path, log: Path, title: str) -> bool:
        """Start or go on. Returns whether it was killed; False: it has come to its end.

        Raises:
            RuntimeError: it ended with an error.
        """
        self.counter.set(-1)
        before = partial_files(folder)
        pid = fork(lambda: self.target.run(folder), log)
        self.running.append(pid)
        code = self._wait(pid, folder)
        if code is not None:
            self.running.remove(pid)
            signal_groups([pid], signal.SIGKILL)
            if code:
                raise RuntimeError(f"exit code {code}; the end of {log}:\n{tail(log)}")
            return False
        orphans = self.target.name == "comparison" and self.rng.random() < 0.5
        # Looking for processes takes longer than many a write: all stands still meanwhile.
        signal_groups([pid, *([] if orphans else self.below)], signal.SIGSTOP)
        below = descendants(pid)
        signal_groups([pid], signal.SIGKILL)
        os.waitpid(pid, 0)
        self.running.remove(pid)
        if orphans:
            self.running += (left := [other for other in below if is_alive(other)])
        else:
            signal_groups(below, signal.SIGKILL)
        print(
            f"{title}: {self._describe(folder, before)}{f', {len(left)} processes go on' if orphans else ''}",
            flush=True,
        )
        return True

    def finish(self) -> None:
        """Wait until no process of a killed one runs any more."""
        while any(map(is_alive, self.running)):
            time.sleep(0.1)
        self.running.clear()

    def stop(self) -> None:
        """Kill everything that was started."""
        signal_groups([other for pid in self.running for other in descendants(pid)], signal.SIGKILL)
        signal_groups(self.running, signal.SIGKILL)

    def _wait(self, pid: int, folder: Path) -> int | None:
        """The exit code of the process, or None when the time for its kill has come."""
        writes = self.rng.randint(1, 6) if self.rng.random() < 0.5 else 0  # 0: at any moment
        deadline = time.monotonic() + self.rng.uniform(0, self.seconds)
        seen, self.below, looked = partial_files(folder), [], time.monotonic()
        while True:
            if time.monotonic() > looked + 0.3:
                self.below, looked = descendants(pid), time.monotonic()
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if writes:
                now = partial_files(folder)
                new, seen = now - seen, now
                writes -= bool(new)
                if new and not writes:
                    time.sleep(self.rng.uniform(0, 0.01))
                    return None
            elif time.monotonic() > deadline:
                return None
            time.sleep(0.001 if writes else 0.01)

    def _describe(self, folder: Path, before: set[tuple[str, int]]) -> str:
        """What a kill hit; ``before`` are the partial files that earlier kills had left."""
        kind = "during a write" if partial_files(folder) - before else "between writes"
        self.kinds[kind] += 1
        if self.target.name != "training":
            return f"{kind}, {self.target.progress(folder)}"
        reached, saved = self.counter.get() + 1, saved_iterations(folder)
        if not reached:
            return f"{kind}, before the first iteration"
        self.lost.append(max(0, reached - saved))
        return f"{kind}, in iteration {reached}; {saved} are saved"


def saved_iterations(folder: Path) -> int:
    """The iterations in the checkpoint that --resume goes on from."""
    last = folder / "last_checkpoint"
    return 1 + torch.load(folder / last.read_text(), weights_only=True)["iteration"] if last.exists() else 0
