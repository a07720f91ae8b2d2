"""Web archives: pages become text, everything else is counted, and damage costs what it touches and nothing else."""

import gzip
import io
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("warcio")
pytest.importorskip("trafilatura")

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.html_text import page_text
from pipelines.media.child import close_children
from pipelines.sources.warc import Warc
from pipelines.warc_records import records

PROSE = "The river ran down from the hills to the sea, and {n} people walked beside it all day without saying a word."
ARC = b"filedesc://x.arc 127.0.0.1 20140301 text/plain 14\n1 0 org\nURL IP\n\n"


@pytest.fixture(autouse=True, scope="module")
def no_child_is_left():
    yield
    close_children()


def page(n, extra=""):
    body = "".join(f"<p>{PROSE.format(n=n * 10 + k)}</p>" for k in range(4))
    return f"<!DOCTYPE html><html><head><title>t</title></head><body><nav>menu one two</nav><article>{body}{extra}</article></body></html>"


def response(writer, n, body=None, kind="text/html; charset=utf-8", status="200 OK", more=()):
    http = StatusAndHeaders(status, [("Content-Type", kind), *more] if kind else list(more), protocol="HTTP/1.1")
    body = page(n).encode() if body is None else body
    headers = {"WARC-Date": "2020-01-01T00:00:00Z", "WARC-Record-ID": f"<urn:uuid:{n:032d}>"}
    return writer.create_warc_record(f"http://a.org/{n}", "response", payload=io.BytesIO(body), http_headers=http, warc_headers_dict=headers)


def archive(make, packed=False):
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=packed)
    for record in make(writer):
        writer.write_record(record)
    return out.getvalue()


def read(folder, name, data, **options):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    source = Warc(path=str(folder), **options)
    found = [x for p in source.parts() for x in source.read(p.spec, "t")]
    return [x for x in found if isinstance(x, Record)], [x for x in found if not isinstance(x, Record)]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_pages_become_their_main_text(tmp_path, name):
    good, bad = read(tmp_path, name, archive(lambda w: [response(w, n) for n in range(3)], name.endswith("gz")))
    assert not bad and len(good) == 3
    for n, record in enumerate(good):
        assert record.segments[0].text.count("river") == 4 and "menu" not in record.segments[0].text
        assert record.url == record.group == f"http://a.org/{n}" and record.fields == {"date": "2020-01-01T00:00:00Z"}
        assert record.origin.startswith(f"{name}#")
    assert len({r.id for r in good}) == 3


def test_the_same_records_come_out_packed_and_plain(tmp_path):
    make = lambda w: [response(w, n) for n in range(3)]
    plain, _ = read(tmp_path / "a", "x.warc", archive(make))
    packed, _ = read(tmp_path / "b", "x.warc.gz", archive(make, True))
    assert [(r.origin.partition("#")[2], r.segments) for r in plain] == [(r.origin.partition("#")[2], r.segments) for r in packed]


def test_what_is_no_page_is_counted_by_reason_and_what_is_no_document_passed_over(tmp_path):
    packed = gzip.compress(page(9).encode())

    def make(w):
        return [
            w.create_warcinfo_record("x", {"software": "y"}),
            response(w, 0, b"\x89PNG", "image/png"),
            response(w, 1, status="404 Not Found"),
            response(w, 2, b"<html><body></body></html>"),
            response(w, 3, b"plain words", ""),
            response(w, 4, kind=""),
            response(w, 5, packed, more=[("Content-Encoding", "gzip")]),
            response(w, 6, b"x" * 3_000),
            w.create_warc_record("http://a.org/w", "conversion", payload=io.BytesIO("Nur Text, schön.".encode()), warc_content_type="text/plain"),
        ]

    good, bad = read(tmp_path, "a.warc", archive(make), max_record=2_500)
    assert Counter(x.reason for x in bad) == {"not_html": 2, "http_status": 1, "empty": 1, "too_large": 1}
    assert len(good) == 3 and good[-1].segments[0].text == "Nur Text, schön."


def test_a_page_that_unpacks_beyond_the_cap_is_refused(tmp_path):
    bomb = gzip.compress(b"<html>" + b" " * 5_000_000)
    good, bad = read(
        tmp_path, "a.warc", archive(lambda w: [response(w, 0, bomb, more=[("Content-Encoding", "gzip")]), response(w, 1)]), max_record=1_000_000
    )
    assert [x.reason for x in bad] == ["too_large"] and len(good) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "windows-1251"])
def test_pages_in_other_encodings_are_read(tmp_path, encoding):
    text = "Река текла с холмов к морю, и люди весь день шли вдоль неё, не говоря ни слова. " * 5
    good, _ = read(
        tmp_path, "a.warc", archive(lambda w: [response(w, 0, f"<html><body><article><p>{text}</p></article></body></html>".encode(encoding))])
    )
    assert "Река текла" in good[0].segments[0].text


def test_a_wrong_length_costs_the_records_it_garbles_and_no_other(tmp_path):
    parts = [archive(lambda w, n=n: [response(w, n)]) for n in range(5)]
    length = len(parts[1].partition(b"\r\n\r\n")[2]) - 4
    short = parts[1].replace(f"Content-Length: {length}".encode(), b"Content-Length: 10")
    long = parts[3].replace(f"Content-Length: {length}".encode(), f"Content-Length: {length + 200}".encode())
    assert short != parts[1] and long != parts[3]
    good, bad = read(tmp_path, "a.warc", parts[0] + short + parts[2] + long + parts[4])
    assert {r.url[-1] for r in good} >= {"0", "2"} and bad
    good, bad = read(tmp_path / "b", "a.warc", parts[0] + b"garbage\n" * 30 + parts[2])
    assert [r.url[-1] for r in good] == ["0", "2"] and [x.reason for x in bad] == ["unreadable"]


def test_a_cut_archive_gives_what_came_before_the_cut(tmp_path):
    noise = "".join(random.Random(0).choices("abcdefgh ", k=60_000))  # the last 16 KB before a cut are lost with it
    data = archive(lambda w: [response(w, n, page(n, f"<!-- {noise} -->").encode()) for n in range(4)], True)
    good, bad = read(tmp_path, "a.warc.gz", data[: len(data) * 3 // 4])
    assert [r.url[-1] for r in good] == ["0", "1"] and [x.reason for x in bad] == ["truncated"]


def test_an_archive_that_unpacks_without_end_is_stopped(tmp_path, monkeypatch):
    from pipelines import bounded

    monkeypatch.setattr(bounded, "FREE", 1 << 20)
    data = archive(lambda w: [response(w, 0)], True) + gzip.compress(b"\0" * (64 << 20))
    good, bad = read(tmp_path, "a.warc.gz", data)
    assert len(good) == 1 and bad[-1].reason == "too_large"


def test_arc_files_are_read(tmp_path):
    body = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page(1).encode()
    line = f"http://a.org/1 1.2.3.4 20140301000000 text/html {len(body)}\n".encode()
    good, bad = read(tmp_path, "a.arc", ARC + line + body + b"\n" + line + body + b"\n")
    assert not bad and [r.url for r in good] == ["http://a.org/1"] * 2 and "river" in good[0].segments[0].text


def test_the_packaged_recipe_makes_a_corpus_and_keeps_what_it_dropped(tmp_path):
    pytest.importorskip("datatrove")
    from pipelines.curate import TEXT
    from pipelines.engine import open_job
    from pipelines.format.dataset import Dataset
    from pipelines.format.document import load
    from pipelines.plugins import packaged
    from pipelines.recipe import Recipe

    def prose(n):
        draw = random.Random(n)
        lines = []
        for _ in range(9):
            words = ["".join(draw.choices("abcdefghilmnoprstu", k=draw.randint(3, 8))) for _ in range(9)]
            lines.append(f"The {words[0]} and {' '.join(words[1:5])} of {' '.join(words[5:])}.")
        return f"<html><body><article>{''.join(f'<p>{line}</p>' for line in lines)}</article></body></html>".encode()

    (tmp_path / "crawl").mkdir()
    bodies = [prose(1), prose(2), prose(1), page(1).encode(), b"<html><body><p>Too short to keep it here.</p></body></html>"]
    (tmp_path / "crawl" / "a.warc").write_bytes(archive(lambda w: [response(w, n, b) for n, b in enumerate(bodies)]))
    options = [f"source.warc.path={tmp_path}/crawl", f"output={tmp_path}/d", "engine=local"]
    recipe = load(Recipe, "web_text", options, packaged("text"))
    with open_job("local") as job:
        TEXT.run(recipe, job)
    card, dropped = (Dataset.open(str(tmp_path / "d" / name)).card for name in ("", "dropped"))
    assert card["in"] == 5 and card["written"] == 2 and card["filtered"]["exact_text"] == 1
    assert dropped["records"] == sum(card["filtered"].values()) == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2_000), st.binary(max_size=8)), max_size=6), st.integers(1, 3_000))
def test_no_mutation_breaks_the_frame_reader(edits, cap):
    data = bytearray(archive(lambda w: [response(w, n, b"<p>x</p>" * 20) for n in range(3)]))
    for at, piece in edits:
        data[at % len(data) : at % len(data) + len(piece)] = piece
    found = list(records(io.BytesIO(bytes(data)), cap))
    ats = [at for at, _ in found]
    assert ats == sorted(set(ats)) and all(isinstance(x, Reject) or len(x) <= cap + (64 << 10) for _, x in found)


def test_the_text_of_a_page_is_datatroves_and_depends_on_no_other_page():
    from datatrove.pipeline.extractors import Trafilatura
    from trafilatura import deduplication

    twice = page(1, extra="".join(f"<p>{PROSE.format(n=7)}</p>" for _ in range(3)))
    for html in (page(1), page(2), twice):
        deduplication.LRU_TEST.clear()
        assert page_text(html) == Trafilatura().extract(html)
    assert page_text(page(1)) == page_text(page(1))


@pytest.mark.skipif("HEADWATER_DATA" not in os.environ, reason="needs the sample data")
def test_real_archives_give_what_they_hold():
    folder = Path(os.environ["HEADWATER_DATA"]) / "text" / "warc"
    expected = {
        "dolma": (22, {}),
        "jwarc": (1, {}),
        "daft": (1, {"not_html": 10}),
        "resiliparse": (45, {}),
        "warcio": (7, {"unreadable": 3, "http_status": 1, "truncated": 1}),
    }
    for name, (n, reasons) in expected.items():
        source = Warc(path=str(folder / name))
        found = [x for p in source.parts() for x in source.read(p.spec, "t")]
        assert sum(isinstance(x, Record) for x in found) == n
        assert Counter(x.reason for x in found if not isinstance(x, Record)) == reasons, name
