"""Evaluations against oracles: what a perfect, a uniform and a blind model must score, and greedy decoding against the plain loop."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import toyplan

from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from pipelines.format.dataset import Dataset
from pipelines.format.document import PartOf
from tests.trainer.asked import COLOURS, SPECIALS, HeldOut, subject, tokenizer
from trainer.evaluate import _questions
from trainer.evaluate._answering import choice_likelihoods, greedy
from trainer.evaluate._questions import Question, held_out_questions, normal, shuffled_images
from trainer.evaluate._subject import Subject, document
from trainer.evaluate.flow_loss import FlowLoss, fixed_quantiles, measured_in
from trainer.evaluate.samples import Samples
from trainer.evaluate.text_perplexity import TextPerplexity, nats_of, payload_targets
from trainer.evaluate.vqa import Vqa
from trainer.flow import Flow
from trainer.loop import train
from trainer.models.load import load_model
from trainer.models.transfusion import Output, Transfusion
from trainer.stream import Reader


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> HeldOut:
    return HeldOut(str(tmp_path_factory.mktemp("held")))


class Stub(torch.nn.Module):
    """Says what `says(text before, images before)` answers, one byte at a time, then EOS. Reads batches as the real model does."""

    def __init__(self, says) -> None:
        super().__init__()
        self.says = says

    def forward(self, batch, z, t, dropped=None, at=None):
        at = torch.arange(batch.tokens.numel()) if at is None else at
        length = batch.shape[1]
        logits = torch.full((len(at), 261), -9.0)
        for k, place in enumerate(at.tolist()):
            row, end = divmod(place, length)
            turn = batch.turn[row, end]
            seen = [j for j in range(end + 1) if batch.turn[row, j] in (-1, turn)]
            text = tokenizer().decode([i for j in seen if (i := int(batch.tokens[row, j])) < 256])
            slots = batch.latents[(batch.latent_slot >= row * length) & (batch.latent_slot <= place)]
            question, said = text.split("?", 1)
            answer = self.says(question, slots)
            rest = tokenizer().encode(answer).ids[len(said) :] if answer.startswith(said) else []
            logits[k, rest[0] if rest else SPECIALS.eos] = 9.0
        return Output(logits, at, z)


def seeing(question: str, slots: torch.Tensor) -> str:
    return " " + COLOURS[round(float(slots[0, 0]))] if len(slots) else " red"


def values(rows, metric: str) -> dict[str, float]:
    return {r["split"]: r["value"] for r in rows if r["metric"] == metric}


def test_a_model_that_sees_scores_one_and_without_its_images_no_better_than_chance(plan, tmp_path):
    rows = Vqa().run(subject(plan, Stub(seeing)), str(tmp_path))
    assert values(rows, "vqa") == {"held_out": 1, "held_out:colour": 1, "held_out:which": 1, "held_out:with_bag": 1}
    assert values(rows, "vqa.choice")["held_out"] == 1
    assert values(rows, "vqa.blind")["held_out"] == values(rows, "vqa.choice.blind")["held_out"] == 0.25
    assert values(rows, "vqa.shuffled")["held_out"] < 0.5


def test_a_blind_model_scores_what_the_constant_answer_scores(plan, tmp_path):
    rows = Vqa().run(subject(plan, Stub(lambda q, s: " blue")), str(tmp_path))
    for metric in ("vqa", "vqa.shuffled", "vqa.blind", "vqa.constant"):
        assert values(rows, metric)["held_out"] == 0.25
    # half of the questions name a bag of two, the other half falls back on the constant answer
    assert values(rows, "vqa.attributes") == {"held_out": 0.375, "held_out:colour": 0.5, "held_out:which": 0.25, "held_out:with_bag": 0.5}


def test_the_answers_file_has_a_row_per_question_that_agrees_with_the_rows(plan, tmp_path):
    rows = Vqa(questions=17).run(subject(plan, Stub(seeing)), str(tmp_path))
    table = pq.read_table(tmp_path / "answers.parquet")
    assert table.num_rows == 17 and {r["n"] for r in rows if r["metric"] == "vqa" and r["split"] == "held_out"} == {17}
    assert sum(table["has_bag"].to_pylist()) == sum(t == "colour" for t in table["type"].to_pylist())
    assert np.mean(table["correct_shuffled"].to_pylist()) == pytest.approx(values(rows, "vqa.shuffled")["held_out"])
    assert set(table["prediction"].to_pylist()) <= set(COLOURS)


def tiny(channels: int = 8, patches: int = 2) -> torch.nn.Module:
    torch.manual_seed(3)
    model = Transfusion(layers=2, width=32, heads=2, qk_norm=False).build(261, channels, patches)
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, std=0.3 if "weight" in name or p.ndim == 2 else 1.0)
    return model.eval()


def plain_greedy(s: Subject, q: Question, limit: int) -> list[int]:
    said: list[int] = []
    while len(said) < limit:
        d = document(q.ids, q.images, [np.array(said, np.int32)], SPECIALS)
        (_, batch), *_ = s.batches([d])
        token = int(s.logits(batch, np.array([len(d) - 1])).argmax())
        if token in SPECIALS:
            break
        said.append(token)
    return said


def test_drafted_decoding_is_greedy_decoding(plan):
    s = subject(plan, tiny())
    questions = held_out_questions(plan, "vqa", 20)
    found = greedy(s, questions, [q.images for q in questions])
    assert [f.tolist() for f in found] == [plain_greedy(s, q, len(q.answer_ids) + 4) for q in questions]


def test_a_right_draft_is_settled_in_one_pass(plan):
    calls = []
    s = subject(plan, Stub(seeing))
    questions = held_out_questions(plan, "vqa", 20)
    forward = Subject.forward
    Subject.forward = lambda self, *a, **k: calls.append(1) or forward(self, *a, **k)  # type: ignore[method-assign]
    try:
        greedy(s, questions, [q.images for q in questions])
    finally:
        Subject.forward = forward  # type: ignore[method-assign]
    assert len(calls) == 1


def test_choices_side_by_side_score_as_each_alone(plan):
    s = subject(plan, tiny())
    questions = held_out_questions(plan, "vqa", 6)
    ids_ = [[np.array(tokenizer().encode(f" {c}").ids, np.int32) for c in COLOURS] for _ in questions]
    images = [q.images for q in questions]
    together = choice_likelihoods(s, questions, images, ids_)
    for k in range(len(COLOURS)):
        alone = choice_likelihoods(s, questions, images, [[c[k]] for c in ids_])
        assert np.allclose([t[k] for t in together], [a[0] for a in alone], atol=1e-5)


def test_one_question_is_asked_per_image_before_a_second_of_any(plan):
    first = held_out_questions(plan, "vqa", 12)
    assert len({q.group for q in first}) == 12 and len(held_out_questions(plan, "vqa", 99)) == 24
    assert [(q.id, q.turn) for q in held_out_questions(plan, "vqa", 5)] == [(q.id, q.turn) for q in first[:5]]


def question(group: str, answers: tuple[str, ...] = ("a",), kind: str = "k", **more) -> Question:
    nothing = np.zeros(0, np.int32)
    return Question(group, group, 0, kind, "?", answers, nothing, nothing, (np.array([[hash_of(group)]], np.float32),), **more)


def hash_of(group: str) -> float:
    return float(sum(map(ord, group)))


def test_shuffling_gives_nobody_their_own_image():
    questions = [question(g) for g in "aaabbcdefgh"]
    assert all(given[0] != q.images[0] for q, given in zip(questions, shuffled_images(questions), strict=True))


def test_who_has_nobody_to_exchange_pictures_with_is_shown_none_of_their_own():
    groups = "aaaaabc"  # one group is more than half: three of its five find another's
    questions = [question(g) for g in groups]
    given = shuffled_images(questions)
    assert [g is None for g in given].count(True) == 3 and all(g is None or g[0] != q.images[0] for q, g in zip(questions, given, strict=True))
    assert shuffled_images([question("a")]) == [None] and shuffled_images([question("a"), question("a")]) == [None, None]


def test_a_lone_question_has_no_shuffled_rows(plan, tmp_path):
    rows = Vqa(questions=1).run(subject(plan, Stub(seeing)), str(tmp_path))
    assert {r["metric"] for r in rows} >= {"vqa", "vqa.blind"} and not [r for r in rows if ".shuffled" in r["metric"]]
    table = pq.read_table(tmp_path / "answers.parquet")
    assert table["correct_shuffled"].to_pylist() == table["choice_correct_shuffled"].to_pylist() == [None]


def test_exact_match_forgives_case_space_and_outer_punctuation_only():
    q = question("g", ("Dark red",))
    assert q.right(" dark  RED. ") and not q.right("darkred") and not q.right("red")
    assert normal('"Two."') == "two"


@pytest.mark.parametrize("answer", ["dark red", ' "Dark  red."', "dark", "dark red!!", "dork", "red", "dark redd", "dark red x"])
def test_an_answer_is_given_up_only_when_nothing_can_make_it_right(answer):
    q = question("g", ("Dark red",))
    begun = [answer[:k] for k in range(len(answer) + 1)]
    assert not q.right(answer) or all(map(q.open, begun))
    assert all(q.open(b) for b in begun if any(q.right(b + rest) for rest in ("", "dark red", "ark red", "k red", " red", "red", "ed", "d")))
    assert q.open("dar\ufffd") and not q.open("blue") and not q.open("dark redd")


def test_the_constant_is_the_commonest_answer_of_the_type():
    asked_ = [question(str(i), (a,), k) for i, (a, k) in enumerate([("x", "p"), ("y", "p"), ("y", "p"), ("x", "q"), ("z", "q")])]
    assert _questions.constant_answers(asked_) == {"p": "y", "q": "x"}


def test_the_bag_of_attributes_guesses_among_its_candidates():
    bags = [question("g", ("a",), bag=("a", "b", "c", "d")), question("h", ("z",), bag=("a",)), question("i")]
    assert _questions.attribute_scores(bags) == [0.25, 0.0, None]


class Uniform(torch.nn.Module):
    def forward(self, batch, z, t, dropped=None, at=None):
        return Output(torch.zeros(len(at), 261), at, torch.zeros_like(z))


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity(plan, tmp_path):
    rows = TextPerplexity().run(subject(plan, Uniform()), str(tmp_path))
    assert values(rows, "text_perplexity") == dict.fromkeys(("held_out", "held_out:text"), pytest.approx(261))
    assert values(rows, "bits_per_byte")["held_out"] == pytest.approx(np.log2(261))  # here an id is a byte


def test_perplexity_counts_each_payload_id_once_and_no_structure(plan, tmp_path):
    rows = TextPerplexity(sources=["text", "vqa"]).run(subject(plan, Uniform()), str(tmp_path))
    counted = {r["split"]: r["n"] for r in rows if r["metric"] == "text_perplexity"}
    assert counted["held_out:text"] == sum(r.payload for r in plan.rows[12:24])
    # answers only, and of an isolated turn the question stands before the answer, so all of its ids count
    assert counted["held_out:vqa"] == sum(2 * len(f" {COLOURS[i % 4]}") for i in range(12))


def test_flow_loss_of_a_model_that_says_nothing_is_the_size_of_what_it_should_say(plan, tmp_path):
    s = subject(plan, Uniform())
    s.run = type("R", (), {"flow": Flow(predict="v", loss_space="v", shift=1)})()
    rows = FlowLoss(bins=3).run(s, str(tmp_path))
    documents = s.held_out(["video"])
    from pipelines.format import chance

    size = []
    for d in documents:
        for k, segment in enumerate(d.image_segment.tolist()):
            noise = chance.noise(int(chance.draw(d.h, 0, "noise", 0, segment)), (2, 8))
            size.append(np.mean((d.latents[2 * k : 2 * k + 2] - noise) ** 2))
    assert values(rows, "flow_loss") == {"held_out": pytest.approx(np.mean(size), rel=1e-4), "held_out:video": pytest.approx(np.mean(size), rel=1e-4)}
    assert {r["n"] for r in rows if r["metric"] == "flow_loss.bin"} == {24}


def test_the_flow_loss_of_each_image_gives_the_rows_back(plan, tmp_path):
    s = subject(plan, tiny())
    rows = FlowLoss(bins=3).run(s, str(tmp_path))
    for metric, splits in (("flow_loss", ["held_out:video"]), ("flow_loss.bin", [f"held_out:{k}/3" for k in (1, 2, 3)])):
        table = pq.read_table(tmp_path / f"items/{metric}.parquet").to_pandas()
        assert len(set(table.item)) == len(table) == 36 and set(table.weight) == {2.0} and all("#" in item for item in table.item)
        for split in splits:
            assert table[table.split == split].value.mean() == pytest.approx(values(rows, metric)[split], rel=1e-6)
    ids = {f"{r.id}#{k}" for r in plan.records[2] for k in range(3)}
    assert set(table.item) == ids


OF = [("encoding.image.fingerprint", "f"), ("encoding.stats.sha256", "s"), ("flow.loss_space", "x"), ("flow.shift", 3.0), ("flow.time", "t")]


@pytest.mark.parametrize(("where", "what"), OF)
def test_what_a_flow_loss_is_an_error_of_is_told_by_card_and_recipe(where, what):
    flow = {"loss_space": "v", "time": "uniform", "shift": "auto", "predict": "x"}
    made = {"encoding": {"image": {"fingerprint": "e"}, "stats": {"sha256": "a"}}, "flow": flow}
    other = json.loads(json.dumps(made))
    (first, *rest) = where.split(".")
    place = other[first]
    for key in rest[:-1]:
        place = place[key]
    place[rest[-1]] = what
    assert measured_in(made, made) != measured_in(other, other)
    assert measured_in(made, made) == measured_in(made, {"flow": {**flow, "predict": "v"}})  # what is predicted is not what is measured


def test_fixed_quantiles_fill_the_bins_evenly_whatever_the_order(plan):
    documents = subject(plan, Uniform()).held_out(["video"])
    u = fixed_quantiles(documents, 4)
    assert np.bincount((np.concatenate(u) * 4).astype(int)).tolist() == [9, 9, 9, 9]
    assert all((a == b).all() for a, b in zip(u, fixed_quantiles(documents[::-1], 4)[::-1], strict=True))


def test_fixed_quantiles_fill_the_bins_evenly_where_frames_have_clean_copies(tmp_path):
    """A copy is of its twin's segment and takes no loss; beside it in the order it would leave every other bin without a frame."""
    clips = {"dataset": toyplan.dataset(str(tmp_path / "video"), "video", 200), "tokens": 400, "max_epochs": 20, "history": "clean_copy"}
    asked = {"sequence_length": 64, "held_out": {"fraction": 0.3, "seed": 0}, "sources": {"clips": clips}}
    plan = Plan.open(make_plan(Mixture.model_validate(asked), str(tmp_path / "plan")))
    reader = Reader(plan)
    documents = [reader.document(s) for i in plan.held_out("clips") for s in plan.row(i, "heldout").spans]
    u = np.concatenate([u[d.image_loss] for d, u in zip(documents, fixed_quantiles(documents, 4), strict=True)])
    assert any(d.image_hidden.any() for d in documents) and np.ptp(np.bincount((u * 4).astype(int), minlength=4)) <= 1


def test_samples_are_a_dataset_of_the_prompted_captions_and_the_same_each_time(plan, tmp_path):
    s = subject(plan, tiny())
    part = Samples(images=5, steps=3, guidance=2.0)
    assert part.run(s, str(tmp_path / "a")) == []
    dataset = Dataset.open(str(tmp_path / "a/samples"))
    records = list(dataset.records(0))
    prompts = {r.id: r.segments[1] for r in plan.records[3]}
    assert len(records) == 5 and {r.segments[0].shape for r in records} == {(2, 8)}
    for r in records:
        words = prompts[r.fields["prompt_of"]]
        assert dataset.array(0, r.segments[1]).tolist() == plan.datasets[3].array(0, words).tolist()
        assert np.isfinite(dataset.array(0, r.segments[0])).all()
    part.run(s, str(tmp_path / "b"))
    assert Dataset.open(str(tmp_path / "b/samples")).fingerprint == dataset.fingerprint
    part.run(s, str(tmp_path / "a"))


class Painter(torch.nn.Module):
    """Predicts (x) a picture of the colour that the caption names."""

    def forward(self, batch, z, t, dropped=None, at=None):
        x = torch.zeros_like(z)
        for k, place in enumerate(batch.latent_slot.tolist()):
            row = place // batch.shape[1]
            text = tokenizer().decode([i for i in batch.tokens[row].tolist() if i < 256])
            x[k] = COLOURS.index(text.split()[1])
        return Output(torch.zeros(0, 261), torch.zeros(0, dtype=torch.long), x)


def test_a_painter_that_reads_its_caption_paints_what_it_says(plan, tmp_path):
    Samples(images=8, steps=4, guidance=3.0).run(subject(plan, Painter()), str(tmp_path))
    dataset = Dataset.open(str(tmp_path / "samples"))
    for r in dataset.records(0):
        said = tokenizer().decode(dataset.array(0, r.segments[1]).tolist()).split()[1]
        assert np.allclose(dataset.array(0, r.segments[0]), COLOURS.index(said), atol=0.02)


def test_batch_size_does_not_change_a_score(plan, tmp_path, monkeypatch):
    s = subject(plan, tiny())
    before = [Vqa().run(s, str(tmp_path)), TextPerplexity().run(s, str(tmp_path)), FlowLoss().run(s, str(tmp_path))]
    monkeypatch.setattr("trainer.evaluate._subject.BATCH_POSITIONS", 100)
    after = [Vqa().run(s, str(tmp_path)), TextPerplexity().run(s, str(tmp_path)), FlowLoss().run(s, str(tmp_path))]
    for a, b in zip(before, after, strict=True):
        assert [(r["metric"], r["split"], r["n"]) for r in a] == [(r["metric"], r["split"], r["n"]) for r in b]
        assert [r["value"] for r in a] == pytest.approx([r["value"] for r in b], rel=1e-4)


def test_a_run_in_bf16_says_nearly_what_it_says_in_fp32_and_its_routers_stay_whole(tmp_path):
    experts = {"count": 4, "granularity": 2, "top_k": 2, "shared": "none"}
    model = {"transfusion": {"layers": 1, "width": 32, "heads": 2, "ffn": "moe", "experts": experts}}
    run = toyplan.run(toyplan.make(tmp_path / "plan", tokens=600, n=40), tmp_path / "run", model=model)
    train(run)
    found = []
    for precision in ("auto", "fp32", "bf16"):
        judged = Subject.load(run.output, precision=precision)
        kinds = {p.dtype for n, p in judged.model.named_parameters() if "router" not in n}
        assert judged.precision == ("bf16" if precision == "bf16" else "fp32")
        assert kinds == {torch.bfloat16 if precision == "bf16" else torch.float32}
        assert {p.dtype for n, p in judged.model.named_parameters() if "router" in n} == {torch.float32}
        tuned = judged.judging(load_model(run.output)[0]).model
        assert [p.dtype for p in tuned.parameters()] == [p.dtype for p in judged.model.parameters()]
        (_, batch), *_ = judged.batches(judged.held_out(list(judged.plan.sources)))
        nats, _ = nats_of(judged, batch, payload_targets(batch, judged.specials)[1])
        found.append([float(nats.mean()), *(r["value"] for r in FlowLoss().run(judged, str(tmp_path / "out")))])
    assert found[0] == found[1] != found[2] and found[2] == pytest.approx(found[0], rel=0.02)


def test_the_parts_are_the_files_without_an_underscore():
    assert {"vqa", "text_perplexity", "flow_loss"} <= set(PartOf("trainer.evaluate").names())
    assert all(not n.startswith("_") for n in PartOf("trainer.evaluate").names())
    assert json.loads(Vqa().model_dump_json()) == {"set": "held_out", "questions": 1000, "source": "vqa", "score": "exact", "weights": "last"}
