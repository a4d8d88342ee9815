"""Writes results.json, results.md and results.png."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from adapter_comparison.chart import draw_comparison_chart
from adapter_comparison.plan import Comparison
from adapter_comparison.runs import LOG_FILE, Finished, Run
from adapter_comparison.scores import MAIN, collect
from adapter_comparison.statistics import LEVEL, Difference, Spread
from adapter_comparison.tables import Content, Table, build_tables, metric_name
from soma_det.evaluation.results import CHART_FILE, RESULTS_FILE, TABLES_FILE
from soma_det.utils.files import atomic_path, write_text

FEW_SEEDS = 10

NOTES = f"""\
- VOC AP50: mean over classes of PASCAL VOC 2007's 11-point average precision at IoU 0.5. COCO AP: the mean over IoU
  0.50 to 0.95. Both from 0 to 100; a class without boxes in a split is left out of its mean.
- Unseen: mean over the unseen splits, each with the same weight. Relative: that mean in percent of the source's score.
- a ± b: mean and sample standard deviation (n - 1) over seeds.
- All runs trained on the source domain alone, for the same number of iterations, on the same images in the same order
  for the same seed, with the same detector on top. Where there is a target, they may have used its images without
  labels, an oracle with them. **Every score is that of the last checkpoint**: no checkpoint
  was chosen by its score, on unseen domains or elsewhere.
- Paired differences are taken between runs of the same seed. The {LEVEL} % intervals come from a bootstrap that draws
  both seeds and test images with replacement, the same ones for both sides. The domains are taken as given. An
  interval that includes 0 shows no difference. With many configurations, at least one interval in twenty excludes 0
  by chance alone, and more with few seeds: nothing is corrected for the number of comparisons.
- Time: median over iterations, then over seeds, as the training itself measured it. Other work on the machine
  lengthens it. Memory: the highest of all seeds. On a CPU it is the resident memory of the training process, with
  Python, its libraries and the evaluation; on CUDA it is the memory of tensors. For an interrupted run, memory and
  total time are those of its last part.
"""


def write_report(
    output: str | Path,
    comparison: Comparison,
    finished: Sequence[Finished],
    failures: Mapping[Run, str],
    missing: Sequence[Run],
    metadata: Mapping[str, str | int | float],
) -> str:
    """Write the result files into ``output``, each atomically, and return the tables as text.

    Args:
        finished: at least one run.
        failures: runs that failed -> why.
        missing: runs that are not trained yet, without those that failed.
        metadata: description of the comparison; written as it is.

    Raises:
        ValueError: the runs were tested on different images or boxes.
    """
    content = collect(comparison, finished)
    problems = {
        "failed": [{"run": str(r), "why": why, "log": str(r.folder / LOG_FILE)} for r, why in failures.items()],
        "missing": [str(run) for run in missing],
    }
    folder = Path(output)
    everything = {"metadata": dict(metadata), **content, **problems}
    write_text(folder / RESULTS_FILE, json.dumps(_plain(everything), indent=2, allow_nan=False) + "\n")
    tables = build_tables(content)
    write_text(folder / TABLES_FILE, _markdown(content, tables, problems, metadata))
    with atomic_path(folder / CHART_FILE) as temporary:
        draw_comparison_chart(
            _chart_rows(content),
            content["labels"][content["source"]],
            comparison.reference,
            temporary,
            metric=metric_name(content),
            headline=content["headline"],
        )
    return "\n\n".join(f"{heading}\n{tabulate(**table, tablefmt='simple')}" for heading, table in tables.items())


def _chart_rows(content: Content) -> list[dict[str, Any]]:
    """The rows of :func:`draw_comparison_chart`."""
    source, scores, differences = content["source"], content["scores"][MAIN], content["differences"]
    headline = content["headline"]
    return [
        {"name": n, "source": s[source], "headline": s[headline], "difference": differences.get(n, {}).get(headline)}
        for n, s in scores.items()
    ]


def _markdown(content: Content, tables: dict[str, Table], problems: dict[str, list], metadata: Mapping) -> str:
    labels, source = content["labels"], content["source"]
    lines = [f"- {key}: {value}" for key, value in metadata.items()]
    for split, label in labels.items():
        role = "source" if split == source else "target" if split in content["targets"] else "unseen"
        boxes = sum(content["boxes"][split].values())
        lines.append(f"- {label}: `{split}`, {role}, {content['images'][split]:,} images, {boxes:,} boxes")
    parts = ["# Compared in unseen weather", "\n".join(lines), _problems(problems)]
    for index, (heading, table) in enumerate(tables.items()):
        parts += [f"## {heading}", tabulate(**table, tablefmt="github")]
        if index == 0:
            parts.append(f"![{metric_name(content)} of every configuration]({CHART_FILE})")
        elif index == 1 and content["differences"]:
            parts.append(content["power"])
    parts += [
        "## How to read this",
        NOTES + _few_seeds(content),
        "## Settings of each configuration",
        _settings(content),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _few_seeds(content: Content) -> str:
    seeds = min(len(of["seeds"]) for of in content["configurations"].values())
    if seeds >= FEW_SEEDS:
        return ""
    return (
        f"- **{seeds} seed{'s are' if seeds > 1 else ' is'} few.** They show little of how trainings vary, so the "
        "intervals are too narrow:\n  take them as a lower bound of the uncertainty. The chart and results.json show "
        "the single seeds too."
    )


def _problems(problems: dict[str, list]) -> str:
    lines = [f"- {failure['run']} failed: {failure['why']}" for failure in problems["failed"]]
    if problems["missing"]:
        lines.append(f"- not trained yet: {'; '.join(problems['missing'])}")
    return "\n".join(["**Not complete:**", "", *lines]) if lines else ""


def _settings(content: Content) -> str:
    """The settings that all configurations share, then those of each configuration."""
    pairs = {name: _pairs(of["arguments"]) for name, of in content["configurations"].items()}
    shared = set.intersection(*(set(p) for p in pairs.values())) if len(pairs) > 1 else set()
    own = {name: [f"{key} {value}" for key, value in p if (key, value) not in shared] for name, p in pairs.items()}
    lines = [f"- {name}: {', '.join(f'`{word}`' for word in words) or 'as the config'}" for name, words in own.items()]
    return "\n".join([f"- all: {', '.join(f'`{key} {value}`' for key, value in sorted(shared))}", *lines])


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """(key, value) of the settings. Where a key is set several times, the last value holds."""
    pairs = dict(zip(arguments[::2], arguments[1::2]))
    return [(key, value) for key, value in pairs.items() if key not in ("SEED", "OUTPUT_DIR")]


def _plain(value: Any) -> Any:
    """The value in types that JSON has; NaN becomes null."""
    if isinstance(value, (Spread, Difference)):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
