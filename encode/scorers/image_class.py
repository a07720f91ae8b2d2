"""What a published image classifier says: the probability of a label, such as `nsfw`, or of any of several.

In: a transformers image-classification model by path or hub id. Out: its softmax, or a sigmoid where the model's settings say that labels do not
exclude one another (`problem_type: multi_label_classification`) or there is only one. Of several labels the probabilities add up where they exclude
one another; otherwise the largest counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from encode.device import TorchNetwork
from encode.encoder import Machine, Network
from encode.scorer import Scorer, Sight, Values
from encode.weights import pretrained, read_json
from pipelines.format.errors import InputError


@dataclass(frozen=True)
class Classifier(Sight):
    """A picture's vector is the probability of each label, so several scores of one model cost one look."""

    def labels(self) -> list[str]:
        """By number, as config.json says."""
        named = read_json(self.weights, "config.json").get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        return [str(named[key]) for key in sorted(named, key=int)]

    def exclusive(self) -> bool:
        """Whether the probabilities add up to one."""
        kind = read_json(self.weights, "config.json").get("problem_type")
        if kind == "regression":
            raise InputError("this model gives a number, no probability", where=self.weights, found="problem_type: regression")
        return len(self.labels()) > 1 and kind != "multi_label_classification"

    def look(self, machine: Machine) -> tuple[Network, Network | None]:
        model = pretrained("AutoModelForImageClassification", self.weights, machine)
        numbers, exclusive = self.processor().numbers(machine.device), self.exclusive()

        def forward(batch: Any) -> Any:
            logits = model(pixel_values=numbers(batch).to(model.dtype)).logits.float()
            return logits.softmax(-1) if exclusive else logits.sigmoid()

        return TorchNetwork(forward, machine), None


class ImageClass(Scorer):
    """`weights`: a local folder or a hub id; `label`: a name of its config's `id2label`, or a list of them. Of several images the one with the
    highest probability counts, unless `images` says otherwise."""

    weights: str
    label: str | tuple[str, ...]

    @field_validator("label")
    @classmethod
    def _some(cls, label: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not label or (not isinstance(label, str) and len(set(label)) < len(label)):
            raise ValueError("name a label, or several different ones")
        return label

    def sight(self) -> Classifier:
        return Classifier(self.weights, self.batch, self.dtype)

    def wanted(self) -> list[int]:
        """Numbers of the labels."""
        known, asked = self.sight().labels(), [self.label] if isinstance(self.label, str) else list(self.label)
        for name in asked:
            if name not in known:
                raise InputError("this classifier has no such label", where=self.weights, found=name, allowed=", ".join(known[:20]))
        return [known.index(name) for name in asked]

    def check(self) -> None:
        super().check()
        self.wanted()
        self.sight().exclusive()

    def values(self, seen: NDArray[np.float32], said: NDArray[np.float32] | None) -> Values:
        some = seen[:, self.wanted()].astype(np.float64)
        return np.asarray(some.sum(axis=1) if self.sight().exclusive() else some.max(axis=1))
