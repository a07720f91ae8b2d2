"""Experts: what each token gets, written out; two ways to compute it; counts that padding, recomputation and accumulation do not change."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import hand
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import toyplan
from pydantic import ValidationError
from test_attention import model
from test_train import StopAt
from torch.utils.checkpoint import checkpoint

from pipelines.format.errors import Stopped
from trainer import losses
from trainer.batch import Batch
from trainer.flow import noised
from trainer.loop import train
from trainer.models import experts
from trainer.models.experts import Experts, RoutedFFN, balance_loss, groupable, layers_of
from trainer.models.layers import FeedForward
from trainer.models.transfusion import TransfusionModel
from trainer.run import Flow

MOE = {"ffn": "moe", "experts": {"count": 10, "granularity": 8, "top_k": 4}}


def layer(seed: int = 0, width: int = 32, inner: int = 16, activation: str = "swiglu", **changes) -> RoutedFFN:
    made = RoutedFFN(width, inner, activation, Experts(**{"count": 10, "granularity": 8, "top_k": 4, **changes}))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0, p.shape[-1] ** -0.5, generator=g)
    return made


def tokens(n: int = 50, width: int = 32, seed: int = 3) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def step(net: TransfusionModel, batch: Batch) -> experts.Routed:
    """Forward and backward of one batch, the balance loss included."""
    seen = noised(Flow(), batch, seed=0)
    out = net(batch, seen.z, seen.t)
    found = losses.errors(out, batch, seen, Flow())
    (found.text.sum() + found.flow.sum() + balance_loss(net, out.routed, 100)).backward()
    return out.routed


# ---- what a token gets -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", ["none", "global", "per_modality"])
@pytest.mark.parametrize("renormalise", [None, True, False])
def test_a_token_gets_its_experts_by_their_gates_and_its_own_shared_one(shared, renormalise) -> None:
    made, x, text = layer(shared=shared, renormalise=renormalise), tokens(), 30
    found, (counts, share) = made(x, text)
    k = 4 - (shared != "none")
    for i, row in enumerate(x):
        p = (made.router.weight @ row).softmax(0)
        best = p.argsort(descending=True)[:k]
        gates = k * p[best] / (1 if renormalise is False else p[best].sum())
        expected = torch.zeros(32)
        for gate, e in zip(gates, best, strict=True):
            left, right = (made.experts.up[e] @ row).chunk(2)
            expected += gate * (made.experts.down[e] @ (F.silu(left) * right))
        if shared != "none":
            own = made.shared.all if shared == "global" else made.shared.text if i < text else made.shared.latent
            expected += own(row)
        assert torch.allclose(found[i], expected, atol=1e-5)
    assert len(counts) == {"none": 10, "global": 9, "per_modality": 8}[shared]
    assert float(counts.sum()) == k * len(x) and float(share.detach().sum()) == pytest.approx(len(x))


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_slices_of_a_dense_feed_forward_at_equal_gates_are_that_feed_forward(activation) -> None:
    """Why gates sum to the number of chosen experts: 4 of 4 experts of a quarter of the width, none preferred, are the whole."""
    dense = FeedForward(32, 64, activation)
    made = layer(activation=activation, count=4, top_k=4, shared="none")
    with torch.no_grad():
        made.router.weight.zero_()
        halves = dense.up.weight.chunk(2 if activation == "swiglu" else 1)
        made.experts.up.copy_(torch.cat([h.view(4, 16, 32) for h in halves], dim=1))
        made.experts.down.copy_(dense.down.weight.view(32, 4, 16).transpose(0, 1))
    x = tokens()
    assert torch.allclose(made(x, 10)[0], dense(x), atol=1e-5)


def test_a_single_chosen_expert_still_teaches_the_router() -> None:
    made = layer(count=4, top_k=1, shared="none")
    assert not made.renormalise
    made(tokens(), 10)[0].square().sum().backward()
    assert made.router.weight.grad.abs().sum() > 0


def test_no_token_is_dropped_however_crowded_an_expert_is() -> None:
    made = layer(shared="none")
    x = tokens(1).expand(200, -1).contiguous()  # all of one mind
    found, (counts, _) = made(x, 100)
    assert sorted(counts.tolist()) == [0.0] * 6 + [200.0] * 4
    assert torch.allclose(found, found[:1].expand(200, -1), atol=1e-5) and found.abs().sum() > 0


@pytest.mark.parametrize(
    ("said", "word"),
    [({"top_k": 1}, "leaves no expert to choose"), ({"count": 4, "top_k": 4}, "too few experts"), ({"capacity": 1}, "capacity")],
)
def test_experts_that_cannot_be_are_refused(said, word) -> None:
    with pytest.raises(ValidationError, match=word):
        Experts.model_validate(said)


# ---- two ways to compute it ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
@pytest.mark.parametrize("crowd", [False, True])
def test_the_grouped_product_is_the_loop_in_values_and_gradients(activation, crowd) -> None:
    x = tokens(64)
    if crowd:
        x[:] = x[:1] + 0.01 * x  # most experts stay empty
    found = {}
    for execution in ("loop", "grouped"):
        made, own = layer(activation=activation, execution=execution), x.clone().requires_grad_()
        out, (counts, share) = made(own, 40)
        (out.square().sum() + (share * counts).sum()).backward()
        found[execution] = [out, own.grad, *(p.grad for p in made.parameters())]
    assert (int(counts.eq(0).sum()) > 0) == crowd
    for a, b in zip(found["loop"], found["grouped"], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.detach().abs().max()))


def test_bf16_goes_both_ways_and_routes_as_fp32_does() -> None:
    x = tokens(64).bfloat16()
    outs = []
    for execution in ("loop", "grouped"):
        made = layer(execution=execution)
        for p in (made.experts.up, made.experts.down, *made.shared.parameters()):
            p.data = p.data.bfloat16()
        out, (counts, _) = made(x, 40)
        assert out.dtype == torch.bfloat16
        outs.append(out.float())
        assert torch.equal(counts, layer()(x.float(), 40)[1][0])
    assert torch.allclose(*outs, atol=0.05)


def test_what_the_grouped_product_cannot_take_goes_by_the_loop() -> None:
    assert groupable(torch.zeros(3, 32), torch.zeros(2, 32, 16))
    for rows, down in [((0, 32), (2, 32, 16)), ((3, 30), (2, 30, 16)), ((3, 32), (2, 32, 6))]:
        assert not groupable(torch.zeros(rows), torch.zeros(down))
    assert not groupable(torch.zeros(3, 32, dtype=torch.float64), torch.zeros(2, 32, 16))
    out, (counts, _) = layer(width=30, inner=6)(tokens(width=30), 10)
    assert out.shape == (50, 30) and counts.sum() == 150


@pytest.mark.parametrize("execution", ["auto", "loop"])
def test_a_rank_without_rows_owes_gradients_of_zeros_for_every_parameter(execution) -> None:
    net = model(**{**MOE, "experts": {**MOE["experts"], "execution": execution}})
    step(net, hand.batch([[]]))
    for name, p in net.named_parameters():
        assert p.grad is not None or name.startswith("time.") or float(p.grad.abs().sum()) == 0, name


def test_gradients_do_not_depend_on_the_order_of_additions_between_calls() -> None:
    grads = []
    for _ in range(2):
        made = layer()
        made(tokens(), 20)[0].square().sum().backward()
        grads.append([p.grad for p in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


# ---- counts ----------------------------------------------------------------------------------------------------------------------------


def row(i: int, length: int) -> Batch:
    return hand.batch([[hand.document(hand.SHAPES[i], np.random.default_rng(i), h=i)]], length=length)


def test_padding_is_not_counted() -> None:
    net = model(**MOE)
    tight, wide = (step(net, row(3, length)) for length in (14, 64))
    assert torch.equal(tight.counts, wide.counts) and tight.tokens == wide.tokens == 11
    assert tight.counts.sum(1).tolist() == [33.0, 33.0]
    assert torch.allclose(tight.share, wide.share, atol=1e-6)


def test_recomputation_counts_no_token_twice_and_changes_no_gradient() -> None:
    found = []
    for again in (False, True):
        net, batch = model(**MOE), hand.pack(np.random.default_rng(0), rows=3)
        for layer_ in layers_of(net):
            layer_.load.fill_(1)
        for block in net.blocks if again else ():
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        routed = step(net, batch)
        found.append((routed.counts, [p.grad for p in net.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_the_parts_of_a_step_add_up_to_it() -> None:
    """Counts, the balance loss and its gradient are sums over tokens: of rows here, of micro-batches and ranks in a run."""
    whole, parts = model(**MOE), model(**MOE)
    rows = [[hand.document(hand.SHAPES[i], np.random.default_rng(i), h=i)] for i in range(len(hand.SHAPES))]
    for net in (whole, parts):
        for i, layer_ in enumerate(layers_of(net)):
            layer_.load.copy_(torch.rand(8, generator=torch.Generator().manual_seed(i)) * 2)
    told = step(whole, hand.batch(rows))
    counts = sum(step(parts, hand.batch([one])).counts for one in rows)
    assert torch.equal(counts, told.counts)
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4 * float(a.grad.abs().max())), name


def test_a_run_in_micro_batches_keeps_the_loads_of_one_that_is_not(tmp_path: Path) -> None:
    plan = toyplan.make(tmp_path, tokens=300, n=40)
    shape = {"layers": 2, "width": 32, "heads": 2, "norm": "layer", "embedding_std": 0.3, **MOE}
    loads = []
    for micro in (4, 1):
        card = train(toyplan.run(plan, tmp_path / f"run{micro}", model={"transfusion": shape}, micro_batch=micro, steps=3))
        weights = safetensors.torch.load_file(Path(card["path"]) / "model.safetensors")
        loads.append(torch.stack([w for name, w in weights.items() if name.endswith("ffn.load")]))
        lines = [json.loads(line) for line in (tmp_path / f"run{micro}" / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["experts/load_worst"] == pytest.approx(float(loads[-1].max()))
    assert loads[0].shape == (2, 8) and torch.allclose(loads[0].mean(1), torch.ones(2))
    assert torch.allclose(loads[0], loads[1], atol=0.05)  # a weight's last bit may send a token elsewhere


@pytest.mark.parametrize("balance", ["aux", "bias"])
def test_a_stopped_run_goes_on_with_its_loads_and_biases(balance, tmp_path: Path) -> None:
    plan = toyplan.make(tmp_path, tokens=300, n=40)
    shape = {"layers": 2, "width": 32, "heads": 2, "norm": "layer", "embedding_std": 0.3, "ffn": "moe"}
    model_ = {"transfusion": {**shape, "experts": {**MOE["experts"], "balance": balance, "balance_weight": 1.0}}}
    train(toyplan.run(plan, tmp_path / "whole", model=model_, steps=6))
    with pytest.raises(Stopped):
        train(toyplan.run(plan, tmp_path / "halves", model=model_, steps=6), stop=StopAt(3))
    train(toyplan.run(plan, tmp_path / "halves", model=model_, steps=6))
    a, b = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert bool(a["blocks.0.ffn.bias"].any()) == (balance == "bias") and bool(a["blocks.0.ffn.load"].any())
