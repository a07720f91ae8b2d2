"""Held-out perplexity and bits per byte of text.

Every held-out document stands alone in a row from its BOS, as in training. Payload ids only: neither structure tokens nor what takes no loss
is counted. Nats a token → perplexity = exp(mean); bits per byte = nats / (bytes of the counted ids · ln 2), which does not depend on the
tokenizer. Default: the sources that are text; naming `sources` measures captions or questions in the same way (images clean).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipelines.format.document import Part, Size

if TYPE_CHECKING:
    from trainer.batch import Batch
    from trainer.evaluate._subject import Subject


class TextPerplexity(Part):
    """Perplexity on the held-out rows of `sources` (default: all text sources), each up to `max_tokens` payload tokens."""

    sets: list[Literal["held_out"]] = ["held_out"]
    sources: list[str] | None = None
    max_tokens: Size | None = None

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows text_perplexity and bits_per_byte, split held_out (all sources together) and held_out:<source>."""
        from trainer.evaluate._tokenizers import source_dataset

        plan = subject.plan
        held = {s: source_dataset(plan, s) for s in (self.sources if self.sources is not None else plan.sources)}
        chosen = [s for s, dataset in held.items() if dataset is not None and (self.sources is not None or dataset.data == "text")]
        found = {source: self._measure(subject, source) for source in chosen}
        rows = []
        groups = [("held_out", chosen), *((f"held_out:{s}", [s]) for s in chosen)]
        for split, members in groups:
            nats, tokens, size = (sum(found[s][k] for s in members) for k in range(3))
            if tokens:
                rows.append({"metric": "text_perplexity", "split": split, "value": float(np.exp(nats / tokens)), "n": int(tokens), "chance": None})
                rows.append({"metric": "bits_per_byte", "split": split, "value": nats / size / float(np.log(2)), "n": int(size), "chance": None})
        return rows

    def _measure(self, subject: Subject, source: str) -> tuple[float, int, int]:
        """(nats, counted ids, their bytes) of one source."""
        import torch.nn.functional as F

        from trainer.evaluate._tokenizers import ByteCounter, tokenizer_of

        counter, documents = ByteCounter(tokenizer_of(subject.plan, source)), subject.held_out([source], self.max_tokens)
        nats, tokens, size = 0.0, 0, 0
        for _, batch in subject.batches(documents):
            rows, at = payload_targets(batch, subject.specials)
            target = batch.text_target.reshape(-1)[at].long()
            nats += float(F.cross_entropy(subject.logits(batch, at), target, reduction="none").double().sum())
            tokens += len(at)
            size += sum(counter.count(target[rows == row].numpy()) for row in np.unique(rows))
        return nats, tokens, size


def payload_targets(batch: Batch, specials: Any) -> tuple[np.ndarray, np.ndarray]:
    """(row of each, flat position of each) where a payload id is to be predicted: targets that are no structure token."""
    target = batch.text_target.numpy()
    counted = (target >= 0) & ~np.isin(target, list(specials))
    return np.nonzero(counted)[0], np.flatnonzero(counted)
