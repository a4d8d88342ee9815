"""Draws what trainings logged over their iterations, such as how many boxes a teacher labels."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from soma_det.evaluation.chart import GRID_COLOR, LINE_COLORS, TEXT_COLOR

Course = dict[int, float]  # iteration -> value
STYLES = ("-", "--", ":")  # in turn, when all colors are used


def read_courses(output: str | os.PathLike, metric: str, only: Collection[str] = ()) -> dict[str, dict[str, Course]]:
    """What the runs of a comparison logged of one metric.

    Args:
        output: folder with ``<name>/seed<seed>/metrics.json``.
        only: names of configurations; empty: all.

    Returns:
        name -> seed -> course, without runs that logged no such metric. Where a resumed training repeated iterations,
        the repetition counts.

    Raises:
        ValueError: no run logged it. The message names the metrics that there are.
    """
    courses: dict[str, dict[str, Course]] = {}
    known: set[str] = set()
    for path in sorted(Path(output).glob("*/seed*/metrics.json")):
        name, seed = path.parts[-3], path.parts[-2].removeprefix("seed")
        if only and name not in only:
            continue
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        known.update(key for entry in entries for key in entry)
        course = {entry["iteration"]: entry[metric] for entry in entries if metric in entry}
        if course:
            courses.setdefault(name, {})[seed] = course
    if not courses:
        raise ValueError(f"No run in {output} logged {metric!r}; logged are: {', '.join(sorted(known)) or 'none'}.")
    return courses


def mean_course(courses: Mapping[str, Course]) -> Course:
    """The mean over seeds, at the iterations that all of them logged."""
    shared = set.intersection(*(set(course) for course in courses.values()))
    return {i: sum(course[i] for course in courses.values()) / len(courses) for i in sorted(shared)}


def draw_courses(courses: Mapping[str, Mapping[str, Course]], metric: str, path: str | os.PathLike) -> None:
    """Save one thick line for each configuration, the mean over its seeds, and a thin one for each seed.

    Args:
        courses: name -> seed -> course.
        path: PNG file; overwritten.
    """
    figure = Figure(figsize=(8.2, 3.9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, seeds) in enumerate(courses.items()):
        color = LINE_COLORS[number % len(LINE_COLORS)]
        style = STYLES[number // len(LINE_COLORS) % len(STYLES)]
        for course in seeds.values() if len(seeds) > 1 else ():
            axes.plot(course.keys(), course.values(), style, color=color, linewidth=0.7, alpha=0.35)
        mean = mean_course(seeds)
        label = f"{name} ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})"
        axes.plot(mean.keys(), mean.values(), style, color=color, linewidth=2, label=label)
    axes.set_xlabel("iteration", color=TEXT_COLOR, fontsize=10)
    axes.set_ylabel(metric, color=TEXT_COLOR, fontsize=10)
    axes.grid(True, color=GRID_COLOR, linewidth=0.8)
    axes.tick_params(length=0, colors=TEXT_COLOR, labelsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(TEXT_COLOR)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, labelcolor=TEXT_COLOR)
    figure.savefig(path, metadata={"Software": None})
