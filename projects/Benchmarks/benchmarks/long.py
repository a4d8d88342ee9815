"""A long training of a tiny detector: whether memory, iteration time or files grow."""

import argparse
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import soma_det
from benchmarks.memory import allocated_mib, workers_mib
from benchmarks.report import Limit, Report
from benchmarks.tiny import register, tiny_cfg, write_images
from soma_det.engine.hooks import BoundedHistories, bound_histories

TRAIN, TEST = "long_train", "long_test"
WINDOWS = 20  # each with one checkpoint and one evaluation
WARMUP = 5  # windows that the slopes leave out
SAMPLES = 5  # of memory in a window
LONG = 40_000  # iterations that sizes of files are extrapolated to
FILES = {"log.txt": "log.txt", "metrics.json": "metrics.json", "event files": "events.out.tfevents.*"}
LIMITS = {"memory": 1.0, "time": 1.0, "files": 100.0}
# All that draws random numbers or keeps something between iterations.
SETTINGS: dict[str, object] = {
    "INPUT.AUGMENTATION.WEATHER.PROBABILITY": 0.3,
    "INPUT.AUGMENTATION.FOURIER.PROBABILITY": 0.3,
    "SOLVER.WEIGHT_AVERAGE.METHOD": "ema",
    "SOLVER.CHECKPOINTS_KEPT": 2,
    "SOLVER.STEPS": [],
}


@dataclass
class Course:
    """What was measured of each iteration; memory of some.

    Attributes:
        wall: seconds of each iteration, with all hooks.
        work: seconds of the same fixed work after each iteration, which what else the machine does slows down as well.
        sampled: iterations after which memory was read.
        main, workers: MiB of the processes, see :mod:`benchmarks.memory`.
    """

    wall: np.ndarray
    work: np.ndarray
    sampled: np.ndarray
    main: np.ndarray
    workers: np.ndarray


class Watch(HookBase):
    """Fills a :class:`Course`, whose arrays are made beforehand: watching takes no memory of its own."""

    def __init__(self, iterations: int):
        self.every = iterations // WINDOWS // SAMPLES
        samples = iterations // self.every
        self.course = Course(
            *(np.zeros(iterations) for _ in range(2)),
            np.arange(1, samples + 1) * self.every,
            *(np.zeros(samples) for _ in range(2)),
        )
        self.start, self.work = 0.0, FixedWork()

    def before_train(self):
        self.start = time.perf_counter()

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self.every == 0:
            self.course.main[done // self.every - 1] = allocated_mib()
            self.course.workers[done // self.every - 1] = workers_mib()
        end = time.perf_counter()
        self.work()
        self.course.wall[done - 1], self.course.work[done - 1] = end - self.start, time.perf_counter() - end
        self.start = time.perf_counter()


class FixedWork:
    """Some 16 ms of what a training does: products, writing to memory, and Python's own work. Takes no new memory."""

    def __init__(self) -> None:
        self.factor, self.product = torch.full((256, 256), 1 / 256), torch.empty(256, 256)
        self.large = torch.zeros(10**6)

    def __call__(self) -> None:
        for _ in range(40):
            torch.mm(self.factor, self.factor, out=self.product)
        self.large.add_(1)
        sum(len(str(number)) for number in range(40_000))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Length, processes and where the chart goes."""
    parser.add_argument("--iterations", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="processes that load images (default: %(default)s)")
    parser.add_argument(
        "--simulated",
        type=int,
        default=LONG,
        help="iterations whose metrics are put without training (default: %(default)s)",
    )
    parser.add_argument("--chart", help="PNG file (default: none)")


def run(args: argparse.Namespace) -> Report:
    """Train once, and fit lines to what comes after the warm-up."""
    if args.iterations % (WINDOWS * SAMPLES):
        raise ValueError(f"--iterations is {args.iterations}: give a multiple of {WINDOWS * SAMPLES}.")
    with tempfile.TemporaryDirectory() as folder:
        course, metrics = train(Path(folder), args)
        sizes = {name: kilobytes(Path(folder), pattern) for name, pattern in FILES.items()}
    report = Report("A long training of a tiny detector", vars(args), rows=window_rows(course))
    slopes = measure_slopes(course)
    report.limits = [
        Limit("growth of the main process, MiB in 1,000 iterations", slopes["main"], LIMITS["memory"]),
        Limit("growth of the workers, MiB in 1,000 iterations", slopes["workers"], LIMITS["memory"]),
        Limit("growth of an iteration's relative time, percent in 1,000 iterations", slopes["time"], LIMITS["time"]),
        Limit(
            f"MB of logs in {LONG:,} iterations", sum(sizes.values()) * LONG / args.iterations / 1e3, LIMITS["files"]
        ),
    ]
    each = ", ".join(f"{name} {1e3 * size / args.iterations:.1f}" for name, size in sizes.items())
    report.notes = [
        f"kB in 1,000 iterations: {each}. MB of {LONG:,} iterations are extrapolated from these.",
        f"Slopes are medians over all pairs of windows but the first {WARMUP} of {WINDOWS}.",
    ]
    report.notes.append(describe_histories(metrics, args.simulated))
    if args.chart:
        draw(report.rows, args.chart)
    return report


def train(folder: Path, args: argparse.Namespace) -> tuple[Course, int]:
    """Train in ``folder``, with one checkpoint and one evaluation in each window.

    Returns:
        What was measured, and how many metrics were put in most of the iterations.
    """
    records = write_images(folder, 16, args.seed)
    register(TRAIN, records, 16)
    register(TEST, records, 8)
    window = args.iterations // WINDOWS
    schedule = {"SOLVER.MAX_ITER": args.iterations, "SOLVER.CHECKPOINT_PERIOD": window, "TEST.EVAL_PERIOD": window}
    others = {"DATALOADER.NUM_WORKERS": args.workers, "SEED": args.seed}
    cfg = tiny_cfg(folder, TRAIN, TEST, SETTINGS | schedule | others)
    setup_logger(str(folder))
    setup_logger(str(folder), name="soma_det", abbrev_name="soma")
    seed_all_rng(args.seed)
    trainer = soma_det.Trainer(cfg)
    trainer.register_hooks([watch := Watch(args.iterations)])
    trainer.resume_or_load(resume=False)
    trainer.train()
    most = min(args.iterations, BoundedHistories.LENGTH) / 2
    return watch.course, sum(len(history.values()) > most for history in trainer.storage.histories().values())


def describe_histories(metrics: int, iterations: int) -> str:
    """What the metrics of a long training need in memory, as a sentence."""
    ours, theirs = (histories_mib(metrics, iterations, length) for length in (BoundedHistories.LENGTH, None))
    puts = f"{metrics} metrics put {iterations:,} times without training"
    return f"{puts}: {ours:.1f} MiB are kept of them, and {theirs:.1f} in Detectron2's own storage."


def histories_mib(metrics: int, iterations: int, length: int | None) -> float:
    """MiB of what a storage keeps of so many metrics in each iteration; None for Detectron2's own length."""
    tracemalloc.start()
    with EventStorage() as storage:
        if length is not None:
            bound_histories(storage, length)
        for storage.iter in range(iterations):
            for number in range(metrics):
                storage.put_scalar(f"metric {number}", float(number))
        used = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    return used


def window_rows(course: Course) -> list[dict]:
    """Medians of times and means of memory in each window."""
    size = len(course.wall) // WINDOWS
    parts = zip(*(np.split(part, WINDOWS) for part in vars(course).values()))
    return [
        {
            "iterations": f"{number * size + 1} to {(number + 1) * size}",
            "iteration, ms": 1e3 * float(np.median(wall)),
            "relative to fixed work": float(np.median(wall) / np.median(work)),
            "main process, MiB": float(np.mean(main)),
            "workers, MiB": float(np.mean(workers)),
        }
        for number, (wall, work, _, main, workers) in enumerate(parts)
    ]


def measure_slopes(course: Course) -> dict[str, float]:
    """Growth in 1,000 iterations after the warm-up: MiB of memory, percent of the relative time."""
    rows = window_rows(course)[WARMUP:]
    x = np.arange(len(rows)) * len(course.wall) / WINDOWS / 1e3
    columns = ("main process, MiB", "workers, MiB", "relative to fixed work")
    main, workers, relative = (np.array([row[column] for row in rows]) for column in columns)
    percent = 100 * slope(x, relative) / float(np.median(relative))
    return {"main": slope(x, main), "workers": slope(x, workers), "time": percent}


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """The median of the slopes of all pairs of points, which single outliers do not move (Theil and Sen's)."""
    return float(np.median([(y[j] - y[i]) / (x[j] - x[i]) for i, j in combinations(range(len(x)), 2)]))


def kilobytes(folder: Path, pattern: str) -> float:
    """The size of these files together, kB."""
    return sum(path.stat().st_size for path in folder.glob(pattern)) / 1e3


def draw(rows: list[dict], path: str) -> None:
    """Save the windows' memory and relative time as a PNG; time alone would show what else the machine does."""
    figure = Figure(figsize=(7.2, 2.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    memory, times = figure.subplots(1, 2)
    ends = [int(row["iterations"].split()[-1]) for row in rows]
    for axes, column, label, color in (
        (memory, "main process, MiB", "main process", "#0072b2"),
        (memory, "workers, MiB", "workers", "#d55e00"),
        (times, "relative to fixed work", "main process", "#0072b2"),
    ):
        axes.plot(ends, [row[column] for row in rows], "o-", color=color, linewidth=1.5, markersize=3.5, label=label)
    for axes, title in ((memory, "Memory, MiB"), (times, "Time of an iteration, in that of fixed work")):
        axes.set_title(title, loc="left", fontsize=10, color="#2b2f36")
        axes.set_xlabel("iteration", fontsize=9, color="#2b2f36")
        axes.set_ylim(0, 1.4 * axes.get_ylim()[1])
        axes.grid(axis="y", color="#e3e6ea")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8, color="#e3e6ea", labelcolor="#2b2f36")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
