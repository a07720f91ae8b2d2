"""Experts by layer: whose they are (the paper's Figure 18), whether looking and making choose alike (Figure 20), whether time chooses (Figure 19).

In: rows `experts.<fact>` and the table of each run's experts. Out: stacked bars of classes, the scores themselves, which need no threshold, and two
panels by layer with what chance and an untrained router give. Means over seeds; an arm a panel. None where no arm has experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.format.document import Part
from trainer.report.drawing import FAINT, INK, colour, draw, figure
from trainer.report.evidence import Evidence
from trainer.report.markup import Markup, joined, table, tag

CLASSES = {"text": 0, "multimodal": 3, "vision": 1, "idle": 7}  # and their colours
# Of arXiv 2603.03276: Figure 18's counts over layers, digitised; the text of section 4.
PAPER = ["the paper, another scale", "66", "17", "16", None, None, "at least 0.90 in every layer", None, None, "about 0.15", None, None]
# The same figure's experts by layer, digitised: text, multimodal, vision, of 254.
PAPER_LAYERS = [
    (174, 50, 30), (177, 29, 48), (198, 24, 32), (186, 39, 29), (187, 38, 29), (185, 34, 35), (172, 44, 38), (176, 45, 33), (174, 36, 44),
    (168, 46, 40), (151, 60, 43), (155, 55, 44), (146, 54, 54), (149, 53, 52), (158, 37, 59), (138, 60, 56),
]  # fmt: skip
CONTROLS = {"correlation": (".ceiling", ".untrained"), "time_cv": (".null", ".null_95")}
LEGEND = {
    ".ceiling": ("ceiling: halves of the images of one condition", "--"),
    ".untrained": ("untrained router", ":"),
    ".null": ("bins dealt at random, mean", ":"),
    ".null_95": ("bins dealt at random, 95th percentile", "--"),
}


class ExpertBars(Part):
    """Of `arms` (default: all that have experts, in the order of the document)."""

    arms: list[str] | None = None

    def section(self, evidence: Evidence) -> Markup | None:
        """Figures and a table, or None when no arm was asked about its experts."""
        arms = [a for a in (self.arms or evidence.arms) if evidence.mean(a, "experts.text", "layer:all") is not None]
        if not arms:
            return None
        panels = len(arms) + _is_the_papers(evidence)
        parts = [figure(draw(lambda f: _bars(f, evidence, arms), height=0.7 + 1.6 * panels, label=_label(evidence, arms), prefix="experts"),
                        *_said(evidence, arms))]  # fmt: skip
        if any(_scores(evidence, a) is not None for a in arms):
            label = "Scores of experts from -1 (images alone) to 1 (text alone)"
            parts.append(figure(draw(lambda f: _histograms(f, evidence, arms), height=0.6 + 1.2 * len(arms), label=label, prefix="scores"),
                                "The scores behind the classes, all layers and seeds together; dashed: where the classes were cut."))  # fmt: skip
        parts += [p for fact in ("correlation", "time_cv") if (p := _by_layer(evidence, arms, fact)) is not None]
        return tag("section", tag("h2", "Experts"), *parts, _table(evidence, arms), _sensitivity(evidence, arms), id="experts")


def by_layer(evidence: Evidence, arm: str, fact: str) -> tuple[list[int], list[float]]:
    """(layers, mean over seeds) of a fact."""
    splits = [s for s in evidence.splits(f"experts.{fact}") if s.removeprefix("layer:").isdigit()]
    found = {int(s.removeprefix("layer:")): evidence.mean(arm, f"experts.{fact}", s) for s in splits}
    layers = sorted(k for k, v in found.items() if v is not None)
    return layers, [float(found[k] or 0.0) for k in layers]


def _panels(fig: Any, arms: list[str]) -> list[Any]:
    panels = list(np.atleast_1d(fig.subplots(len(arms), 1)))
    for panel, arm in zip(panels, arms, strict=True):
        panel.set_title(arm)
    return panels


def _layers(panel: Any, layers: list[int]) -> None:
    panel.set_xlabel("layer")
    panel.set_xticks(layers[:: 1 + len(layers) // 17])


def _bars(fig: Any, evidence: Evidence, arms: list[str]) -> None:
    titles = [*arms, "the paper: another scale, its own thresholds"] if _is_the_papers(evidence) else arms
    panels = _panels(fig, titles)
    for panel, arm in zip(panels, arms, strict=False):
        layers, _ = by_layer(evidence, arm, "text")
        _stacked(panel, layers, {name: 100 * np.array(by_layer(evidence, arm, name)[1]) for name in CLASSES})
    if len(panels) > len(arms):
        counts = np.array(PAPER_LAYERS, float)
        _stacked(panels[-1], list(range(len(counts))), dict(zip(CLASSES, (100 * counts / counts.sum(axis=1, keepdims=True)).T, strict=False)))
    _legend(fig, panels, 4)


def _stacked(panel: Any, layers: list[int], shares: dict[str, Any]) -> None:
    base = np.zeros(len(layers))
    for name, share in shares.items():
        if name != "idle" or share.any():
            panel.bar(layers, share, bottom=base, width=0.8, color=colour(CLASSES[name]), alpha=0.8, label=name)
        base = base + share
    panel.set_ylim(0, 100)
    panel.set_ylabel("experts, %")
    _layers(panel, layers)


def _is_the_papers(evidence: Evidence) -> bool:
    """Whether the document asks what the paper's Figure 18 shows."""
    return bool(evidence.card.get("recipe", {}).get("experiment") == "E11")


def _histograms(fig: Any, evidence: Evidence, arms: list[str]) -> None:
    panels = _panels(fig, arms)
    for panel, arm in zip(panels, arms, strict=True):
        found = _scores(evidence, arm)
        if found is None:
            continue
        score, threshold = found
        panel.hist(score, bins=np.linspace(-1, 1, 22), weights=np.full(len(score), 100 / max(len(score), 1)), color=colour(0), alpha=0.7)
        for x in (-threshold, threshold):
            panel.axvline(x, linestyle="--", color=INK, linewidth=1)
        panel.set_ylabel("experts, %")
        panel.set_xlim(-1, 1)
    panels[-1].set_xlabel("S, from images alone (-1) to text alone (1)")


def _scores(evidence: Evidence, arm: str) -> tuple[np.ndarray, float] | None:
    """Every expert's score, all layers and seeds, and the threshold; None unless a run left its table."""
    tables = [t for s in evidence.seeds if (arm, s) in evidence.runs and (t := evidence.runs[arm, s].tables.get("experts")) is not None]
    if not tables:
        return None
    said = (tables[0].schema.metadata or {}).get(b"threshold", b"0.5")
    return np.array([v for t in tables for v in t["score"].to_pylist() if v is not None], np.float64), float(said)


def _by_layer(evidence: Evidence, arms: list[str], fact: str) -> Markup | None:
    arms = [a for a in arms if by_layer(evidence, a, fact)[0]]
    if not arms:
        return None
    name, words = {
        "correlation": ("r over experts", "Pearson's r between the rates at which the same images choose a layer's experts, clean and looked at"
                        " against noised and made. Band: 95 % interval, records resampled. Dashed: what two halves of one condition would show"
                        " (Spearman-Brown). Dotted: the same model without a step of training."),
        "time_cv": ("variation", "Coefficient of variation of an expert's rate over equally probable bins of t, on average over experts. Dotted and"
                    " dashed: mean and 95th percentile of the same with the bins dealt to other images at random."),
    }[fact]  # fmt: skip
    label = f"{name} by layer: " + ", ".join(f"{a} {evidence.mean(a, f'experts.{fact}', 'layer:all'):.2f}" for a in arms)
    return figure(draw(lambda f: _lines(f, evidence, arms, fact, name), height=0.9 + 1.4 * len(arms), label=label, prefix=fact), words)


def _lines(fig: Any, evidence: Evidence, arms: list[str], fact: str, name: str) -> None:
    panels = _panels(fig, arms)
    for i, (panel, arm) in enumerate(zip(panels, arms, strict=True)):
        layers, values = by_layer(evidence, arm, fact)
        (below, low), (_, high) = by_layer(evidence, arm, f"{fact}.low"), by_layer(evidence, arm, f"{fact}.high")
        if below:
            panel.fill_between(below, low, high, color=colour(i), alpha=0.2, linewidth=0)
        panel.plot(layers, values, "o-", markersize=3.5, color=colour(i), label="this model" if len(arms) == 1 else None)
        for control in CONTROLS[fact]:
            where, level = by_layer(evidence, arm, fact + control)
            words, style = LEGEND[control]
            panel.plot(where, level, style, color=INK if style == ":" else FAINT, linewidth=1.2, label=words)
        panel.set_ylabel(name)
        panel.grid(axis="y")
        _layers(panel, layers)
    _legend(fig, panels, 1)


def _legend(fig: Any, panels: list[Any], columns: int) -> None:
    found = {name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    fig.legend(list(found.values()), list(found), loc="outside upper left", ncols=columns, handlelength=1.6, borderpad=0)


def _label(evidence: Evidence, arms: list[str]) -> str:
    shares = lambda a: ", ".join(f"{100 * (evidence.mean(a, f'experts.{c}', 'layer:all') or 0):.0f} % {c}" for c in CLASSES)
    return "Classes of experts by layer. " + "; ".join(f"{a}: {shares(a)}" for a in arms)


def _said(evidence: Evidence, arms: list[str]) -> list[Any]:
    found = next((f for a in arms if (f := _scores(evidence, a)) is not None), None)
    cut = "" if found is None else f" of at least {found[1]:g}"
    return [f"Experts by whom they are chosen, mean over seeds. Text: a score S{cut} (S = difference of the two rates over their sum, held-out text",
            " against images); vision: the same below zero; multimodal: in between; idle: chosen by next to nobody. The paper does not state where",
            " it cuts; these thresholds are ours."]  # fmt: skip


def _table(evidence: Evidence, arms: list[str]) -> Markup:
    header = ["arm", "text, %", "multimodal, %", "vision, %", "idle, %", "mean |S| (untrained)", "r, lowest layer", "r, mean (untrained)",
              "ceiling of r", "variation with time (by chance)", "busiest / mean", "no token, %"]  # fmt: skip
    rows: list[list[str | None]] = []
    for arm in arms:
        value = lambda fact, arm=arm: evidence.mean(arm, f"experts.{fact}", "layer:all")
        lowest = min(by_layer(evidence, arm, "correlation")[1], default=None)
        cells = [_number(value(c), 100, 0) for c in CLASSES]
        cells += [_beside(value("specialisation"), value("specialisation.untrained")), _number(lowest)]
        cells += [_beside(value("correlation"), value("correlation.untrained")), _number(value("correlation.ceiling"))]
        cells += [_beside(value("time_cv"), value("time_cv.null")), _number(value("load")), _number(value("dead"), 100, 1)]
        rows.append([arm, *cells])
    return table(header, [*rows, PAPER], "Experts by arm, means over layers and seeds; in brackets what an untrained router or chance gives.")


def _sensitivity(evidence: Evidence, arms: list[str]) -> Markup | None:
    splits = [s for s in evidence.splits("experts.text") if s.startswith("threshold:")]
    rows = []
    for arm in arms:
        for split in splits:
            shares = [_number(evidence.mean(arm, f"experts.{c}", split), 100, 0) for c in CLASSES]
            rows.append([arm, split.removeprefix("threshold:"), *shares])
    if not rows:
        return None
    return joined([table(["arm", "|S| from", *(f"{c}, %" for c in CLASSES)], rows, "The same classes with other thresholds.")])


def _number(value: float | None, times: float = 1, digits: int = 2) -> str | None:
    return None if value is None else f"{times * value:.{digits}f}"


def _beside(value: float | None, control: float | None) -> str | None:
    return _number(value) if value is None or control is None else f"{value:.2f} ({control:.2f})"
