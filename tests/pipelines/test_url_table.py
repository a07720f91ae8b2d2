"""Tables of URLs: every row ends once, in order, as a record or with the reason why not; a retry takes up only what failed in passing."""

import csv
import gzip
import io
import json
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import url_rows
from pipelines.check_dataset import check
from pipelines.curate import IMAGE_TEXT
from pipelines.engine import open_job
from pipelines.fetch.policy import PACE, Policy
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import InputError, RecipeError
from pipelines.recipe import Recipe
from pipelines.sources.url_table import UrlTable
from tests.fault_server import Answer, FaultServer
from tests.pipelines.test_sources_text import read
from tests.toys import jpeg

QUICK = {"backoff": 0.01, "attempts": 2, "deadline": 3, "grace": 0.3, "robots": False}


def web(seen):
    """/img/N.jpg is a picture; /later/N fails until the server is told to be well; the rest is as its name says."""
    kind, _, n = seen.path.strip("/").partition("/")
    if kind == "img":
        return Answer(jpeg(int(n.split(".")[0])), headers={"Content-Type": "image/jpeg"})
    return {
        "later": Answer(b"busy", 503),
        "keep": Answer(jpeg(1), headers={"X-Robots-Tag": "noai"}),
        "page": Answer(b"<html>"),
        "cut": Answer(jpeg(1)[:-20]),
    }.get(kind)


@pytest.fixture
def server(monkeypatch):
    with FaultServer(web) as s:
        monkeypatch.setenv("HEADWATER_FETCH_PRIVATE", f"{s.address}:{s.port}")
        yield s


def rows(server, *paths):
    return [{"url": server.url(p), "caption": f"picture {i}"} for i, p in enumerate(paths)]


def table(root, rows, name="t.jsonl"):
    root.mkdir(exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), root / name, row_group_size=3)
    else:
        text = io.StringIO(newline="")
        if ".jsonl" in name:
            text.write("".join(json.dumps(r) + "\n" for r in rows))
        elif ".json" in name:
            json.dump(rows, text, indent=1)
        else:
            writer = csv.DictWriter(text, list(rows[0]), delimiter="," if ".csv" in name else "\t")
            writer.writeheader()
            writer.writerows(rows)
        data = text.getvalue().encode()
        (root / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    return str(root)


FORMS = ["t.jsonl", "t.json", "t.csv", "t.tsv", "t.jsonl.gz", "t.json.gz", "t.csv.gz", "t.parquet"]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_table_gives_the_same_records_in_order_whatever_the_parts(tmp_path, server, monkeypatch, name):
    listed = rows(server, *(f"/img/{i}.jpg" for i in range(11)))
    listed[4]["caption"] = 'with "quotes",\ncommas\tand ä漢'
    path = table(tmp_path / "in", listed, name)
    whole, rejects = read(UrlTable(path=path, fetch=QUICK))
    assert not rejects and [r.url for r in whole] == [r["url"] for r in listed]
    assert [r.segments[1].text for r in whole] == [r["caption"] for r in listed]
    assert [r.origin for r in whole] == [f"{name}#{i}" for i in range(11)]
    monkeypatch.setattr(url_rows, "ROWS", 4)
    source = UrlTable(path=path, fetch=QUICK)
    assert len(source.parts()) == 3
    cut, _ = read(source)
    assert cut == whole


def test_every_row_ends_once_with_the_word_of_the_contract(tmp_path, server):
    listed = rows(server, "/img/0.jpg", "/gone", "/later/1", "/keep/1", "/page/1", "/cut/1", "/img/1.jpg")
    listed += [{"url": "http://169.254.169.254/latest", "caption": "x"}, {"url": "file:///etc/passwd", "caption": "x"}, {"caption": "x"}]
    listed += [{"url": server.url("/img/2.jpg"), "caption": " "}, {"url": server.url("/img/3.jpg"), "caption": 7}]
    listed += [{"url": server.url("/img/4.jpg"), "caption": "right", "sha256": sha256(jpeg(4)).hexdigest()}]
    listed += [{"url": server.url("/img/5.jpg"), "caption": "wrong", "sha256": "0" * 64}]
    path = table(tmp_path / "in", listed)
    with open(tmp_path / "in/t.jsonl", "a") as f:
        f.write("not json\n[1]\n")
    records, rejects = read(UrlTable(path=path, digest_field="sha256", fetch=QUICK))
    assert [r.origin for r in records] == ["t.jsonl#0", "t.jsonl#6", "t.jsonl#12"]
    reasons = ["fetch_permanent", "fetch_transient", "opt_out", "invalid_image", "truncated", "not_allowed", "not_allowed", "unreadable",
               "empty", "unreadable", "hash_mismatch", "unreadable", "unreadable"]  # fmt: skip
    assert [r.reason for r in rejects] == reasons and len({r.origin for r in rejects}) == len(rejects)
    assert len(records) + len(rejects) == len(listed) + 2
    assert server.asked("/img/2.jpg") == server.asked("/img/3.jpg") == 0 and server.asked("/later/1") == 2
    assert "x-robots-tag: noai" in rejects[2].detail and server.url("/keep/1") in rejects[2].detail


def test_a_record_keeps_its_evidence_and_what_the_table_said(tmp_path, server):
    listed = [r | {"lic": "CC0", "w": 10, "h": None, "tag": float("nan")} for r in rows(server, "/img/3.jpg?sig=secret")]
    path = table(tmp_path / "in", listed, "t.parquet")
    source = UrlTable(path=path, licence_field="lic", size_fields=("w", "h"), keep=("tag",), fetch=QUICK)
    (record,), _ = read(source)
    digest = sha256(jpeg(3)).hexdigest()
    fetch = {"url": server.url("/img/3.jpg?…"), "http": 200, "type": "image/jpeg", "sha256": digest}
    assert record.fields == {"fetch": fetch, "w": 10, "h": None, "tag": None}
    assert (record.licence, record.url, record.group) == ("CC0", listed[0]["url"], digest)


def test_rows_appended_to_a_text_table_change_no_earlier_part(tmp_path, server, monkeypatch):
    monkeypatch.setattr(url_rows, "ROWS", 3)
    listed = rows(server, *(f"/img/{i}.jpg" for i in range(8)))
    for name in ("t.jsonl", "t.csv", "t.json"):
        source = UrlTable(path=table(tmp_path / name, listed[:6], name))
        before = source.parts()
        table(tmp_path / name, listed, name)
        after = source.parts()
        assert after[:2] == before and len(after) == 3
        table(tmp_path / name, [listed[0] | {"caption": "Picture 0"}, *listed[1:]], name)
        assert source.parts()[0] != after[0] and source.parts()[1] == after[1]


def test_damaged_tables_cost_what_is_damaged(tmp_path, server):
    path = table(tmp_path / "in", rows(server, *(f"/img/{i}.jpg" for i in range(6))), "a.json")
    text = (tmp_path / "in/a.json").read_text()
    (tmp_path / "in/a.json").write_text(text[: text.rindex("picture 4")])
    (tmp_path / "in/b.parquet").write_bytes(b"PAR1 nothing")
    records, rejects = read(UrlTable(path=path, fetch=QUICK))
    assert len(records) == 4 and [(r.origin, r.reason) for r in rejects] == [("a.json#4", "truncated"), ("b.parquet#0", "unreadable")]
    with pytest.raises(InputError, match="no such column"):
        UrlTable(path=table(tmp_path / "p", [{"link": "x"}], "t.parquet")).parts()


def recipe(tmp_path, **more):
    source = {"path": str(tmp_path / "in"), "fetch": {**QUICK, **more.pop("fetch", {})}}
    base = {"name": "web", "source": {"url_table": source}, "output": str(tmp_path / "out"), "engine": "local"}
    return parse(Recipe, {**base, "transforms": [{"resize_image": {"size": 16}}], **more})


def run(r):
    with open_job("local") as job:
        return Dataset.open(IMAGE_TEXT.run(r, job))


def law(dataset):
    card = dataset.card
    assert card["in"] == card["written"] + sum(card["filtered"].values()) + sum(card["rejected"].values())
    assert check(dataset.path, {"deep": True}) == []
    return card["in"], card["written"], card["rejected"]


def ids(dataset):
    return {r.id for i in range(len(dataset.shards)) for r in dataset.records(i)}


def test_a_retry_takes_up_only_what_failed_in_passing_and_the_card_counts_it_once(tmp_path, server, monkeypatch):
    monkeypatch.setattr(url_rows, "ROWS", 5)
    paths = [f"/img/{i}.jpg" for i in range(7)] + ["/gone", "/later/1", "/later/2", "/keep/1", "/later/3"]
    table(tmp_path / "in", rows(server, *paths))
    assert law(run(recipe(tmp_path))) == (12, 7, {"fetch_permanent": 1, "fetch_transient": 3, "opt_out": 1})
    server.log.clear()

    server.script = lambda seen: Answer(jpeg(9)) if seen.path in ("/later/1", "/later/2") else web(seen)
    first = run(recipe(tmp_path, retry="transient"))
    assert law(first) == (12, 9, {"fetch_permanent": 1, "fetch_transient": 1, "opt_out": 1})
    assert sorted({p for _, p in server.log}) == ["/later/1", "/later/2", "/later/3"]

    server.script = lambda seen: Answer(jpeg(9)) if seen.path.startswith("/later") else web(seen)
    second = run(recipe(tmp_path, retry="transient", fetch={"attempts": 7, "deadline": 9}))  # with more patience: the same recipe
    assert law(second) == (12, 10, {"fetch_permanent": 1, "opt_out": 1})
    assert len(ids(second)) == 10

    server.log.clear()
    assert law(run(recipe(tmp_path))) == law(run(recipe(tmp_path, retry="transient"))) == (12, 10, {"fetch_permanent": 1, "opt_out": 1})
    assert run(recipe(tmp_path)).fingerprint == second.fingerprint and not server.log


def test_retried_parts_survive_growth_and_follow_the_part_they_take_up(tmp_path, server, monkeypatch):
    monkeypatch.setattr(url_rows, "ROWS", 2)
    listed = rows(server, "/img/0.jpg", "/later/1", "/img/2.jpg", "/later/3")
    table(tmp_path / "in", listed)
    run(recipe(tmp_path))
    server.script = lambda seen: Answer(jpeg(9)) if seen.path.startswith("/later") else web(seen)
    assert law(run(recipe(tmp_path, retry="transient"))) == (4, 4, {})
    table(tmp_path / "in", [*listed, *rows(server, "/img/5.jpg")])
    assert law(run(recipe(tmp_path))) == (5, 5, {})
    table(tmp_path / "in", [listed[0], listed[1] | {"caption": "Picture 1"}, *listed[2:], *rows(server, "/img/5.jpg")])
    assert law(run(recipe(tmp_path))) == (5, 5, {})  # part 0 made anew found its URL well: nothing is left of its retry
    assert not (tmp_path / "out/parts/1000000.json").exists() and (tmp_path / "out/parts/1000001.json").exists()


def test_a_retry_with_nothing_to_take_up_changes_nothing(tmp_path, server):
    table(tmp_path / "in", rows(server, "/img/0.jpg", "/gone"))
    before = run(recipe(tmp_path))
    assert run(recipe(tmp_path, retry="transient")).fingerprint == before.fingerprint
    with pytest.raises(RecipeError, match="without `across`"):
        run(recipe(tmp_path, retry="transient", across=["exact_text"], output=str(tmp_path / "other")))


def test_another_say_about_opt_outs_is_another_recipe_and_another_pace_is_not(tmp_path):
    hashed = lambda **fetch: (s := UrlTable(path="x", fetch=fetch)).hashed(s.model_dump(mode="json"))
    assert hashed() == hashed(attempts=9, concurrency=1) != hashed(robots=False)
    assert hashed() != hashed(opt_outs=["noai"]) and hashed() != hashed(max_bytes=1)
    assert set(PACE) < set(Policy.model_fields)
