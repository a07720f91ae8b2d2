"""Lists of files: the same records wherever the files lie, one reject for a file that cannot be had, and a retry that takes it up again."""

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import pytest

from pipelines.check_dataset import check
from pipelines.curate import TEXT
from pipelines.engine import open_job
from pipelines.file_list import url_name
from pipelines.format import storage
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import InputError, RecipeError
from pipelines.recipe import Recipe
from pipelines.sources.jsonl import Jsonl
from pipelines.sources.parquet_text import ParquetText
from tests.fault_server import Answer, Canary, FaultServer, ranged
from tests.pipelines.test_sources_text import DOCS, body, read, table, texts

QUICK = {"backoff": 0.01, "attempts": 2, "deadline": 2, "grace": 0.3, "patience": 20, "max_bytes": 2_000_000}


def shelf(folder):
    """The files of a folder by their paths; robots.txt forbids /private/."""

    def script(seen):
        if seen.path == "/robots.txt":
            return Answer(b"User-agent: *\nDisallow: /private/\n")
        file = folder / seen.path.partition("?")[0].strip("/")
        return ranged(seen, file.read_bytes()) if file.is_file() else None

    return script


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A server of tmp_path/web. Scratch space is tmp_path/scratch, which must be empty at the end."""
    (tmp_path / "web").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    with FaultServer(shelf(tmp_path / "web")) as server:
        monkeypatch.setenv("HEADWATER_FETCH_PRIVATE", f"{server.address}:{server.port}")
        yield server
    assert not [p for p in (tmp_path / "scratch").rglob("*") if p.is_file()]


def listing(folder, lines, name="files.txt"):
    data = "".join(f"{line}\n" for line in lines).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(folder / name)


def listed(prefix=None, **fetch):
    return {"prefix": prefix, "fetch": {**QUICK, **fetch}}


def plain(records, server):
    """Records with what tells where they were read from taken off: all that may differ between the web and the disk."""
    return [replace(r, id="", origin=r.origin.removeprefix(f"{server.url('/')}"), group="" if r.group == r.id else r.group) for r in records]


def test_a_list_gives_the_records_that_the_files_give(tmp_path, web):
    (tmp_path / "web/a.jsonl").write_bytes(body(DOCS[:20]))
    (tmp_path / "web/b.jsonl.gz").write_bytes(gzip.compress(body(DOCS[20:])))
    near, _ = read(Jsonl(path=str(tmp_path / "web"), url_field="meta.url"))
    path = listing(tmp_path, ["# two files", "a.jsonl", "", "b.jsonl.gz"], "list.paths.gz")
    far, rejects = read(Jsonl(path=path, url_field="meta.url", listed=listed(web.url("/"))))
    assert not rejects and texts(far) == DOCS and plain(far, web) == plain(near, web)
    assert [r.origin for r in far[:2]] == [web.url("/a.jsonl#0"), web.url(f"/a.jsonl#{len(body(DOCS[:1]))}")]
    assert far[-1].origin == web.url("/b.jsonl.gz#19") and len({r.id for r in far}) == 40


def test_parquet_files_of_a_list_are_read_row_group_by_row_group(tmp_path, web):
    table(tmp_path / "web/a.parquet", 55)
    table(tmp_path / "web/b.parquet", 5, content=["x"] * 5)
    (tmp_path / "web/c.parquet").write_bytes(b"PAR1 no")
    path = listing(tmp_path, [web.url(f"/{n}.parquet") for n in "abc"])
    records, rejects = read(ParquetText(path=path, url_field="url", listed=listed()))
    assert [r.origin for r in records] == [web.url(f"/a.parquet#{i}") for i in range(55)]
    assert [(r.origin, r.reason) for r in rejects] == [(web.url("/b.parquet"), "unreadable"), (web.url("/c.parquet"), "unreadable")]
    assert "'text'" in rejects[0].detail or "text" in rejects[0].detail


def test_nothing_is_asked_for_when_parts_are_made(tmp_path, web, monkeypatch):
    path = listing(tmp_path, [web.url("/a.jsonl"), "https://no.such.host.test/x.jsonl.gz"])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("a name was resolved"))
    parts = Jsonl(path=path, listed=listed()).parts()
    assert [p.inputs for p in parts] == [[[web.url("/a.jsonl"), None, ""]], [["https://no.such.host.test/x.jsonl.gz", None, ""]]] and not web.log
    recipe = parse(Recipe, {"name": "t", "source": {"jsonl": {"path": path, "listed": listed()}}, "output": str(tmp_path / "out")})
    facts = TEXT.plan(recipe).facts
    assert (facts["parts"], facts["to_fetch"], facts["bytes_in"]) == (2, 2, 0) and not web.log


def test_every_file_that_cannot_be_had_is_one_reject_with_the_word_of_the_contract(tmp_path, web):
    good = gzip.compress(body())
    (tmp_path / "web/good.jsonl.gz").write_bytes(good)
    (tmp_path / "web/private").mkdir()
    (tmp_path / "web/private/x.jsonl").write_bytes(body())
    files = shelf(tmp_path / "web")
    broken = gzip.compress(body(["broken"] * 9))

    with Canary() as canary:

        def script(seen):
            answers = {
                "/reset.jsonl.gz": lambda: ranged(seen, broken, "whole" if seen.attempt else "break"),
                "/busy.jsonl": lambda: Answer(b"", 503),
                "/noai.jsonl": lambda: Answer(body(), headers={"X-Robots-Tag": "noai"}),
                "/inside.jsonl": lambda: Answer(status=302, headers={"Location": f"http://127.0.0.2:{canary.port}/x"}),
                "/endless.jsonl": lambda: Answer(how="endless"),
                "/stall.jsonl": lambda: Answer(body(), how="stall"),
            }
            return answers.get(seen.path, lambda: files(seen))()

        web.script = script
        names = ["good.jsonl.gz", "reset.jsonl.gz", "gone.jsonl", "busy.jsonl", "noai.jsonl", "private/x.jsonl", "inside.jsonl", "endless.jsonl",
                 "stall.jsonl"]  # fmt: skip
        lines = [*names, f"good.jsonl.gz?v=2\t{'0' * 64}", f"good.jsonl.gz?v=3\t{sha256(good).hexdigest()}", "file:///etc/passwd", "/etc/passwd",
                 "http://169.254.169.254/latest", "gopher://x/y", "good.jsonl.gz", "http://u:p@host/x"]  # fmt: skip
        records, rejects = read(Jsonl(path=listing(tmp_path, lines), listed=listed(web.url("/"))))
        assert canary.hits == 0
    found = {r.origin.removeprefix(web.url("/")): r.reason for r in rejects}
    assert texts(records) == [*DOCS, *["broken"] * 9, *DOCS]
    assert len(rejects) == len(lines) - 3 and [r.reason for r in rejects] == [
        "fetch_permanent", "fetch_transient", "opt_out", "opt_out", "not_allowed", "too_large", "timeout", "hash_mismatch", "not_allowed",
        "fetch_permanent", "not_allowed", "not_allowed", "not_allowed", "not_allowed",
    ]  # fmt: skip
    assert web.asked("/reset.jsonl.gz") == 2 and web.asked("/gone.jsonl") == 1 and web.asked("/private/x.jsonl") == 0 and len(found) > 10
    assert "entry 0" in rejects[-2].detail  # a file named twice would give two records of one id


def test_no_query_is_written_anywhere_and_signatures_change_no_name(tmp_path, web):
    (tmp_path / "web/a.jsonl").write_bytes(body())
    signed = lambda sig, more="": f"{web.url('/a.jsonl')}?X-Amz-Signature={sig}&X-Amz-Expires=3600{more}"
    lines = lambda s: [signed(f"sEcReT{s}"), signed(f"sEcReT{s}", "&part=2"), signed(f"sEcReT{s}").replace("a.jsonl", "gone.jsonl")]
    ids = []
    for s in (1, 2):
        out = tmp_path / f"out{s}"
        path = listing(tmp_path, lines(s))
        recipe = {"name": "t", "source": {"jsonl": {"path": path, "listed": listed()}}, "output": str(out), "engine": "local"}
        dataset = run(recipe)
        assert dataset.card["written"] == 80 and dataset.card["rejected"] == {"fetch_permanent": 1}
        ids.append([r.id for i in range(len(dataset.shards)) for r in dataset.records(i)])
        written = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
        assert b"sEcReT" not in written and not any("sEcReT" in str(r) for r in rejects(dataset))
    assert ids[0] == ids[1] and len(set(ids[0])) == 80


def test_a_name_tells_files_apart_and_tells_no_secret():
    base = "https://a.test/data/x.jsonl.gz"
    assert url_name(base) == url_name("HTTPS://A.test:443/data/x.jsonl.gz#part") == base
    azure = "sv=2024&sp=r&se=2026-01-01&sig=s3cretS3cret"
    signed = [f"{base}?{q}" for q in ("X-Amz-Signature=a", "Signature=a&Expires=1&Key-Pair-Id=k", azure, "token=b", "x-goog-credential=c")]
    assert {url_name(u) for u in signed} == {base}
    asks = ["file=1", "file=2", "sp=1", "file=1&sig=a", "file=2&sig=b", "b=1&a=1", "a=1&b=1"]
    names = [url_name(f"{base}?{q}") for q in asks]
    assert names[0] == names[3] and names[1] == names[4] and names[5] == names[6] and len(set(names)) == 4 and base not in names
    secret = "hf_abcdefghijklmnopqrstuvwxyz"
    assert secret not in url_name(f"https://a.test/{secret}/x") != url_name(f"https://a.test/{secret}1/x")


def test_what_is_no_url_must_lie_below_its_place(tmp_path, web):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(body(["inside"]))
    (tmp_path / "secret.jsonl").write_bytes(body(["secret"]))
    (tmp_path / "web/b.jsonl").write_bytes(body(["far"]))
    inside = str(tmp_path / "in/a.jsonl")
    lines = ["a.jsonl", web.url("/b.jsonl"), "../secret.jsonl", str(tmp_path / "secret.jsonl"), "sub/../../secret.jsonl", ".", "gone.jsonl",
             "simplecache::https://a/b", "pipe:cat /etc/passwd", "file://" + str(tmp_path / "secret.jsonl"), "s3://bucket/x", "a\\b"]  # fmt: skip
    records, rejected = read(Jsonl(path=listing(tmp_path / "in", lines), listed=listed()))
    assert texts(records) == ["inside", "far"] and [r.origin for r in records] == ["a.jsonl#0", web.url("/b.jsonl#0")]
    assert [r.reason for r in rejected] == ["not_allowed"] * 4 + ["unreadable"] + ["not_allowed"] + ["unreadable"] + ["not_allowed"] * 3
    (tmp_path / "lists").mkdir()
    for prefix in (str(tmp_path / "in"), str(tmp_path / "in") + "/"):
        records, _ = read(Jsonl(path=listing(tmp_path / "lists", [inside]), listed=listed(prefix)))
        assert [r.origin for r in records] == ["a.jsonl#0"]
    near, _ = read(Jsonl(path=str(tmp_path / "in"), listed=None))
    assert records == [r for r in near if "a.jsonl" in r.origin]  # from a list or from a folder: the same ids


def test_a_list_of_files_in_a_store_reads_them_there_in_ranges(tmp_path, s3_bucket, monkeypatch):
    from pipelines.listing import byte_ranges
    from pipelines.sources import jsonl

    root = f"{s3_bucket}/lists"
    storage.publish(f"{root}/corpus/a.jsonl", body())
    storage.publish(f"{root}/files.txt", b"corpus/a.jsonl\ncorpus/gone.jsonl\n")
    monkeypatch.setattr(jsonl, "byte_ranges", lambda item: byte_ranges(item, 700))
    source = Jsonl(path=f"{root}/files.txt", listed=listed())
    assert len(source.parts()) > 3
    records, rejected = read(source)
    assert texts(records) == DOCS and [(r.origin, r.reason) for r in rejected] == [("corpus/gone.jsonl", "unreadable")]
    path = listing(tmp_path, ["a.jsonl", f"{root}/corpus/a.jsonl", f"{s3_bucket}/other/a.jsonl"])
    records, rejected = read(Jsonl(path=path, listed=listed(f"{root}/corpus/")))
    assert texts(records) == DOCS and [r.reason for r in rejected] == ["not_allowed"] * 2


@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.jsonl", "l.parquet", "SHA256SUMS", "l.txt"])
def test_every_form_of_list_gives_files_and_hashes(tmp_path, web, name):
    import csv
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for n in range(3):
        (tmp_path / f"web/{n}.jsonl").write_bytes(body([f"text {n}"]))
        digest = sha256(body([f"text {n}"])).hexdigest()
        rows.append({"file": f"{n}.jsonl", "hash": digest if n < 2 else "0" * 64})
    if name.endswith("sv"):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["file", "hash"], delimiter="," if name.endswith("csv") else "\t")
        writer.writeheader()
        writer.writerows(rows)
        (tmp_path / name).write_text(text.getvalue())
    elif name.endswith("jsonl"):
        listing(tmp_path, map(json.dumps, rows), name)
    elif name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        listing(tmp_path, [f"{r['hash']}  {r['file']}" if name.isupper() else f"{r['file']}\t{r['hash']}" for r in rows], name)
    block = {**listed(web.url("/")), "url_field": "file", "digest_field": "hash"}
    records, rejected = read(Jsonl(path=str(tmp_path / name), listed=block))
    assert texts(records) == ["text 0", "text 1"] and [r.reason for r in rejected] == ["hash_mismatch"]
    if name == "l.csv":
        with pytest.raises(InputError, match="no such column"):
            Jsonl(path=str(tmp_path / name), listed=listed()).parts()


def test_a_list_that_is_none_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x\n" * 9999)[:-9])
    (tmp_path / "b.txt").write_text("# nothing\n")
    for path, match in [("", "one file"), ("a.txt.gz", "cannot be read"), ("b.txt", "names no file"), ("c.txt", "no such file")]:
        with pytest.raises(InputError, match=match):
            Jsonl(path=str(tmp_path / path), listed=listed()).parts()
    with pytest.raises(InputError, match="not opened"):
        Jsonl(path="https://a.test/list.gz", listed=listed()).parts()
    with pytest.raises(RecipeError, match="no query"):
        parse(Recipe, {"name": "t", "source": {"jsonl": {"path": "l", "listed": {"prefix": "https://a/?sig=1"}}}, "output": "o"})


def test_a_file_is_what_its_name_says_and_where_that_is_silent_what_its_bytes_say(tmp_path, web):
    packed = gzip.compress(body(DOCS[:3]))
    (tmp_path / "web/a.jsonl.gz").write_bytes(packed)
    plain_or = lambda seen: Answer(packed if "packed" in seen.path else body(DOCS[:3]))
    encoded = lambda seen: Answer(packed, headers={"Content-Encoding": "gzip"})
    robots = lambda seen: None if seen.path == "/robots.txt" else plain_or(seen) if "get" in seen.path else encoded(seen)
    web.script = robots
    lines = ["get?id=1&packed", "get?id=2", "a.jsonl.gz", "a.jsonl"]
    records, rejected = read(Jsonl(path=listing(tmp_path, lines), listed=listed(web.url("/"))))
    assert not rejected and texts(records) == DOCS[:3] * 4
    marks = [r.origin.rpartition("#")[2] for r in records]
    bytes_ = ["0", str(len(body(DOCS[:1]))), str(len(body(DOCS[:2])))]
    assert [marks[i : i + 3] for i in range(0, 12, 3)] == [["0", "1", "2"], bytes_, ["0", "1", "2"], bytes_]


def run(recipe):
    with open_job("local") as job:
        return Dataset.open(TEXT.run(parse(Recipe, recipe), job))


def rejects(dataset):
    import pyarrow.parquet as pq

    return [row for p in sorted(Path(dataset.path, "rejects").glob("*.parquet")) for row in pq.read_table(p).to_pylist()]


def law(dataset):
    card = dataset.card
    assert card["in"] == card["written"] + sum(card["filtered"].values()) + sum(card["rejected"].values())
    assert check(dataset.path, {"deep": True}) == []
    return card["in"], card["written"], card["rejected"]


def test_a_retry_takes_up_the_files_that_failed_in_passing_and_no_other(tmp_path, web):
    for n in range(3):
        (tmp_path / f"web/{n}.jsonl").write_bytes(body(DOCS[n * 10 : n * 10 + 10]) + b"not json\n")
    files = shelf(tmp_path / "web")
    web.script = lambda seen: Answer(b"", 503) if seen.path == "/1.jsonl" else files(seen)
    path = listing(tmp_path, ["0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl"])
    recipe = {"name": "t", "source": {"jsonl": {"path": path, "listed": listed(web.url("/"))}}, "output": str(tmp_path / "out"), "engine": "local"}
    assert law(run(recipe)) == (24, 20, {"fetch_permanent": 1, "fetch_transient": 1, "unreadable": 2})
    assert law(run({**recipe, "retry": "transient"})) == (24, 20, {"fetch_permanent": 1, "fetch_transient": 1, "unreadable": 2})
    web.script = files
    web.log.clear()
    patient = {**recipe, "source": {"jsonl": {"path": path, "listed": listed(web.url("/"), attempts=9)}}, "retry": "transient"}
    assert law(run(patient)) == (34, 30, {"fetch_permanent": 1, "unreadable": 3})
    assert [p for _, p in web.log if p != "/robots.txt"] == ["/1.jsonl"]
    web.log.clear()
    assert law(run(recipe)) == (34, 30, {"fetch_permanent": 1, "unreadable": 3}) and not web.log
    (tmp_path / "web/3.jsonl").write_bytes(body(DOCS[30:]))
    assert law(run({**recipe, "retry": "failed"})) == law(run(recipe)) == (43, 40, {"unreadable": 3})


def test_how_files_are_got_is_no_part_of_a_recipe_and_what_may_be_had_is():
    def hashed(**block):
        source = Jsonl(path="x", listed=block)
        return source.hashed(source.model_dump(mode="json"))

    assert hashed() == hashed(scratch="/tmp", cache="/c", fetch={"attempts": 9, "min_rate": 1})
    assert hashed() != hashed(fetch={"robots": False}) and hashed() != hashed(prefix="https://a/") and hashed() != hashed(fetch={"max_bytes": 1})
    alone = Jsonl(path="x")
    assert "listed" not in alone.hashed(alone.model_dump(mode="json"))


def test_a_cache_spares_the_next_recipe_the_download_unless_its_bytes_changed(tmp_path, web):
    (tmp_path / "web/a.jsonl.gz").write_bytes(gzip.compress(body()))
    path = listing(tmp_path, [web.url("/a.jsonl.gz"), web.url("/gone.jsonl")])
    source = Jsonl(path=path, listed={**listed(), "cache": str(tmp_path / "cache")})
    for asked in (1, 1):
        records, rejected = read(source)
        assert texts(records) == DOCS and [r.reason for r in rejected] == ["fetch_permanent"] and web.asked("/a.jsonl.gz") == asked
    (kept,) = (tmp_path / "cache").glob("*.gz")
    kept.write_bytes(gzip.compress(body(["poison"])))
    assert texts(read(source)[0]) == DOCS and web.asked("/a.jsonl.gz") == 2
    assert not list((tmp_path / "cache").glob("headwater-fetch-*"))


def test_a_killed_job_leaves_no_scratch_once_it_has_run_again(tmp_path, web):
    (tmp_path / "web/a.jsonl").write_bytes(body())
    files = shelf(tmp_path / "web")
    web.script = lambda seen: Answer(body() * 99, how="stall") if seen.path == "/a.jsonl" and seen.attempt == 0 else files(seen)
    path = listing(tmp_path, [web.url("/a.jsonl")])
    block = {**listed(grace=30.0), "scratch": str(tmp_path / "room")}
    recipe = {"name": "t", "source": {"jsonl": {"path": path, "listed": block}}, "output": str(tmp_path / "out"), "engine": "local"}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    argv = [sys.executable, "-m", "pipelines.commands", "run", "text", "-c", str(tmp_path / "r.yaml")]
    child = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        began = time.monotonic()
        while not any(p.stat().st_size for p in (tmp_path / "room").glob("*")):
            assert time.monotonic() - began < 60 and child.poll() is None
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert list((tmp_path / "room").iterdir())
    assert law(run(recipe))[1] == 40 and not list((tmp_path / "room").iterdir())


DATA = os.environ.get("HEADWATER_DATA")


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA is not set")
@pytest.mark.parametrize("kind", ["jsonl", "warc"])
def test_real_files_from_a_server_give_what_they_give_on_disk(tmp_path, web, kind):
    if kind == "warc":
        pytest.importorskip("trafilatura")
        pytest.importorskip("warcio")
    from pipelines.media.child import close_children
    from pipelines.sources.warc import SUFFIXES, Warc

    root = Path(str(DATA), "text", kind) if kind == "jsonl" else Path(str(DATA), "text/warc/warcio")
    cls = {"jsonl": Jsonl, "warc": Warc}[kind]
    web.script = shelf(root)
    names = sorted((str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()), key=str.encode)
    names = [n for n in names if kind == "jsonl" or n.endswith(SUFFIXES)]
    sums = [f"{sha256((root / n).read_bytes()).hexdigest()}  {quote(n)}" for n in names]
    near, bad_near = read(cls(path=str(root)))
    far, bad_far = read(cls(path=listing(tmp_path, sums, "SHA256SUMS"), listed=listed(web.url("/"), max_bytes=10_000_000)))
    close_children()
    assert plain(far, web) == plain(near, web) and len(far) >= (50 if kind == "jsonl" else 7)
    assert [(r.origin.removeprefix(web.url("/")), r.reason) for r in bad_far] == [(r.origin, r.reason) for r in bad_near]
    print(f"{kind}: {len(names)} files, {len(far)} records, {len(bad_far)} rejects, the same from both places")
