"""The paper's Figure 9 under its old names: see `published`, which has every experiment."""

from __future__ import annotations

from trainer.report.published import BASIS, published, table

_ARMS = ["vqa20", "vqa20+video80", "vqa20+image_text80", "vqa20+text80", "vqa100"]
(_FIGURE_9,) = published("E7", _ARMS, "vqa")
SOURCE = f"{table()['source']}, {_FIGURE_9.where} ({_FIGURE_9.basis} values)"
UNIT = _FIGURE_9.name
VQA_SYNERGY = _FIGURE_9.values
CHANCE = _FIGURE_9.chance or 0.0  # the random-guess line, read off the figure
assert _FIGURE_9.basis in BASIS
