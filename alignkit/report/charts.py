"""Place the points of small charts; templates draw them as inline SVG.

Colours come from the style sheet through the classes `s0 … s7`, so light and dark need no second
drawing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

WIDTH, WIDE, HEIGHT = 380, 580, 216
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 34
MAX_MARKS = 120  # hover targets and dots of one line; the line itself keeps every point
STYLES = 8

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One line of a chart; `style` picks the colour, `dots` marks each point."""

    label: str
    points: Sequence[Point]
    style: int = 0
    dots: bool = False


@dataclass(frozen=True)
class AxisScale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


class Line(NamedTuple):
    """A drawn series, in pixels; `points` as SVG writes them."""

    label: str
    style: int
    points: str
    dots: list[Point]


@dataclass(frozen=True)
class Chart:
    """A line chart, ready to draw: everything in pixels of a `width` × `height` picture."""

    title: str
    described: str
    x_label: str
    width: int
    right: int
    lines: Sequence[Line]
    rows: Sequence[tuple[float, str]]
    columns: Sequence[tuple[float, str]]
    tips: Sequence[Mapping[str, Any]]
    height: int = HEIGHT
    left: int = LEFT
    bottom: int = HEIGHT - BOTTOM


def number(value: object) -> str:
    """A value as people read it: four significant digits, no trailing zeros."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def short(value: float, form: str = "") -> str:
    """A number in the format `form`, with a minus sign as wide as a digit, and none before 0."""
    text = format(value, form) if form and math.isfinite(value) else number(value)
    if form and not re.search("[1-9a-z]", text):
        text = text.removeprefix("-")
    return text.replace("-", "−")


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover [low, high], about `count` steps."""
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * magnitude for unit in (1, 2, 2.5, 5, 10) if unit * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def span(values: Iterable[float]) -> tuple[float, float]:
    """Lowest and highest, widened where they are equal so that a scale exists."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        return low, high
    margin = abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def line_chart(
    title: str, series: Sequence[Curve], *, x_label: str = "step", width: int = WIDTH
) -> Chart | None:
    """Place lines over a shared x axis, with a tooltip for every point; None without a point."""
    finite = [line for line in map(_finite, series) if line.points]
    if not finite:
        return None
    x_low, x_high = span(x for line in finite for x, _ in line.points)
    marks = ticks(*span(y for line in finite for _, y in line.points))
    x = AxisScale(x_low, x_high, LEFT, width - RIGHT)
    y = AxisScale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    return Chart(
        title=title,
        described="; ".join(
            f"{line.label} from {number(line.points[0][1])} to {number(line.points[-1][1])}"
            for line in finite
        ),
        x_label=x_label,
        width=width,
        right=width - RIGHT,
        lines=[_line(line, x, y) for line in finite],
        rows=[(y(mark), short(mark)) for mark in marks],
        columns=[(x(mark), short(mark)) for mark in ticks(x_low, x_high, 5)
                 if x_low <= mark <= x_high],
        tips=[_tip(line, point, x, y, x_label) for line in finite for point in _thinned(line)],
    )  # fmt: skip


def _finite(line: Curve) -> Curve:
    """The line in order of x, without points that cannot be drawn (NaN, infinity)."""
    points = sorted(point for point in line.points if all(map(math.isfinite, point)))
    return Curve(line.label, points, line.style % STYLES, line.dots or len(points) < 3)


def _line(line: Curve, x: AxisScale, y: AxisScale) -> Line:
    places = " ".join(f"{x(px)},{y(py)}" for px, py in line.points)
    dots = [(x(px), y(py)) for px, py in _thinned(line)] if line.dots else []
    return Line(line.label, line.style, places, dots)


def _thinned(line: Curve) -> list[Point]:
    """At most MAX_MARKS of the points, evenly, always with the last."""
    every = max(1, math.ceil(len(line.points) / MAX_MARKS))
    return [*line.points[:-1:every], *line.points[-1:]]


def _tip(line: Curve, point: Point, x: AxisScale, y: AxisScale, x_label: str) -> dict[str, Any]:
    """A point's tooltip, inside the chart and above the point where there is room."""
    px, py = x(point[0]), y(point[1])
    text, detail = f"{line.label} {short(point[1])}", f"{x_label} {short(point[0])}"
    width = round(6.1 * max(len(text), len(detail)) + 14, 1)
    left = round(max(min(px - width / 2, x.end + RIGHT - width - 2), 2), 1)
    top = round(py - 46 if py > TOP + 46 else py + 12, 1)
    place = {"x": px, "y": py, "left": left, "top": top, "width": width}
    return place | {"style": line.style, "text": text, "detail": detail}


class IntervalMark(NamedTuple):
    """A value with its limits on an axis with a rule; all in percent of the axis."""

    value: float
    limits: tuple[float, float] | None
    rule: float


def interval(
    value: float,
    ci: Mapping[str, Any] | None,
    axis: tuple[float, float] = (0, 1),
    rule: float = 0.5,
) -> IntervalMark:
    """Place a value and its `ci` (`low`, `high`) on an axis; what lies outside, at its end."""
    scale = AxisScale(*axis, 0.0, 100.0)
    ends = (value, rule) if ci is None else (value, rule, ci["low"], ci["high"])
    at_value, at_rule, *limits = (min(max(scale(end), 0.0), 100.0) for end in ends)
    return IntervalMark(at_value, (limits[0], limits[1]) if limits else None, at_rule)
