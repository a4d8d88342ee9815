"""Draws how far domains lie from the source."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from soma_det.evaluation.chart import GRID_COLOR, LINE_COLORS, SOURCE_COLOR, TEXT_COLOR
from soma_det.uda.shift import Estimate, ShiftTable

OFFSET = 0.17  # rows, between the marks of one domain


def draw_shift(
    tables: Mapping[str, ShiftTable],
    labels: Mapping[str, str],
    source: str,
    losses: Mapping[str, float],
    path: str | os.PathLike,
) -> None:
    """Save a panel for the divergence of each table, one for the A-distances, and one for the losses if there are any.

    Args:
        tables: heading -> what was measured; at least one.
        labels: split -> its name for people.
        source: the source's name for people.
        losses: split -> points of AP50 against the source.
        path: PNG file; overwritten.
    """
    names = list(next(iter(tables.values())).domains)
    panels = len(tables) + 1 + bool(losses)
    figure = Figure(figsize=(1.9 + 2.75 * panels, 1.75 + 0.52 * max(len(names), 2)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for axis, (heading, table) in zip(axes, tables.items()):
        series = {f"{p:g}": [table.domains[n].divergence[p] for n in names] for p in table.temperatures}
        _draw_points(axis, series, [table.null.divergence[p] for p in table.temperatures], LINE_COLORS)
        _style(axis, f"IDD, {heading.split(',')[0].lower()}")
    distances = {heading: [table.domains[n].a_distance for n in names] for heading, table in tables.items()}
    a_axis = axes[len(tables)]
    _draw_points(a_axis, distances, [table.null.a_distance for table in tables.values()], LINE_COLORS[2:])
    _style(a_axis, "A-distance")
    a_axis.set_xlim(min(-0.1, *(table.null.a_distance.interval[0] - 0.05 for table in tables.values())), 2.12)
    if losses:
        _draw_losses(axes[-1], [losses.get(name) for name in names])
    for number, axis in enumerate(axes):
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_yticks(range(len(names)), [labels[name] for name in names] if number == 0 else [""] * len(names))
    _add_legend(figure, list(next(iter(tables.values())).temperatures), list(tables), source)
    figure.savefig(path, metadata={"Software": None})


def _draw_points(
    axes: Axes, series: Mapping[str, Sequence[Estimate]], nulls: Sequence[Estimate], colors: Sequence[str]
) -> None:
    """Dots with intervals; behind each the null's interval, in a faint tone of its color."""
    for number, (points, null) in enumerate(zip(series.values(), nulls, strict=True)):
        shift = (number - (len(series) - 1) / 2) * 2 * OFFSET
        rows = [row + shift for row in range(len(points))]
        width = null.interval[1] - null.interval[0]
        axes.barh(rows, width, 2 * OFFSET, null.interval[0], color=colors[number], alpha=0.17, linewidth=0, zorder=1)
        values, errors = [p.value for p in points], [(p.interval[1] - p.interval[0]) / 2 for p in points]
        axes.errorbar(
            values, rows, xerr=errors, fmt="o", color=colors[number], markersize=5.5, linewidth=1.6, capsize=0, zorder=3
        )


def _draw_losses(axes: Axes, values: Sequence[float | None]) -> None:
    known = [(row, value) for row, value in enumerate(values) if value is not None]
    bars = axes.barh([row for row, _ in known], [v for _, v in known], height=0.5, color=SOURCE_COLOR, zorder=2)
    axes.bar_label(bars, [f"{value:+.1f}" for _, value in known], padding=4, color=TEXT_COLOR, fontsize=9)
    axes.margins(x=0.28)
    _style(axes, "VOC AP50 lost, points")
    axes.axvline(0, color=TEXT_COLOR, linewidth=0.8)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, color=TEXT_COLOR, fontsize=10.5, loc="left")
    axes.xaxis.grid(True, color=GRID_COLOR, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=TEXT_COLOR, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID_COLOR)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))


def _add_legend(figure: Figure, peaks: Sequence[float], headings: Sequence[str], source: str) -> None:
    def dot(color: str, label: str) -> Line2D:
        return Line2D([], [], color=color, marker="o", markersize=5.5, linewidth=1.6, label=label)

    handles: list = [dot(color, f"IDD, peak {peak:g}") for color, peak in zip(LINE_COLORS, peaks)]
    handles += [dot(color, f"A-distance, {h.split(',')[0].lower()}") for color, h in zip(LINE_COLORS[2:], headings)]
    handles.append(Patch(color=SOURCE_COLOR, alpha=0.3, label=f"the same for two halves of {source}"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=TEXT_COLOR
    )
