"""Plain text files: a file is a document, wherever it is packed; other encodings are told, not guessed; archives stay archives."""

import contextlib
import gzip
import io
import os
import random
import stat
import struct
import zipfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import bounded, listing, zip_stream
from pipelines.filters.line_ratios import LineRatios
from pipelines.format.errors import InputError, RecipeError, Reject
from pipelines.recipe import Recipe
from pipelines.sources.text_folder import TextFolder
from pipelines.zip_stream import members
from tests.pipelines.test_sources_text import read, texts

BOOKS = {"a.txt": "First.\n", "b/c.md": "# Second\n\nä漢", "b/d.txt": "\ufeffThird\r\nline", "z.txt": "Last"}


def shelf(root, books=None):
    for name, text in (BOOKS if books is None else books).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(root)


def zipped(path, books, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as z:
        for name, text in books.items():
            z.writestr(name, text)


def test_a_file_is_a_document_wherever_it_is_packed(tmp_path):
    shelf(tmp_path / "plain", {**BOOKS, "skip.html": "<p>", ".hidden.txt": "x"})
    wanted = ["First.\n", "# Second\n\nä漢", "Third\nline", "Last"]
    near, rejects = read(TextFolder(path=str(tmp_path / "plain"), licence="CC0"))
    assert texts(near) == wanted and not rejects and {r.licence for r in near} == {"CC0"}
    assert [r.origin for r in near] == list(BOOKS)
    for end, pack in {".gz": gzip.compress, ".zst": zstandard.compress}.items():
        packed, _ = read(TextFolder(path=shelf(tmp_path / end, {k + end: pack(v.encode()) for k, v in BOOKS.items()})))
        assert texts(packed) == wanted
    (tmp_path / "zip").mkdir()
    zipped(tmp_path / "zip/x.zip", {**BOOKS, "skip.html": "<p>"})
    members_, rejects = read(TextFolder(path=str(tmp_path / "zip")))
    assert texts(members_) == wanted and not rejects and [r.origin for r in members_] == [f"x.zip!{n}" for n in BOOKS]


def test_parts_are_runs_of_neighbours_and_a_zip_is_its_own(tmp_path, monkeypatch):
    shelf(tmp_path, {f"{i}.txt": "x" * 10 for i in range(9)})
    zipped(tmp_path / "3a.zip", {"m.txt": "member"})
    monkeypatch.setattr(listing.runs, "__defaults__", (25, 1_000, None))
    source = TextFolder(path=str(tmp_path))
    assert [len(p.spec["files"]) for p in source.parts()] == [2, 2, 1, 2, 2, 1]
    assert len(read(source)[0]) == 10
    monkeypatch.setattr(listing.runs, "__defaults__", (1 << 20, 1_000, None))
    assert [r.id for r in read(source)[0]] == [r.id for r in read(TextFolder(path=str(tmp_path)))[0]] and len(source.parts()) == 3


def test_what_is_not_utf8_is_told_unless_its_encoding_is_named(tmp_path):
    books = {
        "a.txt": "Grüße",
        "b.txt": "Grüße".encode("cp1252"),
        "c.txt": "Grüße".encode("utf-16"),
        "d.txt": b"\0\xd8\0\xd8",
        "e.txt": "x".encode("utf-16-le"),
    }
    path = shelf(tmp_path, books)
    records, rejects = read(TextFolder(path=path))
    assert texts(records) == ["Grüße"] and [(r.origin, r.reason) for r in rejects] == [(f"{n}.txt", "unreadable") for n in "bcde"]
    assert "utf-16" in rejects[1].detail
    assert texts(read(TextFolder(path=path, encoding="cp1252"))[0]) == ["Grüße", "Grüße"]
    records, rejects = read(TextFolder(path=path, encoding="utf-16"))
    assert texts(records) == ["Grüße", "Grüße", "x"] and [(r.origin, r.reason) for r in rejects] == [("b.txt", "unreadable"), ("d.txt", "unreadable")]
    from pipelines.format.document import parse

    for bad in ("nonsense", "unicode_escape", "base64", "rot13", "idna", "utf-7"):
        with pytest.raises(RecipeError, match="encoding"):
            parse(Recipe, {"name": "t", "source": {"text_folder": {"path": "x", "encoding": bad}}, "output": "o"})
    with pytest.raises(RecipeError, match="newline"):
        parse(Recipe, {"name": "t", "source": {"text_folder": {"path": "x", "encoding": "utf-16", "split": "blank_lines"}}, "output": "o"})


paragraph = st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc", "Z")), min_size=1, max_size=12), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(st.lists(paragraph, max_size=8), st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", " ", "\t "]), st.integers(1, 3))
def test_blank_lines_part_documents_and_offsets_are_those_of_their_first_byte(tmp_path_factory, paragraphs, newline, blank, gap):
    docs = ["\n".join(p) for p in paragraphs]
    data = (newline + (blank + newline) * gap).join(doc.replace("\n", newline) for doc in docs).encode()
    root = tmp_path_factory.mktemp("split")
    (root / "a.txt").write_bytes(data)
    records, rejects = read(TextFolder(path=str(root), split="blank_lines"))
    assert texts(records) == docs and not rejects
    for r in records:
        assert data[int(r.origin.removeprefix("a.txt#")) :].decode().replace("\r", "").startswith(r.segments[0].text)


def test_rules_about_lines_judge_a_file_the_same_whatever_its_lines_end_in(tmp_path):
    text = "A sentence that ends as one should.\n" * 4 + "No end here\n"
    for name, newline in (("unix", "\n"), ("windows", "\r\n"), ("old mac", "\r")):
        records, _ = read(TextFolder(path=shelf(tmp_path / name, {"a.txt": text.replace("\n", newline)})))
        assert texts(records) == [text] and LineRatios(min_ended=0.8).reason(records[0]) is None


def test_documents_have_a_largest_size_and_one_that_is_larger_costs_itself(tmp_path):
    path = shelf(tmp_path, {"a.txt": "x" * 101, "b.txt": "y" * 100, "c.txt": " \n", "d.txt": ""})
    records, rejects = read(TextFolder(path=path, max_bytes=100))
    assert texts(records) == ["y" * 100]
    assert [(r.origin, r.reason) for r in rejects] == [("a.txt", "too_large"), ("c.txt", "empty"), ("d.txt", "empty")]
    path = shelf(tmp_path / "s", {"a.txt": "one\n\n" + "x" * 300 + "\n\ntwo\n\n" + "word\n" * 50 + "\nthree"})
    records, rejects = read(TextFolder(path=path, max_bytes=100, split="blank_lines"))
    assert texts(records) == ["one", "two", "three"] and [(r.origin, r.reason) for r in rejects] == [
        ("a.txt#5", "too_large"),
        ("a.txt#312", "too_large"),
    ]


def test_a_cut_file_and_a_bomb_cost_themselves_and_no_neighbour(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "FREE", 1 << 20)
    whole = gzip.compress(random.Random(0).randbytes(50_000).hex().encode())
    path = shelf(tmp_path, {"a.txt.gz": whole[:-5_000], "b.txt.gz": gzip.compress(b"a" * (8 << 20)), "c.txt": "fine"})
    records, rejects = read(TextFolder(path=path))
    assert texts(records) == ["fine"] and [(r.origin, r.reason) for r in rejects] == [("a.txt.gz", "truncated"), ("b.txt.gz", "too_large")]


def test_a_folder_without_texts_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"\*\.md"):
        TextFolder(path=shelf(tmp_path, {"a.html": "x"})).parts()
    assert len(read(TextFolder(path=str(tmp_path), names=["*"]))[0]) == 1


# ---- archives ------------------------------------------------------------------------------------------------------------------------


def hostile(path):
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("good.txt", "good")
        z.writestr(link, "/etc/passwd")
        for name in ("../out.txt", "/abs.txt", "a/../../b.txt", "c\\d.txt", "good.txt", "n" * 300 + ".txt"):
            z.writestr(name, "bad")
        z.writestr("lzma.txt", "x", zipfile.ZIP_LZMA)
        z.writestr("end.txt", "end", zipfile.ZIP_DEFLATED)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_members_cost_themselves(tmp_path):
    hostile(tmp_path / "x.zip")
    records, rejects = read(TextFolder(path=str(tmp_path)))
    assert texts(records) == ["good", "end"] and len(rejects) == 8 and {r.reason for r in rejects} == {"not_allowed"}
    assert os.listdir(tmp_path) == ["x.zip"]


def overlapping(copies, size):
    """One deflated member that the directory names many times: a few KB that unpack to copies × size."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("00000.txt", b"a" * size)
    data = out.getvalue()
    at = data.index(b"PK\1\2")
    entry, end = data[at : data.index(b"PK\5\6")], data[data.index(b"PK\5\6") :]
    entries = b"".join(entry.replace(b"00000.txt", b"%05d.txt" % i) for i in range(copies))
    head = end[:8] + struct.pack("<HHI", copies, copies, len(entries)) + end[16:]
    return data[:at] + entries + head


def test_an_archive_of_overlapping_members_stops_at_its_ratio(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_stream, "FREE", 1 << 20)
    (tmp_path / "x.zip").write_bytes(overlapping(300, 1 << 20))
    records, rejects = read(TextFolder(path=str(tmp_path)))
    assert len(records) < 40 and rejects and {r.reason for r in rejects} <= {"too_large", "unreadable"}


def test_a_directory_beyond_reason_is_not_read(tmp_path, monkeypatch):
    zipped(tmp_path / "x.zip", {f"{i}.txt": "x" for i in range(50)})
    monkeypatch.setattr(zip_stream, "MAX_DIRECTORY", 1_000)
    assert [(r.origin, r.reason) for r in read(TextFolder(path=str(tmp_path)))[1]] == [("x.zip", "too_large")]


def test_cut_damaged_and_encrypted_archives_are_told(tmp_path):
    zipped(tmp_path / "whole.zip", {"a.txt": "x" * 5_000, "b.txt": random.Random(1).randbytes(4_000).hex()})
    data = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "whole.zip").unlink()
    (tmp_path / "cut.zip").write_bytes(data[:-30])
    flipped = bytearray(data)
    flipped[data.index(b"PK\3\4", 10) + 60] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(flipped)
    locked = bytearray(data)
    locked[locked.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    (tmp_path / "page.zip").write_bytes(b"<html>not found</html>")
    records, rejects = read(TextFolder(path=str(tmp_path)))
    assert {(r.origin, r.reason) for r in rejects} == {
        ("cut.zip", "unreadable"), ("flipped.zip!b.txt", "unreadable"), ("locked.zip!a.txt", "not_allowed"), ("page.zip", "unreadable"),
    }  # fmt: skip
    assert [r.origin for r in records] == ["flipped.zip!a.txt", "locked.zip!b.txt"]


BASE = io.BytesIO()
zipped(BASE, {"a.txt": "x" * 500, "b/c.txt": "some words " * 40, "d.txt": ""})


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(BASE.getvalue()) - 1), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 60))
def test_no_mutation_of_an_archive_gives_anything_but_members_and_rejects(edits, cut):
    data = bytearray(BASE.getvalue())
    for at, value in edits:
        data[at] = value
    try:
        for _, stream in members(io.BytesIO(bytes(data[: len(data) - cut])), lambda name: True):
            if not isinstance(stream, Reject):
                with contextlib.suppress(Reject):
                    assert len(stream.read(10_000)) <= 10_000
    except Reject:
        pass


DATA = os.environ.get("HEADWATER_DATA")


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA is not set")
def test_real_corpora_are_read_whole():
    root = Path(str(DATA), "text")
    speeches, rejects = read(TextFolder(path=str(root / "speeches")))
    assert len(speeches) == 58 and [(r.origin, r.reason) for r in rejects] == [("inaugural.zip!inaugural/2005-Bush.txt", "unreadable")]
    assert len(read(TextFolder(path=str(root / "speeches"), encoding="cp1252"))[0]) == 59
    whole, rejects = read(TextFolder(path=str(root / "udhr/udhr2.zip"), names=["*.txt"]))
    assert len(whole) == 387 and [r.reason for r in rejects] == ["empty"]
    legacy, rejects = read(TextFolder(path=str(root / "udhr/udhr.zip"), names=["*"]))
    assert len(legacy) > 100 and len(rejects) > 150 and {r.reason for r in rejects} == {"unreadable"}
    assert len(read(TextFolder(path=str(root / "sentences_by_language")))[0]) == 27
