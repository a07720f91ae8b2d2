"""No encoder at all: the latents of an encoded dataset of the same records, so that a new tokenizer re-encodes no image."""

from __future__ import annotations

from pipelines.format.document import Part


class Reuse(Part):
    """`dataset`: an encoded dataset that was made from the same curated dataset. Its latent files are pointed at, not copied."""

    dataset: str
