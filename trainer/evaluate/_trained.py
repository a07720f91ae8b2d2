"""What a run was fine-tuned on since its plan, and so is not asked: the instruction data of `sft_vqa`.

In: the dataset of the fine-tuning and the rule by which its plan held groups out. Out: a refusal of a set that is this dataset, or comes of it; and
of any other set, which groups (pictures) stand in it. All of its groups but those held out count as trained on, also where the epochs were less than
one: so what is asked does not depend on what was drawn. 8 bytes a record are held.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.format.chance import U64, group_hashes, held_out_by
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.manifest import parent_path, read_card


class Trained:
    """`rule`: {fraction, seed} of the plan's held-out groups, or None."""

    def __init__(self, dataset: Dataset, rule: dict[str, Any] | None) -> None:
        self.dataset, self.rule = dataset, rule

    def refuse(self, other: Dataset) -> None:
        """InputError for this dataset, and for one that was made of it or of the curated one that it encodes."""
        own = {self.dataset.fingerprint}
        if self.dataset.encoding:
            own |= {str(p["fingerprint"]) for p in self.dataset.card.get("parents") or []}
        if own & lineage(other.card):
            raise InputError("the run was fine-tuned on this set, or on what it was made of: its questions were trained on", where=other.path,
                             found=self.dataset.path, next="`vqa` asks what is held out")  # fmt: skip

    def has(self, groups: Sequence[str]) -> NDArray[np.bool_]:
        """Which of these groups were trained on."""
        return np.isin(group_hashes(list(groups)), self._groups)

    @functools.cached_property
    def _groups(self) -> U64:
        some = [group_hashes(self.dataset.index(i, ["group"])["group"].to_pylist()) for i in range(len(self.dataset.shards))]
        found = np.unique(np.concatenate([np.zeros(0, np.uint64), *some]))
        return found if self.rule is None else found[~held_out_by(found, float(self.rule["fraction"]), int(self.rule["seed"]))]


def lineage(card: dict[str, Any]) -> set[str]:
    """Fingerprints of an artifact and of all that it was made of, as far as their cards can be read."""
    out, queue = {str(card["fingerprint"])}, [card]
    while queue:
        child = queue.pop()
        for parent in child.get("parents") or []:
            if parent.get("fingerprint") and parent["fingerprint"] not in out:
                out.add(str(parent["fingerprint"]))
                try:
                    found = read_card(parent_path(child, parent))
                except InputError:
                    continue  # it is gone: what it was is known, what it was made of is not
                queue += [found] if found.get("fingerprint") == parent["fingerprint"] else []
    return out
