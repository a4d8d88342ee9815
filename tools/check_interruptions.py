#!/usr/bin/env python
"""Kill a training, a comparison or an evaluation many times and compare its results: see --help, or run

python tools/check_interruptions.py --output output/kills
"""

import argparse
import contextlib
import ctypes
import importlib.util
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
import numpy as np
import torch
import yaml
from detectron2.engine import TrainerBase
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {
    "training": ROOT / "tools" / "train_net.py",
    "comparison": ROOT / "projects" / "AdapterComparison" / "compare_adapters.py",
    "corruptions": ROOT / "tools" / "evaluate_corruptions.py",
}

EXAMPLES = """
Examples:

100 kills of a training, in about ten minutes on two cores:
    python tools/check_interruptions.py --output output/kills

The same kind of kills for the two tools that run many evaluations:
    python tools/check_interruptions.py --target comparison --kills 10 --output output/kills_comparison
    python tools/check_interruptions.py --target corruptions --kills 10 --output output/kills_corruptions

Other moments, and a training with other settings:
    python tools/check_interruptions.py --kills 20 --seed 2 --output output/kills_lora MODEL.ADAPTER.NAME lora

A tiny training (64 x 64 pixels, random weights, workers, augmentation, drop path, the dropout of mixed adapters, an
average of the weights, evaluations in between) runs once undisturbed, in a new process. Then it runs in other folders
and its process group gets SIGKILL, half of the times at any moment, half of the times after the start of a write, and
is started again with --resume, until it is done; and so on until there were enough kills. Each start is a fork of one
process that has imported everything, and calls the tool's own main. At the end weights, optimizer, schedule, hooks,
metrics and scores are compared bit for bit; times and dates are left out.
A killed comparison leaves, half of the times, the training that it has started alive.

The exit code is 1 where anything differs, and 130 after Ctrl-C.
"""

DOMAINS = ("daytime_clear", "night_sunny")
CHECKPOINTS = "model_*.pth"
PARTIAL = ("*.partial.pth", ".*-????????*")  # of soma_det's checkpointer, and of soma_det.utils.files
# What measures the machine and the day.
TIMES = {"time", "data_time", "rank_data_time", "eta_seconds", "date", "seconds", "seconds_per_iteration"}
TIMES |= {"peak_memory_mb"}

SETTINGS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.VIT.NAME": "test_vit",
    "MODEL.VIT.WEIGHTS": "",
    "MODEL.VIT.IMG_SIZE": [64, 64],
    "MODEL.VIT.FROZEN_BLOCKS": 2,
    "MODEL.VIT.DROP_PATH": 0.2,
    "MODEL.ADAPTER.NAME": "moa",
    "MODEL.PYRAMID.OUT_CHANNELS": 8,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "DATASETS.WEATHER.PREFIX": "tiny",
    "DATASETS.WEATHER.DOMAINS": list(DOMAINS),
    "DATASETS.TRAIN": ["tiny_daytime_clear_train"],
    "DATASETS.TEST": ["tiny_daytime_clear_test", "tiny_night_sunny_test"],
    "DATASETS.SOURCE_TEST": "tiny_daytime_clear_test",
    "DATALOADER.NUM_WORKERS": 2,
    "INPUT.AUGMENTATION.CROP_SIZE": [64, 64],
    "INPUT.AUGMENTATION.SCALE_RANGE": [0.5, 1.5],
    "INPUT.AUGMENTATION.WEATHER.PROBABILITY": 0.3,
    "INPUT.AUGMENTATION.FOURIER.PROBABILITY": 0.3,
    "INPUT.MIN_SIZE_TEST": 48,
    "INPUT.MAX_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.002,
    "SOLVER.MAX_ITER": 50,
    "SOLVER.STEPS": [35, 45],
    "SOLVER.WARMUP_ITERS": 10,
    "SOLVER.CHECKPOINT_PERIOD": 4,
    "SOLVER.CHECKPOINTS_KEPT": 2,
    "SOLVER.WEIGHT_AVERAGE.METHOD": "ema",
    "TEST.EVAL_PERIOD": 12,  # at the same iterations as a checkpoint
    "TEST.KEEP_BEST": True,
}


# What runs


def write_data(root: Path) -> Path:
    """Two domains of 6 training and 4 test images in VOC's layout, 64 x 48 pixels of noise, each with a bright car."""
    rng = np.random.default_rng(0)
    for domain in DOMAINS:
        devkit = root / domain / "VOC2007"
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (devkit / folder).mkdir(parents=True, exist_ok=True)
        for split, count in (("train", 6), ("test", 4)):
            names = [f"{domain}_{split}{number}" for number in range(count)]
            (devkit / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
            for name in names:
                left, top = rng.integers(0, 32), rng.integers(0, 24)
                pixels = rng.integers(0, 100, (48, 64, 3), dtype=np.uint8)
                pixels[top : top + 20, left : left + 28] += 150
                Image.fromarray(pixels).save(devkit / "JPEGImages" / f"{name}.jpg")
                corners = zip(("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, left + 28, top + 20))
                box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
                entry = f"<object><name>car</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
                (devkit / "Annotations" / f"{name}.xml").write_text(f"<annotation>{entry}</annotation>")
    return root


@dataclass
class Target:
    """A command that is killed.

    Attributes:
        arguments: output folder -> the tool's arguments; the same for the first start and for all others.
        done: whether an output folder holds the results of all.
        results: which files in the output folder are compared, as patterns.
        progress: how far an output folder is, in words.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    done: Callable[[Path], bool]
    results: tuple[str, ...]
    progress: Callable[[Path], str] = lambda folder: ""
    tool: ModuleType = field(init=False)

    def __post_init__(self):
        path = TOOLS[self.name]
        sys.path.insert(0, str(path.parent))  # as for a script: its package is beside it
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader
        self.tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.tool)

    def run(self, folder: Path) -> None:
        """Call the tool's own main."""
        arguments = self.arguments(folder)
        if self.name == "comparison":
            sys.exit(self.tool.main(arguments))
        getattr(self.tool, "start", self.tool.main)(self.tool.parse_args(arguments))

    def command(self, folder: Path) -> list[str]:
        """The same as a command line."""
        return [sys.executable, str(TOOLS[self.name]), *self.arguments(folder)]


def build_target(name: str, output: Path, opts: Sequence[str]) -> Target:
    """Write the data and the config into ``output``, and what else the target needs."""
    settings = SETTINGS | {"DATASETS.WEATHER.ROOT": str(write_data(output / "data").resolve())}
    settings |= {key: yaml.safe_load(value) for key, value in zip(opts[::2], opts[1::2], strict=True)}
    base = str(ROOT / "configs" / "Base-SoMA.yaml")
    config = write_config(output / "config.yaml", base, settings)
    if name == "training":
        return Target(
            name,
            lambda folder: ["--config-file", str(config), "--resume", "OUTPUT_DIR", str(folder)],
            lambda folder: True,  # its exit code says it
            (CHECKPOINTS, "metrics.json", "results.json", "inference/*/*.json"),
        )
    if name == "comparison":
        shared = settings | {"SOLVER.MAX_ITER": 12, "SOLVER.STEPS": [], "TEST.EVAL_PERIOD": 0, "TEST.KEEP_BEST": False}
        runs = {"moa": {}, "biases": {"MODEL.ADAPTER.NAME": "biases"}}
        comparison = {"config": base, "options": shared, "seeds": [1], "runs": runs}
        config.write_text(yaml.safe_dump(comparison))
        return Target(
            name,
            lambda folder: ["--config-file", str(config), "--output", str(folder)],
            lambda folder: (
                # Where another process trains the last run, a comparison ends without it.
                (folder / "results.json").exists() and not json.loads((folder / "results.json").read_text())["missing"]
            ),
            ("results.json", "*/seed*/results.json", "*/seed*/metrics.json", "*/seed*/inference/*/*.json"),
            lambda folder: f"{len(list(folder.rglob('run.json')))} of {len(runs)} runs are done",
        )
    train = Target("training", lambda f: ["--config-file", str(config), "OUTPUT_DIR", str(f)], bool, ())
    undisturbed(train, output / "model", output / "model.log")
    return Target(
        name,
        lambda folder: [
            *("--config-file", str(config), "--weights", str(output / "model" / "model_final.pth")),
            *("--output", str(folder), "--corruptions", *simulated_weathers()),
        ],
        lambda folder: True,
        ("results.json", "*/*/results.json", "*/*/inference/*/*.json"),
        lambda folder: f"{len(list(folder.glob('*/*/results.json')))} of {1 + len(simulated_weathers())} are done",
    )


def write_config(path: Path, base: str, settings: dict) -> Path:
    """A config file of dotted keys."""
    nested: dict = {"_BASE_": base}
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    path.write_text(yaml.safe_dump(nested))
    return path


def simulated_weathers() -> list[str]:
    """The corruptions that need no further package."""
    from soma_det.evaluation.corruptions import WEATHER

    return list(WEATHER)


def undisturbed(target: Target, folder: Path, log: Path) -> float:
    """Run a target in a process of its own to its end, and return its seconds."""
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(target.command(folder), stdout=file, stderr=file, start_new_session=True)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                signal_groups([process.pid])
    if code:
        raise SystemExit(f"The undisturbed run ended with {code}; the end of {log}:\n{tail(log)}")
    return time.monotonic() - start


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


# Forks and kills


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


def signal_groups(pids: Sequence[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to the process groups of these processes."""
    for pid in pids:
        try:
            os.killpg(os.getpgid(pid), number)
        except ProcessLookupError:
            continue


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
            signal_groups([pid])
            if code:
                raise RuntimeError(f"exit code {code}; the end of {log}:\n{tail(log)}")
            return False
        orphans = self.target.name == "comparison" and self.rng.random() < 0.5
        # Looking for processes takes longer than many a write: all stands still meanwhile.
        signal_groups([pid, *([] if orphans else self.below)], signal.SIGSTOP)
        below = descendants(pid)
        signal_groups([pid])
        os.waitpid(pid, 0)
        self.running.remove(pid)
        if orphans:
            self.running += (left := [other for other in below if is_alive(other)])
        else:
            signal_groups(below)
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
        signal_groups([other for pid in self.running for other in descendants(pid)])
        signal_groups(self.running)

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


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def saved_iterations(folder: Path) -> int:
    """The iterations in the checkpoint that --resume goes on from."""
    last = folder / "last_checkpoint"
    return 1 + torch.load(folder / last.read_text(), weights_only=True)["iteration"] if last.exists() else 0


# Comparison


def differences(whole: Path, killed: Path, patterns: Sequence[str]) -> Iterator[str]:
    """What the results of a killed run have otherwise, a line each."""
    found = [{str(p.relative_to(folder)) for x in patterns for p in folder.glob(x)} for folder in (whole, killed)]
    partial = {name for name in found[0] | found[1] if any(Path(name).match(pattern) for pattern in PARTIAL)}
    for name in sorted((found[0] ^ found[1]) - partial):
        yield f"{name} is only in {whole if name in found[0] else killed}"
    for name in sorted(found[0] & found[1] - partial):
        yield from unequal(name, *(read(folder, name) for folder in (whole, killed)))


def read(folder: Path, name: str) -> object:
    """The content of a result file, without the folder's name.

    Of metrics.json: "iteration: name" -> all values logged, each once.
    """
    path = folder / name
    if path.suffix == ".pth":
        return torch.load(path, weights_only=True)
    text = path.read_text().replace(str(folder), "")
    if path.name != "metrics.json":
        return json.loads(text)
    values: dict[str, set] = {}
    for line in map(json.loads, text.splitlines()):
        for name in line.keys() - TIMES:
            values.setdefault(f"{line['iteration']}: {name}", set()).add(repr(line[name]))
    return values


def unequal(name: str, one: object, other: object) -> Iterator[str]:
    """The places at which two nested values differ, to the bit; times are left out."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            if key in TIMES:
                continue
            if key not in one or key not in other:
                yield f"{name}: {key} is in one of them alone"
            else:
                yield from unequal(f"{name}: {key}", one[key], other[key])
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other)):
            yield from unequal(f"{name}[{index}]", *pair)
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or to_bytes(one) != to_bytes(other):
            yield f"{name}: the tensors differ"
    elif repr(one) != repr(other):  # NaN is NaN, and 0 is not -0
        yield f"{name}: {one!r} and {other!r}"


def to_bytes(tensor: torch.Tensor) -> bytes:
    """The bits of a tensor."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


# The command


def check(target: Target, output: Path, kills: int, seed: int) -> list[str]:
    """Kill a target so many times, in as many runs as that takes. Returns what differs, a line each."""
    whole, counter = output / "whole", IterationCounter()
    undisturbed(target, whole, output / "whole.log")
    start = time.monotonic()
    pid = fork(lambda: target.run(output / "measured"), output / "measured.log")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise SystemExit(f"A forked run ended with {code}; the end of its log:\n{tail(output / 'measured.log')}")
    killer = Killer(target, time.monotonic() - start, random.Random(seed), counter)
    print(f"A run without kills takes {killer.seconds:.1f} s.", flush=True)
    found = [f"without a kill, {line}" for line in differences(whole, output / "measured", target.results)]
    done = run = 0
    try:
        while done < kills:
            run += 1
            folder, log = output / f"run{run}", output / f"run{run}.log"
            folder.mkdir()
            while True:
                try:
                    if killer.attempt(folder, log, f"kill {done + 1:3d}, run {run}"):
                        done += 1
                        continue
                except RuntimeError as error:
                    return [*found, f"run {run}: {error}"]
                killer.finish()
                if target.done(folder):
                    break
            new = [f"run {run}: {line}" for line in differences(whole, folder, target.results)]
            print(f"Run {run} is done: {f'{len(new)} differences' if new else 'nothing differs'}.", flush=True)
            found += new
            if not new:
                shutil.rmtree(folder)
    finally:
        killer.stop()
        words = ", ".join(f"{count} {kind}" for kind, count in killer.kinds.items())
        most = f"; at most {max(killer.lost)} iterations were lost by one" if killer.lost else ""
        print(f"{done} kills in {run} runs, seed {seed}: {words}{most}.", flush=True)
    return found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Kill a command (SIGKILL) at random moments and compare its results with an uninterrupted run's.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", choices=list(TOOLS), default="training", help="what is killed (default: training)")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="at least (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="empty or new")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings of the training")
    args = parser.parse_args(argv)
    if args.output.exists() and any(args.output.iterdir()):
        parser.error(f"--output {args.output} is not empty: name another folder")
    if len(args.opts) % 2:
        parser.error(f"settings come in pairs, KEY VALUE: {args.opts}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Check; returns the exit code."""
    args = parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        found = check(build_target(args.target, args.output, args.opts), args.output, args.kills, args.seed)
    except KeyboardInterrupt:
        print("Interrupted.")
        return 130
    for line in found[:50]:
        print(f"DIFFERENT: {line}")
    if found:
        print(f"{len(found)} differences; the folders are kept in {args.output}.")
    else:
        print("Everything is bit-equal to the uninterrupted run's.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
