"""Small charts as inline SVG: no script, no outside file, readable in the dark and on paper.

Every function returns markup in which all given text is escaped. Colours come from the page's
style sheet through the classes `s0 … s7` (series), so that light and dark need no second drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, WIDE, HEIGHT = 380, 580, 216
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 34
MAX_MARKS = 120  # hover targets and dots; the line itself keeps every point


@dataclass(frozen=True)
class Series:
    """One line of a chart; `style` picks the colour, `dots` marks each point."""

    label: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


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
    title: str, series: Sequence[Series], *, x_label: str = "step", width: int = WIDTH
) -> Markup:
    """Lines over a shared x axis, with a tooltip for every point that CSS alone shows."""
    drawn = [finite(line) for line in series]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return Markup("")
    x, y, y_ticks = scales(drawn, width)
    parts = [
        grid(y, y_ticks, x.end),
        x_axis(x, x_label),
        *(stroke(line, x, y) for line in drawn),
        hover_targets(drawn, x, y, x_label),
    ]
    return Markup(
        '<figure class="chart"><figcaption>{title}{legend}</figcaption>'
        '<svg viewBox="0 0 {width} {height}" role="img" aria-label="{alt}">{body}</svg></figure>'
    ).format(
        title=title,
        legend=legend(drawn),
        width=width,
        height=HEIGHT,
        alt=f"{title}: {described(drawn)}",
        body=Markup("").join(parts),
    )


def finite(line: Series) -> Series:
    """The line without points that cannot be drawn (NaN, infinity), in order of x."""
    points = sorted(p for p in line.points if math.isfinite(p[0]) and math.isfinite(p[1]))
    return Series(line.label, points, line.style, line.dots or len(points) < 3)


def described(series: Sequence[Series]) -> str:
    return "; ".join(
        f"{line.label} from {number(line.points[0][1])} to {number(line.points[-1][1])}"
        for line in series
    )


def scales(series: Sequence[Series], width: int) -> tuple[Scale, Scale, list[float]]:
    """The x and y scales that hold every point, and the marks of the y axis."""
    x_low, x_high = span(x for line in series for x, _ in line.points)
    marks = ticks(*span(y for line in series for _, y in line.points))
    x = Scale(x_low, x_high, LEFT, width - RIGHT)
    y = Scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    return x, y, marks


def grid(y: Scale, marks: Sequence[float], right: float) -> Markup:
    row = Markup(
        '<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
        '<text class="tick" x="{text_x}" y="{text_y}" text-anchor="end">{label}</text>'
    )
    return Markup("").join(
        row.format(
            left=LEFT,
            right=right,
            y=y(mark),
            text_x=LEFT - 8,
            text_y=y(mark) + 3.5,
            label=number(mark),
        )
        for mark in marks
    )


def x_axis(x: Scale, label: str) -> Markup:
    inside = [mark for mark in ticks(x.low, x.high, 5) if x.low <= mark <= x.high]
    tick = Markup('<text class="tick" x="{x}" y="{y}" text-anchor="middle">{label}</text>')
    marks = [tick.format(x=x(mark), y=HEIGHT - BOTTOM + 15, label=number(mark)) for mark in inside]
    name = Markup('<text class="axis" x="{x}" y="{y}" text-anchor="end">{label}</text>').format(
        x=x.end, y=HEIGHT - 4, label=label
    )
    return Markup("").join([*marks, name])


def stroke(line: Series, x: Scale, y: Scale) -> Markup:
    """The line itself, and its dots where it has few points or asks for them."""
    places = " ".join(f"{x(px)},{y(py)}" for px, py in line.points)
    style = f"s{line.style % 8}"
    path = Markup('<polyline class="line {style}" points="{places}"/>').format(
        style=style, places=places
    )
    if not line.dots:
        return path
    dot = Markup('<circle class="dot {style}" cx="{x}" cy="{y}" r="3.5"/>')
    return path + Markup("").join(
        dot.format(style=style, x=x(px), y=y(py)) for px, py in thinned(line.points)
    )


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_MARKS of the points, evenly, always with the last."""
    every = max(1, math.ceil(len(points) / MAX_MARKS))
    return [*points[:-1:every], *points[-1:]]


def hover_targets(series: Sequence[Series], x: Scale, y: Scale, x_label: str) -> Markup:
    """A fat transparent disc on every point; pointing at it shows the point's tooltip."""
    return Markup("").join(
        target(line, px, py, x, y, x_label) for line in series for px, py in thinned(line.points)
    )


def target(line: Series, px: float, py: float, x: Scale, y: Scale, x_label: str) -> Markup:
    text = f"{line.label} {number(py)}"
    detail = f"{x_label} {number(px)}"
    width = 6.1 * max(len(text), len(detail)) + 14
    left = min(max(x(px) - width / 2, 2), x.end + RIGHT - width - 2)
    top = y(py) - 46 if y(py) > TOP + 46 else y(py) + 12
    return Markup(
        '<g class="hit"><circle class="area" cx="{x}" cy="{y}" r="9"/>'
        '<g class="tip"><circle class="dot s{style}" cx="{x}" cy="{y}" r="4"/>'
        '<rect x="{left}" y="{top}" width="{width}" height="34" rx="5"/>'
        '<text x="{text_x}" y="{first}">{text}</text>'
        '<text class="detail" x="{text_x}" y="{second}">{detail}</text></g></g>'
    ).format(
        x=x(px),
        y=y(py),
        style=line.style % 8,
        left=round(left, 1),
        top=round(top, 1),
        width=round(width, 1),
        text_x=round(left + 7, 1),
        first=round(top + 14, 1),
        second=round(top + 27, 1),
        text=text,
        detail=detail,
    )


def legend(series: Sequence[Series]) -> Markup:
    """Names of the lines; nothing when there is only one."""
    if len(series) < 2:
        return Markup("")
    key = Markup('<span class="key"><i class="s{style}"></i>{label}</span>')
    return Markup('<span class="legend">{keys}</span>').format(
        keys=Markup("").join(key.format(style=line.style % 8, label=line.label) for line in series)
    )


def interval(value: float, low: float, high: float, *, style: int = 0) -> Markup:
    """A share in [0, 1] with its interval on a track whose middle is one half."""
    width, middle = 220, 12
    place: Callable[[float], float] = Scale(0.0, 1.0, 6, width - 6)
    return Markup(
        '<svg class="interval" viewBox="0 0 {width} 24" role="img" aria-label="{alt}">'
        '<line class="track" x1="6" x2="{end}" y1="{m}" y2="{m}"/>'
        '<line class="half" x1="{half}" x2="{half}" y1="2" y2="22"/>'
        '<line class="range s{style}" x1="{low}" x2="{high}" y1="{m}" y2="{m}"/>'
        '<circle class="dot s{style}" cx="{value}" cy="{m}" r="5"/></svg>'
    ).format(
        width=width,
        end=width - 6,
        m=middle,
        half=place(0.5),
        style=style % 8,
        low=place(low),
        high=place(high),
        value=place(value),
        alt=f"{value:.1%}, 95 % interval {low:.1%} to {high:.1%}",
    )
