"""Copies of evaluation pictures that are found among real ones, and other pictures that are taken for copies by mistake.

    python -m benchmarks.leaks --json [--page leaks.html]        needs HEADWATER_DATA; three minutes

Every picture of a set is an evaluation picture. Planted: each of them as it is, re-encoded, at 0.7 of its size, as JPEG at quality 60, and both;
each kept whole, cropped to 224 and framed at 224 by our own `resize`, and stored as JPEG. All must be found. Then every picture, kept whole, cropped
and framed, against all others of its set: whatever is found there is a mistake, or a copy that the set holds already; `--page` shows every
pair to look at. The other side is the 64-bit perceptual hash alone, within 4, 8 and 16 bits.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.media import images, resizing
from pipelines.media.hashing import AS_IS, sketched
from pipelines.sketches import CHANNELS, GRID, Sketch, SketchIndex, plain

SETS = {
    "COCO photos": "image_text/coco_captions",
    "18F pictures": "image_text/us_gov_alt_18f",
    "MDN pictures": "image_text/mdn_alt",
    "OpenStax figures": "image_text/openstax_alt",
    "VQA-RAD": "vqa/vqa_rad",
    "easy-VQA": "vqa/easy_vqa",
    "NLVR": "vqa/nlvr",
}
HOWS = (AS_IS, "center_crop", "border")
HASH_ALONE = (4, 8, 16)
Pixels = Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--page", metavar="FILE", help="write a page with every other picture that was taken for a copy")
    args = parser.parse_args()
    root = os.environ.get("HEADWATER_DATA")
    if not root:
        print("HEADWATER_DATA names no folder of real inputs", file=sys.stderr)
        return 2
    told = {name: measured(sorted(pictures(Path(root) / where))) for name, where in SETS.items()}
    if args.page:
        Path(args.page).write_text(page(told), encoding="utf-8")
    bits = f"within {HASH_ALONE[0]} bits"
    planted, found, alone = (sum(t[k] for t in told.values()) for k in ("planted", "found", f"found {bits}"))
    wrong, confused = sum(len(t["hits"]) for t in told.values()), sum(t[f"pairs {bits}"] for t in told.values())
    runs = [{"set": name, **{k: v for k, v in t.items() if k != "pairs"}} for name, t in told.items()]
    more = {"runs": runs, "versions": {name: version(name) for name in ("pillow", "numpy")}}
    share, by_hash = 100 * found / planted, 100 * alone / planted
    unit = "% of planted copies found; peer: hashes within 4 bits"
    ok = share >= 99.9
    answer = [{"name": "leaks.found", "ours": share, "peer": by_hash, "unit": unit, "ratio": share / by_hash, "bar": 1.0, "ok": ok, **more}]
    unit, ratio = "pairs not planted that are taken for copies; peer: hashes within 4 bits", confused / max(wrong, 1)
    answer += [{"name": "leaks.not_planted", "ours": wrong, "peer": confused, "unit": unit, "ratio": ratio, "bar": 1.0, "ok": ratio >= 1, **more}]
    print(json.dumps(answer) if args.json else "\n".join(table(told)))
    return 0


def pictures(folder: Path) -> Iterator[Path]:
    yield from (p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".gif", ".webp"))


def copies(pixels: Pixels) -> Iterator[tuple[str, Pixels]]:
    """What becomes of a picture on its way through the web."""
    smaller = images.stretch(pixels, *(max(1, round(n * 0.7)) for n in pixels.shape[:2]))
    yield "as it is", pixels
    yield "re-encoded", images.decode(images.encode_jpeg(pixels, 92))
    yield "0.7 of the size", smaller
    yield "JPEG at 60", images.decode(images.encode_jpeg(pixels, 60))
    yield "0.7 of the size, JPEG at 60", images.decode(images.encode_jpeg(smaller, 60))


def shown(pixels: Pixels, how: str, stored: bool = False) -> Sketch:
    """A sketch in one geometry; `stored`: as our own pipeline would have kept it."""
    made = pixels if how == AS_IS else resizing.resize(pixels, 224, how)  # type: ignore[arg-type]
    made = images.decode(images.encode_jpeg(made, 92)) if stored and how != AS_IS else made
    phash, cells = sketched(made)
    return Sketch(phash, min(pixels.shape[:2]), np.frombuffer(cells, np.uint8).reshape(GRID, GRID, CHANNELS), how)


def measured(paths: list[Path]) -> dict[str, Any]:
    """Counts for one set."""
    decoded = [images.decode(p.read_bytes()) for p in paths]
    index = SketchIndex([shown(p, how) for p in decoded for how in HOWS])
    out: dict[str, Any] = {"pictures": len(decoded), "planted": 0, "found": 0, "plain": 0, "missed": []}
    out |= {f"found within {bits} bits": 0 for bits in HASH_ALONE} | {f"pairs within {bits} bits": 0 for bits in HASH_ALONE}
    for i, pixels in enumerate(decoded):
        for name, copy in copies(pixels):
            for how in HOWS:
                one = shown(copy, how, stored=True)
                if plain(one.cells) and plain(index.cells[i * len(HOWS) + HOWS.index(how)]):
                    out["plain"] += 1
                    continue
                out["planted"] += 1
                hit = any(m.at // len(HOWS) == i for m in index.matches(one, most=1000))
                out["found"] += hit
                out["missed"] += [] if hit else [f"{paths[i].name}: {name}, {how}"]
                apart = np.bitwise_count(index.hashes[i * len(HOWS) : (i + 1) * len(HOWS)] ^ np.uint64(one.phash)).min()
                for bits in HASH_ALONE:
                    out[f"found within {bits} bits"] += int(apart <= bits)
    out |= {"hits": {}, "pairs": {}}
    near: dict[int, set[tuple[int, int]]] = {bits: set() for bits in HASH_ALONE}
    for i, pixels in enumerate(decoded):
        for how in HOWS:
            one = shown(pixels, how, stored=True)
            apart = np.bitwise_count(index.hashes ^ np.uint64(one.phash)).reshape(-1, len(HOWS)).min(1)
            for bits in HASH_ALONE:
                near[bits] |= {(min(i, int(j)), max(i, int(j))) for j in np.flatnonzero(apart <= bits) if j != i}
            for match in index.matches(one, most=1000):
                j = match.at // len(HOWS)
                if j != i:
                    pair = f"{paths[min(i, j)].name}, {paths[max(i, j)].name}"
                    out["hits"].setdefault(pair, []).append(f"{how} as {HOWS[match.at % len(HOWS)]}, {match.bits} bits, {match.worst} levels")
                    out["pairs"][pair] = decoded[i], decoded[j]
    return out | {f"pairs within {bits} bits": len(found) for bits, found in near.items()}


def table(told: dict[str, Any]) -> Iterator[str]:
    hashes = [f"hash alone, {bits}" for bits in HASH_ALONE]
    yield f"| set | planted | found | {' | '.join(hashes)} | other pairs | taken for copies | {' | '.join(hashes)} |"
    yield "|---" * (6 + 2 * len(HASH_ALONE)) + "|"
    for name, t in told.items():
        of = [f"{100 * t[f'found within {bits} bits'] / t['planted']:.1f} %" for bits in HASH_ALONE]
        others = [str(t[f"pairs within {bits} bits"]) for bits in HASH_ALONE]
        found = f"{100 * t['found'] / t['planted']:.2f} %"
        cells = [name, str(t["planted"]), found, *of, f"{t['pictures'] * (t['pictures'] - 1) // 2:,}", str(len(t["hits"])), *others]
        yield f"| {' | '.join(cells)} |"
    yield f"plain copies, which bytes and pixels alone can tell: {sum(t['plain'] for t in told.values())}"
    for name, t in told.items():
        yield from (f"missed in {name}: {m}" for m in t["missed"])
        cropped = {pair for pair, how in t["hits"].items() if all(h.startswith("center_crop as center_crop") for h in how)}
        yield f"found in {name}: {len(cropped)} pairs that differ outside the middle square only"
        yield from (f"found in {name}: {pair} ({'; '.join(how)})" for pair, how in t["hits"].items() if pair not in cropped)


def page(told: dict[str, Any]) -> str:
    out = ["<!doctype html><meta charset=utf-8><style>img{max-width:320px;max-height:240px;margin:4px;border:1px solid}</style>"]
    for name, t in told.items():
        for pair, both in t["pairs"].items():
            shots = "".join(f'<img src="data:image/jpeg;base64,{base64.b64encode(images.encode_jpeg(p, 80)).decode()}">' for p in both)
            out.append(f"<p>{name}: {pair} ({'; '.join(t['hits'][pair])})<br>{shots}</p>")
    return "".join(out)


if __name__ == "__main__":
    sys.exit(main())
