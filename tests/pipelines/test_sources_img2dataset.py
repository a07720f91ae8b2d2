"""img2dataset's output folders, in its three forms: every row of its Parquet files ends once, failures by our own words."""

import io
import tarfile
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.format.errors import InputError
from pipelines.sources.img2dataset import Img2dataset
from tests.pipelines.test_sources_text import read
from tests.toys import jpeg

# (message as img2dataset 1.47 writes it, our word)
FAILURES = [
    ("HTTP Error 404: x", "fetch_permanent"),
    ("HTTP Error 503: x", "fetch_transient"),
    ("HTTP Error 429: Too Many Requests", "fetch_transient"),
    ("Use of image disallowed by X-Robots-Tag directive", "opt_out"),
    ("<urlopen error [Errno 111] Connection refused>", "fetch_transient"),
    ("<urlopen error [Errno -2] Name or service not known>", "fetch_permanent"),
    ("[Errno 104] Connection reset by peer", "fetch_transient"),
    ("timed out", "timeout"),
    ("<urlopen error timed out>", "timeout"),
    ("hash mismatch", "hash_mismatch"),
    ("Image decoding error", "invalid_image"),
    ("image area too large", "too_large"),
    ("image too small", "not_allowed"),
    ("aspect ratio too large", "not_allowed"),
]


def rows(n=4, shard=0):
    """n images, finished out of order, and every failure there is; the first image's hash is that of other, original bytes."""
    out = []
    for i in [*range(1, n), 0]:
        out.append({"caption": f"picture {i}", "url": f"http://a.test/{i}", "key": f"{shard:05d}{i:04d}", "status": "success", "error_message": None,
                    "original_width": 640, "sha256": sha256(b"original" if i == 0 else jpeg(i)).hexdigest(), "jpg": jpeg(i)})  # fmt: skip
    for i, (said, _) in enumerate(FAILURES):
        kind = "failed_to_resize" if "mage" in said or "ratio" in said else "failed_to_download"
        out.append({"caption": "x", "url": "http://b.test/", "key": f"{shard:05d}{n + i:04d}", "status": kind, "error_message": said,
                    "original_width": None, "sha256": None, "jpg": None})  # fmt: skip
    return out


def write(root, form, listed, shard=0, cut=None):
    root.mkdir(exist_ok=True)
    stem = f"{shard:05d}"
    table = pa.Table.from_pylist(listed)
    pq.write_table(table if form == "inside" else table.drop_columns(["jpg"]), root / f"{stem}.parquet")
    (root / f"{stem}_stats.json").write_text("{}")
    good = [r for r in listed if r["status"] == "success"]
    if form == "files":
        (root / stem).mkdir()
        for r in good:
            (root / stem / f"{r['key']}.jpg").write_bytes(r["jpg"])
            (root / stem / f"{r['key']}.json").write_text("{}")
    elif form == "tar":
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for r in good:
                for end, data in (("jpg", r["jpg"]), ("txt", b"x"), ("json", b"{}")):
                    info = tarfile.TarInfo(f"{r['key']}.{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        (root / f"{stem}.tar").write_bytes(out.getvalue()[:cut])
    return str(root)


@pytest.mark.parametrize("form", ["tar", "files", "inside"])
def test_every_form_gives_all_pairs_and_all_failures(tmp_path, form):
    for shard in (0, 1):
        path = write(tmp_path / "in", form, rows(shard=shard), shard)
    source = Img2dataset(path=path, keep=("original_width",))
    assert len(source.parts()) == 2
    records, rejects = read(source)
    assert [r.segments[1].text for r in records] == ["picture 1", "picture 2", "picture 3", "picture 0"] * 2
    assert [r.segments[0].payload for r in records[:4]] == [jpeg(i) for i in (1, 2, 3, 0)]
    assert [r.reason for r in rejects] == [word for _, word in FAILURES] * 2
    assert len({r.id for r in records} | {r.origin for r in rejects}) == 2 * len(rows())
    first = records[3]
    assert (first.group, first.url, first.fields) == (sha256(b"original").hexdigest(), "http://a.test/0", {"original_width": 640})
    ends = {"tar": "00000.tar!000000000.jpg", "files": "00000/000000000.jpg", "inside": "00000.parquet#3"}
    assert first.origin == ends[form]


def test_what_is_missing_or_damaged_costs_itself(tmp_path):
    listed = rows()
    listed[1]["jpg"] = b"<html>"
    path = write(tmp_path / "in", "tar", listed, cut=512 * 14)
    records, rejects = read(Img2dataset(path=path))
    assert len(records) + len(rejects) == len(listed)
    lost = [r.reason for r in rejects if r.reason in ("truncated", "invalid_image")]
    assert [r.segments[1].text for r in records] == ["picture 1"] and lost[0] == "invalid_image" and lost.count("truncated") == 2
    path = write(tmp_path / "files", "files", rows())
    (tmp_path / "files/00000/000000002.jpg").unlink()
    records, rejects = read(Img2dataset(path=path))
    assert len(records) == 3 and rejects[0].reason == "unreadable" and "000000002" in rejects[0].detail


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="img2dataset"):
        Img2dataset(path=str(tmp_path)).parts()


def test_a_shard_whose_rows_all_failed_has_only_its_table(tmp_path):
    path = write(tmp_path, "files", rows())
    table = pa.Table.from_pylist(rows()[4:]).drop_columns(["jpg"])
    pq.write_table(table, tmp_path / "00001.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "00002.parquet")
    (tmp_path / "00003.parquet").write_bytes(b"PAR1 cut")
    records, rejects = read(Img2dataset(path=path))
    assert len(records) == 4 and len(rejects) == 2 * len(FAILURES) + 1 and rejects[-1].origin == "00003.parquet"
