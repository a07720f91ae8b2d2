"""MinHash: datatrove's signatures and clusters, one survivor of each, whatever the shards."""

import json
import random
from itertools import pairwise

import pytest

pytest.importorskip("datatrove")

from pipelines.across.minhash import Minhash, clusters
from pipelines.format.chance import draw, hash64
from pipelines.format.dataset import Dataset
from pipelines.format.record import Record, Text
from pipelines.shingles import simplified
from tests.pipelines.real_text import generated, real
from tests.pipelines.test_across import recipe, run


def texts(seed=0, n=30):
    """Originals, light edits of them in other typography, and chains of edits."""
    draw = random.Random(seed)
    out = []
    for _ in range(n):
        words = ["".join(draw.choices("abcdefgh", k=4)) for _ in range(draw.randint(3, 120))]  # no digits: they are folded
        out.append(" ".join(words))
        for _ in range(draw.randint(0, 3)):
            i = draw.randrange(len(words))
            words[i] = "é" + words[i]
            out.append("  ".join(words).upper() + draw.choice(["", "!", " …"]))
    return out


def folder(tmp_path, some, files):
    path = tmp_path / f"in{files}"
    path.mkdir()
    for k in range(files):
        chunk = some[k * len(some) // files : (k + 1) * len(some) // files]
        (path / f"{k}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in chunk))
    return path


def peer_clusters(tmp_path, some, **config):
    """What datatrove's four stages put together, as sets of places in `some`."""
    import numpy as np
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    config = MinhashConfig(**config)
    at = [str(tmp_path / name) for name in ("sig", "buckets", "cluster")]
    list(MinhashDedupSignature(at[0], config, language="eng").run(iter([Document(t, str(i)) for i, t in enumerate(some)]), 0, 1) or [])
    for rank in range(config.num_buckets):
        MinhashDedupBuckets(at[0], at[1], config=config).run(None, rank, config.num_buckets)
    MinhashDedupCluster(at[1], at[2], config=config, save_cluster_id=True).run(None, 0, 1)
    found = {}
    for path in (tmp_path / "cluster").glob("*.clusters"):
        for doc, cluster in np.frombuffer(path.read_bytes(), "<u4").reshape(-1, 2).tolist():
            found.setdefault(cluster, set()).add(doc)
    return {frozenset(v) for v in found.values()}


def our_clusters(stage, some):
    from pipelines.across.minhash import _pairs

    records = [Record.make("t", str(i), "text", [Text(t)]) for i, t in enumerate(some)]
    place = {r.id: i for i, r in enumerate(records)}
    rows = sorted(stage._banded(records), key=lambda row: row[1:])
    return {frozenset(place[id] for id in c) for c in clusters(_pairs(rows))}


def test_simplified_text_is_datatroves():
    from datatrove.utils.text import simplify_text

    for text in [*texts(), *generated(5, 40), *real(), "Ⅳ １２,５ ŉ İstanbul\u2028x\x1cy \u0301", " \t", "٣٫٥ a\u00a0b"]:
        assert simplified(text) == simplify_text(text), text


@pytest.mark.parametrize("config", [{}, {"n_grams": 3, "num_buckets": 5, "hashes_per_bucket": 4, "seed": 7}])
def test_signatures_are_datatroves(tmp_path, config):
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    theirs = MinhashDedupSignature(str(tmp_path), MinhashConfig(**config), language="eng")
    ours = Minhash(**{("hash_seed" if k == "seed" else k): v for k, v in config.items()})
    for text in [*texts(n=10), *generated(6, 30), *real()[:40]]:
        shingles, mine = theirs.get_shingles(text), ours.signature(text)
        assert (mine is None) == (shingles.size == 0)
        if mine is not None:
            assert mine.tolist() == theirs.get_signature(shingles), text


def test_clusters_are_datatroves(tmp_path):
    some = [*texts(1, 80), *real()]
    mine = our_clusters(Minhash(), some)
    assert mine == peer_clusters(tmp_path, some) and len(mine) > 5


def test_one_of_each_cluster_survives_whatever_the_shards_and_buckets(tmp_path):
    some = texts(2)
    left = set()
    source = folder(tmp_path, some, 1)
    for buckets, size in ((16, 10**6), (3, 1)):
        out = tmp_path / f"d{buckets}"
        run(recipe(source, out, across=[{"minhash": {"buckets": buckets}}], shard_bytes=size))
        card = json.loads((out / "manifest.json").read_text())
        ds = Dataset.open(str(out))
        left.add(tuple(sorted(r.id for i in range(len(ds.shards)) for r in ds.records(i))))
        assert card["filtered"] == {"minhash": card["in"] - card["written"]}
        assert card["in"] - card["written"] == sum(len(c) - 1 for c in our_clusters(Minhash(), some))
    assert len(left) == 1


def test_the_survivor_is_drawn_and_the_seed_decides():
    ids = [Record.make("t", str(i), "text", [Text("x")]).id for i in range(12)]
    pairs = [(0, b"", list(pair)) for pair in pairwise(ids)]
    kept = {}
    for seed in range(8):
        gone = {id for id, _ in Minhash(seed=seed)._leave(pairs)}
        (kept[seed],) = set(ids) - gone
        assert kept[seed] == min(ids, key=lambda id: draw(hash64(id), seed, "survivor"))
    assert len(set(kept.values())) > 1


def test_clusters_are_what_pairs_connect_in_any_order():
    pairs = [(str(i), str(i + 2)) for i in range(0, 60)] + [("a", "b"), ("a", "a")]
    draw = random.Random(0)
    for _ in range(5):
        draw.shuffle(pairs)
        found = {frozenset(c) for c in clusters(pairs)}
        assert found == {frozenset(str(i) for i in range(0, 62, 2)), frozenset(str(i) for i in range(1, 62, 2)), frozenset("ab")}


def test_short_texts_have_no_signature_and_stay(tmp_path):
    source = folder(tmp_path, ["too short"] * 3 + ["one two three four five"] * 2, 1)
    run(recipe(source, tmp_path / "d", across=[{"minhash": {"buckets": 2}}]))
    assert json.loads((tmp_path / "d" / "manifest.json").read_text())["filtered"] == {"minhash": 1}
