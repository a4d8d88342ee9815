"""Trains and evaluates the runs that are not finished. Several processes may share the runs of one comparison."""

import datetime
import fcntl
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adapter_comparison.process import Train
from adapter_comparison.runs import LOG_FILE, Run, is_finished, read_record, record_run, require_unchanged

LOCK_FILE = ".lock"

logger = logging.getLogger(__name__)


def train_all(
    runs: Sequence[Run],
    train: Train,
    failures: dict[Run, str],
    after_each: Callable[[], object],
    keep_checkpoints: bool = False,
) -> None:
    """Train and evaluate all unfinished runs in turn. A run that fails does not stop the others.

    Several processes may work on the same runs: each skips the runs that another one is training.

    Args:
        failures: is filled: run -> why it failed.
        after_each: is called after each run.
        keep_checkpoints: without it a run's checkpoints are deleted after its evaluation.

    Raises:
        ValueError: a folder holds a run with other settings. Nothing was trained.
        KeyboardInterrupt: from ``train``.
    """
    for run in runs:
        require_unchanged(run)
    open_runs = [run for run in runs if not is_finished(run)]
    logger.info("%d of %d runs are done, %d to go.", len(runs) - len(open_runs), len(runs), len(open_runs))
    for index, run in enumerate(open_runs, 1):
        logger.info("Run %d of %d: %s; its log is %s", index, len(open_runs), run, run.folder / LOG_FILE)
        failure = train_one(run, train, keep_checkpoints)
        if failure:
            failures[run] = failure
            logger.error("%s failed: %s. The others go on.", run, failure)
        elif is_finished(run):
            logger.info("%s is done. %s", run, _remaining(runs, len(open_runs) - index))
        if failure or is_finished(run):
            after_each()


def train_one(run: Run, train: Train, keep_checkpoints: bool = False) -> str:
    """Train, evaluate and record one run, unless another process does. Returns why it failed, or ""."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with _locked(run.folder / LOCK_FILE) as free:
        if not free:
            logger.info("%s: another process is training it.", run)
        if not free or is_finished(run):
            return ""
        start = time.monotonic()
        exit = train(run.arguments, run.folder / LOG_FILE)
        if exit.code:
            return f"exit code {exit.code}; the last line of {run.folder / LOG_FILE}: {_last_line(run.folder)}"
        try:
            record_run(run, exit, time.monotonic() - start)
        except (ValueError, OSError) as error:
            return f"it was trained, but its results could not be recorded: {error}"
        if not keep_checkpoints:
            delete_checkpoints(run.folder)
    return ""


def delete_checkpoints(folder: Path) -> None:
    """Delete the checkpoints in a run's folder; scores, detections and logs stay."""
    for path in [*folder.glob("model_*.pth"), folder / "last_checkpoint"]:
        path.unlink(missing_ok=True)


def _remaining(runs: Sequence[Run], number: int) -> str:
    seconds = [read_record(run)["seconds"] for run in runs if is_finished(run)]
    left = datetime.timedelta(seconds=round(number * statistics.mean(seconds)))
    return f"{number} to go, about {left} (h:min:s)." if number else "It was the last one."


def _last_line(folder: Path) -> str:
    log = folder / LOG_FILE
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "none")


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Yield whether this process got the lock. The processes that it starts in the block hold the lock too."""
    with path.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
