"""Blocks under a compiler: one graph for all blocks of a model, batches of any length, values and gradients as without."""

from __future__ import annotations

from collections.abc import Callable

import hand
import numpy as np
import pytest
import torch
from test_attention import answers
from test_model_family import FAMILY, stirred

from trainer import losses
from trainer.flow import noised
from trainer.models.transfusion import TransfusionModel
from trainer.run import Flow


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_blocks_compile_without_a_break(name, kind) -> None:
    """Experts in fp32 break off: compiled grouped products take bf16 alone, and the loop runs as it is."""
    net, batch = stirred(**FAMILY[name]), hand.pack(np.random.default_rng(0))
    for p in net.parameters():
        p.data = p.data.to(kind)
    expected = answers(net, batch)
    torch._dynamo.reset()  # other models' code does not count against these
    for block in net.blocks:
        block.forward = torch.compile(block.forward, backend="eager", fullgraph=kind == torch.bfloat16 or "moe" not in name)
    for a, b in zip(answers(net, batch), expected, strict=True):
        # On average: a score whose last bit differs may send a token to another expert.
        assert float((a - b).abs().mean()) <= (1e-5 if kind == torch.float32 else 0.03) * float(b.abs().mean())


def compiled(net: TransfusionModel, backend: str | Callable) -> TransfusionModel:
    torch._dynamo.reset()
    for block in net.blocks:
        block.forward = torch.compile(block.forward, backend=backend, fullgraph=True)
    return net


@pytest.mark.parametrize("name", ["shared", "mot", "moe", "adaln"])
def test_one_graph_serves_all_blocks_and_one_more_all_lengths(name) -> None:
    graphs = []
    net = stirred(**FAMILY[name], attention="dense", layers=3)
    for p in net.parameters():
        p.data = p.data.bfloat16()
    compiled(net, lambda graph, inputs: (graphs.append(1), graph.forward)[1])
    for seed in range(5):
        batch = hand.pack(np.random.default_rng(seed), rows=3)
        net(batch, batch.latents, torch.linspace(0.1, 1, len(batch.image_loss)))
    assert len(graphs) == 2


@pytest.mark.parametrize("name", ["shared", "mot", "moe", "adaln mot"])
def test_compiled_gradients_are_those_without(name) -> None:
    batch, grads = hand.pack(np.random.default_rng(0), rows=3), []
    seen = noised(Flow(), batch, seed=0)
    for compile_ in (False, True):
        net = stirred(**FAMILY[name], attention="dense")
        for p in net.parameters() if name == "moe" else ():
            p.data = p.data.bfloat16()
        if compile_:
            compiled(net, "aot_eager")
        found = losses.errors(net(batch, seen.z, seen.t), batch, seen, Flow())
        (found.text.sum() + found.flow.sum()).backward()
        grads.append([p.grad.float() for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        assert float((a - b).norm() / a.norm()) <= (0.05 if name == "moe" else 1e-5)
