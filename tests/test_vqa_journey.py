"""Questions about several pictures go the whole way: curated, tokenised, encoded, planned, trained and evaluated, pictures where they were marked."""

import json
import random

import numpy as np
import pytest
import yaml

from pipelines.commands import main
from pipelines.format.dataset import Dataset
from tests.toys import jpeg
from trainer.evaluate._questions import held_out_questions
from trainer.evaluate._subject import Subject, document
from trainer.evaluate.vqa import Vqa

COLOURS = ("red", "blue", "green")


def rows(n):
    """Conversations over one, two and no marked pictures, and single questions with choices."""
    draw = random.Random(0)
    for i in range(n):
        a, b = draw.sample(range(9), 2)
        ask = [f"Is <image> larger than <image> number {i}?", f"<image>\n<image>\nAlike {i}?", f"Alike {i}?"][i % 3]
        talk = [("human", ask), ("gpt", draw.choice(["yes", "no"])), ("human", "Why?"), ("gpt", "size")]
        yield {"id": i, "image": [f"{a}.jpg", f"{b}.jpg"], "conversations": [{"from": w, "value": t} for w, t in talk]}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for i in range(9):
        (tmp_path / f"in/{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "in/talk.json").write_text(json.dumps(list(rows(120))))
    asked = [{"image": f"{i % 9}.jpg", "question": f"which {i}?", "options": list(COLOURS), "answer": "ABC"[i % 3]} for i in range(120)]
    (tmp_path / "in/asked.jsonl").write_text("".join(json.dumps(r) + "\n" for r in asked))
    return tmp_path


def run(root, stage, name, **document):
    (root / f"{name}.yaml").write_text(yaml.safe_dump({"engine": "local", **document} if stage in ("vqa", "encode") else document))
    assert main(["run", stage, "-c", str(root / f"{name}.yaml")]) == 0
    return document["output"]


def test_several_pictures_and_lettered_choices_encode_plan_train_and_are_asked_as_they_were_trained(root):
    small = {"resize_image": {"size": 32}}
    words = {
        "with_choices": "USER: {question}\n{choices}\nASSISTANT:",
        "choice": "{letter}. {choice}",
        "answer_with_choices": " {letter}",
        "shuffle": True,
    }
    talk = run(root, "vqa", "talk", source={"vqa_json": {"path": "in", "table": "talk.json"}}, transforms=[small, {"template": words}], output="talk")
    table = {"path": "in", "table": "asked.jsonl", "choices": "options", "answer_is": "letter", "per": "question"}
    asked = run(root, "vqa", "asked", source={"vqa_table": table}, transforms=[small, {"template": words}], output="asked")
    tokens = run(root, "fit-tokenizer", "tokenizer", datasets=[talk, asked], vocab=300, output="tokens")
    how = {"text": {"text_tokens": {"tokenizer": tokens}}, "storage": "bf16", "images": {"pixels": {"patch": 8, "size": 32}}}
    for name in (talk, asked):
        run(root, "encode", f"encode_{name}", dataset=name, **how, output=f"encoded/{name}")
    assert sum(s.visual_tokens for s in Dataset.open("encoded/talk").shards) == 120 * 2 * 16
    sources = {n: {"dataset": f"encoded/{n}", "epochs": 1, "turns": t} for n, t in (("talk", "chained"), ("asked", "isolated"))}
    mixture = {"sequence_length": 192, "held_out": {"fraction": 0.3, "seed": 1}, "sources": sources}
    plan = run(root, "mix", "mix", **mixture, output="plan")
    model = {"transfusion": {"layers": 1, "width": 32, "heads": 2}}
    train = {"plan": plan, "model": model, "batch": 4, "threads": 1, "device": "cpu"}
    subject = Subject.load(run(root, "train", "run", **train, output="run"))
    _asked_as_trained(subject)
    for source in sources:
        found = {r["metric"]: r for r in Vqa(source=source, questions=12).run(subject, str(root)) if r["split"] == "held_out"}
        assert found["vqa"]["n"] == 12 and ("vqa.choice" in found) == (source == "asked")


def _asked_as_trained(subject):
    """A question with its pictures, and with what was said before it, is the very row that training has, up to the answer."""
    lettered = held_out_questions(subject.plan, "asked", 100)
    assert lettered and all(q.choices == ("A", "B", "C") and set(q.answers) < set("ABC") and q.right(q.answers[0]) for q in lettered)
    trained = subject.held_out(["talk"])
    places = set()
    for q in held_out_questions(subject.plan, "talk", 100):
        made = document(q.ids, q.images, [q.answer_ids], subject.specials, q.places)
        assert any(_begins(d, made) for d in trained), q.text
        places.add(tuple(at > 0 for at in q.places))
    assert places == {(True, True), (False, False)}


def _begins(trained, made):
    """Whether a document of training begins as this one: ids, kinds, pictures and positions."""
    n = len(made.tokens)
    fields = ("tokens", "kind", "image", "position")
    same = all(np.array_equal(getattr(trained, f)[:n], getattr(made, f)) for f in fields)
    return same and np.array_equal(trained.latents, made.latents)
