#!/usr/bin/env python
"""Kill a training, a comparison or an evaluation many times and compare its results: see --help, or run

python tests/check_interruptions.py --output output/kills
"""

import argparse
import os
import random
import shutil
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
from interruption_differences import differences
from interruption_killer import IterationCounter, Killer
from interruption_processes import fork
from interruption_targets import TOOLS, Target, build_target, tail, undisturbed

EXAMPLES = """
Examples:

100 kills of a training, in about ten minutes on two cores:
    python tests/check_interruptions.py --output output/kills

The same kind of kills for the two tools that run many evaluations:
    python tests/check_interruptions.py --target comparison --kills 10 --output output/kills_comparison
    python tests/check_interruptions.py --target corruptions --kills 10 --output output/kills_corruptions

Other moments, and a training with other settings:
    python tests/check_interruptions.py --kills 20 --seed 2 --output output/kills_lora MODEL.ADAPTER.NAME lora

A tiny training (64 x 64 pixels, random weights, workers, augmentation, drop path, the dropout of mixed adapters, an
average of the weights, evaluations in between) runs once undisturbed, in a new process. Then it runs in other folders
and its process group gets SIGKILL, half of the times at any moment, half of the times after the start of a write, and
is started again with --resume, until it is done; and so on until there were enough kills. Each start is a fork of one
process that has imported everything, and calls the tool's own main. At the end weights, optimizer, schedule, hooks,
metrics and scores are compared bit for bit; times and dates are left out.
A killed comparison leaves, half of the times, the training that it has started alive.

The exit code is 1 where anything differs, and 130 after Ctrl-C.
"""


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
