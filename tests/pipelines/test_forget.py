"""Rewriting and erasing: other records stay what they were, the bytes go, and a kill anywhere leaves the old or the new state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.plan import Plan, make_plan
from pipelines.check_dataset import check
from pipelines.commands import main
from pipelines.erasing import erase
from pipelines.format.dataset import Dataset
from pipelines.format.errors import InputError
from pipelines.format.manifest import parent, read_card
from pipelines.format.part import PartWriter
from pipelines.format.record import Image, Record, Text
from pipelines.format.shard import Foreign
from pipelines.rewriting import rewrite
from pipelines.tombstones import add
from tests import toys
from tests.mixtures.sets import dataset as sized
from tests.mixtures.sets import mixture

N = 12
PLACES = ("offset", "member", "nbytes")


def tell(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    capfd.readouterr()
    code = main([*words, "--json"])
    return code, json.loads(capfd.readouterr().out)


def made(root: Path, kind: str) -> str:
    if kind == "encoded":
        return toys.encoded(str(root / "set"), toys.curated(str(root / "above"), n=N, parts=3), n=N, parts=3)
    if kind == "shared":  # two samples show the same four pictures, as those of a trajectory do
        with PartWriter(str(root / "set"), 0, fingerprint="0" * 64) as w:
            for i in range(N):
                w.emit()
                pictures = [Image(toys.jpeg((i + k) // 2), role="context", atom=0, shape=(32, 32, 3)) for k in range(3)]
                w.add(Record.make("toy", f"{i}", "action-video", [*pictures, Text(f"action {i}", role="context", atom=0)]))
            return toys.seal(str(root / "set"), "toy", "action-video", [w.commit()], {"source": {"toy": {}}})
    return toys.curated(str(root / "set"), kind, n=N, parts=3)


def rows(path: str, gone: frozenset[str] = frozenset()) -> list[tuple]:
    """Every record as it is, but for where its bytes lie; and its bytes."""
    found, out = Dataset.open(path), []
    for i in range(len(found.shards)):
        for row, record in zip(found.rows(i), found.records(i, payloads=True), strict=True):
            if row["id"] not in gone:
                plain = [{k: v for k, v in s.items() if k not in PLACES} for s in row["segments"]]
                out.append(({**row, "segments": plain}, [s.payload for s in record.segments]))
    return out


def ids(path: str) -> list[str]:
    found = Dataset.open(path)
    return [r for i in range(len(found.shards)) for r in found.index(i, ["id"])["id"].to_pylist()]


@pytest.mark.parametrize("kind", ["text", "image-text", "video", "vqa", "shared", "encoded"])
@settings(max_examples=6, deadline=None)
@given(which=st.sets(st.integers(0, N - 1), min_size=1))
def test_what_is_rewritten_keeps_every_other_record_and_no_byte_of_these(tmp_path_factory, kind, which):
    root = tmp_path_factory.mktemp("forget")
    path = made(root, kind)
    before, all_ids = rows(path), ids(path)
    gone = frozenset(all_ids[i] for i in which)
    card = read_card(path)
    add(Dataset.open(path), {"id": sorted(gone)}, "asked")
    told = rewrite(path)
    expected = [r for r in before if r[0]["id"] not in gone]
    assert rows(path) == expected and told["records"] == len(gone)
    assert check(path, {"deep": True}) == []
    after = read_card(path)
    assert after["in"] == card["in"] and after["filtered"]["tombstone"] == len(gone) and after["records"] == len(all_ids) - len(gone)
    erase(path, [])
    living = {bytes(p) for _, payloads in expected for p in payloads if p is not None}
    lost = {bytes(p) for row, payloads in before if row["id"] in gone for p in payloads if p is not None and len(p) > 64} - living
    files = [f.read_bytes() for f in Path(path).rglob("*") if f.is_file()]
    assert not [p for p in lost if any(p in data for data in files)]
    if kind in ("image-text", "shared"):
        assert all(sum(data.count(p) for data in files) >= 1 for p in living), "what a living record shares is there"
    assert check(path, {"deep": True}) == [] and rows(path) == expected
    shutil.rmtree(root)


def test_rewriting_again_changes_nothing_and_a_later_tombstone_only_its_shard(tmp_path):
    path = made(tmp_path, "image-text")
    gone = ids(path)
    add(Dataset.open(path), {"id": gone[:1]}, "asked")
    rewrite(path)
    state = {f: f.read_bytes() for f in Path(path).rglob("*") if f.is_file()}
    assert rewrite(path)["shards"] == 0
    assert {f: f.read_bytes() for f in Path(path).rglob("*") if f.is_file()} == state
    add(Dataset.open(path), {"id": gone[-1:]}, "asked")
    shards = [s.index for s in Dataset.open(path).shards]
    assert rewrite(path)["shards"] == 1
    now = [s.index for s in Dataset.open(path).shards]
    assert now[:-1] == shards[:-1] and now[-1] != shards[-1]


def planned(path: str, output: Path) -> Plan:
    return Plan.open(make_plan(mixture({"x": {"dataset": path, "tokens": 400}}, output)))


def test_a_plan_reads_its_snapshot_until_that_is_erased_and_then_says_what_to_do(tmp_path):
    path = sized(tmp_path / "d", "vqa", [(4, (3, 2))] * 60, "toy")
    plan = planned(path, tmp_path / "p")
    victim = plan.record(plan.row(0).spans[0]).id
    spans = plan.row(0).spans
    add(Dataset.open(path), {"id": [victim]}, "asked")
    rewrite(path)
    again = Plan.open(plan.path)
    assert again.record(spans[0]).id == victim and again.row(0).spans == spans, "its snapshot is still there"
    new = planned(path, tmp_path / "q")
    held = lambda p: {p.record(s).id for i in range(p.sequences()) for s in p.row(i).spans}
    assert held(new) >= held(plan) - {victim} and victim not in held(new)
    erase(path, [])
    with pytest.raises(InputError, match="erased") as error:
        _ = Plan.open(plan.path).datasets
    assert "plan again" in str(error.value.next)
    assert held(Plan.open(new.path)) == held(new)


def test_killed_at_any_step_the_dataset_is_the_old_or_the_new_one_and_the_same_command_finishes_it(tmp_path):
    source = made(tmp_path, "image-text")
    victims = [ids(source)[1], ids(source)[-1]]
    before = rows(source)
    want = tmp_path / "want"
    shutil.copytree(source, want)
    words = ["--id", victims[0], "--id", victims[1], "--rewrite", "--erase", "--in", str(tmp_path)]
    assert main(["forget", str(want), *words]) == 0
    assert main(["gc", str(want), "--older-than", "0"]) == 0
    expected = {f.relative_to(want): f.read_bytes() for f in want.rglob("*") if f.is_file()}
    code = "import sys; from pipelines.commands import main; sys.exit(main(sys.argv[1:]))"
    killed = 0
    for k in [*range(1, 400, 7)]:
        place = tmp_path / "set-killed"
        shutil.copytree(source, place)
        env = {**os.environ, "HEADWATER_FAIL_AT": f"{k}:kill"}
        done = subprocess.run([sys.executable, "-c", code, "forget", str(place), *words], env=env, capture_output=True, cwd=tmp_path)
        left = rows(str(place))
        assert left in (before, [r for r in before if r[0]["id"] not in victims]), k
        if done.returncode == 0:
            break
        killed += 1
        assert main(["forget", str(place), *words]) == 0
        assert main(["gc", str(place), "--older-than", "0"]) == 0
        assert check(str(place), {"deep": True}) == []
        found = {f.relative_to(place): f.read_bytes() for f in place.rglob("*") if f.is_file()}
        assert found == expected, k
        shutil.rmtree(place)
    assert killed > 3 and done.returncode == 0


def test_forget_names_each_snapshots_plans_and_does_the_descendants_when_asked(tmp_path, capfd):
    toys.curated(str(tmp_path / "set"))
    toys.encoded(str(tmp_path / "encoded"), str(tmp_path / "set"))
    toys.plan(str(tmp_path / "plan"), str(tmp_path / "encoded"))
    victim, other = ids(str(tmp_path / "set"))[3], ids(str(tmp_path / "set"))[4]
    _, said = tell(capfd, "forget", str(tmp_path / "set"), "--id", victim, "--rewrite", "--descendants", "--in", str(tmp_path))
    assert victim not in ids(str(tmp_path / "set")) + ids(str(tmp_path / "encoded"))
    assert said["descendants"][0]["rewritten"]["records"] == 1
    for path in ("set", "encoded"):
        assert check(str(tmp_path / path), {"deep": True}) == []
    _, said = tell(capfd, "forget", str(tmp_path / "set"), "--id", other, "--dry-run", "--in", str(tmp_path))
    uses = {row["kind"]: row for row in said["used_by"]}
    assert uses["plan"]["spans"] == 1, "in the snapshot that the plan pins, though rows have moved in the newest"
    _, said = tell(capfd, "forget", str(tmp_path / "set"), "--id", victim, "--rewrite", "--erase", "--descendants", "--in", str(tmp_path))
    assert all(d["erased"]["snapshots"] for d in [said, *said["descendants"]])
    _, said = tell(capfd, "forget", str(tmp_path / "set"), "--id", other, "--dry-run", "--in", str(tmp_path))
    assert {row["kind"] for row in said["used_by"]} == {"dataset", "plan"}, "what was made of an erased snapshot is still named"
    assert main(["forget", str(tmp_path / "set"), "--id", other, "--dry-run", "--in", str(tmp_path)]) == 0
    assert "plan again" in capfd.readouterr().out


def test_nothing_is_erased_while_another_dataset_points_into_it(tmp_path, capfd):
    path = made(tmp_path, "image-text")
    source, scored = Dataset.open(path), str(tmp_path / "scored")
    commits = []
    for i, s in enumerate(source.shards):
        foreign = Foreign(f"../set/{s.data}", s.data_bytes, s.data_sha256)
        with PartWriter(scored, i, fingerprint=f"{i}", foreign_data=foreign) as w:
            for row in source.rows(i):
                w.emit()
                w.keep({**row, "scores": [("clip", 0.5)]})
            commits.append(w.commit())
    toys.seal(scored, "scored", "image-text", commits, {}, None, [parent(path, scored, source.fingerprint)])
    assert check(scored, {"deep": True}) == []
    victim = ids(path)[0]
    words = ["forget", path, "--id", victim, "--rewrite", "--erase", "--in", str(tmp_path)]
    code, said = tell(capfd, *words)
    assert code == 2 and "points into" in said["error"]["what"] and "scored" in said["error"]["where"]
    assert victim not in ids(path) and check(scored, {"deep": True}) == []
    add(Dataset.open(scored), {"id": [victim]}, "asked")
    assert rewrite(scored)["records"] == 1
    assert victim not in ids(scored) and check(scored, {"deep": True}) == []
    shutil.rmtree(scored)
    assert tell(capfd, *words)[0] == 0
    assert check(path, {"deep": True}) == []


def test_an_ablation_names_the_arms_whose_runs_read_the_records(tmp_path, capfd):
    from pipelines.format.manifest import card, publish_card

    toys.curated(str(tmp_path / "set"))
    toys.encoded(str(tmp_path / "encoded"), str(tmp_path / "set"))
    root = tmp_path / "study"
    runs = []
    for arm in ("long", "short"):
        plan = toys.plan(str(root / "plans" / arm), str(tmp_path / "encoded"))
        run = str(root / "arms" / arm / "seed-0")
        steps = {"long": 3, "short": 1}[arm]
        above = [parent(plan, run, read_card(plan)["fingerprint"])]
        facts = {"records": 6, "steps": steps, "tokens": {"all": 20}, "files": []}
        publish_card(run, "run.json", card("run", arm, arm.ljust(64, "0"), {"batch": 2}, parents=above, **facts))
        runs.append(parent(run, str(root), read_card(run)["fingerprint"]))
    publish_card(str(root), "ablation.json", card("ablation", "study", "a" * 64, {}, parents=runs, files=[]))
    seen = {}
    plan = read_card(str(root / "plans" / "long"))
    for id in ids(str(tmp_path / "set")):
        _, said = tell(capfd, "forget", str(tmp_path / "set"), "--id", id, "--dry-run", "--in", str(tmp_path))
        study = next(row for row in said["used_by"] if row["kind"] == "ablation")
        assert study["runs"] == len(study["arms"]) == sum(row["steps"] > 0 for row in said["used_by"] if row["kind"] == "run")
        seen[tuple(study["arms"])] = seen.get(tuple(study["arms"]), 0) + 1
    assert plan["kind"] == "plan" and seen == {("long", "short"): 2, ("long",): 4}, "two records of the first step, the others only where it went on"
