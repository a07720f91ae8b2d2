"""Composition: documents and batches are, to the byte, those of the plain way (a record, its layout, one array after another)."""

from __future__ import annotations

from pathlib import Path

import hand
import numpy as np
import pytest
import toyplan
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.layout import LATENT, TEXT, layout
from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from mixtures.span import Span
from trainer import compose
from trainer.batch import Batch
from trainer.document import IGNORED, PADDING, Document, packed
from trainer.normalise import Normaliser
from trainer.stream import Reader


def plain_document(plan: Plan, span: Span) -> dict[str, np.ndarray]:
    """A document by the layout and the dataset alone, position by position."""
    record = plan.record(span)
    laid = layout(span, record, plan.rules(span.source), plan.specials)
    arrays = [plan.datasets[span.dataset].array(span.shard, s) for s in record.segments]
    tokens = [
        plan.specials.pad if kind == LATENT else int(arrays[segment][offset]) if kind == TEXT else int(token)
        for kind, token, segment, offset in zip(laid.kind, laid.token, laid.segment, laid.offset, strict=True)
    ]
    target = [IGNORED] * len(laid)
    for i in range(len(laid) - 1):
        if laid.is_target[i + 1] and laid.turn[i + 1] == laid.turn[i]:
            target[i] = tokens[i + 1]
    images = [arrays[segment] for segment in laid.image_segment]
    names = ("kind", "turn", "position", "condition", "image", "image_loss", "image_hidden", "image_segment")
    return {
        **{name: getattr(laid, name) for name in names}, "tokens": np.array(tokens), "text_target": np.array(target),
        "latents": np.concatenate(images) if images else np.zeros((0, toyplan.WIDTH)), "source": span.source, "h": record.h, "epoch": span.epoch,
    }  # fmt: skip


def assert_documents_are_plain(plan: Plan) -> int:
    reader, read = Reader(plan), 0
    for split in ("train", "heldout"):
        for seq in range(plan.sequences(split)):
            spans = plan.row(seq, split).spans
            for span, document in zip(spans, reader.sequence(seq, split), strict=True):
                for name, expected in plain_document(plan, span).items():
                    assert np.array_equal(getattr(document, name), expected), f"{split} {seq}: {name} of {span}"
                read += 1
    return read


def test_documents_of_all_kinds_are_those_of_the_plain_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan.open(toyplan.make(tmp_path, tokens=900, n=60))
    assert assert_documents_are_plain(plan) > 300
    monkeypatch.setattr(compose, "SHAPES_KEPT", 1)
    monkeypatch.setattr(compose.Shapes.__init__, "__defaults__", (1,))
    assert assert_documents_are_plain(plan) > 300


@pytest.mark.parametrize("changes", [{"history": "clean_copy"}, {"loss": "all"}, {"loss": "text"}])
def test_rules_of_a_source_are_part_of_a_shape(tmp_path: Path, changes: dict[str, str]) -> None:
    """Two sources of one dataset, under different rules: a shape met in the one is not the other's."""
    videos = toyplan.dataset(str(tmp_path / "video"), "video", 60)
    texts = toyplan.dataset(str(tmp_path / "text"), "text", 60)
    sources = {"as_is": {"dataset": videos}, "changed": {"dataset": videos, **changes}, "words": {"dataset": texts}}
    sources = {name: {**source, "tokens": 300} for name, source in sources.items()}
    mixture = Mixture.model_validate({"sequence_length": 64, "sources": sources})
    assert_documents_are_plain(Plan.open(make_plan(mixture, str(tmp_path / "plan"))))


def plain_pack(rows: list[list[Document]], length: int, normaliser: Normaliser | None) -> dict[str, np.ndarray]:
    """Rows filled one position after another."""
    fill = {"tokens": hand.PAD, "kind": PADDING, "doc": -1, "turn": -1, "image": -1, "position": 0, "source": -1, "condition": 0}
    fill["text_target"] = IGNORED
    out = {name: np.full((len(rows), length), value, np.int64) for name, value in fill.items()}
    images: list[tuple[bool, bool, int, int, int]] = []
    latents, slots, of = [], [], []
    for row, members in enumerate(rows):
        at = 0
        for number, d in enumerate(members):
            first, k = len(images), 0
            for i in range(len(d)):
                for name in ("tokens", "kind", "turn", "position", "condition", "text_target"):
                    out[name][row, at] = getattr(d, name)[i]
                out["doc"][row, at], out["source"][row, at] = number, d.source
                if d.kind[i] == LATENT:
                    out["image"][row, at] = first + d.image[i]
                    latents.append(d.latents[k])
                    slots.append(row * length + at)
                    of.append(first + d.image[i])
                    k += 1
                at += 1
            images += [(d.image_loss[j], d.image_hidden[j], d.h, d.image_segment[j], d.epoch) for j in range(len(d.image_loss))]
    flat = np.array(latents, np.float32).reshape(-1, hand.WIDTH)
    of_images = ("image_loss", "image_hidden", "image_h", "image_segment", "image_epoch")
    per_image = {name: [image[i] for image in images] for i, name in enumerate(of_images)}
    flat = (flat - normaliser.mean) / normaliser.deviation if normaliser is not None else flat
    return {**out, **per_image, "latents": flat, "latent_slot": np.array(slots), "latent_image": np.array(of), "seq": np.arange(len(rows))}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 3), min_size=1, max_size=4), st.booleans())
def test_rows_are_packed_as_if_one_position_after_another(seed: int, counts: list[int], normalised: bool) -> None:
    rng = np.random.default_rng(seed)
    make = lambda: hand.document(hand.SHAPES[rng.integers(len(hand.SHAPES))], rng, source=int(rng.integers(3)), epoch=int(rng.integers(3)))
    rows = [[make() for _ in range(n)] for n in counts]
    length = max([8, *(sum(map(len, row)) for row in rows)]) + int(rng.integers(3))
    normaliser = Normaliser(rng.standard_normal(hand.WIDTH), rng.random(hand.WIDTH)) if normalised else None
    made = packed(rows, range(len(rows)), length, hand.PAD, hand.WIDTH, normaliser)
    expected = plain_pack(rows, length, normaliser)
    assert list(made) and set(made) == set(Batch.__slots__) == set(expected)
    for name, values in expected.items():
        assert np.array_equal(made[name], np.asarray(values).reshape(made[name].shape)), name


def test_what_a_document_shares_with_others_of_its_shape_is_read_only(tmp_path: Path) -> None:
    reader = Reader(Plan.open(toyplan.make(tmp_path, tokens=300, n=30)))
    for document in reader.sequence(0):
        with pytest.raises(ValueError, match="read-only"):
            document.kind[0] = 9
        document.tokens[0] = document.text_target[0] = 9  # its own
        document.latents[:1] = 9
    assert all(document.tokens[0] != 9 for document in reader.sequence(0))
