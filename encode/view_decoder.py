"""A decoder as a page: held-out frames above their reconstructions, how near they come, and the loss on the way there."""

from __future__ import annotations

from typing import Any

from pipelines import summary
from pipelines.format import page, storage
from pipelines.format.manifest import read_card
from pipelines.format.page import Html, tag


def pages(path: str) -> list[tuple[str, str]]:
    """[(file name, HTML)]."""
    card = read_card(path)
    figures = card.get("figures", {})
    blocks: list[Any] = [tag("p", f"{card['kind']} · {card['fingerprint'][:16]}", class_="soft")]
    if any(f["path"] == "sheet.png" for f in card["files"]):
        blocks += [tag("h2", "Held-out frames, each above its reconstruction"), _sheet(storage.join(path, "sheet.png"))]
    for name, rows in figures.items():
        for title, told in summary.tables(name, rows):
            blocks += [tag("h3", title), page.table(told[0], told[1:])]
    if any(f["path"] == "losses.parquet" for f in card["files"]):
        blocks += [tag("h2", "On the way there"), _losses(storage.join(path, "losses.parquet"))]
    above = [[p.get("kind"), p["path"], p["fingerprint"][:16]] for p in summary.lineage(path, card)]
    blocks += [tag("h2", "Made of"), page.table(["", "", ""], above)]
    return [("index.html", page.page(f"{card['name']}: a decoder", *blocks))]


def _sheet(path: str) -> Html:
    """The sheet, encoded anew as every picture on a page is."""
    from pipelines.media import images

    picture = images.decode(storage.read(path))
    return tag("div", page.picture(images.encode_jpeg(picture, 92), "frames and reconstructions", width=picture.shape[1]), class_="card")


def _losses(path: str) -> Html:
    """Twenty rows of the history."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(storage.read(path)))
    rows = table.to_pylist()
    shown = rows[:: max(1, len(rows) // 20)]
    return page.table(table.column_names, [[float(v) if name != "step" else int(v) for name, v in row.items()] for row in shown])
