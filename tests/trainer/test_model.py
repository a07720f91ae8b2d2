"""The model: sizes as published, hand-written gradients as autograd's, a start that predicts nothing, FLOPs as torch counts them."""

from __future__ import annotations

import hand
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_attention import model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainer import losses
from trainer.flow import clean, noised
from trainer.models.layers import _Rotated, _RotatedWhole, _SquaredReLU, rotary_tables
from trainer.models.transfusion import Transfusion
from trainer.run import Flow


@pytest.mark.parametrize(
    ("said", "billions"),
    [
        ({"size": "1.5b"}, 1.498), ({"size": "2.3b"}, 2.304), ({"size": "1.5b", "ffn": "per_modality"}, 2.304),
        ({"size": "2.3b-moe"}, 2.305), ({"size": "13.5b"}, 13.59), ({"size": "51.5b"}, 51.46),
    ],
)  # fmt: skip
def test_the_papers_models_have_the_papers_parameters(said, billions) -> None:
    with torch.device("meta"):
        built = Transfusion(**said).build(128_256, 1152, 256)
    blocks_and_tables = sum(p.numel() for n, p in built.named_parameters() if n.startswith("blocks.") or n in ("embed", "head"))
    assert blocks_and_tables / 1e9 == pytest.approx(billions, rel=2e-3)
    of = built.parameters_by_use()
    routers = sum(p.numel() for n, p in built.named_parameters() if ".router." in n)
    for kind in ("active_text", "active_latent"):
        assert (of[kind] + of["embedding"] - routers) / 1e9 == pytest.approx(1.498, rel=4e-3), kind
    assert routers <= 0.034e9


def test_a_size_fills_what_is_not_said() -> None:
    shape = Transfusion.model_validate({"size": "1m", "layers": 2})
    assert (shape.layers, shape.width, shape.inner) == (2, 128, 512)


def test_widths_that_do_not_divide_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValidationError, match="width 50 must be an even multiple of heads 4"):
        Transfusion(width=50, heads=4)


def test_rotary_gradients_are_autograds() -> None:
    g = torch.Generator().manual_seed(0)
    qk, v = (torch.randn(5, heads, 6, generator=g, dtype=torch.float64, requires_grad=True) for heads in (3, 2))
    cos, sin = (x.double() for x in rotary_tables(torch.arange(5), 6, 100.0))
    assert torch.autograd.gradcheck(lambda a, b: _Rotated.apply(cos, sin, b, a[:, :2], a[:, 2:]), (qk, v))
    assert torch.autograd.gradcheck(lambda a, b: _RotatedWhole.apply(cos, sin, torch.cat([a, b], dim=1), 3), (qk, v))
    assert torch.equal(_RotatedWhole.apply(cos, sin, torch.cat([qk, v], dim=1), 3), _Rotated.apply(cos, sin, v, qk))


def test_rotary_scores_depend_on_distance_alone() -> None:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 8, generator=g), torch.randn(1, 1, 8, generator=g)

    def score(i: int, j: int) -> float:
        turned = [_Rotated.apply(*rotary_tables(torch.tensor([at]), 8, 100.0), x[:, :0], x) for x, at in ((q, i), (k, j))]
        return float((turned[0] * turned[1]).sum())

    assert score(7, 3) == pytest.approx(score(24, 20), abs=1e-5) and score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)


def test_squared_relu_gradients_are_autograds() -> None:
    x = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_SquaredReLU.apply, (x,))
    assert torch.equal(_SquaredReLU.apply(x), torch.relu(x).square())


@pytest.mark.parametrize("ffn", ["shared", "per_modality"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_of_every_shape_is_used(ffn, tied) -> None:
    net = model(ffn=ffn, tie_embeddings=tied, norm="layer", activation="relu2", output_skip=True)
    batch = hand.batch([[hand.document("b c c I t e", np.random.default_rng(0))]])
    seen = noised(Flow(), batch, seed=0)
    found = losses.errors(net(batch, seen.z, seen.t), batch, seen, Flow())
    (found.text.sum() + found.flow.sum()).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_modalities_have_feed_forwards_of_their_own() -> None:
    net = model(ffn="per_modality")
    batch = hand.batch([[hand.document("b t t t e", np.random.default_rng(0))], [hand.document("b t I e", np.random.default_rng(0))]])
    seen = clean(batch)
    before = net(batch, seen.z, seen.t)
    with torch.no_grad():
        for block in net.blocks:
            block.ffn.latent.up.weight.mul_(2)
    after = net(batch, seen.z, seen.t)
    alone = before.at < 40  # the row without an image
    assert torch.equal(before.logits[alone], after.logits[alone]) and not torch.equal(before.flow, after.flow)


def test_the_start_predicts_the_best_linear_guess_or_nothing_and_logits_of_unit_scale() -> None:
    batch = hand.batch([[hand.document("b t t t I e", np.random.default_rng(0))]])
    z, t = torch.randn(4, hand.WIDTH, generator=torch.Generator().manual_seed(0)), torch.tensor([0.25])
    for skip, expected in ((False, torch.zeros_like(z)), (True, z * 0.25 / (0.75**2 + 0.25**2))):
        net = model(tie_embeddings=True, output_skip=skip)
        torch.nn.init.zeros_(net.latent_out.weight)
        out = net(batch, z, t)
        assert torch.allclose(out.flow, expected, atol=1e-6)
        assert 0.5 < float(out.logits.detach().std()) < 2


def test_logits_may_be_asked_for_anywhere() -> None:
    net, batch = model(), hand.batch([[hand.document("b t t I t e", np.random.default_rng(0))]])
    seen = clean(batch)
    some = net(batch, seen.z, seen.t)
    places = torch.tensor([9, 0, 2])
    asked = net(batch, seen.z, seen.t, at=places)
    assert asked.logits.shape == (3, hand.VOCAB)
    for i, place in enumerate(places.tolist()):
        if place in some.at.tolist():
            assert torch.allclose(asked.logits[i], some.logits[some.at.tolist().index(place)], atol=1e-6)


def test_the_flop_formula_is_what_torch_counts() -> None:
    words = " ".join(["b"] + ["t"] * 60 + ["e"])
    batch = hand.batch([[hand.document(words, np.random.default_rng(i))] for i in range(4)], length=62)
    net = model(width=64, heads=4, kv_heads=4, attention="dense")
    seen = clean(batch)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the counter passes over the fused kernel on CPU
        out = net(batch, seen.z, seen.t)
        losses.errors(out, batch, seen, Flow()).text.sum().backward()
    of = losses.counts(batch, 1)[0]
    named = dict(zip(losses.COUNTS, of.tolist(), strict=True))
    # The dense mask computes every pair of a row; the formula counts those that are attended.
    every_pair = 4 * 62 * 62
    ours = net.training_flops(named["text"] + named["structure"], 0, named["text_targets"], every_pair)
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.01)
    assert named["pairs"] == 4 * 62 * 63 / 2
