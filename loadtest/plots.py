"""Lines over time as SVG that stands in a page: it takes the page's colours, and scales with it.

    series ──▶ matplotlib ──▶ SVG with placeholder colours ──▶ CSS variables of the page

Matplotlib draws it (it is kept, is everywhere, and needs no browser and no script to do it). Titles and legends are
the page's: there they can be read aloud, wrapped and enlarged, and no name has to be made safe for two languages.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Points = Sequence[tuple[float, float]]

MOST_LINES = 8
"""Colours that can be told apart; what there is beyond is summed as one."""

OTHERS = "others"
DASHES: Sequence[tuple[float, ...]] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
"""Lines differ in these as well, for those who do not tell the colours apart."""

_INK, _GRID = "#010101", "#020202"
_COLOURS = tuple(f"#0a0b{place:02x}" for place in range(MOST_LINES))
_LOOK: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.0,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
}
_WIDTH, _HEIGHT = 4.4, 2.3  # inches; a phone shows it at about its own size


def plot(name: str, unit: str, lines: Mapping[str, Points], marks: Sequence[float] = (), described: str = "") -> str:
    """An SVG element with these lines.

    Args:
        name: Tells this plot's inner names apart from those of the others of a page.
        unit: Of the vertical axis.
        lines: At most ``MOST_LINES`` of them (see ``fewer``), as pairs of a second and a value; NaN is a gap.
        marks: Seconds at which something began.
        described: What is said to those who do not see it.
    """
    with mpl.rc_context({**_LOOK, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        figure.patch.set_visible(False)
        _draw(figure.add_subplot(), unit, lines, marks)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(buffer.getvalue(), described)


def _draw(axes: Axes, unit: str, lines: Mapping[str, Points], marks: Sequence[float]) -> None:
    for place, points in enumerate(lines.values()):
        dashes = DASHES[place % len(DASHES)]
        (line,) = axes.plot(*zip(*points, strict=True), color=_COLOURS[place], linewidth=1.6)
        line.set_dashes(dashes) if dashes else None
    for mark in marks:
        axes.axvline(mark, color=_INK, linewidth=0.6, linestyle=":")
    highest = max((value for points in lines.values() for _, value in points if value > 0), default=1.0)
    axes.set_ylim(0, 1.05 * highest)
    axes.set_ylabel(unit, parse_math=False)
    axes.patch.set_visible(False)
    axes.grid(True, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 3, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda second, place: clock(second)))


def clock(second: float) -> str:
    """``1:05`` or ``2:00:10`` since the beginning."""
    minutes, seconds = divmod(round(second), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _for_page(svg: str, described: str) -> str:
    """The element alone, in the page's colours; what nothing refers to has no name."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    for place, colour in enumerate(_COLOURS):
        svg = svg.replace(colour, f"var(--line{place})")
    return re.sub(r"<svg [^>]*>", lambda head: _head(head[0], described), svg, count=1)


def _head(head: str, described: str) -> str:
    box = re.search(r'viewBox="[^"]*"', head)
    assert box
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" aria-label="{html.escape(described)}">'


def fewer(lines: Mapping[str, Points]) -> dict[str, Points]:
    """Those lines, the highest first; from the last that has a colour of its own on they are summed as one."""
    ordered = sorted(lines.items(), key=lambda line: max((value for _, value in line[1]), default=0.0), reverse=True)
    if len(ordered) <= MOST_LINES:
        return dict(ordered)
    total: dict[float, float] = {}
    for _, points in ordered[MOST_LINES - 1 :]:
        for at, value in points:
            total[at] = total.get(at, 0.0) + value
    return {**dict(ordered[: MOST_LINES - 1]), OTHERS: sorted(total.items())}
