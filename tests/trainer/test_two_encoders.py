"""Training on plans of two encoders: each image through the door its loss bit names, everything of one encoder as it was."""

from __future__ import annotations

import json
from pathlib import Path

import dualplan
import hand
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import toyplan
from test_train import StopAt

from mixtures.layout import atom_ranges, span_segments
from mixtures.plan import Plan
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError, Stopped
from trainer import losses, starting
from trainer.batch import Batch, TwoSided
from trainer.evaluate import evaluate_run
from trainer.evaluate._subject import Subject, document
from trainer.evaluate.experts import Experts, both_ways
from trainer.evaluate.flow_loss import FlowLoss
from trainer.evaluate.samples import Samples
from trainer.flow import Noised, noised
from trainer.generate import draws
from trainer.generate.generator import Generator
from trainer.generate.prompt import PAINT, Prompt
from trainer.generate.recipe import Sampling
from trainer.horizon import rows_of
from trainer.loop import train
from trainer.models.load import load_model, shape_of
from trainer.models.transfusion import Transfusion, TransfusionModel
from trainer.normalise import VARIANCE_FLOOR
from trainer.parallel import initialise
from trainer.run import Flow
from trainer.sampling import sample
from trainer.stream import Reader, Reading, Stream
from trainer.two_encoders import shown_by

KINDS = {
    "shared": {"ffn": "shared"},
    "per_modality": {"ffn": "per_modality"},
    "mot": {"ffn": "mot"},
    "moe": {"ffn": "moe", "experts": {"count": 10, "granularity": 8, "top_k": 4}},
}
SHAPE = {"layers": 2, "width": 32, "heads": 2, "norm": "layer", "activation": "relu2", "embedding_std": 0.3}


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    return Plan.open(dualplan.make(tmp_path_factory.mktemp("dual")))


def model(plan: Plan, seed: int = 0, **changes) -> TransfusionModel:
    net = Transfusion.model_validate({**SHAPE, "ffn": "shared", **changes}).build(**shape_of(plan), predict="v")
    initialise(net, seed)
    with torch.no_grad():
        net.latent_out.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(2))
    return net


def batch(plan: Plan, step: int = 0, rows: int = 12) -> Batch:
    made = Stream(plan, rows).at(step)
    assert made.image_loss.any() and not made.image_loss.all()
    return made


# ---- what is read ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [5, 11])  # narrower, and wider, than what is looked at
def test_every_image_is_the_one_that_its_loss_bit_selects_normalised_by_its_own_statistics(tmp_path, width):
    plan = Plan.open(dualplan.make(tmp_path, tokens=900, width=width))
    reader, seen = Reader(plan), {True: 0, False: 0}
    moments = {loss: plan.latent_stats(key) for loss, key in ((False, "stats"), (True, "target_stats"))}
    for seq in range(min(plan.sequences(), 25)):
        spans = plan.row(seq).spans
        made = reader.batch([[reader.document(s) for s in spans]])
        assert made.latents.shape[1] == max(8, width)
        at = 0
        for span in spans:
            record = plan.record(span)
            where = plan.card["sources"][plan.sources[span.source]]
            segments = span_segments(span, record.segments, atom_ranges(record.segments))
            for k, loss in zip(segments, span.loss, strict=True):
                if record.segments[k].kind != "latents":
                    continue
                stored = plan.datasets[where["target" if loss else "dataset"]].array(span.shard, record.segments[k])
                _, mean, variance = moments[loss]
                found = made.latents[at : at + len(stored)].numpy()
                np.testing.assert_allclose(found[:, : stored.shape[1]], (stored - mean) / np.sqrt(variance + VARIANCE_FLOOR), rtol=1e-5, atol=1e-6)
                assert not found[:, stored.shape[1] :].any() and stored.shape == ((9, width) if loss else (4, 8))
                at += len(stored)
                seen[loss] += 1
        assert at == len(made.latents)
        assert made.image_width.tolist() == [width if loss else 8 for loss in made.image_loss.tolist()]
    assert min(seen.values()) > 5


def test_one_dataset_in_both_places_gives_the_batches_of_one_encoder(tmp_path):
    """Everything that packs and normalises is the same for one encoder and for two."""
    twice = Plan.open(dualplan.make(tmp_path / "twice", same=True))
    reader = Reader(twice)
    plain = Reader(twice)
    plain.sides, plain._others = None, [None] * len(twice.sources)
    for seq in range(10):
        spans = twice.row(seq).spans
        two, one = (r.batch([[r.document(s) for s in spans]]) for r in (reader, plain))
        for name in Batch.__slots__:
            assert torch.equal(getattr(two, name), getattr(one, name)), name
        assert type(one) is Batch and type(two) is TwoSided and (two.widths == one.widths).all()


def test_rows_cut_from_a_batch_keep_their_widths(plan):
    whole = batch(plan)
    parts = [whole.rows(i, i + 4) for i in range(0, 12, 4)]
    assert torch.equal(torch.cat([p.image_width for p in parts]), whole.image_width)
    assert all((p.widths == np.where(p.image_loss, 5, 8)).all() for p in parts)


def test_worker_processes_make_the_same_batches(plan):
    here = [b for b, _ in Stream(plan, 8, steps=3)]
    there = [b for b, _ in Stream(plan, 8, steps=3, reading=Reading(workers=1))]
    assert all(torch.equal(getattr(a, n), getattr(b, n)) for a, b in zip(here, there, strict=True) for n in (*Batch.__slots__, "image_width"))


# ---- noise and loss ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predict", ["x", "v"])
@pytest.mark.parametrize("space", ["x", "v"])
def test_the_loss_is_the_one_worked_out_by_hand(plan, predict, space):
    flow = Flow(predict=predict, loss_space=space)
    made = batch(plan)
    seen = noised(flow, made, seed=3)
    out = model(plan)(made, seen.z, seen.t)
    assert out.flow.shape == (len(made.latents), 5)
    found = losses.errors(out, made, seen, flow)
    total = 0.0
    for i in np.flatnonzero(made.image_loss.numpy()):
        rows = made.latent_image == i
        data, noise, t = made.latents[rows, :5], seen.noise[rows, :5], seen.t[i]
        assert torch.allclose(seen.z[rows, :5], (1 - t) * noise + t * data) and noise.std() > 0.5
        if predict == "x":
            error = (out.flow[rows] - data) / (max(1 - t, 0.05) if space == "v" else 1)
        else:
            error = (out.flow[rows] - (data - noise)) * (1 - t if space == "x" else 1)
        total += float((error**2).mean(dim=1).sum().detach())
    assert float(found.flow.sum().detach()) == pytest.approx(total, rel=1e-5)
    looked = ~made.image_loss[made.latent_image.long()]
    assert not found.flow[looked].any() and torch.equal(seen.z[looked], made.latents[looked]) and not seen.noise[:, 5:].any()


def test_times_are_shifted_by_the_size_of_what_is_made():
    """An image of 9 x 5 among wider ones has the time of 9 x 5: no shift, where 9 x 4096 would have one of 3."""
    rng = np.random.default_rng(0)
    made = hand.batch([[hand.document("b I e", rng)]])
    wide = torch.zeros(4, 4096)
    wide[:, :6] = made.latents
    made.latents, flow = wide, Flow()
    two = TwoSided(**{n: getattr(made, n) for n in Batch.__slots__}, image_width=torch.tensor([6], dtype=torch.int32))
    assert float(noised(flow, two, seed=0).t[0]) > float(noised(flow, made, seed=0).t[0])


# ---- the model -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, {"rope": "axial", "time": "adaln", "output_skip": True}])
def test_gradient_reaches_every_door_and_only_through_its_own_images(plan, kind, more):
    net, made = model(plan, **KINDS[kind], **more), batch(plan)
    seen = noised(Flow(predict="v"), made, seed=0)
    out = net(made, seen.z, seen.t)
    found = losses.errors(out, made, seen, Flow(predict="v"))
    (found.text.sum() + found.flow.sum()).backward()
    for name in ("latent_in.weight", "made_in.weight", "latent_out.weight", "patch", "made_patch"):
        grad = dict(net.named_parameters())[name].grad
        assert grad is not None and grad.abs().sum() > 0, name
    assert net.made_in.weight.shape == (32, 5) and net.latent_in.weight.shape == (32, 8) and net.made_patch.shape == (9, 32)
    junk = seen.z.clone()
    junk[made.image_loss[made.latent_image.long()], 5:] = 7.0  # beyond what such an image fills
    again = net(made, junk, seen.t)
    assert torch.equal(out.logits, again.logits) and torch.equal(out.flow, again.flow)


def test_both_doors_do_what_one_door_does_to_its_images_alone(plan):
    """Documents of images that are looked at alone, and of images that are made alone, through plain models with the same weights."""
    net, reader = model(plan), Reader(plan)
    spans = {True: [], False: []}
    for seq in range(30):
        for span in plan.row(seq).spans:
            d = reader.document(span)
            if len(d.image_loss) and len(set(d.image_loss.tolist())) == 1:
                spans[bool(d.image_loss[0])].append(d)
    weights = dict(net.state_dict())
    for made, (channels, patches) in ((False, (8, 4)), (True, (5, 9))):
        plain = Transfusion.model_validate({**SHAPE, "ffn": "shared"}).build(shape_of(plan)["vocab"], channels, patches, "v")
        mine = {k: v for k, v in weights.items() if not k.startswith("made_")}
        if made:
            mine |= {"latent_in.weight": weights["made_in.weight"], "latent_in.bias": weights["made_in.bias"], "patch": weights["made_patch"]}
        else:
            mine |= {"latent_out.weight": torch.zeros(8, 32), "latent_out.bias": torch.zeros(8)}
        plain.load_state_dict(mine)
        both = reader.batch([[d] for d in spans[made][:6]])
        seen = noised(Flow(predict="v"), both, seed=0)
        two, one = net(both, seen.z, seen.t), plain(both, seen.z[:, :channels], seen.t)
        assert torch.allclose(two.logits, one.logits, atol=1e-5)
        if made:
            assert torch.allclose(two.flow, one.flow, atol=1e-5)
        else:
            assert not two.flow.any()


def test_a_batch_without_images_of_one_kind_still_owes_both_doors_a_gradient(plan):
    net, reader = model(plan), Reader(plan)
    words = [reader.document(s) for seq in range(20) for s in plan.row(seq).spans if plan.sources[s.source] == "words"][:3]
    made = reader.batch([[d] for d in words])
    out = net(made, made.latents, torch.ones(0))
    (out.logits.sum() + out.flow.sum()).backward()
    assert all(p.grad is not None for n, p in net.named_parameters() if not n.startswith("time."))


def test_one_encoder_has_the_parameters_and_flops_that_it_had():
    plain = Transfusion.model_validate(SHAPE).build(50, 8, 4)
    assert plain.looked is None and not [n for n, _ in plain.named_parameters() if "made" in n]
    assert not {n for n, _ in plain.named_modules() if "made" in n}
    two = Transfusion.model_validate(SHAPE).build(50, 8, 4, "x", 5, 9)
    assert {n for n, _ in two.named_parameters()} - {n for n, _ in plain.named_parameters()} == {"made_in.weight", "made_in.bias", "made_patch"}
    counts = two.parameters_by_use()
    assert counts["total"] == sum(counts[k] for k in ("blocks", "embedding", "projections", "time", "positions"))
    # 40 latents looked at enter 8 wide, 18 made enter 5 wide and leave so; 10 + 2 images have a time
    same = lambda net, **more: net.training_flops(10, 58, 5, 100, **more)
    doors = 32 * (4 * 40 * 8 + (4 + 6) * 18 * 5)
    assert same(two, made=18) == same(plain, images=12) - 32 * 10 * 58 * 8 + doors
    assert same(plain, made=18) == same(plain)


# ---- a run ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory, plan) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("ran")
    return out / "run", train(toyplan.run(plan.path, out / "run", model={"transfusion": {**SHAPE, **KINDS["moe"]}}))


def test_a_run_learns_both_and_its_card_says_what_was_made(ran, plan):
    root, card = ran
    lines = [json.loads(x) for x in (root / "metrics.jsonl").read_text().splitlines()]
    first, last = ([np.mean([x[k] for x in part if k in x]) for k in ("text", "flow")] for part in (lines[:10], lines[-10:]))
    assert last[0] < 0.8 * first[0] and last[1] < 0.9 * first[1]
    assert card["shape"] == {"vocab": 55, "channels": 8, "patches": 4, "made_channels": 5, "made_patches": 9}
    assert {k: s["tokens"]["all"] for k, s in card["sources"].items()} == {k: s["tokens"]["all"] for k, s in plan.card["sources"].items()}
    net, _, _ = load_model(str(root))
    assert (net.channels, net.patches) == (5, 9) and net.looked == (8, 4)
    assert torch.equal(net.made_in.weight, safetensors.torch.load_file(root / "model.safetensors")["made_in.weight"])


def test_stopped_and_gone_on_it_is_the_run_that_was_not_stopped(ran, plan, tmp_path):
    changes = {"model": {"transfusion": {**SHAPE, **KINDS["moe"]}}, "checkpoint_every": 20}
    with pytest.raises(Stopped):
        train(toyplan.run(plan.path, tmp_path / "run", **changes), stop=StopAt(25))
    train(toyplan.run(plan.path, tmp_path / "run", **changes))
    assert (tmp_path / "run/model.safetensors").read_bytes() == (ran[0] / "model.safetensors").read_bytes()


def test_micro_batches_of_two_encoders_add_up(plan, tmp_path):
    weights = []
    for size in (4, 2):
        shape = {"transfusion": {**SHAPE, "ffn": "per_modality"}}
        train(toyplan.run(plan.path, tmp_path / str(size), model=shape, micro_batch=size, steps=5, optim={"lr": 4e-3, "eps": 1e-3}))
        weights.append(safetensors.torch.load_file(tmp_path / str(size) / "model.safetensors"))
    assert all(torch.allclose(weights[0][k], weights[1][k], atol=1e-4) for k in weights[0])


# ---- evaluations -------------------------------------------------------------------------------------------------------------------------------


def test_evaluations_judge_what_is_made_in_the_targets_space_and_what_is_read_by_the_contexts(ran):
    root, _ = ran
    rows = evaluate_run(str(root), [FlowLoss(), Experts(bins=4)])
    found = {(r["metric"], r["split"]): r for r in rows}
    subject = Subject.load(str(root))
    documents = subject.held_out(["clips", "pairs"])
    assert found["flow_loss", "held_out"]["n"] == sum(9 * int(d.image_loss.sum()) for d in documents)
    assert found["flow_loss", "held_out"]["value"] < 1.8  # a model that says nothing has 2
    assert ("experts.correlation", "layer:0") in found
    pairs = [both_ways(subject.plan, s) for i in subject.plan.held_out("pairs") for s in subject.plan.row(i, "heldout").spans]
    assert all([len(subject.reader.document(side).latents) for side in pair] == [4, 9] for pair in pairs)


def test_a_question_is_asked_about_the_contexts_latents(ran):
    """An evaluation's own documents bring latents of the context encoder, in its width alone."""
    subject = Subject.load(str(ran[0]))
    d = subject.held_out(["vqa"])[0]
    d.latents = d.latents[:, :8].copy()
    (_, one), *_ = subject.batches([d])
    (_, two), *_ = subject.batches(subject.held_out(["vqa"])[:1])
    assert torch.equal(one.latents, two.latents) and not d.image_loss.any()


def test_samples_are_latents_of_the_target_encoder(ran, tmp_path):
    subject = Subject.load(str(ran[0]))
    made = subject.plan.datasets[subject.plan.card["sources"]["pairs"]["target"]]
    (tmp_path / "t").mkdir()
    Path(made.path, "tokenizer.json").write_text("{}")
    Samples(source="pairs", images=3, steps=3, guidance=2.0).run(subject, str(tmp_path))
    dataset = Dataset.open(str(tmp_path / "samples"))
    assert dataset.encoding["image"]["encoder"] == "other"
    arrays = [dataset.array(0, r.segments[0]) for r in dataset.records(0)]
    assert len(arrays) == 3 and all(a.shape == (9, 5) and np.isfinite(a).all() for a in arrays)


class Painter(torch.nn.Module):
    """Says what is to be made is all ones, as a model of two encoders would: in the width of what is made."""

    def forward(self, batch, z, t, dropped=None, at=None):
        return type("Output", (), {"flow": torch.ones(len(z), 5)})()


def test_a_painter_lands_on_what_it_says(plan):
    made = batch(plan)
    noise = torch.randn(made.latents.shape, generator=torch.Generator().manual_seed(0))
    found = sample(Painter(), made, Flow(predict="x"), noise, steps=4, guidance=1.0)
    chosen = made.image_loss[made.latent_image.long()]
    assert found.shape == (len(noise), 5) and torch.allclose(found[chosen], torch.ones(1)) and torch.equal(found[~chosen], made.latents[~chosen, :5])


def test_what_makes_no_sense_is_refused(ran, plan, tmp_path):
    generator = Generator.of(Subject.load(str(ran[0])))
    with pytest.raises(InputError, match="looks at what it made"):
        generator.generate([Prompt("a", (np.zeros((4, 8), np.float32), PAINT), window=1)])
    for wrong, images_as in (((9, 5), "context"), ((4, 8), "frame")):
        with pytest.raises(ValueError, match="wide"):
            generator.generate([Prompt("a", (np.zeros(wrong, np.float32), PAINT), images_as=images_as)])
    with pytest.raises(InputError, match="two encoders"):
        train(toyplan.run(plan.path, tmp_path / "run", latents="encode"))


def test_text_after_images_is_judged_by_the_plain_cross_entropy(plan):
    net, made = model(plan), batch(plan)
    out = net(made, made.latents, torch.ones(len(made.image_loss)))
    seen = Noised(made.latents, torch.ones(len(made.image_loss)))
    found = losses.errors(out, made, seen, Flow(predict="v"))
    expected = F.cross_entropy(out.logits, made.text_target.reshape(-1)[out.at].long(), reduction="none")
    assert torch.allclose(found.text, expected)


def test_what_a_step_reads_is_fetched_from_both_datasets(plan):
    """Places of spans in the other dataset are noted too, of sources that have one."""
    named = plan.card["sources"]
    for seq in range(12):
        wanted = set()
        for span in plan.row(seq).spans:
            entry = named[plan.sources[span.source]]
            wanted |= {(n, span.shard, span.row) for n in (entry["dataset"], entry.get("target")) if n is not None}
        found = {(dataset, shard, row) for (dataset, shard), rows in rows_of(plan, "train", [seq]).items() for row in rows.tolist()}
        assert found == wanted


def test_a_record_that_either_dataset_forgot_is_not_read(tmp_path):
    plan = Plan.open(dualplan.make(tmp_path, tokens=900))
    entry = plan.card["sources"]["vqa"]
    span = next(s for i in range(plan.sequences()) for s in plan.row(i).spans if plan.sources[s.source] == "vqa")
    reader = Reader(plan)
    row = next(i for i in range(plan.sequences()) if span in plan.row(i).spans)
    before = len(reader.sequence(row))
    reader.shard(entry["target"], span.shard).gone[span.row] = True
    assert len(reader.sequence(row)) == before - sum((s.dataset, s.shard, s.row) == (span.dataset, span.shard, span.row) for s in plan.row(row).spans)
    assert reader.left_out


def test_weights_of_one_encoder_do_not_start_a_run_of_two_and_those_of_two_do(ran, plan, tmp_path):
    shape = {"transfusion": {**SHAPE, **KINDS["moe"]}}
    train(toyplan.run(plan.path, tmp_path / "on", model=shape, init=str(ran[0]), steps=2))
    train(toyplan.run(toyplan.make(tmp_path / "one"), tmp_path / "plain", model=shape, steps=2))
    with pytest.raises(InputError, match="do not fit"):
        train(toyplan.run(plan.path, tmp_path / "off", model=shape, init=str(tmp_path / "plain"), steps=2))
    wider = Plan.open(dualplan.make(tmp_path / "wider", tokens=900, width=11))
    again = toyplan.run(plan.path, tmp_path / "again", model=shape)
    assert any("normalised by other statistics" in note for note in starting.differences(str(ran[0]), again, wider))
    assert starting.differences(str(ran[0]), again, plan) == []


def test_a_generator_reads_by_one_door_and_paints_by_the_other_as_one_pass_over_the_document_would(ran):
    """The cached, piecewise way against `sample` over the whole document, from the same noise."""
    subject = Subject.load(str(ran[0]))
    reader, plan = subject.reader, subject.plan
    span = next(s for i in plan.held_out("pairs") for s in plan.row(i, "heldout").spans)
    _, made = both_ways(plan, span)
    document = reader.document(made)
    caption = document.tokens[document.kind == 0]
    how = Sampling(steps=4, guidance=1.0)
    (found,) = Generator.of(subject, how).generate([Prompt("x", (caption, PAINT))])
    (painted,) = found.images
    assert painted.shape == (9, 5)
    (_, batch), *_ = subject.batches([document])
    noise = torch.zeros(9, 8)
    noise[:, :5] = torch.from_numpy(draws.noise("x", 0, len(caption) + 1, how.seed, (9, 5)))
    with torch.inference_mode():
        whole = sample(subject.model, batch, subject.run.flow, noise, steps=4, guidance=1.0)
    np.testing.assert_allclose(painted, reader.normaliser.undo(whole.numpy()), rtol=1e-3, atol=1e-3)


def test_a_generator_answers_about_the_contexts_latents(ran):
    subject = Subject.load(str(ran[0]))
    d = subject.held_out(["vqa"])[0]
    ids = d.tokens[(d.kind == 0) & (d.turn <= 0)][:2]
    asked = Prompt("q", (np.ascontiguousarray(d.latents[:4, :8]), ids), tokens=1)
    (found,) = Generator.of(subject, Sampling(temperature=0)).generate([asked])
    plain = document(ids, [d.latents[:4, :8]], [], subject.specials)
    (_, batch), *_ = subject.batches([plain])
    logits = subject.logits(batch, np.array([len(plain) - 1]))[0].clone()
    logits[[subject.specials.bos, subject.specials.eoi, subject.specials.pad, subject.specials.boi]] = -np.inf
    best = int(logits.argmax())
    assert found.pieces[0].tolist() == [best] if best != subject.specials.eos else found.stop == "eos"


def test_what_is_made_is_shown_by_the_target_encoder(plan):
    assert shown_by(plan).encoding["image"]["encoder"] == "other"
