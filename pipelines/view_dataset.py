"""A dataset as a contact sheet: what a person looks at before trusting any number.

In: the path of a curated or encoded dataset. Out: one self-contained page with its counts, its drops, and records from all over it:
pictures as thumbnails that we encode anew (bytes from data never reach a browser), texts, questions with answers, frames with times. An
encoded dataset shows its tokens as words and, where its parent is still there, the pictures its latents were made from, beside a map of
each latent's length.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines import look, show_balance, summary, view_dropped
from pipelines.format import page
from pipelines.format.dataset import Dataset
from pipelines.format.errors import HeadwaterError, Reject
from pipelines.format.manifest import parent_path, read_card
from pipelines.format.page import Html, tag
from pipelines.format.record import Record, Segment

SHOWN = 48  # records on the sheet
SIDE, SMALL = 160, 100  # pixels of a thumbnail's longest side; of the frames of a clip, so that two stand side by side
FRAMES = 8  # pictures shown of one record
REJECTS = 20  # dropped records listed by name


def pages(path: str) -> list[tuple[str, str]]:
    """[(file name, HTML)]."""
    dataset = Dataset.open(path)
    found = summary.stats(path)
    blocks = [
        tag("p", f"{found['kind']} · {found.get('data', '')} · {found['fingerprint'][:16]}", class_="soft"),
        tag("h2", "What it holds"),
        _counts(found),
        tag("h2", "What came of what came in"),
        page.bars({"written": found["written"], **found.get("filtered", {}), **found.get("rejected", {})}),
        *_figures(found),
        _lineage(found),
        tag("h2", f"{min(SHOWN, found['records'])} of {found['records']} records, evenly spaced"),
        tag("div", *_cards(dataset), class_="grid"),
        *view_dropped.blocks(path, lambda dropped, found: _card(dropped, found, None, None)),
        *_dropped(dataset),
    ]
    return [("index.html", page.page(f"{found['name']}", *blocks))]


def _counts(found: dict[str, Any]) -> Html:
    rows: list[list[Any]] = [["records", found["records"]], ["shards", found["shards"]], ["bytes", found["bytes"]]]
    rows += [[f"{kind} tokens", n] for kind, n in (found.get("tokens") or {}).items() if n]
    return page.table(["", ""], rows)


def _figures(found: dict[str, Any]) -> list[Html]:
    """What whole-dataset stages reported."""
    out: list[Html] = []
    for name, figures in (found.get("figures") or {}).items():
        if summary.is_balance(figures):
            out += show_balance.blocks(name, found, figures)
        else:
            out += [tag("h2", f"What {name} reports"), *(page.table(rows[0], rows[1:]) for _, rows in summary.tables(name, figures))]
    return out


def _lineage(found: dict[str, Any]) -> Html:
    rows = [[p.get("kind"), p.get("name"), p["path"], p["fingerprint"][:16], p["found"]] for p in found["lineage"]]
    return page.join([tag("h2", "Lineage"), page.table(["kind", "name", "path", "fingerprint", "still there"], rows)]) if rows else Html("")


def _cards(dataset: Dataset) -> list[Html]:
    words = look.tokenizer(dataset) if dataset.encoding else None
    above = _parent(dataset)
    return [_card(dataset, found, words, above) for found in look.spread(dataset, SHOWN)]


def _parent(dataset: Dataset) -> Dataset | None:
    """The nearest curated dataset that an encoded one was made from, if it can still be read as it was."""
    if not dataset.encoding:
        return None
    card = read_card(dataset.path)
    for entry in card.get("parents") or []:
        try:
            above = Dataset.open(parent_path(card, entry), entry["fingerprint"])
        except HeadwaterError:
            continue
        return above if above.encoding is None else _parent(above)  # a compacted one was made from an encoded one
    return None


def _card(dataset: Dataset, found: look.Found, words: Any, above: Dataset | None) -> Html:
    record = found.record
    each = look.per_frame(record.fields, len(record.segments))
    side = SMALL if sum(s.kind == "image" for s in record.segments) > 2 else SIDE
    shown = [(s, said) for s, said in zip(record.segments, each, strict=True) if s.kind in ("image", "latents")]
    pictures = [_figure(dataset, found.shard, s, said, side) for s, said in shown]
    source = look.find(above, record.id) if above is not None and pictures else None
    if above is not None and source is not None:
        pictures = [_figure(above, source.shard, s) for s in source.record.segments if s.kind == "image"] + pictures
    hidden = f"… {len(pictures) - FRAMES} more" if len(pictures) > FRAMES else ""
    told = look.plain(dataset, found, words)
    texts = [_text(s) for s in told["segments"] if s["kind"] in ("text", "tokens")]
    name = tag("code", record.id[:12])
    where = tag("div", name, " ", record.origin, class_="soft")
    scores = tag("div", " · ".join(f"{k} {v:.3g}" for k, v in sorted(record.scores.items())), class_="soft") if record.scores else ""
    clips = [tag("div", f"{s.member}: {s.nbytes} bytes", class_="soft") for s in record.segments if s.kind == "video"]
    return tag("div", tag("div", *pictures[:FRAMES], hidden, class_="strip"), *texts, _questions(record), scores, *clips, where, class_="card")


def _text(s: dict[str, Any]) -> Html:
    said = s.get("text") or (" ".join(map(str, s.get("ids", []))))
    label = " ".join(filter(None, [s["role"], s.get("member"), f"{s['tokens']} tokens" if s.get("tokens") else ""]))
    shown = said if len(said) <= 600 else said[:600] + "…"
    return tag("div", tag("span", label, class_="tag"), " ", tag("span", shown, class_="target" if s["role"] == "target" else None))


def _questions(record: Record) -> Html:
    """Answer choices, which stand in no segment."""
    asked = record.fields.get("questions")
    rows = [q for q in asked if isinstance(q, dict) and q.get("choices")] if isinstance(asked, list) else []
    return page.join([tag("div", f"choices: {' / '.join(map(str, q['choices']))}", class_="soft") for q in rows[:4]])


def _figure(dataset: Dataset, shard: int, s: Segment, said: str = "", side: int = SIDE) -> Html:
    caption = " ".join(filter(None, [f"{s.time_s:.1f} s" if s.time_s is not None else "", "" if s.role == "target" else s.role]))
    try:
        inside = _latents(dataset.array(shard, s)) if s.kind == "latents" else _thumbnail(bytes(dataset.payload(shard, s)), s.shape, side)
    except (Reject, HeadwaterError) as error:
        inside = tag("em", f"cannot be shown: {error}")
    return tag("figure", inside, tag("figcaption", caption), title=said or None)


def _thumbnail(payload: bytes, size: tuple[int, ...], side: int) -> Html:
    """Decoded in the guarded child, as dropped records hold what strangers sent, and encoded anew."""
    from pipelines.media import images, still

    jpeg, (_, width, _), _ = still.resized(payload, side, "keep_ratio_largest", 80, upscale=False, max_pixels=images.MAX_PIXELS, keep=())
    return page.picture(jpeg, "×".join(map(str, size[1::-1])), width=max(64, width))


def _latents(x: np.ndarray) -> Html:
    """The length of each latent vector as a square of grey, in reading order: flat means nothing was kept, stripes mean something went wrong."""
    length = np.linalg.norm(x, axis=1)
    low, high = float(length.min()), float(length.max())
    grey = (40 + 200 * (length - low) / max(high - low, 1e-9)).astype(int)
    side = int(np.ceil(np.sqrt(len(x))))
    squares = "".join(f'<rect x="{i % side}" y="{i // side}" width="1" height="1" fill="rgb({g},{g},{g})"/>' for i, g in enumerate(grey))
    return Html(f'<svg width="96" height="96" viewBox="0 0 {side} {side}" shape-rendering="crispEdges" role="img">{squares}</svg>')


def _dropped(dataset: Dataset) -> list[Html]:
    """Some of what did not make it, with reasons."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.format import storage

    rows: list[list[Any]] = []
    for name, _, _ in storage.listing(storage.join(dataset.path, "rejects")) if storage.exists(storage.join(dataset.path, "rejects")) else []:
        data = storage.read(storage.join(dataset.path, "rejects", name))
        for row in pq.read_table(pa.BufferReader(data)).to_pylist():
            rows.append([row["outcome"], row["reason"], row["stage"], row["origin"], (row["error"] or "").strip()[-200:]])
        if len(rows) >= REJECTS:
            break
    columns = ["", "reason", "at", "origin", "error"]
    return [tag("h2", "Some that did not make it"), page.table(columns, rows[:REJECTS])] if rows else []
