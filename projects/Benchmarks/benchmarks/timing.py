"""Times contestants in turn in one process, so that other work on the machine slows all of them down alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Part = tuple[str, Callable[[], object]]


@dataclass
class Timing:
    """Seconds of every round.

    Attributes:
        wall: wall-clock time.
        cpu: CPU time of all threads of this process; other processes disturb it less.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median wall-clock time, seconds."""
        return statistics.median(self.wall)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the wall-clock time, seconds."""
        if len(self.wall) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.wall, n=4, method="inclusive")
        return low, high

    @property
    def cpu_median(self) -> float:
        """Median of the CPU time, seconds."""
        return statistics.median(self.cpu)


def interleave(
    contestants: Mapping[str, Sequence[Part]], rounds: int, warmup: int = 1, device: str = "cpu", seed: int = 0
) -> dict[str, dict[str, Timing]]:
    """Run every contestant once in each round, in random order, and time its parts.

    Args:
        contestants: name -> parts (name, function), which run one after the other.
        rounds, warmup: rounds that count, and rounds before them that do not.
        device: for "cuda" the GPU is synchronized before each measurement.

    Returns:
        contestant -> part -> timing.
    """
    timings = {name: {part: Timing() for part, _ in parts} for name, parts in contestants.items()}
    order, shuffle = list(contestants), random.Random(seed).shuffle
    for number in range(warmup + rounds):
        shuffle(order)
        for name in order:
            for part, function in contestants[name]:
                wall, cpu = _measure(function, device)
                if number >= warmup:
                    timings[name][part].wall.append(wall)
                    timings[name][part].cpu.append(cpu)
    return timings


def ratio(timing: Timing, to: Timing) -> float:
    """The median over rounds of the ratio of wall-clock times.

    Two measurements of the same round are close in time, so a slow spell of the machine cancels out.
    """
    return statistics.median(a / b for a, b in zip(timing.wall, to.wall, strict=True))


def cpu_ratio(timing: Timing, to: Timing) -> float:
    """As :func:`ratio`, with CPU times."""
    return statistics.median(a / b for a, b in zip(timing.cpu, to.cpu, strict=True))


def _measure(function: Callable[[], object], device: str) -> tuple[float, float]:
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu
