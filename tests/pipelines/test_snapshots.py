"""Snapshots: a dataset grows by new ones, plans keep the one that they pinned, and nothing that any of them names is rubbish."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.plan import Plan, make_plan
from pipelines.check_dataset import check
from pipelines.commands import main
from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.recipe import Recipe
from pipelines.rewriting import rewrite
from pipelines.tombstones import add
from tests import toys
from tests.mixtures.sets import dataset as sized
from tests.mixtures.sets import mixture


def make(folder: Path, output: Path) -> Dataset:
    keys = {"name": "t", "source": {"jsonl": {"path": str(folder)}}, "output": str(output), "engine": "local"}
    with open_job("local") as job:
        return Dataset.open(Curate("text").run(parse(Recipe, keys), job))


def write(folder: Path, name: str, lines: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def texts(found: Dataset) -> list[str]:
    return [s.text or "" for i in range(len(found.shards)) for r in found.records(i) for s in r.segments]


def test_every_snapshot_has_a_card_of_its_name_and_the_newest_is_the_card(tmp_path):
    seen = []
    for n, name in enumerate("abc"):
        write(tmp_path / "in", f"{name}.jsonl", [f"{name}{i}" for i in range(n + 1)])
        seen.append((make(tmp_path / "in", tmp_path / "d").fingerprint, 2 ** (n + 1) - 1 if n < 2 else 6))
    for fingerprint, records in seen:
        card = json.loads((tmp_path / "d" / f"manifest-{fingerprint[:16]}.json").read_text())
        assert card["fingerprint"] == fingerprint and card["records"] == records
        assert len(texts(Dataset.open(str(tmp_path / "d"), fingerprint))) == records
    newest = (tmp_path / "d" / "manifest.json").read_bytes()
    assert newest == (tmp_path / "d" / f"manifest-{seen[-1][0][:16]}.json").read_bytes()
    assert check(str(tmp_path / "d"), {"deep": True}) == []


def test_a_part_made_anew_or_gone_leaves_its_old_files_to_the_old_snapshot_alone(tmp_path):
    write(tmp_path / "in", "a.jsonl", ["one", "two"])
    write(tmp_path / "in", "b.jsonl", ["three"])
    first = make(tmp_path / "in", tmp_path / "d")
    before = texts(first)
    write(tmp_path / "in", "a.jsonl", ["one, said otherwise"])
    (tmp_path / "in" / "b.jsonl").unlink()
    second = make(tmp_path / "in", tmp_path / "d")
    assert texts(second) == ["one, said otherwise"] and check(second.path, {"deep": True}) == []
    assert main(["gc", second.path, "--older-than", "0"]) == 0
    assert texts(Dataset.open(second.path, first.fingerprint)) == before, "gc kept what the snapshot needs"
    assert main(["gc", second.path, "--older-than", "0", "--snapshots", "--in", str(tmp_path)]) == 0
    left = {p.name for p in (tmp_path / "d").iterdir()}
    assert not [n for n in left if n.startswith("manifest-") and second.fingerprint[:16] not in n]
    assert len([n for n in left if n.startswith("index-")]) == 1
    assert texts(Dataset.open(second.path)) == ["one, said otherwise"] and check(second.path, {"deep": True}) == []


def test_gc_names_the_plans_whose_snapshot_goes(tmp_path, capfd):
    data = sized(tmp_path / "d", "text", [30] * 40, "toy")
    plan = make_plan(mixture({"x": {"dataset": data, "tokens": 300}}, tmp_path / "p"))
    pinned = Dataset.open(data).fingerprint
    add(Dataset.open(data), {"id": [Dataset.open(data).index(0, ["id"])["id"][0].as_py()]}, "asked")
    rewrite(data)
    capfd.readouterr()
    assert main(["gc", data, "--snapshots", "--dry-run", "--in", str(tmp_path), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert [s["plans"] for s in said["snapshots"]] == [[plan]]
    assert Dataset.open(data, pinned).shards, "a dry run removes nothing"


@settings(max_examples=10, deadline=None)
@given(first=st.integers(20, 60), more=st.integers(1, 60), seed=st.integers(0, 5))
def test_a_larger_dataset_keeps_the_old_records_order_and_the_old_plan_its_snapshot(tmp_path_factory, first, more, seed):
    root = tmp_path_factory.mktemp("grown")
    data = sized(root / "d", "text", [30] * first, "toy", parts=1)
    plan = lambda name, **keys: Plan.open(make_plan(mixture({"x": {"dataset": data, **keys}}, root / name, seed=seed)))
    ids = lambda p: [p.record(s).id for i in range(p.sequences()) for s in p.row(i).spans]
    old = plan("a", epochs=1)
    pinned = Dataset.open(data)
    grown(data, first, more)
    now = Dataset.open(data)
    assert now.fingerprint != pinned.fingerprint and now.card["records"] == first + more
    assert sorted(ids(Plan.open(old.path))) == sorted(ids(old)), "it reads what it pinned"
    # Of a budget within the old set, old records keep their places in the order: what is drawn is a prefix of each.
    half = plan("b", tokens=30 * (first // 2))
    chosen, olds = set(ids(half)), ordered(pinned, seed)
    assert [i for i in olds if i in chosen] == olds[: len(chosen & {*olds})]


def grown(path: str, first: int, more: int) -> None:
    """The dataset with another part, sealed as a build seals it."""
    from pipelines.format.manifest import publish_card, read_card
    from pipelines.format.part import PartWriter
    from pipelines.format.record import Record
    from tests.mixtures.sets import text

    old = {k: v for k, v in read_card(path).items() if k not in ("path", "card_file")}
    with PartWriter(path, 1, fingerprint="1" * 64, encoded=True) as w:
        for i in range(first, first + more):
            w.emit()
            w.add(Record.make("toy", f"{i}", "text", [text(30)]))
        new = w.commit()
    publish_card(path, f"manifest-{old['fingerprint'][:16]}.json", old)
    commits = [json.loads((Path(path) / "parts" / "00000.json").read_text()), new]
    toys.seal(path, "toy", "text", commits, {}, old["encoding"])


def ordered(found: Dataset, seed: int) -> list[str]:
    import numpy as np

    from pipelines.format.chance import hash64, order

    ids = [i for k in range(len(found.shards)) for i in found.index(k, ["id"])["id"].to_pylist()]
    return [ids[k] for k in order(np.array([hash64(i) for i in ids], np.uint64), seed, "order", 0)]
