"""The commands that check_interruptions.py kills: a training, a comparison, an evaluation of corruptions, all tiny."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import yaml
from interruption_processes import signal_groups
from training import CONFIG, options, write_data

from soma_det.evaluation.corruptions import WEATHER

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {
    "training": ROOT / "tools" / "train_net.py",
    "comparison": ROOT / "projects" / "AdapterComparison" / "compare_adapters.py",
    "corruptions": ROOT / "tools" / "evaluate_corruptions.py",
}
CHECKPOINTS = "model_*.pth"
# Beyond training.py's: all that draws random numbers, and files that come and go.
SETTINGS = {
    "MODEL.VIT.DROP_PATH": 0.2,
    "MODEL.ADAPTER.NAME": "moa",
    "DATALOADER.NUM_WORKERS": 2,
    "INPUT.AUGMENTATION.WEATHER.PROBABILITY": 0.3,
    "INPUT.AUGMENTATION.FOURIER.PROBABILITY": 0.3,
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
    words = options(write_data(output / "data").resolve(), output)
    settings = dict(zip(words[::2], words[1::2], strict=True)) | SETTINGS
    # The command line names the folder, and not every method has a rank.
    for key in ("OUTPUT_DIR", "MODEL.ADAPTER.RANK"):
        del settings[key]
    settings |= {key: yaml.safe_load(value) for key, value in zip(opts[::2], opts[1::2], strict=True)}
    config = write_config(output / "config.yaml", settings)
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
        comparison = {"config": CONFIG, "options": shared, "seeds": [1], "runs": runs}
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
            *("--output", str(folder), "--corruptions", *WEATHER),  # those that need no further package
        ],
        lambda folder: True,
        ("results.json", "*/*/results.json", "*/*/inference/*/*.json"),
        lambda folder: f"{len(list(folder.glob('*/*/results.json')))} of {1 + len(WEATHER)} are done",
    )


def write_config(path: Path, settings: dict) -> Path:
    """A config file of dotted keys."""
    nested: dict = {"_BASE_": CONFIG}
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    path.write_text(yaml.safe_dump(nested))
    return path


def undisturbed(target: Target, folder: Path, log: Path) -> float:
    """Run a target in a process of its own to its end, and return its seconds."""
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(target.command(folder), stdout=file, stderr=file, start_new_session=True)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                signal_groups([process.pid], signal.SIGKILL)
    if code:
        raise SystemExit(f"The undisturbed run ended with {code}; the end of {log}:\n{tail(log)}")
    return time.monotonic() - start


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
