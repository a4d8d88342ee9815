"""Trains and evaluates what a comparison lists, each run in a folder and a process of its own."""

import datetime
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import shlex
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from adapter_comparison.bootstrap import resample_split
from adapter_comparison.plan import Comparison, flat_settings
from soma_det.config import setup_cfg
from soma_det.evaluation.detections import DETECTIONS_FILE
from soma_det.evaluation.results import load_results
from soma_det.modeling import build_structure
from soma_det.utils.files import atomic_path, write_text
from soma_det.modeling.backbone.timm_vit import count_parameters

RECORD_FILE, LOG_FILE, RESAMPLED_FILE, LOCK_FILE = "run.json", "train.log", "resampled.npz", ".lock"
# Where things are and how they are loaded, which changes no result.
FREE_SETTINGS = {"OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD", "MODEL.ADAPTER.SOMA.CACHE"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One training: a configuration with a seed.

    Attributes:
        arguments: of tools/train_net.py.
        folder: where everything of this run is written.
        cfg: what the arguments come to.
    """

    name: str
    seed: int
    arguments: tuple[str, ...]
    folder: Path
    cfg: CfgNode = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


@dataclass(frozen=True)
class Finished:
    """What a finished run left.

    Attributes:
        record: "seconds", "seconds_per_iteration", "peak_memory_mb", "trainable_parameters" and more, see RECORD_FILE.
        results: split -> what the evaluator returned for it.
        resampled: split -> (resamples, classes) VOC AP50 on resampled images.
    """

    run: Run
    record: dict
    results: dict[str, dict]
    resampled: dict[str, np.ndarray]


@dataclass(frozen=True)
class Exit:
    """How a training ended: its exit code, and its peak resident memory in MiB where that is known."""

    code: int
    peak_memory_mb: float | None = None


Train = Callable[[Sequence[str], Path], Exit]


class TrainingProcess:
    """Trains in a new process and passes signals on to it, so that it can save what it has.

    Args:
        command: the words before the arguments, such as [python, tools/train_net.py].
    """

    def __init__(self, command: Sequence[str]):
        self.command, self.process, self.received, self.waiting = list(command), None, None, None

    def __call__(self, arguments: Sequence[str], log: Path) -> Exit:
        """Run to the end; output is appended to ``log``.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM came; the training has ended by then.
        """
        command, self.process = [*self.command, *arguments], None
        with log.open("a", encoding="utf-8") as file, self._passing_signals_on():
            file.write(f"{datetime.datetime.now().isoformat(timespec='seconds')} $ {shlex.join(command)}\n")
            file.flush()
            # A session of its own: Ctrl-C reaches it once, through this process. The run's lock is inherited.
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, close_fds=False
            )
            if self.waiting is not None:  # it came before there was a process
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

    def _pass_on(self, number: int, frame) -> None:
        self.received = number
        logger.warning("The training saves what it has and stops; once more to stop at once.")
        if self.process is None:
            self.waiting = number
        elif self.process.returncode is None:
            self.process.send_signal(number)


def _wait(process: subprocess.Popen) -> Exit:
    """Wait for the end and watch the peak memory meanwhile.

    What the system reports of a process that has ended (ru_maxrss) is at least the memory of the one that started it.
    """
    peak = None
    while True:
        try:
            return Exit(process.wait(timeout=0.5), peak)
        except subprocess.TimeoutExpired:
            peak = _resident_peak_mb(process.pid) or peak


def _resident_peak_mb(pid: int) -> float | None:
    """Of a running process, so far; None where the system does not tell, as only Linux does."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else None


def plan_runs(comparison: Comparison, output: str | Path) -> list[Run]:
    """Every run, the seeds one after the other: after the first seed, each configuration has been trained once.

    Raises:
        ValueError: a setting is wrong; the message names the run.
    """
    runs = []
    for seed in comparison.seeds:
        for configuration in comparison.configurations:
            folder = Path(output) / configuration.name / f"seed{seed}"
            words = [*configuration.opts, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
            try:
                cfg = setup_cfg(configuration.config_file, words)
            except ValueError as error:
                raise ValueError(f"The run {configuration.name}: {error}") from error
            arguments = ("--config-file", configuration.config_file, "--resume", *words)
            runs.append(Run(configuration.name, seed, arguments, folder, cfg))
    return runs


def require_unchanged(run: Run) -> None:
    """Raise a ValueError if the run's folder holds a training with other settings, pretrained weights or data."""
    saved = run.folder / "config.yaml"
    if saved.is_file() and (is_finished(run) or (run.folder / "last_checkpoint").is_file()):
        before, now = flat_settings(setup_cfg(str(saved))), flat_settings(run.cfg)
        changed = [key for key in now if now[key] != before.get(key) and key not in FREE_SETTINGS]
        if changed:
            key = changed[0]
            _refuse(run, f"{key} {before.get(key)!r}, where now it is {now[key]!r}")
    if not is_finished(run):
        return
    record = _read_record(run)
    if record["weights_sha256"] != weights_sha256(run.cfg):
        _refuse(run, f"other content of {run.cfg.MODEL.VIT.WEIGHTS}, or that file is gone")
    data = data_sha256((*run.cfg.DATASETS.TRAIN, *run.cfg.DATASETS.TEST))
    if record.get("data_sha256", data) != data:
        _refuse(run, "other images or boxes")


def _refuse(run: Run, what: str) -> None:
    raise ValueError(
        f"{run.folder} was trained with {what}. Give the changed run another name, or compare into another --output, or "
        f"delete {run.folder} to train it anew."
    )


def is_finished(run: Run) -> bool:
    """Whether it has been trained and evaluated."""
    return (run.folder / RECORD_FILE).is_file()


def train_all(
    runs: Sequence[Run],
    train: Train,
    failures: dict[Run, str],
    after_each: Callable[[], object],
    keep_checkpoints: bool = False,
) -> None:
    """Train and evaluate what is not finished, one run after the other, going on where one fails.

    Several processes may work on the same runs: each takes what no other has taken.

    Args:
        failures: filled with the runs that fail -> why.
        after_each: called when a run has ended.
        keep_checkpoints: otherwise a run's models are deleted when it has been evaluated.

    Raises:
        ValueError: a folder holds a run with other settings; nothing was trained.
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
    """Train, evaluate and record one run, unless another process does or has; return why it failed, or ""."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with _locked(run.folder / LOCK_FILE) as free:
        if not free:
            logger.info("%s is left to the process that is training it.", run)
        if not free or is_finished(run):
            return ""
        start = time.monotonic()
        exit = train(run.arguments, run.folder / LOG_FILE)
        if exit.code:
            return f"exit code {exit.code}; its last words in {run.folder / LOG_FILE}: {_last_line(run.folder)}"
        try:
            _record(run, exit, time.monotonic() - start)
        except (ValueError, OSError) as error:
            return f"it was trained, but what it left could not be recorded: {error}"
        if not keep_checkpoints:
            delete_checkpoints(run.folder)
    return ""


def load_finished(runs: Sequence[Run]) -> list[Finished]:
    """What all finished runs left, in their order."""
    finished = []
    for run in filter(is_finished, runs):
        with np.load(run.folder / RESAMPLED_FILE) as arrays:
            resampled = dict(arrays)
        results = load_results(run.folder)["results"]
        finished.append(Finished(run, _read_record(run), results, resampled))
    return finished


def delete_checkpoints(folder: Path) -> None:
    """Delete the models in a run's folder; scores, detections and logs stay."""
    for path in [*folder.glob("model_*.pth"), folder / "last_checkpoint"]:
        path.unlink(missing_ok=True)


def count_trainable(cfg: CfgNode) -> dict[str, int]:
    """Trained parameters: "adapter", of the ViT (or of all of another backbone), and "all", with pyramid and head."""
    model = build_structure(cfg)
    adapted = getattr(model.backbone, "net", model.backbone)
    return {"adapter": count_parameters(adapted, trainable=True), "all": count_parameters(model, trainable=True)}


def weights_sha256(cfg: CfgNode) -> str:
    """Of the file of pretrained weights; "" where they are random or come from timm's hub."""
    path = cfg.MODEL.VIT.WEIGHTS
    return _sha256(path, os.stat(path).st_mtime_ns) if os.path.isfile(path) else ""


@functools.lru_cache
def data_sha256(names: tuple[str, ...]) -> str:
    """Of the names of the images and of their boxes, set by set; the images themselves are not read."""
    digest = hashlib.sha256()
    for name in names:
        for record in DatasetCatalog.get(name):
            boxes = [(box["category_id"], [float(x) for x in box["bbox"]]) for box in record.get("annotations", ())]
            digest.update(json.dumps([str(record["image_id"]), boxes]).encode())
    return digest.hexdigest()


@functools.lru_cache
def _sha256(path: str, changed: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(2**20), b""):
            digest.update(part)
    return digest.hexdigest()


def _record(run: Run, exit: Exit, seconds: float) -> None:
    """Write what only now is known, and the scores on resampled images; the record says that the run is finished."""
    resampled = {
        name: resample_split(name, run.folder / "inference" / name / DETECTIONS_FILE) for name in run.cfg.DATASETS.TEST
    }
    with atomic_path(run.folder / RESAMPLED_FILE) as temporary:
        np.savez_compressed(temporary, **resampled)
    record = {
        "name": run.name,
        "seed": run.seed,
        "arguments": list(run.arguments),
        "weights_sha256": weights_sha256(run.cfg),
        "data_sha256": data_sha256((*run.cfg.DATASETS.TRAIN, *run.cfg.DATASETS.TEST)),
        "seconds": round(seconds, 1),
        "seconds_per_iteration": seconds_per_iteration(run.folder),
        "peak_memory_mb": _peak_memory_mb(run, exit),
        "trainable_parameters": count_trainable(run.cfg),
    }
    write_text(run.folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")


def seconds_per_iteration(folder: Path) -> float | None:
    """The median over what metrics.json tells; None if the training was too short for it to tell."""
    lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    times = [entry["time"] for entry in map(json.loads, lines) if "time" in entry]
    return statistics.median(times) if times else None


def _peak_memory_mb(run: Run, exit: Exit) -> float | None:
    """On CUDA that of the GPU, which Detectron2 logs; else that of the training process."""
    if not run.cfg.MODEL.DEVICE.startswith("cuda"):
        return exit.peak_memory_mb
    found = re.findall(r"max_mem: (\d+)M", (run.folder / "log.txt").read_text(encoding="utf-8"))
    return float(max(map(int, found))) if found else None


def _read_record(run: Run) -> dict:
    return json.loads((run.folder / RECORD_FILE).read_text(encoding="utf-8"))


def _remaining(runs: Sequence[Run], number: int) -> str:
    seconds = [_read_record(run)["seconds"] for run in runs if is_finished(run)]
    left = datetime.timedelta(seconds=round(number * statistics.mean(seconds)))
    return f"{number} to go, about {left} (h:min:s)." if number else "It was the last."


def _last_line(folder: Path) -> str:
    log = folder / LOG_FILE
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "none")


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether this process alone has the file, until the end of the block and of all processes started in it."""
    with path.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
