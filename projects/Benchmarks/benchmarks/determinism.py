"""What SOLVER.DETERMINISTIC adds to a training step, by turns with and without."""

import argparse
import statistics
import tempfile
from collections.abc import Callable

from detectron2.utils.events import EventStorage

from benchmarks.report import Report
from benchmarks.timing import Timing, cpu_ratio, interleave, ratio
from soma_det.config import setup_cfg
from soma_det.data import register_from_config
from soma_det.engine.determinism import set_determinism
from soma_det.engine.trainer import Trainer

STEP = "step"
SIDES = {"without": False, "with": True}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", default="configs/demo.yaml", help="default: %(default)s")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the file's")


def run(args: argparse.Namespace) -> Report:
    """Train two equal detectors on the same images, and time the steps alone, without hooks."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = setup_cfg(args.config_file, [*args.opts, "OUTPUT_DIR", folder, "SEED", str(args.seed)])
        register_from_config(cfg)
        steps = {name: [(STEP, _stepper(Trainer(cfg), enabled))] for name, enabled in SIDES.items()}
        timings = interleave(steps, args.rounds, warmup=3, device=cfg.MODEL.DEVICE, seed=args.seed)
    set_determinism(False)
    without = timings["without"][STEP]
    report = Report("Training step with and without SOLVER.DETERMINISTIC", vars(args))
    report.rows = [_row(name, timings[name][STEP], without) for name in SIDES]
    report.notes = ["Quartiles are of the rounds' ratios of CPU time; what loads the images is not in it."]
    return report


def _stepper(trainer: Trainer, deterministic: bool) -> Callable[[], None]:
    trainer.model.train()
    trainer.iter = 0

    def step() -> None:
        set_determinism(deterministic)
        with EventStorage():
            trainer.run_step()

    return step


def _row(name: str, timing: Timing, without: Timing) -> dict:
    ratios = [a / b for a, b in zip(timing.cpu, without.cpu, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "SOLVER.DETERMINISTIC": name,
        "step ms": 1e3 * timing.median,
        "CPU ms": 1e3 * timing.cpu_median,
        "ratio": ratio(timing, without),
        "by CPU time": cpu_ratio(timing, without),
        "its quartiles": f"{low:.3f} to {high:.3f}",
    }
