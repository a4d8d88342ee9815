"""The trainings and selections of one seed, each made once."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from image_selection.data import draw_random
from soma_det.evaluation.results import RESULTS_FILE
from soma_det.utils.files import write_text

TOOLS = Path(__file__).resolve().parents[3] / "tools"
STRATEGIES = ("selected", "random")

logger = logging.getLogger("soma_det.image_selection")
Call = Callable[[str, Sequence[str], Path], None]  # (tool, arguments, log)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        config_file, opts: of every training; without SEED, OUTPUT_DIR and DATASETS.TRAIN.
        source, pool: the source's training split, and the split whose images may be labelled.
        lists: folder of the lists of the pool's domain.
        boxes: image of the pool -> its number of boxes.
        images: to label in a round, by the selection; random images get as many boxes.
        repeat: how many times a labelled image counts in an epoch.
    """

    config_file: str
    opts: tuple[str, ...]
    source: str
    pool: str
    lists: Path
    boxes: Mapping[str, int]
    images: int
    rounds: int
    repeat: int
    output: Path

    def folder(self, seed: int, strategy: str = "base", number: int = 0) -> Path:
        """Of one training."""
        return self.output / f"seed{seed}" / (strategy if strategy == "base" else f"{strategy}{number}")


def run_seed(plan: Plan, seed: int, call: Call, after_each: Callable[[], object]) -> None:
    """Train on the source alone; then, round by round, label images by both strategies and train with them again."""
    train(plan, plan.folder(seed), seed, [], call)
    after_each()
    for number in range(1, plan.rounds + 1):
        for strategy in STRATEGIES:
            names = choose(plan, seed, strategy, number, call)
            train(plan, plan.folder(seed, strategy, number), seed, names, call)
            after_each()


def choose(plan: Plan, seed: int, strategy: str, number: int, call: Call) -> list[str]:
    """The images labelled up to this round, of this round's strategy."""
    path = plan.output / f"seed{seed}" / f"{strategy}{number}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    before = choose(plan, seed, strategy, number - 1, call) if number > 1 else []
    if strategy == "random":
        budget = count(plan, choose(plan, seed, "selected", number, call)) - count(plan, before)
        names = draw_random(plan.boxes, budget, 1000 * seed + number, before)
    else:
        names = select(plan, seed, number, before, call)
    write_text(path, json.dumps([*before, *names]) + "\n")
    return [*before, *names]


def select(plan: Plan, seed: int, number: int, before: Sequence[str], call: Call) -> list[str]:
    """Run tools/select_images.py with the model of the round before, and that of the one before it."""
    runs = [plan.folder(seed), *(plan.folder(seed, "selected", n) for n in range(1, number))]
    folder = runs[-1] / "selection"
    words = [str(runs[-1]), "--split", plan.pool, "--budget-images", str(plan.images), "--output", str(folder)]
    words += ["--previous", str(runs[-2])] if len(runs) > 1 else []
    if before:
        write_text(folder / "labelled.txt", "".join(f"{name}\n" for name in before))
        words += ["--labelled", str(folder / "labelled.txt")]
    call("select_images.py", words, folder / "log.txt")
    names = (folder / "selected.txt").read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"No image of {plan.pool} is left to label: use fewer rounds or images.")
    return names


def train(plan: Plan, folder: Path, seed: int, names: Sequence[str], call: Call) -> None:
    """Train and evaluate, unless that is done, on the source and the labelled images."""
    if (folder / RESULTS_FILE).is_file():
        return
    list_name = f"labelled_seed{seed}_{folder.name}"
    train_splits = [plan.source]
    if names:
        write_text(plan.lists / f"{list_name}.txt", "".join(f"{name}\n" for name in names))
        train_splits += [plan.pool.removesuffix("train") + list_name] * plan.repeat
    logger.info("%s: %d labelled images with %d boxes", folder, len(names), count(plan, names))
    words = ["--config-file", plan.config_file, "--resume", *plan.opts]
    words += ["SEED", str(seed), "OUTPUT_DIR", str(folder), "DATASETS.TRAIN", repr(tuple(train_splits))]
    call("train_net.py", words, folder / "train.log")


def count(plan: Plan, names: Sequence[str]) -> int:
    """Boxes of these images."""
    return sum(plan.boxes[name] for name in names)


def call_tool(tool: str, arguments: Sequence[str], log: Path) -> None:
    """Run a tool of this project in a process; its output goes to ``log``.

    Raises:
        RuntimeError: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, str(TOOLS / tool), *arguments], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
        raise RuntimeError(
            f"{tool} failed with {done.returncode}; the last line of {log}: {lines[-1] if lines else ''}"
        )
