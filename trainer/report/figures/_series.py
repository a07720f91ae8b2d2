"""Lines of measured values over something that arms differ in: what `grid`, `saturation` and `lines` draw with.

In: arms, each at an x (a budget, a share, a key of its run) and with a `Measured`. Out: marks on a panel, and the same values as a table below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Any

from pipelines.format.document import Part, fingerprint, part_name
from trainer.report.drawing import FAINT, dots, limits, log_axis, look, number, shifted, whisker
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, clean, table, tag
from trainer.report.measured import NOTHING, Measured, said_interval
from trainer.report.measures import Measure, measure, said_split

FAR = 30.0  # largest / smallest
WHOLE = ("held_out", "all")  # splits that go without saying
Point = tuple[float, str, Measured]  # x, arm, what it has


class Figure(Part):
    """What figures by metric share. metric: one or several, a panel each. arms: which, in which order; by default all."""

    metric: str | list[str]
    arms: list[str] = []
    title: str | None = None

    @property
    def metrics(self) -> list[str]:
        """The metrics as a list."""
        return [self.metric] if isinstance(self.metric, str) else self.metric

    @property
    def prefix(self) -> str:
        """What ids of the drawing begin with: no two parts of a page are the same."""
        return f"{part_name(self)}-{fingerprint(self.model_dump())[:6]}"


def series(panel: Any, points: Sequence[Point], i: int, of: Measure, ink: str | None = None, shift: float = 0.0) -> None:
    """One line through the means, a whisker and the seeds' rings at each, on a dressed panel, `shift` points to the right."""
    style = look(i) if ink is None else {**look(i), "color": ink, "linestyle": (0, (4, 2))}
    factor, ordered = of.factor, sorted(points, key=lambda p: p[0])
    if len({p[0] for p in ordered}) < len(ordered):
        style["linestyle"] = "none"  # several arms at one place: a line would join what does not follow on one another
    panel.plot([p[0] for p in ordered], [factor * p[2].mean for p in ordered], **style, markersize=5.5, zorder=3, transform=shifted(panel, shift))
    for x, _, found in ordered:
        whisker(panel, x, factor * found.low, factor * found.high, color=style["color"], cap=2.5, within=panel.get_ylim(), shift=shift)
        if len(found.seeds) > 1:
            dots(panel, [x] * len(found.seeds), [factor * v for v in found.seeds], style["color"], shift)


def shift_of(i: int, n: int) -> float:
    """How many points the i-th of n lines stands to the right, so that whiskers at one x do not cover one another."""
    return 4.0 * (i - (n - 1) / 2) if n <= 6 else 20.0 * (i / (n - 1) - 0.5)


def far(values: Iterable[float]) -> bool:
    """Whether values are so far apart that only a logarithmic axis shows all of them."""
    values = list(values)
    return min(values) > 0 and max(values) > FAR * min(values)


def where_of(split: str) -> str:
    """The split in words, nothing for the whole, which goes without saying."""
    return "" if split in WHOLE else said_split(split)


def value_axis(panel: Any, axis: str, of: Measure, where: str, found: Iterable[Measured], more: Iterable[float] = (), from_nothing: bool = False,
               width: int = 30) -> tuple[float, float]:  # fmt: skip
    """The axis of a measure's values (`more`: baselines; `where`: the split in words) with its label, unit, ticks and grid. Returns its limits."""
    from matplotlib.ticker import MaxNLocator

    found = list(found)
    values = [of.factor * v for v in [*more, *(v for m in found for v in (*m.seeds, m.mean))]]
    bounds = [of.factor * b for m in found for b in (m.low, m.high)]
    log = far(values) and not from_nothing
    label = "\n".join(wrap(clean(of.label + (f": {where}" if where else "")), width))
    within = limits(values, bounds, from_nothing, log)
    if log:
        log_axis(panel, axis, label, form=number)
    else:
        getattr(panel, f"{axis}axis").set_major_locator(MaxNLocator(3 if axis == "x" else 5))
        getattr(panel, f"set_{axis}label")(label)
    getattr(panel, f"set_{axis}lim")(within)
    panel.grid(axis=axis)
    return within


def told(of: Measure, value: float) -> str:
    """A value in the measure's unit, with no more digits than a reader wants of a large one."""
    size = abs(of.factor * value)
    return f"{of.factor * value:,.0f}" if size >= 1000 else f"{of.factor * value:.1f}" if size >= 100 else str(of.said(value))


def apart(panel: Any, at: float) -> None:
    """A thin line between what stands apart (none of a source) and the axis proper."""
    panel.axvline(at, color=FAINT, linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)


def values_table(evidence: Evidence, header: Sequence[str], rows: Sequence[tuple[Sequence[Any], Measure, Measured | None]]) -> Markup:
    """Values as a folded table: what the figure draws, to copy. A row is its first cells, the measure and what was found."""
    body = []
    for cells, of, found in rows:
        if found is None:
            body.append([*cells, None, None, None])
            continue
        bounds = f"{told(of, found.low)} to {told(of, found.high)}" if found.low == found.low else None
        body.append([*cells, told(of, found.mean), bounds, " ".join(told(of, v) for v in found.seeds)])
    shown = table([*header, "mean", "95 % interval", "by seed"], body)
    return tag("details", tag("summary", "Values of this figure"), shown)


def better_said(metrics: Iterable[str]) -> str:
    """Which way is better, in a sentence for a caption."""
    said = "; ".join(f"{measure(m).name}: {measure(m).better} is better" for m in metrics if measure(m).better)
    return said[:1].upper() + said[1:] + "." if said else ""


def whiskers_said(found: Iterable[Measured | None]) -> str:
    """What the whiskers of a figure are, for its caption."""
    found = list(found)
    drawn = any(m is not None and m.resampled != NOTHING for m in found)
    return said_interval(found) + (" Drawn as whiskers; one that leaves the axis ends in an arrow." if drawn else "")


def better_first(measure: Measure, points: Sequence[Point]) -> list[Point]:
    """Points from best to worst mean."""
    return sorted(points, key=lambda p: p[2].mean, reverse=measure.better == "higher")
