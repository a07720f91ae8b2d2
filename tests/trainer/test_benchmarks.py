"""The sixteen sets, each from files of its own layout through its packaged recipe to a score that an oracle and a blind model must have."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

import pipelines
from mixtures import latent_stats
from pipelines.format import codec
from pipelines.format.dataset import Dataset
from pipelines.format.document import fingerprint, load
from pipelines.format.errors import InputError
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment, Text
from pipelines.recipe import Recipe
from pipelines.tombstones import add
from tests import toys
from tests.pipelines.test_sources_text import read
from tests.toys import jpeg
from tests.trainer.asked import SPECIALS, HeldOut, ids, subject, tokenizer
from tests.trainer.published import FILES, MMMU, PROMPT, N, parquet
from tests.trainer.test_evaluate import values
from trainer.evaluate._benchmarks import SETS, Kind, chosen, pieces, units_of
from trainer.evaluate._benchmarks import values as weighed
from trainer.evaluate.benchmark import Benchmark
from trainer.models.transfusion import Output

RECIPES = Path(pipelines.__file__).parent / "recipes"
BYTES = tokenizer()


def curated(name: str, root: Path) -> list[Record]:
    """The set's files through its packaged recipe, pictures left as they are."""
    root.mkdir(parents=True, exist_ok=True)
    FILES[name](root)
    if name == "mmvp":
        (root / "MMVP Images/0.jpg").rename(root / f"MMVP Images/{N}.jpg")
    recipe = load(Recipe, f"benchmark_{name}", [f"source.vqa_table.path={root}"], packaged=[RECIPES])
    records, rejects = read(recipe.source)
    assert [r.reason for r in rejects] == (["no_image"] if name == "scienceqa" else []), rejects
    template = next(t for t in recipe.transforms if type(t).__name__ == "Template")
    return [out for r in records for out in template.apply(r)]


def encoded(root: Path, name: str, records: list[Record], encoder: str = "0" * 64) -> str:
    """As the encode stage would: bytes as ids, and a picture as two latents that say which it is."""
    path, known = str(root / f"{name}-encoded"), {jpeg(i): i for i in range(N)}
    with PartWriter(path, 0, fingerprint=fingerprint(name), encoded=True) as w:
        for r in records:
            made: list[Segment] = []
            for s in r.segments:
                if s.kind == "image":
                    x = np.full((2, 8), known[bytes(s.payload)], np.float32)
                    payload = codec.encode_latents(x, "f32")
                    made.append(Segment("latents", s.role, s.atom, s.turn, payload=payload, dtype="f32", shape=(2, 8), tokens=2))
                else:
                    made.append(ids(s.text, s.role, s.turn, s.atom))
            w.emit()
            w.add(Record.make(r.source, r.origin, "vqa", made, group=r.group, fields=r.fields))
        encoding: dict = {"text": {"tokenizer_sha256": "0" * 64, "vocab": 261, "specials": SPECIALS._asdict()}}
        encoding["image"] = {"encoder": "toy", "fingerprint": encoder, "tokens": 2, "width": 8, "codec": "f32"}
        encoding["stats"], _ = latent_stats.publish(path, (2, np.zeros(8), np.ones(8)))
        toys.seal(path, name, "vqa", [w.commit()], {}, encoding)
    tokenizer().save(f"{path}/tokenizer.json")
    return path


class Knows(torch.nn.Module):
    """Knows the answer to every question about each picture: its words, or the letter that they stand under."""

    def __init__(self, records: list[Record], blind: str = " no") -> None:
        super().__init__()
        self.blind, self.known = blind, {}
        for r in records:
            picture = next(i for i in range(N) if any(s.kind == "image" and bytes(s.payload) == jpeg(i) for s in r.segments))
            for q in r.fields["questions"]:
                target = next(s.text for s in r.segments if s.turn == q["turn"] and s.role == "target")
                key = re.search(r"Q\d\?( [ab]$)?", q["question"])[0]
                self.known[picture, key] = (target, q["answers"][0])

    def says(self, prompt: str, slots: torch.Tensor) -> str:
        if not len(slots):
            return self.blind
        for (picture, key), (target, words) in self.known.items():
            if picture == round(float(slots[0, 0])) and key in prompt:
                m = re.search(rf"\b([A-D])\. {re.escape(words)}\b", prompt) if re.fullmatch(r" [A-D]", target) else None
                return f" {m[1]}" if m else target
        return " nothing"

    def forward(self, batch, z, t, dropped=None, at=None):
        logits, length = torch.full((len(at), 261), -9.0), batch.shape[1]
        for k, place in enumerate(at.tolist()):
            row, end = divmod(place, length)
            seen = [j for j in range(end + 1) if batch.turn[row, j] in (-1, batch.turn[row, end])]
            prompt, said = BYTES.decode([i for j in seen if (i := int(batch.tokens[row, j])) < 256]).rsplit("Answer:", 1)
            answer = self.says(prompt, batch.latents[(batch.latent_slot >= row * length) & (batch.latent_slot <= place)])
            rest = BYTES.encode(answer).ids[len(said) :] if answer.startswith(said) else []
            logits[k, rest[0] if rest else SPECIALS.eos] = 9.0
        return Output(logits, at, z)


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> HeldOut:
    made = HeldOut(str(tmp_path_factory.mktemp("plan")), 2)
    made.card = {"encoding": {"text": {"tokenizer_sha256": "0" * 64}, "image": {"fingerprint": "0" * 64}}}
    return made


def test_every_set_has_a_recipe_and_a_layout_here():
    assert len(SETS) == 16 and set(SETS) == set(FILES) == {p.stem.removeprefix("benchmark_") for p in RECIPES.glob("benchmark_*.yaml")}
    assert sorted({k.group for k in SETS.values()}) == ["general", "knowledge", "ocr_chart", "vision"]
    assert all(sum(k.group == g for k in SETS.values()) == 4 for g in ("general", "knowledge", "ocr_chart", "vision"))


@pytest.mark.parametrize("name", SETS)
def test_a_set_goes_from_its_own_files_to_a_score(plan, tmp_path, name):
    records = curated(name, tmp_path / name)
    if name in PROMPT:
        first = [s.text for s in records[0].segments if s.kind == "text" and s.turn == 0]
        assert "|".join(first) == PROMPT[name]
    path = encoded(tmp_path, name, records)
    rows = Benchmark(sets={name: path}).run(subject(plan, Knows(records)), str(tmp_path))
    found = {m: values(rows, m) for m in ("benchmark", "benchmark.blind", "benchmark.shuffled", "benchmark.constant")}
    assert found["benchmark"][name] == found["benchmark"]["all"] == pytest.approx(1)
    assert found["benchmark.blind"][name] <= found["benchmark.constant"][name] and found["benchmark.shuffled"][name] == 0
    answered = pq.read_table(tmp_path / f"answers-{name}.parquet")
    assert answered.num_rows == {"mme": 8, "seed": 5}.get(name, N)
    table_ = pq.read_table(tmp_path / "items/benchmark.parquet").to_pandas()
    assert len(set(table_.item)) == len(table_) == {"mme": 4, "seed": 5, "mmvp": 3}.get(name, N)
    assert np.average(table_.value, weights=table_.weight) == pytest.approx(found["benchmark"][name])
    choice = values(rows, "benchmark.choice")
    listed = {"mmbench", "seed", "scienceqa", "mmmu", "ai2d", "cvbench_2d", "cvbench_3d"}
    assert (choice.get(name) == pytest.approx(1)) if name in listed else (name in ("mmvp", "mathvista")) == (name in choice)


BLIND = [("mme", " Yes"), ("mme", " No"), ("mmbench", " A"), ("gqa", " dog"), ("chartqa", " 5"), ("chartqa", " Blue"), ("docvqa", " letter")]


@pytest.mark.parametrize(("name", "blind"), BLIND)
def test_a_blind_model_scores_at_most_what_a_constant_answer_does(plan, tmp_path, name, blind):
    records = curated(name, tmp_path / name)
    rows = Benchmark(sets={name: encoded(tmp_path, name, records)}).run(subject(plan, Knows(records, blind)), str(tmp_path))
    assert 0 < values(rows, "benchmark.blind")[name] <= values(rows, "benchmark.constant")[name] + 1e-12


def test_the_constant_of_mmvp_is_one_answer_and_never_a_whole_pair(plan, tmp_path):
    records = curated("mmvp", tmp_path / "mmvp")
    path = encoded(tmp_path, "mmvp", records)
    rows = Benchmark(sets={"mmvp": path}).run(subject(plan, Knows(records, " (a)")), str(tmp_path))
    assert values(rows, "benchmark.constant")["mmvp"] == values(rows, "benchmark.blind")["mmvp"] == 0
    said = pq.read_table(tmp_path / "answers-mmvp.parquet").to_pandas()
    assert set(said.constant) == {"a)"} or set(said.constant) == {"(a)"}
    assert set(said.type) == {str(i + 1) for i in range(N)}  # by which pairs are found


def test_mmvps_file_is_read_with_the_header_it_was_published_with(tmp_path):
    spelled = {}
    for header in ("Index", "lndex"):
        root = tmp_path / header
        root.mkdir()
        FILES["mmvp"](root)
        (root / "MMVP Images/0.jpg").rename(root / f"MMVP Images/{N}.jpg")
        table = root / "Questions.csv"
        table.write_text(table.read_text().replace("Index", header, 1))
        records, rejects = read(load(Recipe, "benchmark_mmvp", [f"source.vqa_table.path={root}"], packaged=[RECIPES]).source)
        spelled[header] = [(r.fields["questions"], r.group) for r in records]
        assert len(records) == N and not rejects
    assert spelled["Index"] == spelled["lndex"]


@pytest.mark.parametrize("name", SETS)
def test_how_a_question_is_put_does_not_tell_how_long_its_answer_is(name):
    recipe = load(Recipe, f"benchmark_{name}", packaged=[RECIPES])
    template = next(t for t in recipe.transforms if type(t).__name__ == "Template")
    put = set()
    for answer in ("one", "one of the many words that an answer may have"):
        q = {"turn": 0, "question": "Q?", "answers": [answer], "type": "x"}
        said = (Text("Q?", role="context", atom=0, turn=0), Text(answer, role="target", atom=0, turn=0))
        (out,) = template.apply(Record.make("toy", "x", "vqa", said, fields={"questions": [q]}))
        put.add("".join(s.text for s in out.segments if s.role == "context"))
    assert len(put) == 1


def test_an_open_question_of_mmmu_is_right_by_any_of_the_answers_that_its_one_text_lists(plan, tmp_path):
    row = {**MMMU[0], "options": "[]", "answer": "['24/7', '3.429']", "question_type": "open"}
    parquet("v.parquet", [row, *MMMU[1:]])(tmp_path)
    recipe = load(Recipe, "benchmark_mmmu", [f"source.vqa_table.path={tmp_path}"], packaged=[RECIPES])
    (template,) = (t for t in recipe.transforms if type(t).__name__ == "Template")
    records = [out for r in read(recipe.source)[0] for out in template.apply(r)]
    knows = Knows(records)
    knows.known[0, "Q0?"] = (" 3.429", "3.429")
    rows = Benchmark(sets={"mmmu": encoded(tmp_path, "mmmu", records)}).run(subject(plan, knows), str(tmp_path))
    assert values(rows, "benchmark")["mmmu"] == 1


class Rambles(Knows):
    """Knows the answers and goes on after them."""

    def says(self, prompt: str, slots: torch.Tensor) -> str:
        return super().says(prompt, slots) + " and so on" * 30


def test_an_answer_that_never_ends_has_no_anls_however_it_begins(plan, tmp_path):
    records = curated("docvqa", tmp_path / "docvqa")
    rows = Benchmark(sets={"docvqa": encoded(tmp_path, "docvqa", records)}).run(subject(plan, Rambles(records)), str(tmp_path))
    assert values(rows, "benchmark")["docvqa"] == values(rows, "benchmark.blind")["docvqa"] == 0


@pytest.mark.parametrize("total", [0, 1, 2, 999, 1000, 1001, 2001, 2999, 30000])
def test_pieces_are_even_so_that_nobody_is_shown_their_own_picture(total):
    made = list(pieces(iter(range(total)), total, 1000))
    assert [q for piece in made for q in piece] == list(range(total)) and all(len(p) <= 1000 for p in made)
    assert max(map(len, made)) - min(map(len, made)) <= 1


def test_the_shuffled_control_of_more_than_fits_shows_nobody_their_own_picture(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.evaluate.benchmark.AT_ONCE", N - 1)
    records = curated("gqa", tmp_path / "gqa")
    rows = Benchmark(sets={"gqa": encoded(tmp_path, "gqa", records)}).run(subject(plan, Knows(records)), str(tmp_path))
    assert values(rows, "benchmark.shuffled")["gqa"] == 0 and {r["n"] for r in rows if r["split"] == "gqa"} == {N}


def test_means_are_over_sets_that_weigh_alike_and_over_groups(plan, tmp_path):
    records = {name: curated(name, tmp_path / name) for name in ("gqa", "mmbench", "chartqa")}
    sets = {name: encoded(tmp_path, name, r) for name, r in records.items()}
    rows = Benchmark.model_validate({"sets": {**sets, "mine": {"dataset": sets["gqa"], "score": "exact"}}}).run(
        subject(plan, Knows(records["gqa"])), str(tmp_path)
    )
    found = values(rows, "benchmark")
    assert found["gqa"] == found["mine"] == 1 and found["all"] == pytest.approx(np.mean([found[n] for n in (*sets, "mine")]))
    assert found["general"] == pytest.approx((found["gqa"] + found["mmbench"]) / 2) and found["ocr_chart"] == found["chartqa"]
    assert "all" not in values(rows, "benchmark.choice")  # two of the sets offer no choices


def test_a_model_that_says_yes_to_everything_has_mmes_accuracy_and_no_accuracy_plus():
    kind = SETS["mme"]
    keys = [("r", f"g{i // 2}", i, "existence" if i < 4 else "color") for i in range(10)]
    units = units_of(kind, keys, "x")
    found, weight = weighed(kind, units, [1.0, 0.0] * 5)
    assert np.average(found, weights=weight) == 0.25  # (50 % + 0 %) / 2
    found, weight = weighed(kind, units, [1.0] * 4 + [0.0] * 6)
    assert np.average(found, weights=weight) == pytest.approx(0.5)  # subtasks weigh alike, whatever their size


def test_a_limit_takes_whole_units_and_the_same_ones_each_time():
    kind = SETS["mmvp"]
    units = units_of(kind, [(f"r{i}", "g", 0, str(i + 1)) for i in range(20)], "x")
    assert {u.questions for u in units} == {(2 * k, 2 * k + 1) for k in range(10)}
    some = chosen(units, 7)
    assert sum(len(u.questions) for u in some) == 8 and chosen(units[::-1], 7) == some and chosen(units, None)[:4] == some
    with pytest.raises(InputError, match="pair"):
        units_of(kind, [("r", "g", 0, "1"), ("s", "g", 0, "3")], "x")
    with pytest.raises(InputError, match="numbered"):
        units_of(kind, [("r", "g", 0, "colour")], "x")


def test_sets_of_one_type_weigh_alike_in_cv_bench():
    kind = SETS["cvbench_2d"]
    units = units_of(kind, [(f"r{i}", "g", 0, "ADE20K" if i < 2 else "COCO") for i in range(10)], "x")
    found, weight = weighed(kind, units, [1.0, 1.0, *[0.0] * 8])
    assert np.average(found, weights=weight) == 0.5
    assert Kind("exact").units == "question"


def test_another_encoder_s_latents_and_unknown_names_are_refused(plan, tmp_path):
    path = encoded(tmp_path, "gqa", curated("gqa", tmp_path / "gqa"), encoder="1" * 64)
    with pytest.raises(InputError, match="another encoder"):
        Benchmark(sets={"gqa": path}).run(subject(plan, Knows([])), str(tmp_path))
    for sets, said in (({"gqqa": path}, "known: mme"), ({"all": path}, "a mean over sets"), ({"mine": {"dataset": path}}, "says its score")):
        with pytest.raises(ValidationError, match=said):
            Benchmark.model_validate({"sets": sets})


def test_what_must_be_forgotten_is_not_asked_and_a_set_that_was_trained_on_is_refused(plan, tmp_path):
    records = curated("gqa", tmp_path / "gqa")
    path = encoded(tmp_path, "gqa", records)
    dataset = Dataset.open(path)
    add(dataset, {"id": [next(dataset.records(0)).id]}, "asked")
    rows = Benchmark(sets={"gqa": path}).run(subject(plan, Knows(records)), str(tmp_path))
    assert {r["n"] for r in rows if r["split"] == "gqa"} == {N - 1}
    trained = copy.copy(plan)
    trained.card = {**plan.card, "datasets": [{"fingerprint": Dataset.open(path).fingerprint}]}
    with pytest.raises(InputError, match="trained on"):
        Benchmark(sets={"gqa": path}).run(subject(trained, Knows(records)), str(tmp_path))
