"""The mask on packs of every kind of document: its three back ends, a second telling of it, and what a model's answers may depend on."""

from __future__ import annotations

from dataclasses import replace

import hand
import laid
import numpy as np
import pytest
import torch
from test_attention import mask, model

from trainer import losses
from trainer.batch import LATENT, PADDING, STRUCTURE, TEXT, Batch, Document
from trainer.flow import Noised, noised
from trainer.models.attention import order, prepare
from trainer.run import Flow

FLOW = Flow(cfg_drop={"caption": 0.5, "action": 0.5, "context": 0.5})
NET = model(width=16, heads=2, kv_heads=1)


@torch.no_grad()
def answers(batch: Batch, seen: Noised | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Places [A] of every text and structure position, their logits, and the flow of every latent, images noised as in training."""
    seen = noised(FLOW, batch, seed=0) if seen is None else seen
    kind = batch.kind.reshape(-1)
    at = torch.nonzero((kind != LATENT) & (kind != PADDING)).squeeze(1)
    out = NET(batch, seen.z, seen.t, seen.dropped, at=at)
    return at, out.logits, out.flow


def moved(batch: Batch, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which answers change, bool of logits [A] and of flows [N], when all that stands at `where` (bool[B,S]) becomes something else."""
    flat = where.reshape(-1)
    tokens = torch.where(where & (batch.kind != LATENT) & (batch.kind != PADDING), (batch.tokens + 1) % hand.VOCAB, batch.tokens)
    latents = torch.where(flat[batch.latent_slot][:, None], batch.latents - 1, batch.latents)
    _, *before = answers(batch)
    _, *after = answers(replace(batch, tokens=tokens, latents=latents))
    return tuple((a != b).any(dim=1) for a, b in zip(before, after, strict=True))  # type: ignore[return-value]


def one(kind: str, seed: int = 0) -> tuple[Batch, Document]:
    doc = laid.document(kind, np.random.default_rng(seed))
    return hand.batch([[doc]], len(doc)), doc


def places(batch: Batch, *positions: int | slice) -> torch.Tensor:
    where = torch.zeros(batch.shape, dtype=torch.bool)
    for p in positions:
        where[0, p] = True
    return where


def frames(doc: Document) -> list[slice]:
    """The positions of each image, BOI to EOI."""
    starts = np.flatnonzero((doc.kind == STRUCTURE) & (doc.tokens == hand.BOI))
    stops = np.flatnonzero((doc.kind == STRUCTURE) & (doc.tokens == hand.EOI)) + 1
    return [slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True)]


# ---- one definition ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(0, 60, 20))
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_dense_documents_and_flex_agree_on_packs_of_every_kind(start: int) -> None:
    for seed in range(start, start + 20):
        batch, _ = laid.pack(np.random.default_rng(seed))
        fallen = noised(FLOW, batch, seed).dropped if seed % 4 else None
        m = order(batch)
        qkv = torch.randn(len(m.slots), 4 + 2 + 2, 8, generator=torch.Generator().manual_seed(seed))
        expected = prepare(batch, m, fallen, "dense")(qkv, 4)
        for backend in ("documents", "flex"):
            assert torch.allclose(prepare(batch, m, fallen, backend)(qkv, 4), expected, atol=1e-5), (seed, backend)


def told_again(doc: Document, dropped: np.ndarray) -> np.ndarray:
    """The mask of a document said pair by pair, from what its images, turns and conditions are."""
    block = np.full(len(doc), -1)
    for i, frame in enumerate(frames(doc)):
        block[frame] = i
    seen = np.zeros((len(doc), len(doc)), bool)
    for q in range(len(doc)):
        for k in range(len(doc)):
            patches = doc.image[q] >= 0 and doc.image[q] == doc.image[k]
            if k > q and not patches:
                continue
            if doc.turn[k] >= 0 and doc.turn[k] != doc.turn[q]:
                continue
            if block[k] >= 0 and doc.image_hidden[block[k]] and block[k] != block[q]:
                continue
            if dropped[k] and doc.condition[k] != doc.condition[q]:
                continue
            seen[q, k] = True
    return seen


@pytest.mark.parametrize("seed", range(8))
def test_the_mask_is_what_documents_say_pair_by_pair(seed: int) -> None:
    batch, rows = laid.pack(np.random.default_rng(seed))
    drawn = noised(FLOW, batch, seed).dropped
    fallen = torch.zeros(batch.shape, dtype=torch.bool) if drawn is None else drawn
    found = mask(batch, fallen)
    for b, row in enumerate(rows):
        expected, at = np.zeros(found[b].shape, bool), 0
        for doc in row:
            here = slice(at, at + len(doc))
            expected[here, here] = told_again(doc, fallen[b, here].numpy())
            at += len(doc)
        assert (found[b, :at] == expected[:at]).all()


# ---- samples stay apart --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_changing_any_position_of_a_sample_changes_no_answer_of_another(start: int) -> None:
    fell = hidden = 0
    for seed in range(start, start + 50):
        rng = np.random.default_rng(seed)
        batch, rows = laid.pack(rng)
        fell += noised(FLOW, batch, seed=0).dropped is not None
        hidden += bool(batch.image_hidden.any())
        row = int(rng.integers(2))
        victim = batch.doc[row] == int(rng.integers(len(rows[row])))
        inside = torch.zeros(batch.shape, dtype=torch.bool)
        inside[row] = victim
        chosen = inside.clone()
        if seed % 2:  # one token or latent of it alone
            chosen[:] = False
            chosen[row, int(rng.choice(np.flatnonzero(victim.numpy())))] = True
        logits, flows = moved(batch, chosen)
        kind, ours = batch.kind.reshape(-1), inside.reshape(-1)
        text = ours[torch.nonzero((kind != LATENT) & (kind != PADDING)).squeeze(1)]
        assert not logits[~text].any() and not flows[~ours[batch.latent_slot]].any(), seed
        assert logits[text].any() or flows[ours[batch.latent_slot]].any(), seed
    assert fell > 40 and hidden == 50


@pytest.mark.parametrize("seed", range(12))
def test_a_sample_is_answered_in_a_pack_as_alone(seed: int) -> None:
    batch, rows = laid.pack(np.random.default_rng(seed))
    _, logits, flow = answers(batch)
    text = latents = 0
    for doc in (d for row in rows for d in row):
        _, alone_logits, alone_flow = answers(hand.batch([[doc]], len(doc)))
        assert torch.allclose(logits[text : text + len(alone_logits)], alone_logits, atol=1e-5)
        assert torch.allclose(flow[latents : latents + len(alone_flow)], alone_flow, atol=1e-5)
        text, latents = text + len(alone_logits), latents + len(alone_flow)


# ---- within a sample -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pair_image_first", "pair_text_first", "vqa_isolated", "video_noised", "video_copy", "action"])
def test_an_image_sees_itself_whole(kind: str) -> None:
    batch, doc = one(kind)
    for frame in frames(doc):
        _, flows = moved(batch, places(batch, frame.stop - 2))
        first = int(doc.image[frame.start + 1])
        assert flows[torch.from_numpy(doc.image[doc.image >= 0] == first)].all(), "the last latent reaches the first"


def test_text_before_an_image_does_not_see_it_and_text_after_does() -> None:
    for kind, sees in (("pair_text_first", False), ("pair_image_first", True)):
        batch, doc = one(kind)
        logits, _ = moved(batch, torch.from_numpy(doc.image >= 0)[None])
        text = torch.from_numpy(doc.kind[(doc.kind != LATENT)] == TEXT)
        assert bool(logits[text].all()) is sees and bool(logits[text].any()) is sees


def test_later_frames_see_earlier_noised_ones_and_no_frame_sees_a_later_one() -> None:
    batch, doc = one("video_noised")
    image = torch.from_numpy(doc.image[doc.image >= 0])
    for i, frame in enumerate(frames(doc)):
        _, flows = moved(batch, places(batch, frame))
        assert flows[image >= i].all() and not flows[image < i].any()


def test_a_noised_twin_is_seen_by_nothing_but_itself_and_its_clean_copy_by_all_that_follows() -> None:
    batch, doc = one("video_copy")
    image, text = torch.from_numpy(doc.image[doc.image >= 0]), np.flatnonzero(doc.kind != LATENT)
    assert doc.image_hidden.tolist() == [True, False] * 3
    for i, frame in enumerate(frames(doc)):
        logits, flows = moved(batch, places(batch, frame))  # the twin with its BOI and EOI
        after = text >= frame.stop
        own = (text >= frame.start) & ~after
        assert logits[torch.from_numpy(own)].any() and flows[image == i].all()
        if doc.image_hidden[i]:
            assert not logits[torch.from_numpy(~own)].any() and not flows[image != i].any()
        else:
            assert flows[image >= i].all() and not flows[image < i].any()
            seen_by = np.array([not any(f.start <= p < f.stop and doc.image_hidden[j] for j, f in enumerate(frames(doc))) for p in text])
            assert logits[torch.from_numpy(after & seen_by)].all()


def test_a_frame_after_clean_copies_is_predicted_as_if_only_clean_frames_stood_before_it() -> None:
    """What sampling does: earlier frames stand there once, finished. Training on copies must give the same answer."""
    batch, doc = one("video_copy")
    seen = noised(Flow(), batch, seed=0)
    flow, blocks, keep = answers(batch, seen)[2], frames(doc), np.ones(len(doc), bool)
    for i in (0, 2, 5):  # left: BOS, the clean copies of the first two frames, the noised twin of the third, EOS
        keep[blocks[i]] = False
    short = laid.part(doc, keep)
    left = torch.from_numpy(keep[doc.image >= 0])
    found = answers(hand.batch([[short]], len(short)), Noised(seen.z[left], seen.t[[1, 3, 4]]))[2]
    twin = torch.from_numpy(short.image[short.image >= 0] == 2)
    assert short.image_hidden.tolist() == [False, False, True] and torch.allclose(found[twin], flow[left][twin], atol=1e-5)
    assert (np.diff(short.position) == 1).all()


def test_isolated_turns_share_one_image_and_are_answered_as_if_each_stood_alone() -> None:
    batch, doc = one("vqa_isolated")
    _, logits, _ = answers(batch)
    text = doc.kind != LATENT
    assert len(frames(doc)) == 1 and set(doc.turn) == {-1, 0, 1, 2}
    for turn in range(3):
        mine = torch.from_numpy(doc.turn[text] == turn)
        changed, flows = moved(batch, torch.from_numpy(doc.turn == turn)[None])
        assert changed[mine].all() and not changed[~mine].any() and not flows.any()
        alone = laid.part(doc, (doc.turn == turn) | (doc.turn < 0))
        _, single, _ = answers(hand.batch([[alone]], len(alone)))
        assert torch.allclose(single[torch.from_numpy(alone.turn[alone.kind != LATENT] == turn)], logits[mine], atol=1e-5)
    changed, _ = moved(batch, places(batch, frames(doc)[0]))
    assert changed[torch.from_numpy(doc.turn[text] >= 0)].all()


def test_chained_turns_see_those_before() -> None:
    batch, doc = one("vqa_chained")
    first = frames(doc)[0].stop
    changed, _ = moved(batch, places(batch, first))
    assert changed[torch.from_numpy(np.flatnonzero(doc.kind != LATENT) >= first)].all()


@pytest.mark.parametrize(("kind", "name"), [("pair_text_first", "caption"), ("action", "action"), ("action", "context"), ("video_copy", "context")])
def test_a_condition_that_fell_is_in_place_and_counted_and_no_image_sees_it(kind: str, name: str) -> None:
    batch, doc = one(kind)
    condition = {"caption": 1, "action": 2, "context": 3}[name]
    flow = Flow(cfg_drop={name: 1.0})
    seen = noised(flow, batch, seed=0)
    assert seen.dropped is not None and torch.equal(seen.dropped, batch.condition == condition)
    assert np.array_equal(losses.counts(batch, 1), losses.counts(hand.batch([[doc]], len(doc)), 1))
    latents = torch.where(seen.dropped.reshape(-1)[batch.latent_slot][:, None], batch.latents - 1, batch.latents)
    other = replace(batch, tokens=torch.where(seen.dropped & (batch.kind == TEXT), (batch.tokens + 1) % hand.BOS, batch.tokens), latents=latents)
    trained = batch.image_loss[batch.latent_image.long()]
    for chances, same in ((flow, True), (Flow(), False)):
        pairs = [answers(b, noised(chances, b, seed=0))[2] for b in (batch, other)]
        hit = (pairs[0] != pairs[1]).any(dim=1)[trained]
        assert not hit.any() if same else hit.any()
    # A model that reads the condition alone reads it as before.
    whole, without = answers(batch, noised(Flow(), batch, seed=0)), answers(batch, seen)
    words = batch.condition.reshape(-1)[whole[0]] == condition
    if kind == "pair_text_first":
        assert torch.allclose(whole[1][words], without[1][words], atol=1e-6)
