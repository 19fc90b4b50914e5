"""Charts as data: what the page's script draws, the same values as a table, and words for who cannot see them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

_MARGIN = 0.04


class Table(NamedTuple):
    """A table of text.

    Attributes:
        head: Titles of the columns; the first column holds the rows' titles.
        rows: Of as many cells each.
    """

    head: list[str]
    rows: list[list[str]]


class Series(NamedTuple):
    """Points that belong together.

    Attributes:
        name: For the legend; empty where the chart's title says it.
        x: Positions by the title of their axis; a chart with two axes shows one at a time.
        y: Values, as many.
        color: Its number among the page's colours; its place in the chart if None.
    """

    name: str
    x: dict[str, list[float]]
    y: list[float]
    color: int | None = None


@dataclass(frozen=True)
class Chart:
    """Lines, or a histogram's bars.

    Attributes:
        title: What is shown.
        unit: Title of the vertical axis.
        series: One or more, with axes of the same titles.
        kind: Of all series.
        limits: The part of the vertical axis that is shown first; all of it if None.
        marks: Vertical rules, by their position on the first axis, and what they say.
        logarithmic: Whether the horizontal axis is.
        note: A sentence beside the title.
        small: Drawn low, beside others.
    """

    title: str
    unit: str
    series: list[Series]
    kind: Literal["line", "bars"] = "line"
    limits: tuple[float, float] | None = None
    marks: list[tuple[float, str]] = field(default_factory=list)
    logarithmic: bool = False
    note: str = ""
    small: bool = False

    @property
    def axes(self) -> list[str]:
        """Titles of the horizontal axes."""
        return list(self.series[0].x)

    @property
    def alt(self) -> str:
        """The chart in a few sentences."""
        first = self.axes[0]
        return f"{self.title}. " + " ".join(_sentence(series, first, self.kind) for series in self.series)

    @property
    def table(self) -> Table:
        """All values; series that do not share their positions on a second axis have a column each for it."""
        first, *others = self.axes
        shared = all(series.x == self.series[0].x for series in self.series)
        columns: list[tuple[str, dict[float, float]]] = []
        for series in self.series:
            if not columns or not shared:
                names = others if shared else [f"{other}, {series.name}" for other in others]
                columns += [
                    (name, dict(zip(series.x[first], series.x[other], strict=True)))
                    for name, other in zip(names, others, strict=True)
                ]
            columns.append((series.name or self.title, dict(zip(series.x[first], series.y, strict=True))))
        places = sorted({x for series in self.series for x in series.x[first]})
        rows = [[number(x), *(number(values.get(x)) for _, values in columns)] for x in places]
        return Table([first, *(name for name, _ in columns)], rows)

    @property
    def data(self) -> dict[str, Any]:
        """What the script draws; JSON knows no infinities, and seven digits are more than can be seen."""
        return {
            "title": self.title,
            "unit": self.unit,
            "kind": self.kind,
            "axes": self.axes,
            "series": [
                {
                    "name": each.name,
                    "x": [_short(x) for x in each.x.values()],
                    "y": _short(each.y),
                    "color": i if each.color is None else each.color,
                }
                for i, each in enumerate(self.series)
            ],
            "limits": self.limits,
            "marks": self.marks,
            "logarithmic": self.logarithmic,
            "small": self.small,
        }


class Interval(NamedTuple):
    """A value with a Monte-Carlo error and, wider, the error over images; None where there is none."""

    name: str
    value: float
    monte_carlo: float | None
    images: float | None


@dataclass(frozen=True)
class Intervals:
    """Values with error bars on a common scale."""

    title: str
    unit: str
    rows: list[Interval]

    @property
    def alt(self) -> str:
        """The picture in words."""
        return f"{self.title}: " + "; ".join(
            f"{row.name} {row.value:,.3f} ± {error(row.monte_carlo)} {self.unit}" for row in self.rows
        )

    @property
    def data(self) -> dict[str, Any]:
        """What the script draws."""
        return {"kind": "intervals", "unit": self.unit, "rows": [row._asdict() for row in self.rows]}


def number(value: float | None) -> str:
    """A number for a table, to six digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    is_whole = float(value).is_integer() or abs(value) >= 1e5
    return f"{value:,.0f}" if is_whole and abs(value) < 1e9 else f"{value:,.6g}"


def error(value: float | None) -> str:
    """A standard error to two digits; a question mark where it is not known."""
    if value is None or not math.isfinite(value):
        return "?"
    rounded = f"{value:.2g}"
    return f"{float(rounded):,.0f}" if abs(value) >= 99.5 else rounded  # not 4.9e+02


def decimals(values: Sequence[float]) -> int:
    """Places behind the point: four digits of the largest value, or up to seven to tell values in their range apart."""
    size, spread = max(map(abs, values)), max(values) - min(values)
    if not size:
        return 0
    before = math.floor(math.log10(size)) + 1
    wanted = 2 - math.floor(math.log10(spread)) if spread else 0
    return max(0, 4 - before, min(7 - before, wanted))


def plain(value: float, places: int) -> str:
    """A number with so many places behind the point, but no zeros at its end."""
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def _short(values: Sequence[float]) -> list[float | None]:
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in values]


def _sentence(series: Series, axis: str, kind: str) -> str:
    known = [(x, y) for x, y in zip(series.x[axis], series.y, strict=True) if math.isfinite(y)]
    name = f"{series.name}: " if series.name else ""
    if not known:
        return f"{name}no values."
    if kind == "bars":
        total = sum(y for _, y in known) or 1.0
        mean = sum(x * y for x, y in known) / total
        places = decimals([x for x, _ in known])
        low, high, average = (plain(x, places) for x in (known[0][0], known[-1][0], mean))
        return f"{name}{axis} from {low} to {high}, on average {average}."
    least, most = min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])
    places = decimals([y for _, y in known])
    (first, start), *others = ((number(x), plain(y, places)) for x, y in (known[0], known[-1], least, most))
    end, low, high = (f"{y} at {x}" for x, y in others)
    return f"{name}{start} at {axis} {first}, {end}; least {low}, most {high}."


def settled_limits(series: Sequence[Series]) -> tuple[float, float] | None:
    """The range of all values but the highest twentieth, so that the first epochs do not flatten the rest."""
    values = np.array([y for each in series for y in each.y if math.isfinite(y)])
    if len(values) <= 10:
        return None
    low, high = float(values.min()), float(np.quantile(values, 0.95))
    margin = _MARGIN * (high - low) or 1.0
    return low - margin, high + margin


def histogram(values: dict[str, np.ndarray], axis: str, bins: int = 60, spread: float = 0.995) -> list[Series]:
    """Shares of values, by name, in common bins that hold at least ``spread`` of them at either side."""
    everything = np.concatenate(list(values.values()))
    low, high = np.quantile(everything, [1 - spread, spread])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    centers = ((edges[1:] + edges[:-1]) / 2).tolist()
    return [
        Series(name, {axis: centers}, (np.histogram(part, edges)[0] / max(1, part.size)).tolist())
        for name, part in values.items()
    ]
