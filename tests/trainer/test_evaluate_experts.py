"""Routing against routers whose specialisation is known: by oracle weights, by arithmetic, and on a small trained model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import toyplan

from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from pipelines.format import chance
from pipelines.format.errors import InputError
from tests.trainer.asked import HeldOut, Ran, subject
from trainer.evaluate import _routing as routing
from trainer.evaluate._subject import Subject
from trainer.evaluate.experts import Experts, _some, both_ways, look
from trainer.loop import train
from trainer.models.experts import layers_of, watched
from trainer.models.transfusion import Transfusion
from trainer.parallel import initialise

E, K = 8, 2


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> HeldOut:
    return HeldOut(str(tmp_path_factory.mktemp("held")))


def moe(balance: str = "aux", width: int = 32, **changes) -> torch.nn.Module:
    shape = {"layers": 2, "width": width, "heads": 2, "ffn": "moe", "patch_positions": False, "time": "none", **changes}
    shape["experts"] = {"count": E, "granularity": 8, "top_k": K, "shared": "none", "balance": balance}
    net = Transfusion.model_validate(shape).build(261, 8, 2)
    initialise(net, 0)
    return net.eval()


def quiet(net: torch.nn.Module) -> torch.nn.Module:
    """A model whose blocks add nothing, whose text has -3 in channel 0 and whose latents have +3."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith(("out.weight", "experts.down")):
                p.zero_()
        net.embed[:, 0], net.latent_in.weight[0], net.latent_in.bias[0] = -3.0, 0.0, 3.0
    return net


def route(net: torch.nn.Module, weight: torch.Tensor) -> torch.nn.Module:
    with torch.no_grad():
        for layer in layers_of(net):
            layer.router.weight.copy_(weight)
    return net


def judged(plan: HeldOut, net: torch.nn.Module) -> Subject:
    made = subject(plan, net)
    made.run = type("R", (Ran,), {"seed": 0})()
    return made


def found(rows) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    for r in rows:
        out.setdefault(r["metric"].removeprefix("experts."), {})[r["split"]] = r["value"]
    return out


# ---- oracles -----------------------------------------------------------------------------------------------------------------------------


def test_a_router_that_sends_text_to_half_of_the_experts_has_scores_of_one_and_minus_one(plan, tmp_path):
    weight = 0.01 * torch.randn(E, 32, generator=torch.Generator().manual_seed(1))
    weight[: E // 2, 0], weight[E // 2 :, 0] = -1.0, 1.0
    facts = found(Experts().run(judged(plan, route(quiet(moe()), weight)), str(tmp_path)))
    table = pq.read_table(tmp_path / "experts.parquet").to_pylist()
    assert {r["score"] for r in table if r["expert"] < E // 2 and r["rate_text"]} == {1.0}
    assert {r["score"] for r in table if r["expert"] >= E // 2 and r["rate_image"]} == {-1.0}
    classes = {name: {r["expert"] for r in table if r["class"] == name} for name in ("text", "vision")}
    assert len(classes["text"]) >= K and len(classes["vision"]) >= K and max(classes["text"]) < E // 2 <= min(classes["vision"])
    assert facts["multimodal"]["layer:all"] == 0 and facts["specialisation"] == dict.fromkeys(("layer:0", "layer:1", "layer:all"), 1.0)
    assert facts["text"]["threshold:0.8"] == facts["text"]["threshold:0.33"] == facts["text"]["layer:all"]


def test_a_router_that_hears_nothing_has_scores_of_zero_and_leaves_the_rest_dead(plan, tmp_path):
    facts = found(Experts().run(judged(plan, route(quiet(moe()), torch.zeros(E, 32))), str(tmp_path)))
    assert facts["specialisation"]["layer:all"] == 0 and facts["multimodal"]["layer:0"] == K / E
    assert facts["dead"]["layer:0"] == facts["idle"]["layer:0"] == 1 - K / E
    assert facts["load"]["layer:0"] == pytest.approx(E / K) and facts["entropy"]["layer:1"] == pytest.approx(np.log(K) / np.log(E))
    assert facts["correlation"]["layer:0"] == pytest.approx(1) and facts["time_cv"]["layer:0"] == facts["time_cv.null"]["layer:0"] == 0


def test_what_an_untrained_model_does_is_its_own_null(plan, tmp_path):
    facts = found(Experts().run(judged(plan, moe(patch_positions=True, time="added")), str(tmp_path)))
    for fact in ("specialisation", "correlation", "text", "vision"):
        assert facts[f"{fact}.untrained"] == {k: v for k, v in facts[fact].items() if k.startswith("layer:")}


def test_a_router_that_reads_the_clock_alone_has_experts_of_early_and_of_late_times(plan, tmp_path):
    net, weight = quiet(moe(time="added")), torch.zeros(E, 32)
    weight[:, 1] = torch.linspace(-1, 1, E)
    with torch.no_grad():
        net.latent_in.weight.zero_()
        for p in net.time.parameters():
            p.zero_()
        net.time.up.weight[0, 56] = 1.0  # the wave sin(t)
        net.time.down.weight[1, 0], net.time.down.bias[1] = 10.0, -10 * torch.nn.functional.silu(torch.tensor(0.5).sin())
    facts = found(Experts(bins=2).run(judged(plan, route(net, weight)), str(tmp_path)))
    assert facts["time_cv"] == dict.fromkeys(("layer:0", "layer:1", "layer:all"), pytest.approx(1))  # [1/2, 0] and [0, 1/2]
    assert facts["time_cv.null_95"]["layer:0"] < 0.5


def test_a_dense_model_has_no_rows_unless_they_are_required(plan, tmp_path):
    net = Transfusion(layers=1, width=32, heads=2).build(261, 8, 2)
    assert Experts().run(judged(plan, net), str(tmp_path)) == [] and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no routed experts"):
        Experts(required=True).run(judged(plan, net), str(tmp_path))


# ---- what is counted -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["aux", "bias"])
def test_what_is_watched_is_what_was_computed_and_nothing_stays_behind(plan, balance):
    s = judged(plan, moe(balance))
    for layer in layers_of(s.model):
        layer.bias += torch.linspace(-1, 1, E)
    documents = s.held_out(["image_text", "text"])
    (_, batch), *_ = s.batches(documents)
    before = s.forward(batch)
    with watched(s.model) as seen:
        again = s.forward(batch)
    assert torch.equal(before.logits, again.logits) and len(seen) == 2
    for layer, chosen in enumerate(seen):
        assert torch.bincount(chosen.reshape(-1), minlength=E).tolist() == again.routed.counts[layer].tolist()
    s.forward(batch)
    assert len(seen) == 2 and not any(m._forward_hooks for m in s.model.modules())


def test_every_choice_is_counted_once_whatever_the_batches(plan, monkeypatch):
    s = judged(plan, moe())
    documents = s.held_out(["vqa", "text", "video", "image_text"])
    whole = look(s, documents, 4)
    assert whole.by_kind.sum() == K * 2 * sum(map(len, documents))
    assert whole.by_kind[1].sum() == whole.images.sum() == K * 2 * whole.tokens.sum()
    monkeypatch.setattr("trainer.evaluate._subject.BATCH_POSITIONS", 60)
    cut = look(s, documents, 4)
    assert np.array_equal(whole.images, cut.images) and np.array_equal(whole.by_kind, cut.by_kind)
    assert np.array_equal(whole.document, cut.document) and whole.noised.sum() == 12 * 3


def test_the_clean_copy_of_a_frame_counts_for_load_alone(plan):
    s = judged(plan, moe())
    clip = s.held_out(["video"])[0]
    copied = replace(clip, image_hidden=np.array([True, False, False]), image_loss=np.array([True, False, True]))
    plain, found = (look(s, [d], 4).by_kind.sum(axis=(1, 2)) for d in (clip, copied))
    frame = K * 2 * 2  # two layers, two latents a frame
    assert (found - plain).tolist() == [0, -frame, frame]


def test_nothing_to_ask_has_no_rows_and_a_limit_of_images_takes_no_smaller_record_instead(plan, tmp_path):
    assert Experts(sources=[]).run(judged(plan, moe()), str(tmp_path)) == []
    h = sorted(range(6), key=lambda x: chance.draw(x, 0, "experts"))  # in the order of their draws
    assert _some(h, [2, 5, 1, 1, 1, 1], 6) == [0] and _some(h, [2, 3, 1, 1, 1, 1], 6) == [0, 1, 2] and _some([None, h[0]], [1, 1], 6) == [1]


def test_a_pair_is_looked_at_before_its_caption_and_made_behind_it(plan):
    s = judged(plan, moe())
    span = next(r for r in plan.rows if plan.sources[r.source] == "image_text")
    read = lambda span: [s.reader.document(one) for one in both_ways(plan, span)]
    seen, made = read(replace(span, image_first=False))
    assert seen.image[2] == 0 and made.image[-3] == 0 and sorted(seen.tokens) == sorted(made.tokens)
    assert seen.image_loss.tolist() == [False] and made.image_loss.tolist() == [True] and (seen.latents == made.latents).all()
    assert both_ways(plan, next(r for r in plan.rows if plan.sources[r.source] == "text")) is None
    seen, made = read(next(r for r in plan.rows if plan.sources[r.source] == "video"))
    assert not seen.image_loss.any() and made.image_loss.all() and (seen.tokens == made.tokens).all()


# ---- arithmetic ----------------------------------------------------------------------------------------------------------------------------


def test_a_limit_takes_the_same_records_however_they_are_packed(tmp_path, monkeypatch):
    HeldOut(str(tmp_path), 60)
    asked = []

    def stops(self, subject, spans, null=False):
        asked.append({subject.plan.record(s).id for s in spans})
        raise KeyboardInterrupt

    monkeypatch.setattr(Experts, "_facts", stops)
    for length in (96, 160):
        sources = {"vqa": {"dataset": str(tmp_path / "vqa"), "tokens": 600, "turns": "isolated"}}
        sources["text"] = {"dataset": str(tmp_path / "text"), "tokens": 400}
        mixture = {"sequence_length": length, "held_out": {"fraction": 0.4}, "sources": sources}
        plan = Plan.open(make_plan(Mixture.model_validate(mixture), str(tmp_path / f"plan{length}")))
        with pytest.raises(KeyboardInterrupt):
            Experts(max_tokens=150, sources=["vqa"]).run(judged(plan, moe()), str(tmp_path))
    assert asked[0] == asked[1] and 0 < len(asked[0]) < 24


def test_scores_and_classes_by_hand():
    text, image = np.array([0.6, 0.3, 0.1, 0.0, 0.0]), np.array([0.0, 0.1, 0.3, 0.6, 0.0])
    assert routing.scores(text, image)[:4] == pytest.approx([1, 0.5, -0.5, -1]) and np.isnan(routing.scores(text, image)[4])
    assert routing.classes(text, image, 0.49, 0.01).tolist() == ["text", "text", "vision", "vision", "idle"]
    assert routing.classes(text, image, 0.6, 0.01).tolist() == ["text", "multimodal", "multimodal", "vision", "idle"]


def test_two_draws_of_one_routing_reach_their_ceiling_and_two_routings_do_not():
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(32), 2)
    draw = lambda of: random.multinomial(20, of, (60, 1)).astype(float)
    same = routing.alike(draw(p), draw(p))
    assert same.r[0] > 0.9 and abs(same.r[0] - same.ceiling[0]) < 0.05 and same.low[0] < same.r[0] < same.high[0] and same.ceiling[0] < 1
    other = routing.alike(draw(p), draw(q))
    assert other.ceiling[0] > 0.9 and abs(other.r[0]) < 0.5 and other.low[0] < other.r[0] < other.high[0]


@pytest.mark.parametrize(("experts", "records", "each"), [(254, 100, 48), (14, 60, 20)])
def test_the_interval_holds_r_and_what_r_is_on_average_of_as_many_records(experts, records, each):
    """Records differ in what they choose, as pictures do; another sixty draws say what r is on average."""
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(experts), 2)
    q = 0.7 * p + 0.3 * q
    drawn = lambda of: np.stack([random.multinomial(each, random.dirichlet(100 * of + 1e-6)) for _ in range(records)])[:, None].astype(float)
    truth = np.mean([routing.correlation(*(routing.rates(drawn(of).sum(0)) for of in (p, q)))[0] for _ in range(60)])
    found = [routing.alike(drawn(p), drawn(q), draws=100, splits=2) for _ in range(30)]
    assert all(f.low[0] < f.r[0] < f.high[0] for f in found)
    assert sum(f.low[0] < truth < f.high[0] for f in found) >= 26


def test_choices_at_random_have_neither_correlation_nor_ceiling():
    random = np.random.default_rng(1)
    even = lambda: random.multinomial(4, np.full(64, 1 / 64), (40, 1)).astype(float)
    nothing = routing.alike(even(), even())
    assert abs(nothing.r[0]) < 0.35 and nothing.ceiling[0] < 0.6


def test_experts_of_one_time_each_vary_as_much_as_can_be_and_chance_does_not():
    bins = np.arange(200) % 4
    counts = np.zeros((200, 1, 4))
    counts[np.arange(200), 0, bins] = 10
    tokens = np.full(200, 10.0)
    rate = routing.by_time(counts, tokens, bins, 4, 1)
    assert np.array_equal(rate[:, 0], np.eye(4)) and routing.variation(rate)[0] == pytest.approx(np.sqrt(3))
    null = routing.variation_by_chance(counts, tokens, bins, 4, 1)
    assert null.max() < 0.6 and null.min() > 0


# ---- a trained model -------------------------------------------------------------------------------------------------------------------------


def test_a_trained_run_has_every_fact_of_every_layer_and_the_same_each_time(tmp_path):
    shape = {"layers": 2, "width": 32, "heads": 2, "norm": "layer", "activation": "relu2", "embedding_std": 0.3, "ffn": "moe"}
    shape["experts"] = {"count": 10, "granularity": 8, "top_k": 4}
    train(toyplan.run(toyplan.make(tmp_path), tmp_path / "run", model={"transfusion": shape}, steps=60))
    s = Subject.load(str(tmp_path / "run"))
    before = {k: v.clone() for k, v in s.model.state_dict().items()}
    rows = Experts().run(s, str(tmp_path / "run"))
    assert all(torch.equal(before[k], v) for k, v in s.model.state_dict().items())  # the untrained one has gone again
    facts = found(rows)
    for name in ("text", "vision", "specialisation.untrained", "load", "entropy", "dead", "time_cv.null_95", "correlation.ceiling"):
        assert set(facts[name]) >= {"layer:0", "layer:1", "layer:all"}
    assert sum(facts[c]["layer:1"] for c in routing.CLASSES) == pytest.approx(1)
    assert facts["correlation.low"]["layer:0"] <= facts["correlation"]["layer:0"] <= facts["correlation.high"]["layer:0"]
    table = pq.read_table(tmp_path / "run/experts.parquet")
    assert table.num_rows == 2 * 8 and table.schema.metadata[b"threshold"] == b"0.5"
    for column in ("rate", "rate_text", "rate_image", "rate_understanding", "rate_generation"):
        assert np.reshape(table[column].to_pylist(), (2, 8)).sum(axis=1) == pytest.approx([1, 1])
    assert np.reshape(table["rate_by_time"].to_pylist(), (2, 8, 10)).sum(axis=1) == pytest.approx(np.ones((2, 10)))
    data = (tmp_path / "run/experts.parquet").read_bytes()
    assert Experts().run(s, str(tmp_path / "run")) == rows and (tmp_path / "run/experts.parquet").read_bytes() == data
    words = found(Experts(sources=["words"]).run(s, str(tmp_path / "run")))
    assert set(words) == {"load", "entropy", "dead"}  # of one modality alone nobody can say whose an expert is
    clips = found(Experts(sources=["clips"]).run(s, str(tmp_path / "run")))
    assert "text" not in clips and {"time_cv", "correlation", "load"} <= set(clips)
    assert Experts(sources=["pairs"], max_tokens=40).run(s, str(tmp_path / "run"))[0]["n"] < rows[0]["n"]
