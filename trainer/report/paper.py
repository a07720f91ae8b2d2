"""What the paper printed where it has the same experiment, to stand beside ours, marked as another scale.

Tong, Fan, Nguyen et al., "Beyond Language Modeling: An Exploration of Multimodal Pretraining", arXiv 2603.03276 (2026), Figure 9: mean accuracy
over VQA benchmarks after one epoch of instruction tuning, a model of 1.5B active parameters, budgets in billions of tokens. Only the *ordering*
of arms can be set beside a small run; the two accuracies measure different questions.
"""

from __future__ import annotations

SOURCE = "Tong et al. 2026, arXiv 2603.03276, Figure 9 (printed values)"
UNIT = "average VQA accuracy, %"
VQA_SYNERGY = {"vqa20": 34.6, "vqa20+video80": 36.1, "vqa20+image_text80": 36.9, "vqa20+text80": 37.9, "vqa100": 35.7}
CHANCE = 15.6  # the random-guess line, read off the figure
