"""The table of a measurement, from the results of its runs."""

import json
import statistics
from collections.abc import Sequence

from tabulate import tabulate

from image_selection.rounds import STRATEGIES, Plan
from soma_det.evaluation.results import RESULTS_FILE, load_results
from soma_det.utils.files import write_text

NOTES = """\
- VOC AP50 on the test split of the weather whose images were labelled: mean ± deviation over seeds.
- Random images have as many boxes as the selected ones, as nearly as whole images allow.
- Labels of the target weather are used: this is neither domain generalization nor unsupervised domain adaptation.
- A difference of a few points in three seeds says nothing.
"""


def write_report(plan: Plan, seeds: Sequence[int], target: str) -> str:
    """Write results.json and results.md of what is finished; returns the table as text."""
    rounds = [("base", 0), *((s, n) for n in range(1, plan.rounds + 1) for s in STRATEGIES)]
    scores = {
        f"{strategy}{number or ''}": read_scores(plan, seeds, strategy, number, target) for strategy, number in rounds
    }
    rows = []
    for (strategy, number), (name, of) in zip(rounds, scores.items()):
        reference = scores.get(f"random{number}", {}) if strategy == "selected" else {}
        differences = [of[seed]["AP50"] - reference[seed]["AP50"] for seed in of if seed in reference]
        figures = [_mean([s[key] for s in of.values()]) for key in ("images", "boxes", "AP50")]
        won = f"{sum(d > 0 for d in differences)} of {len(differences)}" if differences else ""
        rows.append([name, len(of), *figures, _mean(differences, "+") if differences else "", won])
    headers = ["training", "seeds", "labelled images", "boxes", "AP50", "minus random", "seeds better"]
    write_text(plan.output / "results.json", json.dumps({"target": target, "scores": scores}, indent=2) + "\n")
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=["left", *["right"] * 6])
    write_text(plan.output / "results.md", f"# Labelled images of {plan.pool}\n\n{table}\n\n{NOTES}")
    return tabulate(rows, headers, disable_numparse=True, colalign=["left", *["right"] * 6])


def read_scores(plan: Plan, seeds: Sequence[int], strategy: str, number: int, target: str) -> dict[int, dict]:
    """Seed -> AP50 on the target's test split, labelled images and their boxes, of the finished runs."""
    found = {}
    for seed in seeds:
        folder = plan.folder(seed, strategy, number)
        if not (folder / RESULTS_FILE).is_file():
            continue
        chosen = plan.output / f"seed{seed}" / f"{folder.name}.json"
        names = json.loads(chosen.read_text(encoding="utf-8")) if chosen.is_file() else []
        score = load_results(folder)["results"][target]["voc"]["AP50"]
        found[seed] = {"AP50": score, "images": len(names), "boxes": sum(plan.boxes[name] for name in names)}
    return found


def _mean(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"
