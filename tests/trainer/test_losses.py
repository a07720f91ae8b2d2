"""Losses by hand: sums and counts by source and modality, independent of how documents are packed and cut."""

from __future__ import annotations

import hand
import laid
import numpy as np
import pytest
from test_attention import model

from trainer import losses
from trainer.batch import Batch
from trainer.flow import noised
from trainer.losses import COUNTS
from trainer.metrics import Account, step_line
from trainer.models.attention import Marks, marks, visible
from trainer.run import Flow, Loss


def documents(seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    words = ["b t t t e", "b c c I e", "b i c t e", "b I I e", "b i c0 t0 e0 c1 t1 e1"]
    return [hand.document(w, rng, source=i % 3, condition=1, h=i) for i, w in enumerate(words)]


def found(batch: Batch) -> tuple[np.ndarray, np.ndarray, losses.Errors]:
    seen = noised(Flow(), batch, seed=0)
    net = model()
    errors = losses.errors(net(batch, seen.z, seen.t, seen.dropped), batch, seen, Flow())
    return losses.counts(batch, 3), losses.sums(errors, 3).numpy(), errors


def test_counts_by_source_are_those_of_the_documents_counted_by_hand() -> None:
    counts = losses.counts(hand.batch([documents()], length=80), 3)
    by = {name: counts[:, i].tolist() for i, name in enumerate(COUNTS)}
    assert by["text"] == [3 + 0, 2 + 4, 2]  # sources 0: docs 0 and 3; 1: docs 1 and 4; 2: doc 2
    assert by["visual"] == [8, 4 + 4, 4]
    assert by["structure"] == [2 + 6, 4 + 5, 4]
    assert by["flow_targets"] == [8, 4, 0]
    # t t t e | BOI of both images and e | BOI of the image and e | t e | t1 e1, t0 e0
    assert by["text_targets"] == [4 + 3, 2 + 4, 2]
    # L (L + 1) / 2 and 6 more per image of 4; of the last, nine pairs of one turn's three with the other's three are not seen
    assert by["pairs"] == [15 + (105 + 12), (55 + 6) + (91 + 6 - 9), 55 + 6]


TURNS_AND_COPIES = ("b h0 i0 c0 t0 e0 h1 i1 t1 t1 e1 c0", "b h i t h i e", "b i c0 t0 c1 h1 t1 c0 e")


def test_counted_pairs_are_those_that_the_mask_lets_through() -> None:
    """Also across turns, hidden frames, and both."""
    rng = np.random.default_rng(0)
    for words in (*hand.SHAPES, *TURNS_AND_COPIES):
        of = [hand.document(words, rng), hand.document("b t t e", rng), hand.document(words, rng)]
        batch = hand.batch([of, of[1:]], length=120)
        m = marks(batch, None)
        mask = visible(Marks(*(x[:, :, None] for x in m)), Marks(*(x[:, None, :] for x in m))) & (batch.doc >= 0)[:, None, :]
        assert losses.counts(batch, 1)[0][COUNTS.index("pairs")] == int(mask.sum()), words
    random = hand.pack(np.random.default_rng(1), rows=8, length=100)
    m = marks(random, None)
    mask = visible(Marks(*(x[:, :, None] for x in m)), Marks(*(x[:, None, :] for x in m))) & (random.doc >= 0)[:, None, :]
    assert losses.counts(random, 9)[:, COUNTS.index("pairs")].sum() == int(mask.sum())


@pytest.mark.parametrize("kind", laid.KINDS)
def test_payload_counted_from_a_batch_is_what_the_layout_says(kind: str) -> None:
    """Of a clean copy too: the frame counts once, its copy is structure."""
    rng = np.random.default_rng(0)
    of = [laid.laid(kind, rng) for _ in range(3)]
    batch = hand.batch([[laid.document(x, rng, source=i) for i, x in enumerate(of)]], 200)
    counts = dict(zip(COUNTS, losses.counts(batch, 3).T, strict=True))
    assert (counts["text"] + counts["visual"]).tolist() == [x.payload for x in of]
    assert (counts["text"] + counts["visual"] + counts["structure"]).tolist() == [len(x) for x in of]


def test_losses_by_source_do_not_depend_on_packing() -> None:
    docs = documents()
    together, apart = hand.batch([docs], length=80), hand.batch([[d] for d in docs], length=16)
    (c1, s1, _), (c2, s2, _) = found(together), found(apart)
    assert np.array_equal(c1, c2)
    assert np.allclose(s1, s2, rtol=1e-5)


def test_sums_equal_cross_entropy_and_squared_error_written_out() -> None:
    batch = hand.batch([documents()], length=80)
    seen = noised(Flow(predict="v"), batch, seed=0)
    out = model()(batch, seen.z, seen.t)
    sums = losses.sums(losses.errors(out, batch, seen, Flow(predict="v")), 3)
    text, flow = [0.0] * 3, [0.0] * 3
    for logits, at in zip(out.logits.detach(), out.at.tolist(), strict=True):
        target = int(batch.text_target.reshape(-1)[at])
        text[int(batch.source.reshape(-1)[at])] -= float(logits.log_softmax(0)[target])
    for i, slot in enumerate(batch.latent_slot.tolist()):
        if batch.image_loss[batch.latent_image[i]]:
            target = batch.latents[i] - seen.noise[i]
            flow[int(batch.source.reshape(-1)[slot])] += float((out.flow.detach()[i] - target).square().mean())
    assert np.allclose(sums[:, 0], text, rtol=1e-5) and np.allclose(sums[:, 1], flow, rtol=1e-5)


def test_the_objective_is_the_weighted_sum_of_global_means() -> None:
    _, sums, errors = found(hand.batch([documents()], length=80))
    value = losses.objective(Loss(text=2.0, flow=3.0), errors, 10, 20).detach()
    assert np.isclose(float(value), 2 * sums[:, 0].sum() / 10 + 3 * sums[:, 1].sum() / 20, rtol=1e-5)


def test_micro_batches_add_up_to_the_batch() -> None:
    docs = documents()
    whole = hand.batch([docs[:2], docs[2:4], docs[4:]], length=40)
    _, sums, _ = found(whole)
    parts = [found(whole.rows(i, i + 1)) for i in range(3)]
    assert np.allclose(sum(p[1] for p in parts), sums, rtol=1e-5)
    assert np.array_equal(sum(p[0] for p in parts), losses.counts(whole, 3))


def test_a_metrics_line_leaves_out_sources_without_targets() -> None:
    counts = np.zeros((2, len(COUNTS)))
    counts[0, -2:], counts[1, -2:] = (4, 0), (6, 5)
    line = step_line(3, ["a", "b"], counts, np.array([[8.0, 0.0], [3.0, 10.0]]), Loss(text=1.0, flow=3.0))
    assert line == {"step": 3, "loss": 1.1 + 6.0, "text": 1.1, "flow": 2.0, "text/a": 2.0, "text/b": 0.5, "flow/b": 2.0}


def test_an_account_goes_on_from_what_a_checkpoint_says() -> None:
    account = Account(["a", "b"])
    account.add(np.arange(2 * len(COUNTS)).reshape(2, -1))
    again = Account(["a", "b"], account.as_dict())
    again.add(np.ones((2, len(COUNTS))))
    assert np.array_equal(again.table, account.table + 1) and account.payload == 0 + 1 + 7 + 8
