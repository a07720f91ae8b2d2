"""A cached pass gives what one pass over the whole document gives, for every kind of document, cut anywhere, beside anything."""

from __future__ import annotations

import hand
import numpy as np
import pytest
import torch
from test_attention import model

from trainer.batch import LATENT, PADDING, Batch, Document
from trainer.models.cached import GROUP_COST, Cache, _alike

# text, pairs in both orders, questions in isolated turns, video with noised and with clean history, action-video, and all of it in one
KINDS = (*hand.SHAPES, "b t i t I t t i t e")
CLOSE = 1e-5
SHAPES: dict[str, dict] = {
    "per modality": {},
    "shared": {"ffn": "shared", "norm": "layer", "activation": "relu2", "tie_embeddings": True, "output_skip": True},
    "experts": {"ffn": "moe", "experts": {"count": 10, "granularity": 4, "top_k": 3}},
    "experts, one shared": {"ffn": "moe", "experts": {"count": 9, "granularity": 4, "top_k": 2, "shared": "global", "balance": "bias"}},
    "mixture of transformers": {"ffn": "mot"},
    "adaptive norms, places in a plane": {"time": "adaln", "rope": "axial"},
}


def piece(documents: list[Document], cuts: list[tuple[int, int]]) -> Batch:
    """Positions [start, stop) of each document, a row each."""
    made = []
    for d, (start, stop) in zip(documents, cuts, strict=True):
        image = d.image[start:stop]
        shown = np.unique(image[image >= 0])
        latents = np.flatnonzero(d.image >= 0)
        within = (latents >= start) & (latents < stop)
        flags = {n: getattr(d, n)[shown] for n in ("image_loss", "image_hidden", "image_segment")}
        rows = {n: getattr(d, n)[start:stop] for n in ("tokens", "kind", "turn", "position", "condition", "text_target")}
        renumbered = np.where(image >= 0, image - (shown[0] if len(shown) else 0), -1).astype(np.int16)
        made.append(Document(**rows, **flags, image=renumbered, latents=d.latents[within], h=d.h))
    return hand.batch([[d] for d in made], length=max(1, *(len(d) for d in made)))


def times(documents: list[Document], cuts: list[tuple[int, int]]) -> torch.Tensor:
    """Each image's t, from its place in the document alone."""
    out = []
    for d, (start, stop) in zip(documents, cuts, strict=True):
        image = d.image[start:stop]
        out += [0.1 + 0.17 * int(i) if d.image_loss[i] else 1.0 for i in np.unique(image[image >= 0])]
    return torch.tensor(out, dtype=torch.float32)


def everywhere(batch: Batch) -> torch.Tensor:
    kind = batch.kind.reshape(-1)
    return torch.nonzero((kind != LATENT) & (kind != PADDING)).squeeze(1)


@torch.no_grad()
def answers(net, documents, cuts, drop: bool, attend=None):
    """(logits of every text position, flow of every latent), each by (document, position in it)."""
    batch = piece(documents, cuts)
    dropped = (batch.condition > 0) if drop else None
    at = everywhere(batch)
    out = net(batch, batch.latents, times(documents, cuts), dropped, at, attend=attend and attend(batch, dropped))
    place = lambda flat: [(int(f) // batch.shape[1], int(f) % batch.shape[1] + cuts[int(f) // batch.shape[1]][0]) for f in flat]
    return dict(zip(place(at), out.logits, strict=True)) | dict(zip(place(batch.latent_slot), out.flow, strict=True))


def random_cuts(d: Document, rng: np.random.Generator) -> list[int]:
    """Where a document is cut: never within an image, and between a hidden one and its BOI or EOI neither."""
    hidden = np.isin(d.image, np.flatnonzero(d.image_hidden))
    inside = np.flatnonzero(((d.image[1:] >= 0) & (d.image[1:] == d.image[:-1])) | hidden[1:] | hidden[:-1]) + 1
    allowed = np.setdiff1d(np.arange(1, len(d)), inside)
    return [0, *sorted(rng.choice(allowed, min(len(allowed), int(rng.integers(1, 9))), replace=False).tolist()), len(d)]


def in_pieces(net, documents, cuts: list[list[int]], drop: bool = False) -> dict:
    """The documents read piece by piece, side by side; those with fewer pieces wait at their end with nothing to read."""
    cache = Cache(net, len(documents), max(map(len, documents)))
    found: dict = {}
    for step in range(max(map(len, cuts)) - 1):
        now = [(c[min(step, len(c) - 1)], c[min(step + 1, len(c) - 1)]) for c in cuts]
        found |= answers(net, documents, now, drop, lambda batch, dropped: cache.attend(batch, dropped=dropped))
    assert cache.length.tolist() == [len(d) for d in documents]
    return found


def same(found: dict, expected: dict) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.allclose(found[k], expected[k], atol=CLOSE, rtol=CLOSE) for k in expected)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("words", KINDS)
def test_a_document_read_in_pieces_is_answered_as_if_read_whole(words: str, drop: bool, kv_heads: int) -> None:
    net, rng = model(kv_heads=kv_heads), np.random.default_rng(KINDS.index(words))
    d = [hand.document(words, rng, condition=1)]
    whole = answers(net, d, [(0, len(d[0]))], drop)
    assert same(in_pieces(net, d, [random_cuts(d[0], rng)], drop), whole)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES)
def test_documents_of_every_kind_go_on_side_by_side_in_different_states(seed: int, shape: str) -> None:
    net, rng = model(**SHAPES[shape]), np.random.default_rng(seed)
    d = [hand.document(w, rng, condition=1) for w in rng.permutation(KINDS)]
    whole = answers(net, d, [(0, len(x)) for x in d], seed % 2 == 1)
    assert same(in_pieces(net, d, [random_cuts(x, rng) for x in d], seed % 2 == 1), whole)


def test_one_position_at_a_time_is_the_finest_cut() -> None:
    net, rng = model(), np.random.default_rng(5)
    d = [hand.document("b i t c I t t e", rng, condition=2)]
    inside = np.flatnonzero((d[0].image[1:] >= 0) & (d[0].image[1:] == d[0].image[:-1])) + 1
    cuts = [*np.setdiff1d(np.arange(len(d[0])), inside).tolist(), len(d[0])]
    assert same(in_pieces(net, d, [cuts]), answers(net, d, [(0, len(d[0]))], False))


@torch.no_grad()
def test_what_is_seen_and_not_kept_leaves_no_trace() -> None:
    net, rng = model(), np.random.default_rng(6)
    d = [hand.document("b c c I t e", rng, condition=1), hand.document("b t t t t t t t I t e", rng)]
    images = [(int(np.flatnonzero(x.image >= 0)[0]), int(np.flatnonzero(x.image >= 0)[-1]) + 1) for x in d]
    before, after = [(0, start) for start, _ in images], [(stop, len(x)) for x, (_, stop) in zip(d, images, strict=True)]
    cache = Cache(net, 2, max(map(len, d)))
    found = answers(net, d, before, False, lambda batch, _: cache.attend(batch))
    for other in range(3):  # as denoising does, with other latents each time
        batch = piece(d, images)
        net(batch, batch.latents + other, torch.tensor([0.3 * other] * 2), attend=cache.attend(batch, keep=False))
        assert cache.length.tolist() == [start for start, _ in images]
    found |= answers(net, d, images, False, lambda batch, _: cache.attend(batch))
    found |= answers(net, d, after, False, lambda batch, _: cache.attend(batch))
    assert same(found, answers(net, d, [(0, len(x)) for x in d], False))


@torch.no_grad()
def test_rows_may_be_read_in_any_order_and_begun_anew() -> None:
    net, rng = model(), np.random.default_rng(7)
    a, b, c = (hand.document(w, rng) for w in ("b t i t t e", "b t t t e", "b I t t t e"))
    cache = Cache(net, 3, 12)
    read = lambda some, cuts, rows: answers(net, some, cuts, False, lambda batch, _: cache.attend(batch, rows=rows))
    read([c, a], [(0, len(c)), (0, 2)], [0, 2])
    cache.clear([0])
    found = read([a, b], [(2, len(a)), (0, len(b))], [2, 0])
    expected = answers(net, [a, b], [(0, len(a)), (0, len(b))], False)
    assert same(found, {k: v for k, v in expected.items() if k in found}) and len(found) == len(a) - 2 + len(b)


@torch.no_grad()
def test_bounds_are_told() -> None:
    net, rng = model(), np.random.default_rng(8)
    d = hand.document("b t t t t e", rng)
    with pytest.raises(ValueError, match="6 positions does not fit a cache of 5"):
        Cache(net, 1, 5).attend(hand.batch([[d]], 6))
    with pytest.raises(ValueError, match="one document"):
        Cache(net, 1, 40).attend(hand.batch([[d, d]], 12))


def test_groups_hold_each_row_once_and_waste_little() -> None:
    rng = np.random.default_rng(9)
    for _ in range(50):
        counts = rng.choice([0, 1, 1, 1, 16, 256, int(rng.integers(1, 600))], int(rng.integers(1, 20)))
        ends = counts + rng.integers(0, 900, len(counts))
        groups = _alike(counts, ends)
        assert sorted(i for g in groups for i in g) == np.flatnonzero(counts).tolist()
        for g in groups:
            assert len(g) * counts[g].max() * ends[g].max() - (counts[g] * ends[g]).sum() <= GROUP_COST
    assert [g.tolist() for g in _alike(np.array([1, 256, 1, 256]), np.full(4, 300))] == [[1, 3], [0, 2]]


@torch.no_grad()
def test_a_row_moves_with_all_it_holds() -> None:
    net, rng = model(), np.random.default_rng(11)
    a, b = hand.document("b i c0 t0 e0 c1 t1 e1", rng), hand.document("b t t e", rng)
    cache = Cache(net, 3, len(a))
    read = lambda some, cuts, rows: answers(net, some, cuts, False, lambda batch, _: cache.attend(batch, rows=rows))
    read([b, a], [(0, len(b)), (0, 9)], [0, 2])
    cache.clear([0])
    cache.move(2, 0)
    cache.clear([2])
    read([b], [(0, 3)], [2])  # what comes to the old place changes nothing
    found, whole = read([a], [(9, len(a))], [0]), answers(net, [a], [(0, len(a))], False)
    assert same(found, {k: v for k, v in whole.items() if k in found}) and len(found) == len(a) - 9
