"""stats, inspect, status, gc, trace, forget and view, on datasets, plans and runs that lie on disk as any stage leaves them."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.commands import main
from pipelines.format.manifest import card, parent, publish_card, read_card
from pipelines.format.page import POLICY, page, table, tag
from pipelines.format.part import PartWriter
from pipelines.format.record import Image, Record, Text
from tests import toys

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>\x1b]0;owned\x07 javascript:alert(3) </style><svg onload=alert(4)>'


def tell(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    capfd.readouterr()
    code = main([*words, "--json"])
    return code, json.loads(capfd.readouterr().out)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """set → encoded → plan → run, the run with 2 sequences a step and 2 of its 3 steps done."""
    toys.curated(str(tmp_path / "set"))
    toys.encoded(str(tmp_path / "encoded"), str(tmp_path / "set"))
    plan = toys.plan(str(tmp_path / "plan"), str(tmp_path / "encoded"))
    run = str(tmp_path / "run")
    above = [parent(plan, run, read_card(plan)["fingerprint"])]
    facts = {"records": 4, "steps": 2, "tokens": {"all": 20}, "files": []}
    publish_card(run, "run.json", card("run", "toy-run", "f" * 64, {"batch": 2}, parents=above, **facts))
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n')
    return tmp_path


# ---- stats and inspect -------------------------------------------------------------------------------------------------------------------


def test_stats_of_a_dataset_have_every_promised_key(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = tell(capfd, "stats", str(shelf / "encoded"))
    assert code == 0 and said["kind"] == "dataset" and said["records"] == 6 and said["shards"] == 2
    assert set(said["tokens"]) == {"text", "visual", "loss", "all"} and said["tokens"]["all"] == 6 * (2 + 5)
    assert {"bytes", "sources", "in", "written", "filtered", "rejected"} <= set(said)
    assert [row["kind"] for row in said["lineage"]] == ["dataset"]


def test_stats_of_plan_and_run_trace_their_ancestors_and_leave_out_what_does_not_apply(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, plan = tell(capfd, "stats", str(shelf / "plan"))
    assert plan["kind"] == "plan" and "shards" not in plan and "in" not in plan
    assert plan["sources"]["toy"]["epochs"] == 1.0
    _, run = tell(capfd, "stats", str(shelf / "run"))
    assert [row["kind"] for row in run["lineage"]] == ["plan", "dataset", "dataset"]
    assert {row["found"] for row in run["lineage"]} == {"yes"}


def test_inspect_shows_texts_pictures_and_ids(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, curated = tell(capfd, "inspect", str(shelf / "set"), "-n", "2")
    image, text = curated["records"][0]["segments"]
    assert image["shape"] == [32, 32, 3] and text["text"] == toys.words(0) and len(curated["records"]) == 2
    id = curated["records"][1]["id"]
    _, encoded = tell(capfd, "inspect", str(shelf / "encoded"), "--id", id)
    latents, tokens = encoded["records"][0]["segments"]
    assert latents["shape"] == [2, 8] and len(tokens["ids"]) == tokens["tokens"] == 5


def test_inspect_skips_over_shards(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ids = [r["id"] for r in tell(capfd, "inspect", str(shelf / "set"), "-n", "9")[1]["records"]]
    assert len(ids) == 6
    assert [r["id"] for r in tell(capfd, "inspect", str(shelf / "set"), "-n", "2", "--skip", "4")[1]["records"]] == ids[4:]


def test_inspect_shows_sequences_of_a_plan_and_the_last_figures_of_a_run(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, plan = tell(capfd, "inspect", str(shelf / "plan"), "-n", "3", "--skip", "1")
    assert [row["seq"] for row in plan["sequences"]] == [1, 2, 3]
    _, run = tell(capfd, "inspect", str(shelf / "run"), "-n", "1")
    assert run["metrics"] == [{"step": 2, "loss": 2.5}]


def test_figures_by_source_are_shown_of_the_last_step_alone(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [{"step": i, "loss": 3.0 - i, "text/vqa": 2.25 - i, "flow/t0.0-0.1": 0.5, "text/captions": 1.5} for i in range(2)]
    (shelf / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    capfd.readouterr()
    assert main(["inspect", str(shelf / "run")]) == 0
    shown = capfd.readouterr().out + capfd.readouterr().err
    assert "vqa 1.25   captions 1.5" in shown and "2.25" not in shown and "t0.0-0.1 0.5" in shown
    assert [line.split() for line in shown.splitlines() if line.split()[:1] in (["0"], ["1"])] == [["0", "3"], ["1", "2"]]


def test_a_kind_that_nobody_knows_shows_its_card(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    publish_card(str(tmp_path), "manifest.json", card("tokenizer", "words", "f" * 64, {"vocab": 300}, files=[]))
    assert tell(capfd, "inspect", str(tmp_path))[1]["card"]["recipe"] == {"vocab": 300}
    assert tell(capfd, "stats", str(tmp_path))[1]["kind"] == "tokenizer"


def test_inspect_of_an_unknown_id_says_so(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = tell(capfd, "inspect", str(shelf / "set"), "--id", "0" * 32)
    assert code == 2 and said["error"]["found"] == "0" * 32


# ---- status and gc -----------------------------------------------------------------------------------------------------------------------


def test_status_counts_what_a_dead_job_has_committed(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (shelf / "set/manifest.json").unlink()
    code, said = tell(capfd, "status", str(shelf / "set"))
    assert code == 0 and said["finished"] is False and said["parts"]["committed"] == 2
    assert (said["in"], said["written"], said["filtered"], said["rejected"]) == (10, 6, {"toy_filter": 2}, {"unreadable": 2})


def test_gc_removes_rubbish_and_nothing_that_is_committed(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = shelf / "set"
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    rubbish = [root / "data-00009-0123456789abcdef.tar", root / "rejects/00009-0123456789abcdef.parquet", root / "_tmp/abc"]
    for path in rubbish:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (root / "notes.txt").write_text("mine")
    assert tell(capfd, "gc", str(root))[1]["removed"] == [], "nothing younger than an hour goes"
    planned = tell(capfd, "gc", str(root), "--dry-run", "--older-than", "0")[1]["removed"]
    assert all(p.exists() for p in rubbish)
    gone = tell(capfd, "gc", str(root), "--older-than", "0")[1]["removed"]
    assert planned == gone and {row["file"] for row in gone} == {str(p.relative_to(root)) for p in rubbish}
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "notes.txt"} == before
    assert (root / "notes.txt").exists() and not (root / "_tmp").exists()


def test_gc_keeps_the_committed_parts_of_an_unfinished_job(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = shelf / "set"
    (root / "manifest.json").unlink()
    kept = {e["path"] for p in (root / "parts").glob("*.json") for e in json.loads(p.read_text())["files"]}
    tell(capfd, "gc", str(root), "--older-than", "0")
    assert kept <= {str(p.relative_to(root)) for p in root.rglob("*")}


# ---- trace and forget ----------------------------------------------------------------------------------------------------------------------


def test_a_record_is_traced_from_its_file_to_the_steps_that_saw_it(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ids = [r["id"] for r in tell(capfd, "inspect", str(shelf / "set"), "-n", "6")[1]["records"]]
    _, said = tell(capfd, "trace", ids[3], str(shelf / "run"))
    at = {step["at"]: step for step in said["trail"]}
    assert [step["at"] for step in said["trail"]] == ["source", "dataset", "dataset", "plan", "run"]
    assert at["source"]["file"] == "toys/file3.dat" and at["source"]["there"] is False
    assert [s["seq"] for s in at["plan"]["spans"]] == [3]
    assert at["run"]["steps"] == [1], "sequence 3 at two a step"
    _, late = tell(capfd, "trace", ids[5], str(shelf / "run"))
    assert late["trail"][-1] == {"at": "run", "path": str(shelf / "run"), "steps": [], "n": 0, "planned": 1}, "step 2 was not reached"


def test_a_record_that_is_nowhere_is_an_error(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tell(capfd, "trace", "0" * 32, str(shelf / "run"))[0] == 2


def test_forget_names_shards_plans_and_runs_and_leaves_tombstones(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ids = [r["id"] for r in tell(capfd, "inspect", str(shelf / "set"), "-n", "6")[1]["records"]]
    words = ["forget", str(shelf / "set"), "--id", ids[3], "--reason", "owner asked", "--in", str(shelf)]
    _, dry = tell(capfd, *words, "--dry-run")
    assert not list((shelf / "set").glob("tombstones-*"))
    code, said = tell(capfd, *words)
    assert code == 0 and said["records"] == 1 and said["shards"] == dry["shards"] and len(said["shards"]) == 1
    uses = {row["kind"]: row for row in said["used_by"]}
    assert uses["plan"]["spans"] == 1 and uses["run"]["steps"] == 1 and "forget" in uses["dataset"]["next"]
    found = read_card(str(shelf / "set"))["tombstones"]
    rows = pq.read_table(pa.BufferReader((shelf / "set" / found["file"]).read_bytes())).to_pylist()
    assert rows == [{"id": ids[3], "url": None, "sha256": None, "phash": None, "reason": "owner asked"}]
    assert tell(capfd, "verify", str(shelf / "set"), "--deep")[1]["ok"] is True


def test_forgetting_twice_adds_and_never_repeats(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ids = [r["id"] for r in tell(capfd, "inspect", str(shelf / "set"), "-n", "6")[1]["records"]]
    for asked in (["--id", ids[0]], ["--id", ids[0], "--id", ids[1]], ["--url", "https://example.org/a.jpg"]):
        said = tell(capfd, "forget", str(shelf / "set"), *asked, "--in", str(shelf))[1]
    assert said["tombstones"]["n"] == 3
    assert tell(capfd, "gc", str(shelf / "set"), "--older-than", "0")[0] == 0
    assert (shelf / "set" / said["tombstones"]["file"]).exists()


# ---- view ------------------------------------------------------------------------------------------------------------------------------


class Seen(HTMLParser):
    """What a browser would take for markup."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]


def test_a_page_with_hostile_captions_holds_no_script_and_asks_no_network(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path / "set")
    with PartWriter(root, 0, fingerprint="0" * 64) as w:
        w.emit(2)
        image = Image(toys.jpeg(1), atom=0, shape=(32, 32, 3))
        w.add(Record.make(HOSTILE, f"{HOSTILE}.jpg", "image-text", [image, Text(HOSTILE, atom=1, name=HOSTILE)], url=HOSTILE))
        w.reject(HOSTILE, "source", "unreadable", HOSTILE)
        toys.seal(root, HOSTILE, "image-text", [w.commit()], {"source": {"toy": {"path": HOSTILE}}})
    code, said = tell(capfd, "view", root, "--out", str(tmp_path / "page"))
    text = Path(said["pages"][0]).read_text()
    seen = Seen(text)
    assert code == 0 and not {"script", "iframe", "object", "embed", "link", "form", "a"} & set(seen.tags)
    assert not [a for a in seen.attributes if a[0].startswith("on") or "javascript:" in a[1] or re.match(r"https?:|//", a[1])]
    assert ("content", POLICY) in seen.attributes
    assert not re.search(r"url\(|@import", text)
    assert [v[:22] for k, v in seen.attributes if k == "src"] == ["data:image/jpeg;base64"]


def test_thumbnails_are_encoded_anew(tmp_path: Path) -> None:
    """Bytes that ride in a picture (a comment, a trailer) never reach the page."""
    import base64

    from pipelines.view_dataset import _thumbnail

    payload = toys.jpeg(3) + b"<script>hidden</script>"
    html = _thumbnail(payload, (32, 32, 3), 160)
    shown = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])  # type: ignore[index]
    assert shown[:2] == b"\xff\xd8" and b"hidden" not in shown


def test_an_encoded_dataset_shows_the_pictures_of_its_parent(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, said = tell(capfd, "view", str(shelf / "encoded"), "--out", str(shelf / "page"))
    text = Path(said["pages"][0]).read_text()
    assert text.count("data:image/jpeg") == 6 and text.count("<svg") == 6
    shutil.rmtree(shelf / "set")
    _, said = tell(capfd, "view", str(shelf / "encoded"), "--out", str(shelf / "page2"))
    text = Path(said["pages"][0]).read_text()
    assert text.count("data:image/jpeg") == 0 and text.count("<svg") == 6


def test_view_writes_beside_the_data_and_not_into_it(shelf: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shelf)
    before = sorted(os.listdir(shelf / "set"))
    _, said = tell(capfd, "view", "set")
    assert sorted(os.listdir(shelf / "set")) == before and Path(said["pages"][0]).parent.parent == shelf / "out/view"


def test_attributes_and_cells_are_escaped() -> None:
    assert tag("i", "<b>", title='a"b') == '<i title="a&quot;b">&lt;b&gt;</i>'
    assert "<td>&lt;x&gt;</td>" in table(["c"], [["<x>"]])
    assert page("<t>").count("<t>") == 0


# ---- trace of what fell out, was derived, or belongs to an arm; and the other way round -----------------------------------------------------


def test_a_dropped_record_is_traced_to_where_it_fell_out_and_why(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lost = toys.record("image-text", 1001)
    code, said = tell(capfd, "trace", lost.id, str(shelf / "run"))
    assert code == 0 and [step["at"] for step in said["trail"]] == ["source", "dropped", "plan", "run"]
    fell = said["trail"][1]
    assert (fell["part"], fell["outcome"], fell["stage"], fell["reason"]) == (1, "filtered", "toy_filter", "toy_filter")
    assert said["trail"][0]["file"] == "toys/file1001.dat" and said["trail"][2]["n"] == 0
    assert main(["trace", lost.id, str(shelf / "set")]) == 0
    assert "filtered by toy_filter" in capfd.readouterr().out


def test_a_derived_record_is_traced_through_the_one_it_was_made_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    a = toys.curated(str(tmp_path / "a"), "text")
    first, made = toys.record("text", 2), Record.make("toy", "file2.dat~1", "text", [Text("one half")])
    with PartWriter(str(tmp_path / "b"), 0, fingerprint="f" * 64) as w:
        w.emit()
        w.add(made)
        commit = w.commit()
    recipe = {"filters": [{"text_length": {}}], "transforms": ["halve"], "across": [{"exact_text": {}}]}
    toys.seal(str(tmp_path / "b"), "halves", "text", [commit], recipe, parents=[parent(a, str(tmp_path / "b"), read_card(a)["fingerprint"])])
    _, said = tell(capfd, "trace", made.id, str(tmp_path / "b"))
    assert [(step["at"], step.get("id")) for step in said["trail"]] == [("source", None), ("dataset", first.id), ("dataset", None)]
    assert said["trail"][2]["through"] == ["filter text_length", "transform halve", "across exact_text"]
    assert main(["trace", made.id, str(tmp_path / "b")]) == 0 and "which this record was made of" in capfd.readouterr().out


def test_an_ablation_names_the_arm_and_seed_of_each_plan_and_run(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = str(shelf / "ablation")
    arms = {"small": {"plan": "../plan", "runs": {"0": "../run"}}}
    above = [parent(str(shelf / "run"), root, "f" * 64)]
    publish_card(root, "ablation.json", card("ablation", "toy", "e" * 64, {}, parents=above, arms=arms, files=[]))
    id = tell(capfd, "inspect", str(shelf / "set"), "-n", "1")[1]["records"][0]["id"]
    trail = {step["at"]: step for step in tell(capfd, "trace", id, root)[1]["trail"]}
    assert trail["plan"]["arm"] == "small" and (trail["run"]["arm"], trail["run"]["seed"], trail["run"]["n"]) == ("small", "0", 1)


def test_a_step_of_a_run_and_a_sequence_of_a_plan_name_their_records(shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ids = [r["id"] for r in tell(capfd, "inspect", str(shelf / "set"), "-n", "6")[1]["records"]]
    _, step = tell(capfd, "inspect", str(shelf / "run"), "--step", "1")
    assert [s["id"] for row in step["sequences"] for s in row["spans"]] == ids[2:4] and step["by_source"]["toy"] == {"documents": 2, "tokens": 14}
    for id in ids[2:4]:
        assert tell(capfd, "trace", id, str(shelf / "run"))[1]["trail"][-1]["steps"] == [1]
    _, seq = tell(capfd, "inspect", str(shelf / "plan"), "--seq", "5")
    assert [s["id"] for s in seq["sequences"][0]["spans"]] == ids[5:] and seq["n"] == 1
    assert main(["inspect", str(shelf / "run"), "--step", "1"]) == 0 and ids[3] in capfd.readouterr().out
    for words in (["plan", "--seq", "6"], ["run", "--step", "3"], ["run", "--seq", "0"], ["set", "--step", "0"]):
        assert tell(capfd, "inspect", str(shelf / words[0]), *words[1:])[0] == 2
