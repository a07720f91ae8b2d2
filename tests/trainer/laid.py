"""Documents of every kind of data, laid out by the planner's own rules, with random ids and latents: what masks and flows are tested on.

Where hand.py writes positions by letters, these come from records, spans and mixtures/layout.py, as in a run.
"""

from __future__ import annotations

from dataclasses import replace

import hand
import numpy as np

from mixtures.layout import LATENT, TEXT, Layout, layout
from mixtures.span import SourceRules, Span, Specials
from pipelines.format.record import Record, Segment
from trainer.batch import IGNORED, Batch, Document
from trainer.compose import shape_of

SPECIALS = Specials(hand.BOS, hand.EOS, hand.BOI, hand.EOI, hand.PAD)


def words(rng: np.random.Generator, role: str = "target", atom: int = -1, turn: int = -1) -> Segment:
    return Segment("tokens", role, atom, turn, tokens=int(rng.integers(2, 5)))  # type: ignore[arg-type]


def picture(rng: np.random.Generator, role: str = "target", atom: int = 0) -> Segment:
    return Segment("latents", role, atom, -1, tokens=int(rng.integers(2, hand.PATCHES + 1)))  # type: ignore[arg-type]


def laid(kind: str, rng: np.random.Generator) -> Layout:
    """The layout of a random sample of this kind."""
    rules, caption, image_first = SourceRules(), -1, False
    if kind.startswith("text"):
        data, segments, bits = "text", [words(rng)], [True]
    elif kind.startswith("pair"):
        data, segments = "image-text", [picture(rng), words(rng, atom=1), words(rng, atom=2)]
        caption, image_first = int(rng.integers(1, 3)), "image_first" in kind
        bits = [not image_first or "both" in kind, True]
    elif kind.startswith("vqa"):
        data = "vqa"
        segments = [picture(rng, "context")]
        for turn in range(3):
            segments += [words(rng, "context", 0, turn), words(rng, "target", 0, turn)]
        bits = [s.role == "target" for s in segments]
        rules = SourceRules(turns="isolated" if "isolated" in kind else "chained")
    elif kind.startswith("video"):
        data, segments = "video", [picture(rng, atom=k) for k in range(3)]
        bits = [True] * 3
        rules = SourceRules(history="clean_copy" if "copy" in kind else "noised")
    else:
        data, segments = "action-video", [*(picture(rng, "context") for _ in range(4)), words(rng, "context", 0), picture(rng)]
        bits = [s.role == "target" for s in segments]
    chosen = [segments[0], segments[caption]] if caption >= 0 else segments
    atoms = 2 if caption >= 0 else len({s.atom for s in segments})
    stop, start = sum(s.tokens for s in chosen), 0
    if kind == "text_cut":
        start = 1
    span = Span(0, 0, 0, 0, 0, atoms, caption, start, stop, image_first, tuple(bits), 0)
    return layout(span, Record("0" * 32, "s", "o", data, tuple(segments), "g"), rules, SPECIALS)


# Every row of the table "what is seen, what takes loss" (docs/flow.md), pieces of texts, and turns both ways.
KINDS = ("text", "text_cut", "pair_image_first", "pair_image_first_both", "pair_text_first", "vqa_isolated", "vqa_chained", "video_noised",
         "video_copy", "action")  # fmt: skip


def document(kind: str | Layout, rng: np.random.Generator, source: int = 0, h: int | None = None, epoch: int = 0) -> Document:
    """A layout (or a random one of this kind) filled with random ids and latents; both copies of a frame hold the same ones."""
    of = laid(kind, rng) if isinstance(kind, str) else kind
    shape = shape_of(of, hand.PAD, IGNORED)
    tokens, target = shape.tokens.copy(), shape.target.copy()
    text = of.kind == TEXT
    tokens[text] = rng.integers(0, hand.BOS, text.sum())
    target[shape.predictor] = tokens[shape.predicted]
    values = rng.standard_normal((int(of.segment.max()) + 1, hand.PATCHES, hand.WIDTH)).astype(np.float32)
    latents = of.kind == LATENT
    return Document(
        tokens, of.kind, of.turn, of.position, of.condition, target, of.image, of.image_loss, of.image_hidden, of.image_segment,
        values[of.segment[latents], of.offset[latents]], source, int(rng.integers(0, 2**63)) if h is None else h, epoch,
    )  # fmt: skip


def part(doc: Document, keep: np.ndarray) -> Document:
    """The positions `keep` (bool) of a document as a document, with the images that lie in them, in place and time where they were."""
    images = np.unique(doc.image[keep & (doc.image >= 0)])
    number = np.full(len(doc.image_loss) + 1, -1, np.int16)  # its last entry is that of positions without an image
    number[images] = range(len(images))
    positions = ("tokens", "kind", "turn", "position", "condition", "text_target")
    return replace(
        doc, **{name: getattr(doc, name)[keep] for name in positions}, image=number[doc.image[keep]],
        **{name: getattr(doc, name)[images] for name in ("image_loss", "image_hidden", "image_segment")},
        latents=doc.latents[keep[doc.image >= 0]],
    )  # fmt: skip


def pack(rng: np.random.Generator, rows: int = 2) -> tuple[Batch, list[list[Document]]]:
    """One document of every kind and as many more, in random order, over rows that end in padding; and the documents."""
    kinds = rng.permutation([*KINDS, *rng.choice(KINDS, int(rng.integers(0, 4)))])
    made = [[document(str(kind), rng, source=i % 3) for i, kind in enumerate(part)] for part in np.array_split(kinds, rows)]
    return hand.batch(made, max(sum(map(len, row)) for row in made) + int(rng.integers(1, 6))), made
