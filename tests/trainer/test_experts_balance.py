"""Balance: what the loss and the biases do with a step's loads, and that experts share the work after 300 steps of either."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toyplan
from test_attention import model
from test_experts import MOE, layer, tokens

from trainer.loop import train
from trainer.models import experts
from trainer.models.experts import after_step, balance_loss


def test_the_balance_loss_is_one_a_layer_when_all_is_even_and_more_where_crowds_are_sent() -> None:
    net = model(**{**MOE, "experts": {**MOE["experts"], "balance_weight": 1.0}})
    even = experts.Routed(torch.full((2, 8), 30.0), torch.full((2, 8), 10.0), 80)
    assert float(balance_loss(net, even, 80)) == 0  # nothing is known before the first step
    after_step(net, torch.full((2, 8), 30.0, dtype=torch.float64))
    assert float(balance_loss(net, even, 80)) == pytest.approx(2.0)
    after_step(net, torch.tensor([[240.0] + [0.0] * 7] * 2, dtype=torch.float64))
    crowded = experts.Routed(even.counts, torch.tensor([[73.0] + [1.0] * 7] * 2), 80)
    assert float(balance_loss(net, crowded, 80)) == pytest.approx(2 * 8 * 73 / 80)


def test_a_bias_moves_against_the_load_and_only_differences_between_biases_count() -> None:
    made = layer(balance="bias", bias_rate=0.2)
    x = tokens()
    before, (counts, _) = made(x, 20)
    after_step(made, counts[None].double())
    assert float(made.bias.mean()) == pytest.approx(0, abs=1e-6)
    moved = made.bias - made.bias.median()
    busy, idle = counts > counts.mean(), counts < counts.mean()
    assert float(made.bias[busy].max()) < float(made.bias[idle].min()) and moved.abs().max() <= 0.4 + 1e-6
    after, (evened, _) = made(x, 20)
    assert evened.std() < counts.std() and not torch.equal(before, after)
    made.bias += 3
    assert torch.equal(made(x, 20)[0], after)


def test_a_bias_changes_who_is_chosen_and_not_the_gates() -> None:
    made, x = layer(balance="bias", shared="none", top_k=10), tokens()  # all are chosen: nothing but gates could change
    before = made(x, 20)[0]
    made.bias.copy_(torch.linspace(-5, 5, 10))
    assert torch.allclose(made(x, 20)[0], before, atol=1e-5)


@pytest.mark.parametrize("balance", ["aux", "bias"])
def test_experts_share_the_work_after_300_steps(balance, tmp_path_factory, monkeypatch) -> None:
    root = tmp_path_factory.getbasetemp() / "balance"
    plan = str(root / "plan") if root.exists() else toyplan.make(root, tokens=9600, n=400)
    seen: list[np.ndarray] = []
    line = experts.load_line
    monkeypatch.setattr(experts, "load_line", lambda counts: (seen.append(counts), line(counts))[1])
    moe = {"count": 16, "granularity": 4, "top_k": 4, "balance": balance, "balance_weight": 0.03}
    shape = {"layers": 2, "width": 32, "heads": 2, "norm": "layer", "activation": "relu2", "embedding_std": 0.3, "ffn": "moe", "experts": moe}
    train(toyplan.run(plan, root / balance, model={"transfusion": shape}, batch=2, steps=300))
    # A step has 120 tokens of a few documents: their kind, not the router, decides most of its loads. Fifty steps have enough.
    first, last = (sum(seen[i : i + 50]) for i in (0, 250))
    worst = lambda counts: float((counts.max(axis=1) / counts.mean(axis=1)).max())
    assert len(seen) == 300 and worst(last) <= 1.5 < worst(first)
