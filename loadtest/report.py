"""The report of a load test: one page that asks for nothing else, not even a script.

    python -m loadtest.report FOLDER      writes FOLDER/report.html again from what ``loadtest.load`` left there

    recording ──▶ facts, loads with the knee, plots over time, tables of clips, calls, failures and cost ──▶ HTML

Whatever was sent by callers or set by an operator is text on this page, never markup.
"""

from __future__ import annotations

import argparse
import html
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.plots import DASHES, Points, fewer, plot
from loadtest.recording import Level, Line, Part, Recording, knee, load, saturation
from loadtest.watch import grown, over_time, ratio, summed
from loadtest.wire import ALL, CLIP

WINDOW_SECONDS = 10
"""Over how long a throughput is averaged, as locust does with its percentiles."""

UNKNOWN = "-"
_CSS = Path(__file__).with_name("report.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_CLOSED = (
    "Each user waits for a clip before asking for the next, so a service that slows down is asked less often: callers "
    "who come at their own pace would wait longer than these figures say."
)
_KNEE_RULE = (
    "The knee is the load with the greatest power, that is, throughput by the time that a clip takes (Kleinrock 1979; "
    "Ramakrishnan and Jain 1988): beyond it a clip waits longer than the throughput grows."
)


def main() -> None:
    """Write the report of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(write(parser.parse_args().folder))


def write(folder: Path) -> Path:
    """Write ``report.html`` into a folder from what is in it.

    Raises:
        OSError: It holds no recording, or takes no file.
        ValueError: The recording cannot be read.
    """
    path = folder / "report.html"
    path.write_text(page(load(folder)), encoding="utf-8")
    return path


def page(recording: Recording) -> str:
    """The whole page."""
    sections = [
        _head(recording),
        _loads(recording),
        _plots(recording),
        _clips(recording),
        _calls(recording),
        _failures(recording),
        _costs(recording),
        _foot(recording),
    ]
    title = html.escape(f"Load report: {recording.about['shape']}, {recording.about['host']}")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_CSS.read_text()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


# ---------------------------------------------------------------- words and tables


def seconds(value: float) -> str:
    """A time that a clip or a call took."""
    return UNKNOWN if math.isnan(value) else f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"


def number(value: float | None) -> str:
    """A figure that may not be known."""
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def usd(value: float | None) -> str:
    """An amount, as small as amounts for a clip are; None where nobody can say."""
    if value is None:
        return UNKNOWN
    return f"{value:,.2f} USD" if value >= 1 or value == 0 else f"{f'{value:.6f}'.rstrip('0')} USD"


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], marked: int | None = None, texts: int = 1
) -> str:
    """A table, all of its cells text; the row at ``marked`` stands out, the first ``texts`` columns are words."""
    columns = "".join(
        f'<th scope="col"{_text(place, texts)}>{html.escape(name)}</th>' for place, name in enumerate(head)
    )
    body = "\n".join(_row(cells, place == marked, texts) for place, cells in enumerate(rows))
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(caption)}"><table>'
        f"<caption>{html.escape(caption)}</caption>\n<thead><tr>{columns}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(cells: Sequence[str], marked: bool, texts: int) -> str:
    first = f'<th scope="row">{html.escape(cells[0])}</th>'
    rest = "".join(
        f"<td{_text(place, texts)}>{html.escape(cell)}</td>" for place, cell in enumerate(cells[1:], start=1)
    )
    return f"<tr{' class=' + chr(34) + 'knee' + chr(34) if marked else ''}>{first}{rest}</tr>"


def _text(place: int, texts: int) -> str:
    return ' class="text"' if place < texts else ""


# ---------------------------------------------------------------- sections


def _head(recording: Recording) -> str:
    about = recording.about
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(recording.began))
    intro = f"{about['shape']} against {about['host']}, {when}, {seconds(recording.ended - recording.began)}."
    facts = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in _facts(recording)
    )
    return f"<h1>Load report</h1>\n<p>{html.escape(intro)}</p>\n{_warning(recording)}<dl>{facts}</dl>"


def _facts(recording: Recording) -> Iterator[tuple[str, str]]:
    levels = recording.levels
    made = sum(level.clips for level in levels)
    waiting = [level.most_waiting for level in levels if level.most_waiting is not None]
    yield "Clips made", f"{made:,}"
    yield "Failed", f"{sum(level.failed for level in levels):,}"
    yield "Calls tried again", f"{sum(part.tried_again for part in recording.parts):,}"
    yield "Clips a minute, at best", number(max((level.per_minute for level in levels), default=0.0))
    if best := knee(levels):
        yield ("Knee" if len(levels) > 1 else "Users"), f"{best.users} user{'s' if best.users != 1 else ''}"
        yield "Half of the clips within", seconds(best.p50)
        yield "95 of 100 within", seconds(best.p95)
    yield "Longest queue", number(max(waiting, default=None))


def _warning(recording: Recording) -> str:
    """What must be known before any figure is believed."""
    problems = list(_problems(recording))
    return "".join(f'<p class="warn">{html.escape(problem)}</p>\n' for problem in problems)


def _problems(recording: Recording) -> Iterator[str]:
    made = sum(level.clips for level in recording.levels)
    failed = sum(level.failed for level in recording.levels)
    if not made and not failed:
        yield "No clip was asked for, or none ended before the time was over: there is nothing to measure."
    elif not made:
        yield f"Not one clip was made: all {failed:,} failed. What failed is told below."
    if not recording.samples:
        yield "Nobody watched the service: queue, replicas and cost are not known."
    elif problems := [sample.problem for sample in recording.samples if sample.problem]:
        often = f"{len(problems)} of {len(recording.samples)} times"
        yield f"The service told nothing of queue, replicas and cost {often}: {problems[-1]}."


def _loads(recording: Recording) -> str:
    levels = recording.levels
    if not any(level.clips for level in levels):
        return ""
    best = knee(levels) if len(levels) > 1 else None
    marked = levels.index(best) if best else None
    told = table("Loads, and what came of each", LEVEL_HEAD, level_rows(levels), marked)
    return f"<section>\n<h2>Loads</h2>\n{told}\n{_knee_words(levels, best)}</section>"


LEVEL_HEAD = (
    "users",
    "clips/min",
    "p50",
    "p95",
    "p99",
    "waiting, mean",
    "waiting, most",
    "clips",
    "failed",
    "power",
    "note",
)


def level_rows(levels: Sequence[Level]) -> list[tuple[str, ...]]:
    """Loads as rows of ``LEVEL_HEAD``; where there are several, the knee is marked."""
    best = knee(levels) if len(levels) > 1 else None
    note = "knee, or beyond" if _is_largest(levels, best) else "knee"
    return [_cells(level, note if level is best else "") for level in levels]


def _is_largest(levels: Sequence[Level], best: Level | None) -> bool:
    """Whether no larger load than this one was run, so that nobody knows what comes beyond."""
    return best is not None and best.users == max(level.users for level in levels)


def _cells(level: Level, note: str) -> tuple[str, ...]:
    return (
        str(level.users),
        f"{level.per_minute:.1f}",
        *(seconds(value) for value in (level.p50, level.p95, level.p99)),
        number(level.waiting),
        number(level.most_waiting),
        f"{level.clips:,}",
        f"{level.failed:,}",
        f"{level.power:.1f}",
        note,
    )


def _knee_words(levels: Sequence[Level], best: Level | None) -> str:
    if best is None:
        return ""
    bound = saturation(levels)
    more = " It was the largest load: the knee may be at a larger one." if _is_largest(levels, best) else ""
    if bound:
        more += f" About {bound:.1f} clips in flight keep it busy, by Little's law and the time at one user."
    return f"<p>{html.escape(_KNEE_RULE + more)}</p>\n"


def _clips(recording: Recording) -> str:
    return _lines(recording, "Clips", "Clips, by how and what", lambda line: line.kind == CLIP and line.name != ALL)


def _calls(recording: Recording) -> str:
    caption = "HTTP calls; those tried again were refused in a way that clients bear"
    return _lines(recording, "Calls", caption, lambda line: line.kind != CLIP)


def _lines(recording: Recording, heading: str, caption: str, wanted: Callable[[Line], bool]) -> str:
    """What locust counted under each name, of each load."""
    head = ("name", "kind", "users", "count", "failed", "mean", "p50", "p95", "p99")
    found = [(line, part.users) for part in recording.parts for line in part.lines if wanted(line)]
    rows = [
        (line.name, line.kind, str(users), f"{line.count:,}", f"{line.failed:,}", *map(seconds, _times(line)))
        for line, users in sorted(found, key=lambda each: (each[0].kind, each[0].name))
    ]
    return f"<section>\n<h2>{heading}</h2>\n{table(caption, head, rows, texts=2)}\n</section>" if rows else ""


def _times(line: Line) -> tuple[float, float, float, float]:
    return line.mean, line.p50, line.p95, line.p99


def _failures(recording: Recording) -> str:
    found = [failure for part in recording.parts for failure in part.failures]
    if not found:
        return "<section>\n<h2>Failures</h2>\n<p>None.</p>\n</section>"
    rows = [(each.why, each.name, each.kind, f"{each.count:,}") for each in sorted(found, key=lambda each: -each.count)]
    told = table("What failed, and how often", ("why", "name", "kind", "count"), rows, texts=3)
    return f"<section>\n<h2>Failures</h2>\n{told}\n</section>"


def _foot(recording: Recording) -> str:
    about = recording.about
    facts = ", ".join(f"{name} {value}" for name, value in about.get("versions", {}).items())
    return (
        f"<footer>\n<h2>How it was made</h2>\n<p><code>{html.escape(about.get('command', ''))}</code></p>\n"
        f"<p>{html.escape(facts)}. Percentiles are locust's, to two figures; over time, of the {WINDOW_SECONDS} "
        "seconds before. The times of clips are of those that were made. Queue, replicas and cost are from "
        f"{html.escape(about.get('watched', 'nowhere'))}.</p>\n<p>{_CLOSED}</p>\n</footer>"
    )


# ---------------------------------------------------------------- cost

COST_HEAD = ("endpoint", "requests", "clips", "device time a clip", "cost", "cost a clip", "with idle time", "billed")


def _costs(recording: Recording) -> str:
    """The service's own account where it gave one, else what its counters told."""
    account = recording.costs
    rows = list(_account_rows(account)) if account else list(_counted_rows(recording))
    if not rows:
        return ""
    caption = (
        "What the clips cost, by the service's account" if account else "What the clips cost, while it was watched"
    )
    free = not (account["totals"]["loaded_cost_usd"] if account else _ends(recording, "loaded_cost_usd").total())
    words = "<p>The configuration prices this accelerator at nothing (SVD_GPU_HOURLY_USD).</p>\n" if free else ""
    return f"<section>\n<h2>Cost</h2>\n{table(caption, COST_HEAD, rows)}\n{words}</section>"


def _account_rows(account: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Of ``GET /v1/costs``, its sums last."""
    for line in [*account["summary"], {"endpoint_id": "all", **account["totals"]}]:
        clips = line["successes"]
        yield (
            line["endpoint_id"],
            number(line["requests"]),
            number(clips),
            seconds(line["gpu_seconds"] / clips if clips else math.nan),
            usd(line["cost_usd"]),
            usd(line["cost_per_video_usd"]),
            usd(line["loaded_cost_per_video_usd"]),
            usd(line["price_usd"]),
        )


def _counted_rows(recording: Recording) -> Iterator[tuple[str, ...]]:
    """Of the samples: requests that failed and what was billed are not among them."""
    made, busy, spent = (_ends(recording, name) for name in ("successes", "gpu_seconds", "cost_usd"))
    for endpoint in sorted(spent):
        yield (endpoint, UNKNOWN, *_counted(made[endpoint], busy[endpoint], spent[endpoint]), UNKNOWN, UNKNOWN)
    if spent:
        loaded, clips = _ends(recording, "loaded_cost_usd").total(), made.total()
        counted = _counted(clips, busy.total(), spent.total())
        yield ("all", UNKNOWN, *counted, usd(loaded / clips if clips else None), UNKNOWN)


def _counted(clips: float, busy: float, spent: float) -> tuple[str, ...]:
    each = (seconds(busy / clips), usd(spent / clips)) if clips else (UNKNOWN, UNKNOWN)
    return number(clips), each[0], usd(spent), each[1]


def _ends(recording: Recording, name: str) -> Counter[str]:
    """How far each line of a counter has grown in all."""
    grown_lines = {label: grown(points)[-1][1] for label, points in over_time(recording.samples, name).items()}
    return Counter(grown_lines)


# ---------------------------------------------------------------- plots


def _plots(recording: Recording) -> str:
    drawn = [_figure(recording, *each) for each in _all_lines(recording)]
    shown = "\n".join(filter(None, drawn))
    return f'<section>\n<h2>Over time</h2>\n<div class="plots">\n{shown}\n</div>\n</section>' if shown else ""


def _all_lines(recording: Recording) -> Iterator[tuple[str, str, dict[str, Points], Callable[[float], str]]]:
    """Title, unit, lines and how a value reads, of each plot."""
    parts, samples = recording.parts, recording.samples
    yield "Users", "users", {"users": [(each.at, each.users) for part in parts for each in part.history]}, number
    yield "How long a clip takes", "seconds", _latency(parts), seconds
    yield "Throughput", "clips a minute", {"clips": _rates(parts, failed=False)}, number
    yield "Queue", "requests", _queue(recording), number
    yield "Replicas", "replicas", dict(over_time(samples, "replicas")), number
    made = grown(summed(samples, "successes"))
    spent = {"cost": grown(summed(samples, "cost_usd")), "with idle time": grown(summed(samples, "loaded_cost_usd"))}
    yield "Cost of a clip so far", "USD", {name: ratio(line, made) for name, line in spent.items()}, usd
    yield (
        "Device time of a clip so far",
        "seconds",
        {"device": ratio(grown(summed(samples, "gpu_seconds")), made)},
        seconds,
    )
    yield "Errors", "clips a minute", {"failed": _rates(parts, failed=True)}, number


def _latency(parts: Sequence[Part]) -> dict[str, Points]:
    """The percentiles; between two loads there is a gap."""
    lines: dict[str, list[tuple[float, float]]] = {"p50": [], "p95": [], "p99": []}
    for part in parts:
        for moment in part.history:
            for name, value in zip(lines, (moment.p50, moment.p95, moment.p99), strict=True):
                lines[name].append((moment.at, value))
        for line in lines.values():
            line.append((part.ended, math.nan))
    return dict(lines)


def _rates(parts: Sequence[Part], failed: bool) -> Points:
    """Clips a minute that ended, over the last ten seconds; between two loads there is a gap."""
    found: list[tuple[float, float]] = []
    for part in parts:
        counts = [(each.at, each.failed if failed else each.clips - each.failed) for each in part.history]
        for place, (at, count) in enumerate(counts):
            full = place >= WINDOW_SECONDS
            since, before = counts[place - WINDOW_SECONDS] if full else (at - WINDOW_SECONDS, 0)
            found.append((at, 60 * (count - before) / (at - since)))
        found.append((part.ended, math.nan))
    return found


def _queue(recording: Recording) -> dict[str, Points]:
    waiting = over_time(recording.samples, "waiting")
    running = summed(recording.samples, "running")
    lines: dict[str, Points] = {f"waiting: {endpoint}": points for endpoint, points in waiting.items()}
    return {**lines, "running": running} if running else lines


def _figure(
    recording: Recording, title: str, unit: str, lines: dict[str, Points], say: Callable[[float], str]
) -> str | None:
    """A plot with its heading and legend; None where there is nothing to draw."""
    kept = {name: _since(points, recording.began) for name, points in lines.items() if _known(points)}
    if not kept:
        return None
    kept = fewer(kept) if len(kept) > 3 else kept
    marks = [part.began - recording.began for part in recording.parts[1:]]
    described = f"{title}: " + "; ".join(_said(name, points, say) for name, points in kept.items())
    drawing = plot(title, unit, kept, marks, described)
    heading = title if unit == title.lower() else f"{title}, {unit}"
    return f"<figure>\n<h3>{html.escape(heading)}</h3>\n{drawing}\n{_legend(kept)}</figure>"


def _known(points: Points) -> list[float]:
    return [value for _, value in points if not math.isnan(value)]


def _since(points: Points, began: float) -> Points:
    return [(at - began, value) for at, value in points]


def _said(name: str, points: Points, say: Callable[[float], str]) -> str:
    known = _known(points)
    return f"{name} at most {say(max(known))}, at last {say(known[-1])}"


def _legend(lines: dict[str, Points]) -> str:
    if len(lines) == 1:
        return ""
    entries = "".join(f"<li>{_swatch(place)}{html.escape(name)}</li>" for place, name in enumerate(lines))
    return f'<ul class="legend">{entries}</ul>\n'


def _swatch(place: int) -> str:
    dashes = " ".join(f"{each * 1.6:g}" for each in DASHES[place % len(DASHES)])
    return (
        '<svg viewBox="0 0 32 8" aria-hidden="true"><line x1="0" y1="4" x2="32" y2="4" '
        f'style="stroke: var(--line{place}); stroke-width: 3; stroke-dasharray: {dashes or "none"}"/></svg>'
    )


if __name__ == "__main__":
    main()
