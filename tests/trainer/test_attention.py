"""Who sees whom: one definition, back ends that agree, and documents, turns, hidden images and fallen conditions that stay apart."""

from __future__ import annotations

import hand
import numpy as np
import pytest
import torch

from trainer.batch import LATENT, PADDING, Batch
from trainer.models.attention import Marks, _mask_mod, automatic, marks, order, prepare, visible
from trainer.models.transfusion import Transfusion, TransfusionModel
from trainer.parallel import initialise


def model(**changes) -> TransfusionModel:
    shape = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "embedding_std": 0.5} | changes
    with torch.device("meta"):
        built = Transfusion(**shape).build(hand.VOCAB, hand.WIDTH, hand.PATCHES)
    built.to_empty(device="cpu")
    initialise(built, seed=1)
    with torch.no_grad():  # the flow head starts at zero, which would hide everything
        built.latent_out.weight.copy_(torch.randn(built.latent_out.weight.shape, generator=torch.Generator().manual_seed(2)))
    return built


@torch.no_grad()
def answers(net: TransfusionModel, batch: Batch, dropped: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of every text position and the flow of every latent, each with the position's place in the batch."""
    t = torch.linspace(0.1, 1, max(len(batch.image_loss), 1))[: len(batch.image_loss)]
    kind = batch.kind.reshape(-1)
    at = torch.nonzero((kind != LATENT) & (kind != PADDING)).squeeze(1)
    out = net(batch, batch.latents, t, dropped, at=at)
    return out.logits, out.flow


def mask(batch: Batch, dropped: torch.Tensor | None = None) -> np.ndarray:
    m = marks(batch, dropped)
    return visible(Marks(*(x[:, :, None] for x in m)), Marks(*(x[:, None, :] for x in m))).numpy()


def one(words: str, condition: int = 0) -> Batch:
    return hand.batch([[hand.document(words, np.random.default_rng(0), condition=condition)]])


@pytest.mark.parametrize(("cuda", "length", "trains", "chosen"), [
    (True, 4096, True, "flex"), (True, 128, True, "flex"), (True, 127, True, "documents"), (True, 4096, False, "documents"),
    (False, 4096, True, "documents"),
])  # fmt: skip
def test_only_training_in_rows_that_are_not_short_is_compiled(cuda: bool, length: int, trains: bool, chosen: str) -> None:
    assert automatic(cuda, length, trains) == chosen


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("backend", ["documents", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_back_ends_agree_with_the_dense_mask(backend: str, seed: int) -> None:
    batch = hand.pack(np.random.default_rng(seed), rows=3)
    fallen = (batch.condition > 0) & (torch.rand(batch.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)
    m = order(batch)
    g = torch.Generator().manual_seed(seed)
    qkv = torch.randn(len(m.slots), 4 + 2 + 2, 8, generator=g)
    expected = prepare(batch, m, fallen, "dense")(qkv, 4)
    found = prepare(batch, m, fallen, backend)(qkv, 4)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("drop", [False, True])
def test_the_kernel_s_short_form_of_the_mask_is_the_mask(seed: int, drop: bool) -> None:
    batch = hand.pack(np.random.default_rng(seed), rows=3)
    fallen = (batch.condition > 0) & (torch.rand(batch.shape, generator=torch.Generator().manual_seed(seed)) < 0.5) if drop else None
    rows, length = batch.shape
    b, q, k = torch.meshgrid(*(torch.arange(n) for n in (rows, length, length)), indexing="ij")
    short = _mask_mod(marks(batch, fallen))(b, torch.zeros_like(b), q, k).numpy()
    real = (batch.kind != PADDING).numpy()
    assert (short == mask(batch, fallen))[real].all()


def test_gradients_through_documents_equal_those_through_the_dense_mask() -> None:
    batch = hand.pack(np.random.default_rng(3), rows=3)
    m = order(batch)
    grads = []
    for backend in ("dense", "documents"):
        g = torch.Generator().manual_seed(0)
        qkv = torch.randn(len(m.slots), 4 + 2 + 2, 8, generator=g).requires_grad_()
        weight = torch.randn(len(m.slots), 4, 8, generator=g)
        (prepare(batch, m, None, backend)(qkv, 4) * weight).sum().backward()
        grads.append(qkv.grad)
    assert torch.allclose(*grads, atol=1e-5)


def test_text_is_causal_and_an_image_sees_itself_whole() -> None:
    seen = mask(one("b t I t e"))[0]
    text, image, after = 1, slice(3, 7), 8
    assert seen[text, :2].all() and not seen[text, 2:].any()
    assert seen[image, image].all() and seen[3, :3].all() and not seen[3, 7:].any()
    assert seen[after, :9].all()


def test_a_hidden_image_is_seen_by_itself_alone_and_its_clean_copy_by_all() -> None:
    seen = mask(one("b h i t e"))[0]
    hidden, twin, copy, rest = slice(2, 6), np.r_[1:7], slice(8, 12), np.r_[7:15]  # the twin: BOI to EOI
    assert seen[hidden, hidden].all() and not seen[np.ix_(rest, twin)].any() and not seen[0, twin].any()
    assert seen[hidden, 0:2].all() and seen[13, copy].all()


def test_a_turn_sees_the_shared_prefix_and_no_other_turn() -> None:
    batch = one("b i c0 t0 e0 c1 t1 e1")
    seen, turn = mask(batch)[0], batch.turn[0].numpy()
    for a in (0, 1):
        mine, other = np.flatnonzero(turn == a), np.flatnonzero(turn == 1 - a)
        assert not seen[np.ix_(mine, other)].any()
        assert seen[mine[-1], :7].all() and seen[mine[-1], mine].all()


def test_a_fallen_condition_is_seen_by_its_own_kind_alone() -> None:
    batch = one("b c c I e", condition=1)
    fallen = batch.condition > 0
    seen = mask(batch, fallen)[0]
    caption, image = np.r_[1:3], np.r_[4:8]
    assert not seen[np.ix_(image, caption)].any() and seen[2, 1] and seen[4, 0]
    assert mask(batch)[0][np.ix_(image, caption)].all()


@pytest.mark.parametrize("seed", range(20))
def test_changing_one_document_changes_nothing_in_another(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net, batch = model(), hand.pack(rng, rows=2)
    before = answers(net, batch)
    row = int(rng.integers(2))
    victim = int(rng.integers(int(batch.doc[row].max()) + 1))
    inside = torch.zeros(batch.shape, dtype=torch.bool)
    inside[row] = batch.doc[row] == victim
    batch.tokens = torch.where(inside & (batch.kind == 0), (batch.tokens + 1) % hand.BOS, batch.tokens)
    flat = inside.reshape(-1)
    batch.latents = torch.where(flat[batch.latent_slot][:, None], batch.latents + 1, batch.latents)
    after = answers(net, batch)
    kind = batch.kind.reshape(-1)
    same = ~flat[torch.nonzero((kind != LATENT) & (kind != PADDING)).squeeze(1)]
    assert torch.equal(before[0][same], after[0][same])
    assert torch.equal(before[1][~flat[batch.latent_slot]], after[1][~flat[batch.latent_slot]])
    assert not torch.equal(before[0][~same], after[0][~same])


def test_changing_one_turn_changes_nothing_in_another() -> None:
    net, batch = model(), one("b i c0 t0 t0 e0 c1 t1 t1 e1")
    before, _ = answers(net, batch)
    changed = batch.turn == 0
    batch.tokens = torch.where(changed & (batch.kind == 0), (batch.tokens + 1) % hand.BOS, batch.tokens)
    after, _ = answers(net, batch)
    kind = batch.kind.reshape(-1)
    mine = changed.reshape(-1)[torch.nonzero((kind != LATENT) & (kind != PADDING)).squeeze(1)]
    assert torch.equal(before[~mine], after[~mine]) and not torch.equal(before[mine], after[mine])


def test_a_rank_without_rows_gives_zero_gradients_to_every_parameter() -> None:
    net = model(tie_embeddings=True)
    batch = hand.batch([[]])
    out = net(batch, batch.latents, torch.ones(0))
    (out.logits.sum() + out.flow.sum()).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and not p.grad.any(), name
