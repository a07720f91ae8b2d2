"""The stage: prompts of files and of held-out records, laid out as training lays them out, the same bytes twice, and errors with their line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import toyplan
import yaml
from pydantic import ValidationError

from mixtures.plan import Plan
from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import ConflictError, InputError, Reject, VerifyError
from pipelines.format.manifest import read_card
from trainer.generate import check, files
from trainer.generate import lines as lines_of_prompts
from trainer.generate.asked import _of_span, asked
from trainer.generate.generator import PAINT, Generator, Prompt
from trainer.generate.recipe import Generate
from trainer.generate.stage import STAGE
from trainer.loop import train
from trainer.models.load import load_model
from trainer.stream import Reader

JOB = SimpleNamespace(log=lambda *a, **k: None)
FAST = {"sampling": {"steps": 2}, "device": "cpu", "count": 3, "tokens": 6}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    plan = toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=1200, n=60)
    out = tmp_path_factory.mktemp("run")
    train(toyplan.run(plan, out, steps=10))
    return str(out)


def recipe(run: str, output: Path, **changes) -> Generate:
    return Generate.model_validate({**FAST, "run": run, "output": str(output), **changes})


def lines(root: str | Path) -> list[dict]:
    return [json.loads(x) for x in (Path(root) / "generated.jsonl").read_text().splitlines()]


def every_byte(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def ask(run: str, tmp_path: Path, text: str, **changes) -> list:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    return asked(recipe(run, tmp_path / "out", prompts=str(file), **changes), Reader(load_model(run)[2]))


EVERY = [{"source": s} for s in ("words", "pairs", "clips", "vqa")] + [{"source": "pairs", "image_first": True, "samples": 2}]


@pytest.mark.parametrize("changes", EVERY)
def test_held_out_records_are_gone_on_with_and_the_same_twice(run: str, tmp_path: Path, changes: dict) -> None:
    first, second = (STAGE.run(recipe(run, tmp_path / name, **changes), JOB) for name in ("a", "b"))
    a, b = every_byte(tmp_path / "a"), every_byte(tmp_path / "b")
    assert a.pop("manifest.json") != b.pop("manifest.json")  # where it lies stands in the recipe
    assert a == b and set(a) >= {"generated.jsonl", "index.html"}
    rows = lines(first)
    assert len(rows) == 3 * changes.get("samples", 1) and all(r["truth"] for r in rows)
    painted = {"pairs": 0 if "image_first" in changes else 1, "clips": 2, "words": 0, "vqa": 0}[changes["source"]]
    assert all(sum("image" in p for p in r["pieces"]) == painted for r in rows)
    named = {p["image"].partition("#")[2] for r in rows for k in ("prompt", "pieces", "truth") for p in r[k] if "image" in p}
    assert not named or named == set(np.load(tmp_path / "a" / "latents.npz"))
    assert check.check(second, {}) == []


def test_a_finished_folder_is_left_and_another_recipe_s_is_not_touched(run: str, tmp_path: Path) -> None:
    out = STAGE.run(recipe(run, tmp_path / "a", source="words"), JOB)
    stamp = (tmp_path / "a" / "generated.jsonl").stat().st_mtime_ns
    assert STAGE.run(recipe(run, tmp_path / "a", source="words", batch=1), JOB) == out
    assert (tmp_path / "a" / "generated.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(ConflictError):
        STAGE.run(recipe(run, tmp_path / "a", source="words", sampling={"seed": 1, "steps": 2}), JOB)


def test_pictures_come_from_the_service_and_damage_to_them_is_found(run: str, tmp_path: Path, monkeypatch) -> None:
    asked_for = []

    def pictures(latents, encoders, decoder, form):
        asked_for.append((latents.shape, encoders, decoder, form))
        return [b"\x89PNG" + bytes([i]) for i in range(len(latents))]

    monkeypatch.setattr(files, "entry_points", lambda group: [SimpleNamespace(name="pictures", load=lambda: pictures)])
    monkeypatch.setattr("trainer.generate.stage._shown_by", lambda plan: SimpleNamespace(path="x", card={"encoders": {"image": {}}}))
    out = STAGE.run(recipe(run, tmp_path / "a", source="pairs", decoder={"toy": {}}, form="both"), JOB)
    assert asked_for == [((6, toyplan.PATCHES, toyplan.WIDTH), {"image": {}}, {"toy": {}}, "png")]
    made = [p["image"] for r in lines(out) for k in ("pieces", "truth") for p in r[k]]
    assert len(made) == 6 and all((tmp_path / "a" / m).read_bytes().startswith(b"\x89PNG") for m in made)
    page = (tmp_path / "a" / "index.html").read_text()
    assert page.count("data:image/png") == 6 and "<script" not in page and check.pages(out) == [("index.html", page)]
    assert check.check(out, {}) == [] and (tmp_path / "a" / "latents.npz").exists()
    (tmp_path / "a" / made[2]).write_bytes(b"other")
    assert check.check(out, {}) == [{"file": made[2], "what": "differs from its line"}]


def test_without_a_way_back_to_pictures_latents_are_kept_unless_pictures_are_insisted_on(run: str, tmp_path: Path) -> None:
    out = STAGE.run(recipe(run, tmp_path / "a", source="pairs"), JOB)
    stored, row = np.load(tmp_path / "a" / "latents.npz"), lines(out)[0]
    assert row["pieces"][0]["image"] == "latents.npz#00000-0" and stored["00000-0"].shape == (toyplan.PATCHES, toyplan.WIDTH)
    truth = stored[row["truth"][0]["image"].partition("#")[2]]
    assert 1 < truth.mean() < 5  # the toy's pictures lie around 3: stored units, not normalised ones
    with pytest.raises(InputError, match="nothing here makes pictures"):
        STAGE.run(recipe(run, tmp_path / "b", source="pairs", form="png"), JOB)


@pytest.mark.parametrize("source", ["words", "pairs", "clips", "vqa"])
def test_prompts_stand_where_training_lays_them_out(run: str, source: str) -> None:
    model, _, plan = load_model(run)
    reader, seen = Reader(plan), []
    forward = model.forward
    model.forward = lambda batch, z, t, *a, **k: seen.append((batch, z.clone(), t)) or forward(batch, z, t, *a, **k)
    span = plan.row(plan.held_out(source)[0], "heldout").spans[0]
    document, record = reader.document(span), plan.record(span)
    pieces = _pieces(plan, span, record)
    maker = Generator(model, plan.specials, toyplan.run("", Path()).flow, normaliser=reader.normaliser)
    maker.generate([Prompt("x", pieces, tokens=1, images_as="frame")])
    batch, z, t = seen[0]
    end = len(document) - 1 if source != "vqa" else 1 + (toyplan.PATCHES + 2) + 2  # to the EOS, or to the first answer
    trained = reader.batch([[document]], length=len(document))
    for name in ("tokens", "kind", "position", "image"):
        assert getattr(batch, name)[0, :end].tolist() == getattr(trained, name)[0, :end].tolist(), name
    assert np.allclose(z, trained.latents[: len(z)]) and (t == 1).all()


def test_a_clip_is_gone_on_with_from_its_beginning_alone(run: str, tmp_path: Path) -> None:
    """A later piece of a long clip is laid out without BOS in training, so nothing of it can be a prompt."""
    plan = load_model(run)[2]
    span = plan.row(plan.held_out("clips")[0], "heldout").spans[0]
    config, record = recipe(run, tmp_path / "a", source="clips", frames=1), plan.record(span)
    assert _of_span(config, plan, "clips", span, record) is not None and _of_span(config, plan, "clips", replace(span, first=1), record) is None


def _pieces(plan: Plan, span, record) -> tuple:
    read = lambda s: np.asarray(plan.datasets[span.dataset].array(span.shard, s))
    segments = list(record.segments)
    if record.data == "image-text":
        segments.sort(key=lambda s: (s.kind == "latents") != span.image_first)
    if record.data == "vqa":
        segments = segments[:2]
    return tuple(read(s)[span.start : span.stop] if record.data == "text" else read(s) for s in segments)


def test_a_file_says_text_latents_and_pictures_to_make(run: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "l.npz", first=np.ones((4, 8)), second=np.zeros((4, 8), np.float32))
    second = '{"prompt": [{"latents": "l.npz", "name": "second"}, {"ids": [3]}, {"paint": true}], "text_as": "action", "source": "clips"}'
    found = ask(run, tmp_path, f'{{"id": "a", "prompt": {{"ids": [1, 2]}}, "images": 2}}\n\n{second}\n', samples=2)
    assert [(f.prompt.id, f.prompt.sample, f.source) for f in found] == [("a", 0, ""), ("a", 1, ""), ("3", 0, "clips"), ("3", 1, "clips")]
    first, last = found[0].prompt, found[2].prompt
    assert first.pieces[0].tolist() == [1, 2] and (first.tokens, first.images) == (6, 2)
    assert last.pieces[0].shape == (4, 8) and last.pieces[2] is PAINT and (last.tokens, last.text_as) == (0, "action")
    out = STAGE.run(recipe(run, tmp_path / "out", prompts=str(tmp_path / "prompts.jsonl")), JOB)
    assert [r["id"] for r in lines(out)] == ["a", "3"]
    before = read_card(out)["recipe_fingerprint"]
    np.savez(tmp_path / "l.npz", first=np.ones((4, 8)), second=np.ones((4, 8), np.float32))
    with pytest.raises(ConflictError, match="another recipe"):  # what a prompt names is part of it
        STAGE.run(recipe(run, tmp_path / "out", prompts=str(tmp_path / "prompts.jsonl")), JOB)
    assert read_card(out)["recipe_fingerprint"] == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not a line of JSON"), ('{"promt": "x"}', "not a prompt"), ('{"prompt": 3}', "not a piece"),
        ('{"prompt": {"ids": [true]}}', "not a piece"),
        ('{"prompt": "x", "tokens": -1}', "a whole number from 0"), ('{"prompt": "x", "text_as": "song"}', "caption, action"),
        ('{"prompt": "x", "source": "nowhere"}', "no such source"), ('{"prompt": {"latents": "no.npz"}}', "cannot be read"),
        ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', "two prompts of one id"),
        ('{"prompt": {"latents": "bad.npy"}}', "finite numbers"), ('{"prompt": {"latents": "pickled.npy"}}', "cannot be read"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_prompt_is_told_with_its_place(run: str, tmp_path: Path, line: str, words: str) -> None:
    np.save(tmp_path / "bad.npy", np.full((4, 8), np.nan))
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InputError) as e:
        ask(run, tmp_path, line)
    assert words in str(e.value) and "prompts.jsonl:" in str(e.value)


def test_a_recipe_asks_by_file_or_by_source_and_only_of_runs(run: str, tmp_path: Path) -> None:
    for both in ({}, {"prompts": "x", "source": "y"}):
        with pytest.raises(ValidationError, match="exactly one"):
            recipe(run, tmp_path, **both)
    with pytest.raises(InputError, match="not a run"):
        STAGE.plan(recipe(str(Path(load_model(run)[2].path)), tmp_path, source="words"))
    with pytest.raises(InputError, match="no such source"):
        STAGE.plan(recipe(run, tmp_path, source="songs"))


def test_the_estimate_says_what_may_be_made(run: str, tmp_path: Path) -> None:
    facts = STAGE.plan(recipe(run, tmp_path, source="clips", samples=2)).facts
    assert (facts["prompts"], facts["images at most"], facts["positions at most"]) == (6, 12, 1 + 3 * (toyplan.PATCHES + 2))
    yaml.safe_dump(facts)
    assert not storage.exists(str(tmp_path / "manifest.json"))


def test_pictures_of_a_file_become_the_plans_own_latents_by_a_service(run: str, tmp_path: Path, monkeypatch) -> None:
    class Eye:
        def read(self, data: bytes) -> np.ndarray:
            if data == b"no picture":
                raise Reject("not an image")
            return np.full((2, 2, 3), data[0], np.uint8)

        def load(self):
            return lambda pixels: np.repeat(pixels[:, :1, :1, 0], toyplan.PATCHES * toyplan.WIDTH).reshape(-1, toyplan.PATCHES, toyplan.WIDTH) / 10

    cards: list[dict] = []
    service = SimpleNamespace(name="latents", load=lambda: lambda card: cards.append(card) or Eye())
    monkeypatch.setattr(lines_of_prompts, "entry_points", lambda group: [service])
    for name, data in (("a.jpg", b"\x0a"), ("b.jpg", b"\x14"), ("bad.jpg", b"no picture")):
        (tmp_path / name).write_bytes(data)
    both = '{"prompt": [{"image": "a.jpg"}, {"image": "b.jpg"}, {"paint": true}]}'
    found = ask(run, tmp_path, f'{{"prompt": [{{"image": "b.jpg"}}, {{"ids": [1]}}]}}\n{both}')
    assert [[float(p.max()) for p in f.prompt.pieces if getattr(p, "ndim", 0) == 2] for f in found] == [[2.0], [1.0, 2.0]]
    assert len(cards) == 1 and cards[0]["encoding"]["image"]["encoder"] == "toy"
    with pytest.raises(InputError, match=r"no such picture[^$]*prompts.jsonl:1"):
        ask(run, tmp_path, '{"prompt": {"image": "nowhere.jpg"}}')
    with pytest.raises(InputError, match=r"this is no picture[^$]*bad.jpg"):
        ask(run, tmp_path, '{"prompt": {"image": "bad.jpg"}}')
    facts = STAGE.plan(recipe(run, tmp_path, prompts=str(tmp_path / "prompts.jsonl"))).facts  # a dry run encodes nothing
    assert facts["prompts"] == 1 and len(cards) == 2


def test_words_go_in_and_come_out_by_the_plans_tokenizer(run: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    place = Path(load_model(run)[2].datasets[0].path) / "tokenizer.json"
    made.save(str(place))
    try:
        (tmp_path / "p.jsonl").write_text('{"id": "said", "prompt": ["w3 w4", {"paint": true}, "w5"], "tokens": 4}\n')
        (row,) = lines(STAGE.run(recipe(run, tmp_path / "a", prompts=str(tmp_path / "p.jsonl")), JOB))
        assert [p.get("ids") for p in row["prompt"]] == [[3, 4], None, [5]]
        assert row["text"].split() == [f"w{i}" for p in row["pieces"] for i in p.get("ids", [])] and row["pieces"][0]["image"]
    finally:
        place.unlink()


def test_a_plan_without_images_is_asked_for_none(run: str, tmp_path: Path) -> None:
    plan = load_model(run)[2]
    plan.card["encoding"] = {k: v for k, v in plan.card["encoding"].items() if k != "image"}
    (tmp_path / "p.jsonl").write_text('{"prompt": {"paint": true}}')
    with pytest.raises(InputError, match="the run's plan has no images"):
        asked(recipe(run, tmp_path, prompts=str(tmp_path / "p.jsonl")), SimpleNamespace(plan=plan))


def test_the_moving_average_of_the_weights_may_be_asked(run: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keeps no moving average"):
        STAGE.run(recipe(run, tmp_path / "a", source="words", weights="ema"), JOB)
    kept = tmp_path / "run"
    shutil.copytree(run, kept)
    card = json.loads((kept / "run.json").read_text())
    card["parents"][0]["path"] = str(Path(load_model(run)[2].path).resolve())
    weights = {k: torch.zeros_like(v) for k, v in safetensors.torch.load_file(kept / "model.safetensors").items()}
    data = safetensors.torch.save(weights)
    (kept / "ema.safetensors").write_bytes(data)
    card["files"].append({"path": "ema.safetensors", "bytes": len(data), "sha256": sha256_hex(data)})
    (kept / "run.json").write_text(json.dumps(card))
    greedy = {"steps": 1, "temperature": 0}
    (row, *_) = lines(STAGE.run(recipe(str(kept), tmp_path / "b", source="words", weights="ema", sampling=greedy), JOB))
    assert row["pieces"][0]["ids"] == [0] * 6  # weights of zero say the first id for ever
    (kept / "ema.safetensors").write_bytes(data[:-1] + b"\1")
    with pytest.raises(VerifyError):
        STAGE.run(recipe(str(kept), tmp_path / "c", source="words", weights="ema"), JOB)
