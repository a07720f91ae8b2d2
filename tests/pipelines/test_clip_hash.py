"""The same video twice leaves once: re-encoded, resized, at another rate, shifted or cut short; different videos and neighbours in time stay."""

import io
import json
import random
from fractions import Fraction
from itertools import groupby

import av
import numpy as np
import pytest

from pipelines.across import clip_hash
from pipelines.across.clip_hash import ClipHash, distinct
from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import canon, parse
from pipelines.format.errors import RecipeError
from pipelines.format.record import Image, Record
from pipelines.media import images
from pipelines.recipe import Recipe
from tests.pipelines.copies import COPIES, scenes
from tests.pipelines.test_image_hash import balanced, turned
from tests.pipelines.test_image_hash import rounds as across_rounds

FILMS = [list(scenes(8, seed=100 + k, height=96, width=128)) for k in range(3)]


def record(origin, frames, group=None, data="video", step=1.0):
    segments = [Image(f, atom=i, shape=(96, 128, 3), time_s=i * step) for i, f in enumerate(frames)]
    return Record.make("t", origin, data, segments, group=group or origin)


def jpegs(frames, quality=92):
    return [images.encode_jpeg(f, quality) for f in frames]


def run(records, parts=1, **keys):
    """id → reason, and the report; the engine's part is played here, with the round that goes over the records again."""
    stage, told, over = ClipHash(**keys), [], [records[k::parts] for k in range(parts)]
    first = over
    for r, (map_rows, reduce_rows) in enumerate(stage.rounds()):
        made = [list(map_rows(iter(p), told) if r in stage.again else map_rows(iter(p))) for p in (first if r in stage.again else over)]
        rows = sorted((b % stage.buckets, key, canon(value)) for part in made for b, key, value in part)
        grouped = {b: [(b, key, json.loads(v)) for _, key, v in same] for b, same in groupby(rows, key=lambda row: row[0])}
        over = [[json.loads(canon(v)) for v in reduce_rows(iter(grouped.get(b, [])))] for b in range(stage.buckets)]
        if r < len(stage.rounds()) - 1:
            told.append([v for part in over for v in part])
    return dict(tuple(v) for part in over for v in part), stage.report(told)


def test_a_copy_to_the_byte_and_copies_that_look_the_same_leave_and_other_films_stay():
    a, b, c = FILMS
    records = [record("a", jpegs(a, 95)), record("again", jpegs(a, 95), group="a"), record("b", jpegs(b)), record("c", jpegs(c))]
    copies = [record(f"a {name}", [copy(f) for f in a]) for name, copy in COPIES.items()]
    gone, told = run(records + copies)
    kept = {r.origin for r in records + copies if r.id not in gone}
    assert {"b", "c"} <= kept and len(kept) == 3
    assert sorted(gone.values()).count("clip_hash.exact") == 1 == told["exact"]
    assert told["near"] == len(copies) and told["clips"] == 10 and told["groups"] == 1


@pytest.mark.parametrize(
    ("name", "frames"),
    [("a stretch", slice(2, 7)), ("a later start", slice(3, None)), ("half the rate", slice(0, None, 2)), ("a single frame", slice(4, 5))],
)
def test_a_part_of_a_clip_leaves_and_the_longest_stays(name, frames):
    whole, part = record("whole", jpegs(FILMS[0])), record(name, jpegs(FILMS[0][frames], 60))
    for seed in range(4):
        assert run([whole, part, record("b", jpegs(FILMS[1]))], seed=seed)[0] == {part.id: "clip_hash.near"}
    assert len(run([whole, part], keep="draw")[0]) == 1


def test_clips_that_share_too_few_frames_both_stay():
    a, b = FILMS[:2]
    mixed = record("mixed", jpegs(a[:3] + b[:5], 60))
    assert run([record("a", jpegs(a)), mixed])[0] == {}
    assert run([record("a", jpegs(a)), mixed], share=0.3)[0] != {}


def test_neighbours_of_one_file_stay_however_alike_unless_their_bytes_are_equal():
    still = [FILMS[0][0]] * 4
    clips = [record(f"film@{q}", jpegs(still, q), group="film") for q in (60, 80, 92)]
    assert run(clips)[0] == {}
    same = record("film again", jpegs(still, 60), group="film")
    assert set(run([*clips, same])[0].values()) == {"clip_hash.exact"}


def test_frames_whose_hashes_agree_are_looked_at_before_a_clip_leaves():
    """Drawings on one ground: their hashes lie within a few bits, but the square stands elsewhere."""

    def drawing(x):
        pixels = np.full((96, 128, 3), 235, np.uint8)
        pixels[10:80, 8:90] = (20, 60, 120)
        pixels[84:94, x : x + 10] = (220, 30, 20)
        return pixels

    one, other = (record(str(x), [images.encode_png(drawing(x))]) for x in (20, 100))
    gone, told = run([one, other], distance=8)
    assert gone == {} and told["pairs"] == 1 and told["confirmed"] == 0


def test_parts_order_and_buckets_change_nothing():
    rng = random.Random(0)
    records = [record(f"{k}-{q}", jpegs(FILMS[k][s], q)) for k in range(3) for q, s in ((92, slice(None)), (60, slice(1, 6)), (75, slice(2, None)))]
    wanted, told = run(records)
    assert len(wanted) == 6 and told["sizes"] == {"03": 3}
    for parts, buckets in ((2, 1), (5, 7), (9, 200)):
        assert run(rng.sample(records, len(records)), parts, buckets=buckets)[0] == wanted


def test_of_a_still_scene_one_frame_is_compared_and_of_a_long_clip_a_bounded_number(monkeypatch):
    rng = random.Random(2)
    h = balanced(rng)
    assert distinct([(0, h), (1, h), (2, turned(h, rng, 1)), (3, None), (4, 1 << 63), (5, turned(h, rng, 6))])[0] == [0, h]
    assert len(distinct([(i, balanced(rng)) for i in range(500)])) == clip_hash.FRAMES
    many = [(i, balanced(rng)) for i in range(500)]
    assert {h for _, h in distinct(many)} == {h for _, h in distinct([(i + 7, h) for i, h in many])}


def test_equal_bytes_alone_need_no_decoding(monkeypatch):
    monkeypatch.setattr(clip_hash, "sketch_of", lambda data: pytest.fail("decoded"))
    a = jpegs(FILMS[0])
    assert len(run([record("a", a), record("b", a), record("c", jpegs(FILMS[0], 60))], distance=None)[0]) == 1


def test_what_cannot_be_decoded_is_compared_by_bytes_and_other_kinds_are_refused():
    broken = [record("a", [b"none"]), record("b", [b"none"]), record("c", [b"nor this"])]
    assert list(run(broken)[0].values()) == ["clip_hash.exact"]
    with pytest.raises(RecipeError, match="clip_hash compares clips"):
        across_rounds(ClipHash(), [[record("a", [b"x"], data="image-text")]])


# ---- through a job, on video files --------------------------------------------------------------------------------------------------------


def drift(seconds, fps, width=160, height=120, seed=5, start=0.0):
    """Frames of a view that moves over a large made-up picture: what is shown depends on the time alone."""
    ground = images.stretch(next(iter(scenes(1, seed, 300, 900))), 300, 900)
    for i in range(round(seconds * fps)):
        x = round((start + i / fps) * 60)
        yield images.stretch(np.ascontiguousarray(ground[40:220, x : x + 240]), height, width)


def film(frames, fps, codec="libx264", **options):
    out, frames = io.BytesIO(), list(frames)
    with av.open(out, "w", format="mp4") as box:
        stream = box.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    return out.getvalue()


def test_copies_of_a_video_file_are_found_whatever_was_done_to_it(tmp_path):
    films = {
        "own.mp4": film(drift(8, 24), 24, crf="18"),
        "other.mp4": film(drift(8, 24, seed=9), 24, crf="18"),
        "recoded.mp4": film(drift(8, 24), 24, codec="mpeg4", qscale="5"),
        "small.mp4": film(drift(8, 24, 112, 84), 24, crf="28"),
        "slower.mp4": film(drift(8, 12), 12, crf="23"),
        "later.mp4": film(drift(6, 24, start=2), 24, crf="23"),
        "short.mp4": film(drift(4, 24), 24, crf="23"),
    }
    for name, data in films.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    document = {"name": "t", "source": {"video_folder": {"path": str(tmp_path / "in"), "fps": 2.0, "frames_per_clip": 16, "size": 96}}}
    config = parse(Recipe, {**document, "across": ["clip_hash"], "engine": "local", "output": str(tmp_path / "out")})
    with open_job("local") as job:
        data = Dataset.open(Curate("video").run(config, job))
    kept = {r.origin.split("@")[0] for i in range(len(data.shards)) for r in data.records(i)}
    assert len(kept) == 2 and "other.mp4" in kept, kept
    assert data.card["filtered"] == {"clip_hash.near": 5} and data.card["in"] == 7
    assert data.card["figures"]["clip_hash"]["confirmed"] >= 5
