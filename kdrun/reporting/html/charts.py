"""Charts as inline SVG, drawn in Python: lines over epochs, scatter plots over a cost. Colours are classes of
page.css."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]

MAX_POINTS = 80  # points per line; longer lines show every k-th point and the last
MANY = 12  # lines; with more, the seeds of grey rows show only when their row is brought to the front
CROWD = 5  # lines; with more, a band shows only when its row is brought to the front
LABELS = 6  # points of a scatter plot that have a label


@dataclass
class Line:
    """Named line. style: a class of page.css (c0 … c7, base, rest, taught); thin: the single runs behind a mean;
    going: unfinished runs; band: low and high at each epoch."""

    label: str
    points: list[Point]
    style: str
    tip: str = ""
    row: int | None = None
    thin: list[tuple[str, list[Point]]] = field(default_factory=list)
    going: list[tuple[str, list[Point]]] = field(default_factory=list)
    band: list[tuple[float, float, float]] = field(default_factory=list)


@dataclass
class Mark:
    """Point of a scatter plot."""

    label: str
    x: float
    y: float
    style: str
    tip: str
    row: int | None = None


@dataclass
class Frame:
    """Frame that maps data to the page. x and y: limits in data units; log, log_y: True for a logarithmic axis."""

    x: Point
    y: Point
    width: float = 480
    height: float = 300
    log: bool = False
    log_y: bool = False
    left: float = 46
    right: float = 12
    top: float = 10
    bottom: float = 42

    def across(self, value: float) -> float:
        low, high, value = (math.log10(one) if self.log else one for one in (*self.x, value))
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def down(self, value: float) -> float:
        low, high, value = (math.log10(one) if self.log_y else one for one in (*self.y, value))
        return self.top + (high - value) / (high - low) * (self.height - self.top - self.bottom)

    def place(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.across(x):.1f},{self.down(y):.1f}" for x, y in points)


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """Return at most about `most` of the points, evenly spaced, with the first and the last."""
    step = math.ceil(len(points) / most) if points else 1
    kept = list(points[::step])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers within [low, high], 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten within [low, high]; only the powers if these would be too dense."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    alone = [tick for tick in found if math.isclose(math.log10(tick), round(math.log10(tick)))]
    return alone if len(found) > 6 and len(alone) > 1 else found


def short(number: float) -> str:
    """Return a number in short form: 78,042 as 78k, 25,003,264 as 25M, 97.5 as 97.5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.4g}"


def limits(values: Sequence[float], pad: float) -> Point:
    """Return the smallest and largest value with a margin; a single value gets room on both sides."""
    low, high = min(values), max(values)
    room = (high - low) * pad or max(abs(high) * 0.05, 0.5)
    return low - room, high + room


def axes(frame: Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], labels: tuple[str, str]) -> str:
    """Draw grid, tick labels and axis titles."""
    parts = ['<g class="grid">']
    right, floor = frame.width - frame.right, frame.height - frame.bottom
    for tick in y_ticks:
        y = frame.down(tick)
        parts.append(
            f'<path d="M{frame.left:g} {y:.1f}H{right:g}"/><text x="{frame.left - 6}" y="{y + 4:.1f}" '
            f'class="end">{short(tick)}</text>'
        )
    for tick in x_ticks:
        x = frame.across(tick)
        parts.append(
            f'<path d="M{x:.1f} {floor}v4"/><text x="{x:.1f}" y="{floor + 17}" class="mid">{short(tick)}</text>'
        )
    middle = (frame.left + right) / 2
    parts.append(
        f'<path class="floor" d="M{frame.left} {floor}H{right}"/>'
        f'<text x="{middle:.0f}" y="{frame.height - 6:g}" class="mid">'
        f"{html.escape(labels[0])}</text>"
    )
    height = (frame.top + floor) / 2
    parts.append(
        f'<text transform="translate(12 {height:.0f}) rotate(-90)" class="mid">{html.escape(labels[1])}</text></g>'
    )
    return "".join(parts)


def svg(frame: Frame, label: str, body: str, kind: str = "chart") -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" '
        f'aria-label="{html.escape(label)}">{body}</svg>'
    )


def line_chart(
    lines: Sequence[Line],
    labels: tuple[str, str],
    name: str,
    y_floor: float | None = None,
    small: bool = False,
    log: bool = False,
) -> str:
    """Draw lines over epochs; a line of one point is a dot. y_floor: start of the y axis, below which lines are cut
    off;
    log: use a logarithmic y axis. Returns an empty string if there is nothing to draw."""
    everything = [
        point
        for line in lines
        for points in (line.points, *(one for _, one in [*line.thin, *line.going]))
        for point in points
    ]
    if not everything:
        return ""
    seen = [y for _, y in everything if y_floor is None or y >= y_floor]
    low, high = (min(seen) / 1.3, max(seen) * 1.3) if log else limits(seen, 0.04)
    last = max(x for x, _ in everything)
    first = min(1.0, min(x for x, _ in everything))
    size = (340.0, 210.0) if small else (480.0, 300.0)
    frame = Frame((first, max(last, first + 1)), (low if y_floor is None else y_floor, high), *size, log_y=log)
    y_ticks = (log_ticks if log else nice_ticks)(*frame.y)
    frame.left = room_for(y_ticks)
    x_ticks = [tick for tick in nice_ticks(*frame.x) if tick == int(tick)]
    # An inner <svg> clips its content without needing a unique id.
    wide, tall = frame.width - frame.left, frame.height - frame.bottom + 1
    body = [
        axes(frame, x_ticks, y_ticks, labels),
        f'<svg x="{frame.left}" y="0" width="{wide}" height="{tall}" viewBox="{frame.left} 0 {wide} {tall}">',
    ]
    body += [drawn(line, frame, small) for line in lines]
    return svg(
        frame,
        name,
        "".join([*body, "</svg>"]),
        " ".join(["chart", *["small"] * small, *["crowd"] * (len(lines) > CROWD), *["many"] * (len(lines) > MANY)]),
    )


def room_for(ticks: Sequence[float]) -> float:
    """Return the space at the left for the axis title and the labels of these ticks."""
    return max(46.0, 28 + 7.5 * max((len(short(tick)) for tick in ticks), default=0))


def drawn(line: Line, frame: Frame, small: bool) -> str:
    """Draw a line with its runs behind it, its tooltip and, in large charts, a wider invisible copy for the pointer."""
    row = "" if line.row is None else f' data-row="{line.row}"'
    parts = [f'<g class="s {line.style}"{row}>']
    if line.band:
        low, high = ([(epoch, ends[side]) for epoch, *ends in line.band] for side in (0, 1))
        parts.append(f'<polygon class="band" points="{frame.place([*thinned(low), *reversed(thinned(high))])}"/>')
    parts += [
        f'<g class="{kind}"><title>{html.escape(tip)}</title><polyline points="{frame.place(thinned(points))}"/></g>'
        for kind, runs in (("thin", line.thin), ("going", line.going))
        for tip, points in runs
        if len(points) > 1
    ]
    parts.append(f"<g><title>{html.escape(line.tip or line.label)}</title>")
    if len(line.points) > 1:
        points = frame.place(thinned(line.points))
        parts.append(f'<polyline points="{points}"/>' + ("" if small else f'<polyline class="hit" points="{points}"/>'))
    if 0 < len(line.points) <= 6 and line.style != "taught":
        parts += [f'<circle cx="{frame.across(x):.1f}" cy="{frame.down(y):.1f}" r="3.5"/>' for x, y in line.points]
    return "".join([*parts, "</g></g>"])


def frontier(marks: Sequence[Mark], smaller_is_cheaper: bool) -> list[Mark]:
    """Return the Pareto front in cost and accuracy, from cheap to expensive."""
    best: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.x if smaller_is_cheaper else -mark.x, -mark.y)):
        if not best or mark.y > best[-1].y:
            best.append(mark)
    return best


def scatter(
    marks: Sequence[Mark],
    labels: tuple[str, str],
    name: str,
    smaller_is_cheaper: bool,
    show: Callable[[float], str] = short,
) -> str:
    """Draw accuracy over a cost, with a line along the Pareto front. Returns an empty string if all costs are equal."""
    costs = [mark.x for mark in marks if mark.x > 0]
    if len(set(costs)) < 2:
        return ""
    marks = [mark for mark in marks if mark.x > 0]
    log = max(costs) / min(costs) > 20
    across = (min(costs) / 1.3, max(costs) * 1.3) if log else limits(costs, 0.1)
    frame = Frame(across, limits([mark.y for mark in marks], 0.1), 400, 270, log)
    y_ticks = nice_ticks(*frame.y)
    frame.left = room_for(y_ticks)
    edge = frontier(marks, smaller_is_cheaper)
    steps = " ".join(f"{frame.across(mark.x):.1f},{frame.down(mark.y):.1f}" for mark in edge)
    ticks = log_ticks(*frame.x) if log else nice_ticks(*frame.x)
    body = [axes(frame, ticks, y_ticks, labels), f'<polyline class="edge" points="{steps}"/>']
    for mark in marks:
        row = "" if mark.row is None else f' data-row="{mark.row}"'
        place = f'cx="{frame.across(mark.x):.1f}" cy="{frame.down(mark.y):.1f}"'
        body.append(
            f'<g class="s dot {mark.style}"{row}><title>{html.escape(mark.tip)}: {html.escape(show(mark.x))}'
            f'</title><circle {place} r="5"/></g>'
        )
    teachers = [mark for mark in marks if mark.row is None and mark not in edge]
    body += names_beside([*edge, *teachers], frame)
    return svg(frame, name, "".join(body))


def names_beside(edge: Sequence[Mark], frame: Frame) -> list[str]:
    """Draw names along the Pareto front, the most accurate first, as far as they do not overlap."""
    # Boxes that no name may cover, as (left, right, baseline): initially the marks themselves.
    marks = {id(mark): (frame.across(mark.x) - 6, frame.across(mark.x) + 6, frame.down(mark.y) + 5) for mark in edge}
    names: list[tuple[float, float, float]] = []
    texts = []
    for mark in sorted(edge, key=lambda mark: -mark.y):
        x, y, wide = frame.across(mark.x), frame.down(mark.y) - 9, 7.0 * len(mark.label)
        left = min(max(x - wide / 2, frame.left), frame.width - wide - 2)
        taken = [*names, *(box for one, box in marks.items() if one != id(mark))]
        free = all(abs(y - other) > 13 or left > end or left + wide < start for start, end, other in taken)
        if free and len(texts) < LABELS and len(mark.label) <= 24:
            names.append((left, left + wide, y))
            texts.append(f'<text class="tag" x="{left:.1f}" y="{y:.1f}">{html.escape(mark.label)}</text>')
    return texts
