"""The family: every variant uses all it has, costs what torch counts, and keeps modalities, times and places apart where it says so."""

from __future__ import annotations

import json
from pathlib import Path

import hand
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_attention import answers, model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipelines.format.document import load
from trainer import losses, metrics
from trainer.batch import Batch
from trainer.flow import clean, noised
from trainer.models import transfusion
from trainer.models.attention import order, prepare
from trainer.models.layers import rotary_tables, rotate
from trainer.models.transfusion import Transfusion, TransfusionModel, _plane
from trainer.run import Flow, Run

# ---- the family ------------------------------------------------------------------------------------------------------------------------

MOE = {"ffn": "moe", "experts": {"count": 10, "granularity": 8, "top_k": 4}}
FAMILY = {
    "shared": {"ffn": "shared"},
    "per_modality": {"ffn": "per_modality"},
    "mot": {"ffn": "mot"},
    "moe": MOE,
    "moe, one shared expert": {**MOE, "experts": {**MOE["experts"], "shared": "global"}},
    "moe, none shared": {**MOE, "experts": {**MOE["experts"], "shared": "none", "balance": "bias"}},
    "adaln": {"time": "adaln"},
    "adaln mot": {"time": "adaln", "ffn": "mot"},
    "axial moe": {**MOE, "rope": "axial"},
    "plain": {"time": "none", "patch_positions": False, "qk_norm": False, "tie_embeddings": True, "norm": "layer", "activation": "relu2"},
}


def stirred(**changes) -> TransfusionModel:
    """A model with no weight left at zero."""
    net = model(**changes)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            if not p.abs().sum():
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(i))
    return net


@pytest.mark.parametrize("name", FAMILY)
def test_every_parameter_of_every_variant_is_used(name) -> None:
    net = stirred(**FAMILY[name])
    batch = hand.batch([[hand.document("b c c I t e", np.random.default_rng(i))] for i in range(12)])
    seen = noised(Flow(), batch, seed=0)
    found = losses.errors(net(batch, seen.z, seen.t), batch, seen, Flow())
    (found.text.sum() + found.flow.sum()).backward()
    for parameter, p in net.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, parameter


@pytest.mark.parametrize("name", FAMILY)
def test_the_flop_formula_is_what_torch_counts_for_every_variant(name) -> None:
    """Rows of one document each and no padding, so that positions are rows x length. The dense mask then computes length^2 pairs a row, which the
    formula is told. Experts in a loop, since torch counts a grouped product as if every expert had every row."""
    changes = FAMILY[name]
    if "experts" in changes:
        changes = {**changes, "experts": {**changes["experts"], "execution": "loop"}}
    words = " ".join(["b", *["t"] * 20, "I", *["t"] * 12, "I", "e"])
    batch = hand.batch([[hand.document(words, np.random.default_rng(i), h=i)] for i in range(4)], length=46)
    net = stirred(width=64, attention="dense", **changes)
    seen = noised(Flow(), batch, seed=0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the counter passes over the fused kernel on CPU
        found = losses.errors(net(batch, seen.z, seen.t), batch, seen, Flow())
        (found.text.sum() + found.flow.sum()).backward()
    of = dict(zip(losses.COUNTS, losses.counts(batch, 1)[0].tolist(), strict=True))
    assert of["text"] + of["structure"] + of["visual"] == 4 * 46
    ours = net.training_flops(of["text"] + of["structure"], of["visual"], of["text_targets"], 4 * 46 * 46)
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.01)


@pytest.mark.parametrize("name", FAMILY)
def test_the_flops_of_clean_copies_are_those_of_latents(name) -> None:
    """Of a run's account, but for the pairs, which the dense mask computes all."""
    changes = {**FAMILY[name]}
    if "experts" in changes:
        changes["experts"] = {**changes["experts"], "execution": "loop"}
    words = " ".join(["b", *["t"] * 4, *["h", "i"] * 6, "e"])
    batch = hand.batch([[hand.document(words, np.random.default_rng(i), h=i)] for i in range(4)], length=78)
    net = stirred(width=64, attention="dense", **changes)
    seen = noised(Flow(), batch, seed=0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = losses.errors(net(batch, seen.z, seen.t), batch, seen, Flow())
        (found.text.sum() + found.flow.sum()).backward()
    counts = losses.counts(batch, 1)
    counts[0, losses.COUNTS.index("pairs")] = 4 * 78 * 78
    assert counts[0, losses.COUNTS.index("copied")] == 4 * 6 * hand.PATCHES
    assert counter.get_total_flops() == pytest.approx(metrics.flops(net, counts), rel=0.01)


@pytest.mark.parametrize("name", FAMILY)
def test_the_groups_of_the_report_add_up_to_all_parameters(name) -> None:
    net = model(**FAMILY[name])
    of = net.parameters_by_use()
    groups = sum(of[k] for k in ("blocks", "embedding", "projections", "time", "positions"))
    assert of["total"] == groups == sum(p.numel() for p in net.parameters())
    assert 0 < of["active_text"] <= of["blocks"] and of["active_latent"] <= of["blocks"] + of["projections"]


def test_variants_of_the_demo_have_equal_active_parameters() -> None:
    runs = Path(transfusion.__file__).parents[1] / "runs"
    of = {}
    for name in ("tiny_shared", "tiny_per_modality", "tiny_mot", "tiny_moe"):
        run = load(Run, str(runs / f"{name}.yaml"), ["plan=p", "output=o"], [runs])
        with torch.device("meta"):
            of[name] = run.model.build(300, 48, 16).parameters_by_use()
    for name, found in of.items():
        for kind in ("active_text", "active_latent"):
            assert found[kind] == pytest.approx(of["tiny_shared"][kind], rel=0.02), (name, kind)  # a router's 4,032 are the difference
    assert len({found["total"] for found in of.values()}) == 4


@pytest.mark.parametrize("name", ["base", "base_shared", "base_mot", "base_moe"])
def test_packaged_runs_are_the_papers_models(name) -> None:
    runs = Path(transfusion.__file__).parents[1] / "runs"
    run = load(Run, str(runs / f"{name}.yaml"), [], [runs])
    with torch.device("meta"):
        of = run.model.build(128_256, 1152, 256).parameters_by_use()
    billions = {"base": 2.304, "base_shared": 1.498, "base_mot": 2.472, "base_moe": 13.585}[name]
    assert (of["blocks"] + of["embedding"]) / 1e9 == pytest.approx(billions, rel=2e-3)
    assert (of["active_text"] + of["embedding"]) / 1e9 == pytest.approx(1.498, rel=7e-3)


def test_a_size_may_be_changed_in_one_key_of_its_experts() -> None:
    shape = Transfusion.model_validate({"size": "51.5b", "experts": {"shared": "global"}})
    assert (shape.experts.count, shape.experts.granularity, shape.experts.shared, shape.inner) == (1008, 16, "global", 512)
    dense = Transfusion.model_validate({"size": "13.5b", "ffn": "shared"})
    assert dense.inner == 8192 and "experts" not in dense.model_dump()


@pytest.mark.parametrize("granularity", [1, 4, 16, 32, 64])
def test_granularity_changes_neither_all_nor_active_parameters(granularity) -> None:
    sweep = {"size": "13.5b", "experts": {"granularity": granularity, "count": 16 * granularity, "top_k": granularity}}
    with torch.device("meta"):
        of = Transfusion.model_validate(sweep).build(128_256, 1152, 256).parameters_by_use()
    assert (of["blocks"] + of["embedding"]) / 1e9 == pytest.approx(13.59, rel=2e-3)
    assert (of["active_text"] + of["embedding"]) / 1e9 == pytest.approx(1.498, rel=0.025)  # the router grows with the number of experts


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"ffn": "shared", "experts": {"count": 64}}, "experts are given, and ffn is shared"),
        ({"ffn": "moe", "width": 96, "heads": 4, "experts": {"granularity": 36}}, "multiple of experts.granularity 36"),
        ({"ffn": "moe", "experts": {"top_k": 300}}, "too few experts"),
    ],
)
def test_shapes_that_cannot_be_are_refused(said, word) -> None:
    with pytest.raises(ValidationError, match=word):
        Transfusion.model_validate(said)


@pytest.mark.parametrize("changes", FAMILY.values())
def test_a_shape_is_read_back_as_it_was_saved(changes) -> None:
    shape = Transfusion(**{"width": 64, "heads": 4, **changes})
    assert Transfusion.model_validate_json(json.dumps(shape.model_dump(mode="json")), strict=True) == shape


def test_keys_that_came_later_leave_the_names_of_earlier_runs_alone() -> None:
    assert not {"experts", "rope"} & set(Transfusion(ffn="shared").model_dump(mode="json"))
    assert {"experts", "rope"} <= set(Transfusion(ffn="moe", rope="axial").model_dump(mode="json"))


# ---- modalities, time and places -------------------------------------------------------------------------------------------------------


def apart() -> tuple[Batch, torch.Tensor]:
    """One row of text, one with an image; and which logits are of the first."""
    batch = hand.batch([[hand.document("b t t t e", np.random.default_rng(0))], [hand.document("b t I e", np.random.default_rng(0))]])
    return batch, torch.arange(4)


def test_weights_of_mixture_of_transformers_see_their_own_modality_alone() -> None:
    net = stirred(ffn="mot")
    batch, text = apart()
    seen = clean(batch)
    before = net(batch, seen.z, seen.t)
    names = [name for name, _ in net.named_parameters() if ".latent." in name]
    assert {n.split(".")[2] for n in names if n.startswith("blocks.")} == {"attention", "attention_norm", "ffn", "ffn_norm"}
    with torch.no_grad():
        for name, p in net.named_parameters():
            if ".latent." in name:
                p.mul_(1.5)
    after = net(batch, seen.z, seen.t)
    assert torch.equal(before.logits[text], after.logits[text]) and not torch.equal(before.flow, after.flow)
    assert not torch.equal(before.logits[4:], after.logits[4:])  # text attends to latents


def test_equal_weights_for_both_modalities_are_the_shared_model() -> None:
    split, shared = stirred(ffn="mot"), stirred(ffn="shared")
    theirs = dict(shared.named_parameters())
    with torch.no_grad():
        for name, p in split.named_parameters():
            p.copy_(theirs[name.replace("ffn.text.", "ffn.all.").replace("ffn.latent.", "ffn.all.").replace(".text.", ".").replace(".latent.", ".")])
    batch = hand.pack(np.random.default_rng(0))
    for a, b in zip(answers(split, batch), answers(shared, batch), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_adaptive_norms_leave_text_alone_and_start_by_leaving_latents_alone() -> None:
    batch, text = apart()
    z, t = torch.randn(4, hand.WIDTH, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2])
    fresh = model(time="adaln")
    x = fresh(batch, z, t)
    with torch.no_grad():
        expected = fresh.latent_out(fresh.final_norm(fresh.latent_in(z) + fresh.patch))  # through every block unchanged
    assert torch.allclose(x.flow, expected, atol=1e-6) and torch.equal(x.flow, fresh(batch, z, t + 0.5).flow)
    net = stirred(time="adaln")
    early, late = net(batch, z, t), net(batch, z, t + 0.5)
    assert torch.equal(early.logits[text], late.logits[text]) and not torch.allclose(early.flow, late.flow)


def test_images_have_times_of_their_own() -> None:
    net, batch = stirred(time="adaln"), hand.batch([[hand.document("b I e", np.random.default_rng(i)) for i in range(2)]])
    z = torch.randn(8, hand.WIDTH, generator=torch.Generator().manual_seed(0))
    a, b = (net(batch, z, torch.tensor([0.2, t])).flow for t in (0.3, 0.9))
    assert torch.allclose(a[:4], b[:4], atol=1e-6) and not torch.allclose(a[4:], b[4:])


def test_places_in_a_plane_are_the_line_for_text_and_two_axes_for_images() -> None:
    batch = hand.batch([[hand.document("b t t t e", np.random.default_rng(0))]])
    line, plane = model(), model(rope="axial")
    assert torch.equal(answers(line, batch)[0], answers(plane, batch)[0])
    position = torch.tensor([0, 1, 12, 13, 3, 4, 5, 6, 7, 8, 9, 10, 11])  # two ids, two after the image; nine latents from 3 on
    found = _plane(position, 4, torch.arange(9), 3)
    assert found[:4].tolist() == [[0, 0], [1, 1], [12, 12], [13, 13]]
    assert found[4:].tolist() == [[3 + r, 3 + c] for r in range(3) for c in range(3)]


def test_in_a_plane_a_step_down_is_as_near_as_a_step_right() -> None:
    g = torch.Generator().manual_seed(0)
    half = torch.randn(2, 1, 1, 4, generator=g)  # queries and keys that look alike along both axes
    q, k = half.repeat_interleave(2, dim=-1).repeat(1, 1, 1, 1)

    def score(a: tuple[int, int], b: tuple[int, int]) -> float:
        turned = [rotate((x,), x[:, :0], *rotary_tables(torch.tensor([at]), 8, 100.0)) for x, at in ((q, a), (k, b))]
        return float((turned[0] * turned[1]).sum())

    assert score((5, 5), (3, 4)) == pytest.approx(score((9, 2), (7, 1)), abs=1e-5)  # distance alone
    assert score((5, 5), (3, 5)) != pytest.approx(score((5, 5), (5, 5)), abs=1e-3)


def test_images_that_are_not_square_have_no_plane() -> None:
    with pytest.raises(ValueError, match="n x n latents, and these have 6"):
        Transfusion(width=64, heads=4, rope="axial").build(50, 4, 6)


def test_an_attend_from_outside_is_called_once_a_block_in_order() -> None:
    net, batch = model(layers=3), hand.pack(np.random.default_rng(0))
    t = torch.linspace(0.1, 1, len(batch.image_loss))
    inner, calls = prepare(batch, order(batch)), []

    def attend(qkv: torch.Tensor, heads: int) -> torch.Tensor:
        calls.append(qkv.shape)
        return inner(qkv, heads)

    assert torch.equal(net(batch, batch.latents, t, attend=attend).logits, net(batch, batch.latents, t).logits)
    assert calls == [(len(order(batch).slots), 8, 8)] * 3
