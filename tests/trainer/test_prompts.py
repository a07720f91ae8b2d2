"""Published prompts: read as their authors give them, laid out as scorers read them, the same bytes after any stop, no number but theirs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.format.errors import InputError
from tests.trainer import scenes
from trainer.evaluate import _prompt_sets, evaluate_run
from trainer.evaluate._items import item_path
from trainer.evaluate.prompts import Prompts
from trainer.generate.generator import Generator

LINES = [{"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
         {"tag": "counting", "include": [{"class": "bench", "count": 2}], "prompt": "a photo of two benches"},
         {"tag": "counting", "include": [{"class": "cup", "count": 3}], "prompt": "a photo of three cups"}]  # fmt: skip
WISE = [{"Prompt": f"What grows in {k}", "Explanation": "…", "Category": "TIME" if k else "BIOLOGY", "prompt_id": 401 + k} for k in range(3)]
DATA = Path(os.environ.get("HEADWATER_DATA", "/nowhere"), "reference")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return scenes.Pairs(str(tmp_path_factory.mktemp("pairs") / "data"), n=6)


@pytest.fixture
def sets(tmp_path):
    (tmp_path / "geneval.jsonl").write_text("".join(json.dumps(x) + "\n" for x in LINES))
    (tmp_path / "dpg").mkdir()
    for name in ("0", "partiprompts12", "midjourney3"):
        (tmp_path / f"dpg/{name}.txt").write_text(f"A dense prompt {name}.\n")
    (tmp_path / "wise.json").write_text(json.dumps(WISE))
    return {"geneval": str(tmp_path / "geneval.jsonl"), "dpg": str(tmp_path / "dpg"), "wise": str(tmp_path / "wise.json")}


def files(root):
    found = {str(p.relative_to(root)): p for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in found.items() if not name.startswith("_tmp")}


def pixels(path):
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())))


def test_geneval_is_a_folder_a_prompt_with_its_line_four_pictures_and_their_grid(plan, sets, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan, scenes.noisy(9))
    assert Prompts(set="geneval", path=sets["geneval"]).run(scenes.subject(plan), str(tmp_path)) == []
    root = tmp_path / "prompts/geneval/pictures"
    assert [p.name for p in sorted(root.iterdir())] == ["00000", "00001", "00002"]
    for i, line in enumerate(LINES):  # as the scorer goes through it
        assert json.loads((root / f"{i:05d}/metadata.jsonl").read_text()) == line
        names = sorted(p.name for p in (root / f"{i:05d}/samples").iterdir())
        assert names == [f"{k:04d}.png" for k in range(4)] and all(re.match(r"\d+\.png", n) for n in names)
        samples = [pixels(root / f"{i:05d}/samples" / n) for n in names]
        assert len({s.tobytes() for s in samples}) == 4
        grid = pixels(root / f"{i:05d}/grid.png")
        assert (grid[:32, 32:] == samples[1]).all() and (grid[32:, :32] == samples[2]).all()


def test_dpg_is_two_by_two_pictures_that_its_scorer_cuts_apart_and_nothing_else_lies_there(plan, sets, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan, scenes.noisy(9))
    Prompts(set="dpg", path=sets["dpg"]).run(scenes.subject(plan), str(tmp_path))
    root = tmp_path / "prompts/dpg/pictures"
    assert sorted(p.name for p in root.iterdir()) == ["0.png", "midjourney3.png", "partiprompts12.png"]
    picture = pixels(root / "0.png")
    assert picture.shape == (64, 64, 3) and len({picture[y : y + 32, x : x + 32].tobytes() for y in (0, 32) for x in (0, 32)}) == 4
    with pytest.raises(InputError, match="up to 4 pictures"):
        Prompts(set="dpg", path=sets["dpg"], images=5).run(scenes.subject(plan), str(tmp_path))


def test_wise_is_one_picture_a_prompt_by_its_number_from_a_file_or_a_folder(plan, sets, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan)
    Prompts(set="wise", path=sets["wise"]).run(scenes.subject(plan), str(tmp_path))
    assert sorted(p.name for p in (tmp_path / "prompts/wise/pictures").iterdir()) == ["401.png", "402.png", "403.png"]
    folder = tmp_path / "parts"
    folder.mkdir()
    for k, name in enumerate(("cultural_common_sense", "natural_science", "spatio-temporal_reasoning")):
        (folder / f"{name}.json").write_text(json.dumps([WISE[k]]))
    assert [a.id for a in _prompt_sets.read("wise", str(folder))] == ["401", "402", "403"]


def test_both_published_folders_of_wise_are_read_each_prompt_once(tmp_path):
    parts = ("cultural_common_sense", "natural_science", "spatio-temporal_reasoning")
    for k, name in enumerate(parts):
        (tmp_path / "legacy").mkdir(exist_ok=True)
        (tmp_path / "legacy" / f"{name}.json").write_text(json.dumps([WISE[k]]))
        (tmp_path / "legacy" / f"{name}_rewrite.json").write_text(json.dumps([{**WISE[k], "Prompt": "plainly"}]))
        (tmp_path / "verified").mkdir(exist_ok=True)
        (tmp_path / "verified" / f"{name}_verified.json").write_text(json.dumps([WISE[k]]))
    (tmp_path / "verified/merge.json").write_text(json.dumps(WISE))
    for folder in ("legacy", "verified"):
        found = _prompt_sets.read("wise", str(tmp_path / folder))
        assert sorted(a.id for a in found) == ["401", "402", "403"] and "plainly" not in {a.text for a in found}
    assert len(_prompt_sets.read("wise", str(tmp_path / "verified/merge.json"))) == 3
    assert _prompt_sets.read("wise", str(tmp_path / "legacy/natural_science_rewrite.json"))[0].text == "plainly"
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/merge.json").write_text(json.dumps(WISE))
    assert len(_prompt_sets.read("wise", str(tmp_path / "alone"))) == 3


@pytest.mark.parametrize("where", [1, 2, 3])
def test_painting_that_is_stopped_goes_on_to_the_same_bytes(plan, sets, tmp_path, monkeypatch, where):
    monkeypatch.setattr("trainer.evaluate.prompts.CHUNK", 4)
    part = Prompts(set="geneval", path=sets["geneval"], images=2, steps=2)
    part.run(scenes.subject(plan), str(tmp_path / "whole"))
    left, real = [4 * where], _prompt_sets.storage.replace

    def dies(path, data, scratch=None):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(path, data, scratch=scratch)

    with monkeypatch.context() as m:
        m.setattr(_prompt_sets.storage, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            part.run(scenes.subject(plan), str(tmp_path / "torn"))
    part.run(scenes.subject(plan), str(tmp_path / "torn"))
    assert files(tmp_path / "torn") == files(tmp_path / "whole")
    with monkeypatch.context() as m:
        m.setattr(Generator, "generate", lambda *a: pytest.fail("nothing is painted again"))
        part.run(scenes.subject(plan), str(tmp_path / "torn"))


def test_another_model_or_setting_leaves_no_picture_of_the_first_and_another_name_stands_beside_it(plan, sets, tmp_path):
    s, path = scenes.subject(plan), sets["wise"]
    Prompts(set="wise", path=path, steps=1).run(s, str(tmp_path))
    first = files(tmp_path / "prompts/wise")
    Prompts(set="wise", path=path, steps=1, name="again").run(s, str(tmp_path))
    assert files(tmp_path / "prompts/again/pictures") == {k.removeprefix("pictures/"): v for k, v in first.items() if k.startswith("pictures/")}
    Prompts(set="wise", path=path, steps=2).run(s, str(tmp_path))
    second = files(tmp_path / "prompts/wise")
    s.model.embed.data += 1
    Prompts(set="wise", path=path, steps=2).run(s, str(tmp_path))
    third = files(tmp_path / "prompts/wise")
    assert all(len({f[k] for f in (first, second, third)}) == 3 for k in first)


def test_a_part_of_a_set_is_spread_over_it_and_keeps_the_names_of_the_whole(plan, sets, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan)
    Prompts(set="geneval", path=sets["geneval"], count=2, images=1).run(scenes.subject(plan), str(tmp_path))
    assert sorted(p.name for p in (tmp_path / "prompts/geneval/pictures").iterdir()) == ["00000", "00001"]
    page = (tmp_path / "prompts/geneval/index.html").read_text()
    assert "a photo of two benches" in page and page.count("<img") == 2 and "scorer" in page


def geneval_results(tmp_path, images=2, wrong=1):
    out = []
    for i, line in enumerate(LINES):
        for k in range(images):
            name = f"x/pictures/{i:05d}/samples/{k:04d}.png"
            out.append({"filename": name, "tag": line["tag"], "prompt": line["prompt"], "correct": not (i == 1 and k < wrong), "reason": ""})
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(x) + "\n" for x in out))


def test_geneval_results_become_rows_as_its_own_summary_counts_them(plan, sets, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan)
    part = Prompts(set="geneval", path=sets["geneval"], images=2, results=["results.jsonl"])
    assert part.run(scenes.subject(plan), str(tmp_path)) == []
    geneval_results(tmp_path)
    rows = {r["split"]: r["value"] for r in part.run(scenes.subject(plan), str(tmp_path))}
    assert rows == {"single_object": 1, "counting": 0.75, "all": pytest.approx(0.875)}
    table = pq.read_table(item_path(str(tmp_path), "geneval"))
    assert np.average(table["value"].to_numpy(), weights=table["weight"].to_numpy()) == pytest.approx(0.875) and table.num_rows == 6
    (tmp_path / "results.jsonl").write_text((tmp_path / "results.jsonl").read_text().split("\n")[0])
    with pytest.raises(InputError, match="something else than was painted"):
        part.run(scenes.subject(plan), str(tmp_path))


def test_dpg_and_wise_results_are_read_as_their_scorers_write_them(plan, sets, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan)
    (tmp_path / "dpg.txt").write_text(
        "p/0.png, 1.0, 0.5, 0.75, 0.75, 0.75\np/midjourney3.png, 0.0, 0.0, 0.0, 0.0, 0.0\np/partiprompts12.png, 0.3, 0.3, 0.3, 0.3, 0.3\n"
        "Model: pictures\nL1 category scores:\n\tentity: 81.25\nL2 category scores:\n\tentity - whole: 81.25\nImage path: p\nSave results to: r\n"
        "DPG-Bench score: 35.0\n"
    )
    rows = Prompts(set="dpg", path=sets["dpg"], results=["dpg.txt"]).run(scenes.subject(plan), str(tmp_path))
    assert [(r["split"], r["value"], r["n"]) for r in rows] == [("all", pytest.approx(0.35), 3)]
    scores = [(2, 2, 2), (1, 0, 2), (0, 0, 0)]
    lines = [{"prompt_id": 401 + k, "Subcategory": "x", "consistency": c, "realism": r, "aesthetic_quality": a} for k, (c, r, a) in enumerate(scores)]
    (tmp_path / "a.jsonl").write_text(json.dumps(lines[0]))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines[1:])))
    part = Prompts(set="wise", path=sets["wise"], results=["a.jsonl", "b.jsonl"])
    rows = {r["split"]: r["value"] for r in part.run(scenes.subject(plan), str(tmp_path))}
    assert rows == {"all": pytest.approx((1 + 0.45) / 3), "BIOLOGY": pytest.approx(1), "TIME": pytest.approx(0.225)}
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({**x, "realism": 999}) for x in lines[1:]))
    with pytest.raises(InputError, match="no answer"):
        part.run(scenes.subject(plan), str(tmp_path))


def test_the_binary_judge_of_wise_is_read_and_not_mixed_with_the_older_one(plan, sets, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan)
    lines = [{"prompt_id": 401 + k, "Subcategory": "x", "score": s} for k, s in enumerate((1.0, 0, 1))]
    (tmp_path / "a.jsonl").write_text(json.dumps(lines[0]))
    part = Prompts(set="wise", path=sets["wise"], results=["a.jsonl", "b.jsonl"])

    def rows(*last):
        (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, last)))
        return {r["split"]: r["value"] for r in part.run(scenes.subject(plan), str(tmp_path))}

    assert rows(*lines[1:]) == {"all": pytest.approx(2 / 3), "BIOLOGY": 1.0, "TIME": 0.5}
    with pytest.raises(InputError, match="outside its range"):
        rows(lines[1], {**lines[2], "score": 0.5})
    with pytest.raises(InputError, match="two judges"):
        rows(lines[1], {"prompt_id": 403, "consistency": 2, "realism": 2, "aesthetic_quality": 2})
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt_id": 401, "consistency": 1}))
    with pytest.raises(InputError, match="not a result"):
        rows({"prompt_id": 402, "consistency": 1})


@pytest.mark.parametrize(("set", "text", "said"), [
    ("geneval", '{"tag": "x"}', "not a prompt"), ("geneval", "no json", "not a line of JSON"), ("geneval", "", "no prompts"),
    ("geneval", '{"prompt": ""}', "a prompt is text"), ("dpg", '{"id": "../../x", "prompt": "y"}', "name of a file"),
    ("dpg", '{"id": "a.b", "prompt": "y"}', "name of a file"), ("dpg", 2 * '{"id": "a", "prompt": "y"}\n', "two prompts of one id"),
    ("wise", '[{"Prompt": "y"}]', "name of a file"), ("wise", "[", "not JSON"), ("wise", "{}", "no prompts"),
])  # fmt: skip
def test_what_is_no_set_of_prompts_is_refused_with_its_place(tmp_path, set, text, said):
    path = tmp_path / ("x.json" if set == "wise" else "x.jsonl")
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        _prompt_sets.read(set, str(path))
    with pytest.raises(InputError):
        _prompt_sets.read(set, str(tmp_path / "missing"))


def test_an_evaluated_run_is_evaluated_again_when_results_arrive(plan, sets, tmp_path, monkeypatch):
    scenes.paints(monkeypatch, plan)
    monkeypatch.setattr("trainer.evaluate._subject.Subject.load", lambda *a, **k: scenes.subject(plan))
    (tmp_path / "run.json").write_text(json.dumps({"format": "headwater/1", "kind": "run", "fingerprint": "f" * 64}))
    part = Prompts(set="geneval", path=sets["geneval"], images=2, results=["results.jsonl"])
    assert evaluate_run(str(tmp_path), [part]) == []
    geneval_results(tmp_path, wrong=2)
    assert [r["value"] for r in evaluate_run(str(tmp_path), [part]) if r["split"] == "all"] == [0.75]


@pytest.mark.skipif(not DATA.is_dir(), reason="needs HEADWATER_DATA")
def test_the_published_files_are_read_whole():
    geneval = _prompt_sets.read("geneval", str(DATA / "geneval/evaluation_metadata.jsonl"))
    long = _prompt_sets.read("geneval", str(DATA / "bagel_geneval_long/evaluation_metadata_long.jsonl"))
    assert len(geneval) == len(long) == 553 and [a.kind for a in geneval] == [a.kind for a in long] and len({a.kind for a in geneval}) == 6
    dpg = _prompt_sets.read("dpg", str(DATA / "dpg_bench/prompts.jsonl"))
    assert len({a.id for a in dpg}) == 1065
