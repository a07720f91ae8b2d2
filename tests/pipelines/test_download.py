"""Files of gigabytes: whole or not there, taken up where they stopped and only while they are the same file, never held in memory."""

import gzip
import json
import os
import random
import subprocess
import sys
import time
import zlib
from hashlib import md5, sha256
from pathlib import Path

import pytest

from pipelines.fetch import Ask, Fetcher, download
from pipelines.fetch.download import Download
from pipelines.fetch.kept import Kept
from pipelines.fetch.policy import FilePolicy
from pipelines.fetch.robots import Known
from pipelines.fetch.scratch import renamed, scratch, sweep
from pipelines.format.errors import StorageError
from tests.fault_server import Answer, Canary, FaultServer, ranged

QUICK = {"backoff": 0.01, "grace": 0.4, "min_rate": 10_000, "deadline": 2.0, "patience": 20.0, "connect": 1.0, "attempts": 4, "robots": False}
DATA = random.Random(5).randbytes(3_000_001)


def get(script, folder, path="/f.bin", digest=None, url=None, **policy):
    """(outcome, what is in the file, the server's log of (path, Range))."""
    log = []

    def logged(seen):
        log.append((seen.path, seen.fields.get("Range"), seen.fields.get("If-Range")))
        return script(seen)

    rules = FilePolicy(**{**QUICK, **policy})
    with FaultServer(logged) as server, Fetcher(rules, private=frozenset([server.pair]), resolve=lambda name: ["127.0.0.1"], known=Known()) as f:
        where = folder / "file"
        with open(where, "wb") as file:
            into = Download(file, str(where), path, rules, digest)
            found = f.download(Ask(url(server) if url else server.url(path), digest), into)
        return found, where.read_bytes(), log


def test_a_file_comes_whole_with_its_size_and_hash(tmp_path):
    for how in ("whole", "chunked"):
        found, data, log = get(lambda seen, how=how: Answer(DATA, how=how), tmp_path, digest=sha256(DATA).hexdigest())
        assert (found.status, found.body, data == DATA, len(log)) == ("ok", b"", True, 1)
        assert found.evidence["sha256"] == sha256(DATA).hexdigest() and found.evidence["bytes"] == len(DATA) and found.evidence["verified"]


@pytest.mark.parametrize("how", ["short", "break", "stall"])
def test_a_body_that_breaks_off_goes_on_where_it_stopped(tmp_path, how):
    script = lambda seen: ranged(seen, DATA, how if seen.attempt < 2 else "whole")
    found, data, log = get(script, tmp_path, digest=md5(DATA).hexdigest())
    assert (found.status, data == DATA, found.requests) == ("ok", True, 3)
    starts = [int(r.removeprefix("bytes=").rstrip("-")) if r else 0 for _, r, _ in log]
    assert starts == sorted(starts) and len(set(starts)) == 3 and log[2][2] == '"v1"'
    if how == "short":
        assert starts == [0, len(DATA) // 2, len(DATA) // 2 + (len(DATA) - len(DATA) // 2) // 2]


def test_a_date_serves_where_there_is_no_tag_and_a_weak_or_young_one_does_not(tmp_path):
    old, now = "Wed, 01 Jan 2020 00:00:00 GMT", "Wed, 01 Jan 2020 00:10:00 GMT"
    heads = [({"Last-Modified": old, "Date": now}, True), ({"Last-Modified": now, "Date": now}, False), ({"ETag": 'W/"v"'}, False), ({}, False),
             ({"ETag": '"v"', "Accept-Ranges": "none"}, False), ({"ETag": '"a\tb"'}, False)]  # fmt: skip
    for head, goes_on in heads:
        script = lambda seen, head=head: Answer(DATA, headers=head, how="whole" if seen.attempt else "short")
        found, data, log = get(script, tmp_path)
        assert (found.status, data == DATA, log[1][1] is not None) == ("ok", True, goes_on), head
        assert log[1][2] == (old if goes_on else None)


def test_what_is_said_of_a_file_does_not_tell_how_often_it_broke_off(tmp_path):
    said = {"Content-Type": "video/mp4", "TDM-Reservation": "0"}  # a part that answers If-Range need not repeat them

    def script(broken):
        def run(seen):
            whole = ranged(seen, DATA, "short" if seen.attempt < broken else "whole")
            return whole if whole.status == 206 else ranged(seen, DATA, whole.how, **said)

        return run

    told = [get(script(broken), tmp_path)[0].evidence for broken in (0, 1, 2)]
    ports = [{**e, "url": e["url"].rpartition("/")[2]} for e in told]
    assert ports[0] == ports[1] == ports[2] and ports[0]["http"] == 200 and ports[0]["type"] == "video/mp4"


OTHER = random.Random(6).randbytes(len(DATA))


def changed(seen):
    """The file is another one from the second request on."""
    return ranged(seen, DATA, "short", '"v1"') if seen.attempt == 0 else ranged(seen, OTHER, "whole", '"v2"')


def careless(seen):
    """So it is here, but the server looks at no If-Range; its tag tells."""
    return ranged(seen, DATA, "short", '"v1"') if seen.attempt == 0 else forgetful(seen, OTHER, '"v2"')


def forgetful(seen, body, tag='"v1"'):
    start = int(seen.fields.get("Range", "bytes=0-")[6:-1])
    if "Range" not in seen.fields:
        return Answer(body, headers={"ETag": tag})
    return Answer(body[start:], 206, {"ETag": tag, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})


def longer(seen):
    """It has grown, under the same tag."""
    return ranged(seen, DATA, "short") if seen.attempt == 0 else forgetful(seen, OTHER + b"more")


def gone(seen):
    """It has shrunk: there is no such range."""
    if seen.attempt == 0:
        return ranged(seen, DATA, "short")
    return Answer(b"", 416) if seen.attempt == 1 else Answer(OTHER)


def elsewhere(seen):
    """The range is not the one asked for."""
    if seen.attempt == 0:
        return ranged(seen, DATA, "short")
    wrong = Answer(DATA[:500], 206, {"ETag": '"v1"', "Content-Range": f"bytes 0-499/{len(DATA)}"})
    return wrong if seen.attempt == 1 else Answer(OTHER)


@pytest.mark.parametrize("script", [changed, careless, longer, gone, elsewhere])
def test_two_files_are_never_joined(tmp_path, script):
    found, data, log = get(script, tmp_path)
    wanted = OTHER + b"more" if script is longer else OTHER
    assert (found.status, data == wanted, found.evidence["sha256"]) == ("ok", True, sha256(wanted).hexdigest())
    assert len(log) == (2 if script is changed else 3)


def test_joined_pieces_with_another_hash_are_fetched_once_more_before_they_are_refused(tmp_path):
    def lying(seen):
        return ranged(seen, DATA, "short") if seen.attempt == 0 else forgetful(seen, OTHER) if seen.attempt == 1 else ranged(seen, DATA)

    found, data, log = get(lying, tmp_path, digest=sha256(DATA).hexdigest())
    assert (found.status, data == DATA, len(log)) == ("ok", True, 3)
    found, data, log = get(lambda seen: ranged(seen, OTHER, "whole" if seen.attempt else "short"), tmp_path, digest=sha256(DATA).hexdigest())
    assert (found.status, len(log), log[2][1]) == ("hash_mismatch", 3, None)
    found, _, log = get(lambda seen: Answer(OTHER), tmp_path, digest=sha256(DATA).hexdigest())
    assert (found.status, len(log)) == ("hash_mismatch", 1)


def test_attempts_begin_anew_with_progress_and_only_with_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RENEWED", 200_000)

    def steps(seen):  # 200 KB more with each request, then the connection ends
        answer = ranged(seen, DATA)
        return Answer(b"HTTP/1.1 %d x\r\n" % answer.status + b"".join(f"{k}: {v}\r\n".encode() for k, v in answer.headers.items())
                      + b"Content-Length: %d\r\n\r\n" % len(answer.body) + answer.body[:200_000], how="raw")  # fmt: skip

    found, data, log = get(steps, tmp_path)
    assert (found.status, data == DATA, len(log)) == ("ok", True, 16)
    monkeypatch.setattr(download, "RENEWED", 200_001)
    found, _, log = get(steps, tmp_path)
    assert (found.status, len(log)) == ("fetch_transient", 4)
    no_range = lambda seen: Answer(DATA, how="short")
    found, _, log = get(no_range, tmp_path)
    assert (found.status, len(log)) == ("fetch_transient", 5)  # the first attempt brought much; what starts over brings nothing new


@pytest.mark.parametrize(("answer", "status", "asked"), [
    (Answer(b"no", 404), "fetch_permanent", 1), (Answer(b"part", 206), "fetch_permanent", 1), (Answer(b"", 503), "fetch_transient", 4),
    (Answer(b"x", headers={"X-Robots-Tag": "noai"}), "opt_out", 1), (Answer(b"x", headers={"TDM-Reservation": "1"}), "opt_out", 1),
    (Answer(how="endless"), "too_large", 1), (Answer(b"x" * 5_000_001), "too_large", 1), (Answer(b"x" * 5_000_001, how="chunked"), "too_large", 1),
    (Answer(b"x" * 99, how="drip"), "timeout", 4), (Answer(b"x" * 99, how="drip_head"), "timeout", 4), (Answer(how="reset"), "fetch_transient", 4),
    (Answer(b"x", headers={"Content-Encoding": "br"}), "fetch_permanent", 1),
])  # fmt: skip
def test_what_cannot_be_had_ends_with_the_word_of_the_contract(tmp_path, answer, status, asked):
    began = time.monotonic()
    found, _, log = get(lambda seen: answer, tmp_path, max_bytes=5_000_000, deadline=0.6, grace=0.3, backoff=0.0)
    assert (found.status, len(log), found.body) == (status, asked, b"")
    assert time.monotonic() - began < 6


def test_robots_and_every_redirect_are_judged_before_the_body(tmp_path):
    def script(seen):
        if seen.path == "/robots.txt":
            return Answer(b"User-agent: *\nDisallow: /private/\n")
        return Answer(DATA) if not seen.path.startswith("/to") else Answer(status=302, headers={"Location": targets[seen.path]})

    with Canary() as canary:
        private = [f"http://127.0.0.2:{canary.port}/x", f"http://[::1]:{canary.port}/x", "http://169.254.169.254/latest", "file:///etc/passwd"]
        targets = {f"/to{i}": t for i, t in enumerate([*private, "/private/x", "/good"])}
        ends = [get(script, tmp_path, p, robots=True)[0].status for p in [*targets, "/private/x"]]
        assert ends == ["not_allowed"] * 4 + ["opt_out", "ok", "opt_out"] and canary.hits == 0
    found, _, log = get(script, tmp_path, "/x", robots=True, url=lambda s: s.url("/x").replace("http:", "ftp:"))
    assert found.status == "not_allowed" and not log


def test_a_fast_start_buys_no_stall_and_a_steady_body_may_take_its_time(tmp_path):
    began = time.monotonic()
    found, _, _ = get(lambda seen: Answer(DATA, how="stall"), tmp_path, attempts=1, min_rate=10_000, grace=0.5)
    assert found.status == "timeout" and time.monotonic() - began < 3  # a mean rate would have waited for 150 s
    found, data, _ = get(lambda seen: Answer(b"x" * 12, how="drip"), tmp_path, attempts=1, min_rate=1, grace=0.5, deadline=0.5)
    assert (found.status, data) == ("ok", b"x" * 12)  # 2.4 s in all, four deadlines


BOMB = zlib.compressobj(9, zlib.DEFLATED, 31)
BOMB = BOMB.compress(bytes(60_000_000)) + BOMB.flush()


def test_what_was_packed_unasked_is_unpacked_within_limits_and_what_is_published_packed_stays_so(tmp_path):
    text = b"words and words\n" * 9_000
    for name, body in {"gzip": gzip.compress(text), "deflate": zlib.compress(text)}.items():
        for digest in (sha256(text).hexdigest(), sha256(body).hexdigest(), md5(text).hexdigest(), md5(body).hexdigest()):
            found, data, _ = get(lambda seen, b=body, n=name: Answer(b, headers={"Content-Encoding": n}), tmp_path, "/a.jsonl", digest)
            assert (found.status, data == text, found.evidence["verified"]) == ("ok", True, True)
    members = gzip.compress(text) + gzip.compress(text)  # as every WARC is packed
    found, data, _ = get(lambda seen: Answer(members, headers={"Content-Encoding": "gzip"}), tmp_path, "/a.warc.gz", sha256(members).hexdigest())
    assert (found.status, data == members) == ("ok", True)
    for path, body, status in [("/a", BOMB, "too_large"), ("/a", members, "fetch_permanent"), ("/a", gzip.compress(text)[:-9], "fetch_transient")]:
        found, data, _ = get(lambda seen, b=body: Answer(b, headers={"Content-Encoding": "gzip"}), tmp_path, path, attempts=2)
        assert found.status == status and len(data) < 20_000_000
    cut = lambda seen: ranged(seen, gzip.compress(text), "whole" if seen.attempt else "short", **{"Content-Encoding": "gzip"})
    found, data, log = get(cut, tmp_path)
    assert (found.status, data == text, log[1][1]) == ("ok", True, None)  # half an unpacking cannot be taken up


def test_a_full_disk_is_told_as_such_and_is_no_fault_of_the_server(tmp_path):
    with FaultServer(lambda seen: Answer(DATA)) as server, open("/dev/full", "wb") as file:
        rules = FilePolicy(**QUICK)
        with Fetcher(rules, private=frozenset([server.pair]), known=Known()) as f, pytest.raises(StorageError, match="no space left"):
            f.download(Ask(server.url("/x")), _Unseekable(file, rules))
        assert len(server.log) == 1


class _Unseekable(Download):
    """/dev/full cannot be truncated."""

    def __init__(self, file, rules):
        super().__init__(_Full(file), "/dev/full", "/x", rules)


class _Full:
    def __init__(self, file):
        self.write, self.flush = file.write, file.flush

    def seek(self, at):
        pass

    def truncate(self):
        pass


CHILD = """
import json, sys
from pipelines.fetch import Ask, Fetcher
from pipelines.fetch.download import Download
from pipelines.fetch.policy import FilePolicy
from pipelines.fetch.robots import Known
from tests.peak import most_held
url, where, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
rules = FilePolicy(robots=False)
with open(where, "wb") as file, Fetcher(rules, private=frozenset([("127.0.0.1", port)]), known=Known()) as f:
    f.download(Ask(url + "small"), Download(file, where, "/small", rules))
    before = most_held()
    found = f.download(Ask(url + "large"), Download(file, where, "/large", rules))
print(json.dumps([found.status, found.evidence["bytes"], found.evidence["sha256"], most_held() - before]))
"""


def test_300_megabytes_take_a_few_of_memory(tmp_path):
    block, times = random.Random(1).randbytes(1 << 20), 300
    script = lambda seen: Answer(block, times=times if seen.path == "/large" else 1)
    with FaultServer(script) as server:
        argv = [sys.executable, "-c", CHILD, server.url("/"), str(tmp_path / "f"), str(server.port)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    status, size, digest, grown = json.loads(done.stdout)
    whole = sha256()
    for _ in range(times):
        whole.update(block)
    assert (status, size, digest) == ("ok", times << 20, whole.hexdigest())
    assert os.path.getsize(tmp_path / "f") == times << 20 and grown < 8 << 20, grown


def test_scratch_files_go_with_their_block_and_those_of_the_dead_with_the_next(tmp_path):
    with pytest.raises(KeyError), scratch(str(tmp_path)) as (file, path):
        file.write(b"x")
        renamed(path, ".gz")
        raise KeyError
    assert not list(tmp_path.iterdir())
    held = f"with scratch({str(tmp_path)!r}):\n    print('ready', flush=True)\n    time.sleep(60)"
    code = f"import time\nfrom pipelines.fetch.scratch import scratch\n{held}"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n" and len(list(tmp_path.iterdir())) == 1
    assert sweep(tmp_path) == 0
    with scratch(str(tmp_path)):  # another worker
        assert len(list(tmp_path.iterdir())) == 2
    assert len(list(tmp_path.iterdir())) == 1
    child.kill()
    child.wait()
    (tmp_path / "yours").write_text("not ours to remove")
    with scratch(str(tmp_path)):
        assert len(list(tmp_path.iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["yours"]


def test_a_scratch_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / "real").mkdir()
    (tmp_path / f"headwater-{os.getuid()}").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError, match="somebody else"), scratch():
        pass


def test_what_is_kept_is_verified_whenever_it_is_used_again(tmp_path):
    kept, url, digest = Kept(str(tmp_path)), "https://a.test/f?sig=secret", sha256(b"file").hexdigest()
    assert kept.find(url, None) is None
    with scratch(str(tmp_path)) as (file, path):
        file.write(b"file")
        file.flush()
        assert kept.keep(path, url, None, digest, ".gz").name.endswith(".gz")
    found = kept.find(url, None)
    assert found is not None and found.read_bytes() == b"file" and kept.find(url, md5(b"file").hexdigest()) == found
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 2 and not any("secret" in p.name or b"secret" in p.read_bytes() for p in files)
    assert kept.find(url, sha256(b"other").hexdigest()) is None and not list(tmp_path.glob("*.gz"))
    with scratch(str(tmp_path)) as (file, path):
        file.write(b"file")
        file.flush()
        found = kept.keep(path, url, None, digest, "")
    found.write_bytes(b"flip")
    assert kept.find(url, None) is None
