"""What a generation leaves behind: lines, pictures or latents, a page to look at, and a card. Equal prompts, run and recipe give equal bytes.

    generated.jsonl      a line an output: id, sample, prompt, pieces (text, or the file of an image), text, stop
    images/00012-0.png   picture 0 of line 12; of its prompt -given-0, of the truth -truth-0
    latents.npz          by the same names, float32 as an encoder stores them
    index.html           prompts, what was made of them, and the truth where it is known, side by side
    manifest.json        of kind `generated`: the recipe, the run as parent, hashes of the files (of pictures: in the lines)
"""

from __future__ import annotations

import io
import json
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import numpy as np

from pipelines.format import page, storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import InputError
from pipelines.format.manifest import file_entry
from pipelines.format.page import Html, tag
from trainer.generate.asked import Asked
from trainer.generate.check import LATENTS, LINES, PAGE
from trainer.generate.prompt import PAINT, Generated
from trainer.generate.recipe import Generate

SHOWN = 200  # outputs on the page; all are in the lines
WIDTH = 128  # of a picture on the page


class Shown(NamedTuple):
    """A line on its way: what is written of an output, and the names of its images by place."""

    line: dict[str, Any]
    images: dict[str, np.ndarray]


def write(config: Generate, root: str, data: Any, words: Any, asked: list[Asked], made: list[Generated]) -> list[dict[str, Any]]:
    """All files but the card; their entries for it. `data`: the dataset that says which encoder latents are of; `words(ids, source)`: text of ids."""
    rows = [_line(i, a, g, words) for i, (a, g) in enumerate(zip(asked, made, strict=True))]
    images = {name: x for row in rows for name, x in row.images.items()}
    pictures = _pictures(config, data, images)
    for name, png in pictures.items():
        storage.replace(storage.join(root, "images", f"{name}.png"), png, scratch=root)
    lines = [_with_files(row.line, pictures) for row in rows]
    text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
    files = [file_entry(root, LINES, text.encode())]
    if images and (config.form in ("latents", "both") or not pictures):
        sink = io.BytesIO()
        np.savez(sink, **images)  # type: ignore[arg-type]
        files.append(file_entry(root, LATENTS, sink.getvalue()))
    files.append(file_entry(root, PAGE, _page(config, lines, pictures).encode()))
    return files


def _line(i: int, asked: Asked, made: Generated, words: Any) -> Shown:
    images: dict[str, np.ndarray] = {}

    def said(pieces: Any, suffix: str) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        for piece in pieces:
            if piece is PAINT:
                out.append({"paint": True})
            elif isinstance(piece, str):
                out.append({"text": piece})
            elif piece.ndim == 1:
                out.append({"text": words(piece, asked.source), "ids": piece.tolist()})
            else:
                name = f"{i:05d}-{suffix}{sum('image' in o for o in out)}"
                images[name] = np.ascontiguousarray(piece, np.float32)
                out.append({"image": name})
        return out

    pieces = said(made.pieces, "")
    text = "".join(p["text"] for p in pieces if p.get("text"))
    line: dict[str, Any] = {"id": asked.prompt.id, "sample": asked.prompt.sample, "source": asked.source, "stop": made.stop, "text": text}
    line |= {"prompt": said(asked.prompt.pieces, "given-"), "pieces": pieces}
    return Shown(line | ({"truth": said(asked.truth, "truth-")} if asked.truth else {}), images)


def _with_files(line: dict[str, Any], pictures: dict[str, bytes]) -> dict[str, Any]:
    """Images by the file that holds them, with its hash; without pictures by their name in the latents."""
    file = lambda name: {"image": f"images/{name}.png", "sha256": sha256_hex(pictures[name])} if name in pictures else {"image": f"{LATENTS}#{name}"}
    of = lambda pieces: [p if "image" not in p else file(p["image"]) for p in pieces]
    return {k: of(v) if k in ("prompt", "pieces", "truth") else v for k, v in line.items()}


def _pictures(config: Generate, data: Any, images: dict[str, np.ndarray]) -> dict[str, bytes]:
    """PNGs by name; none where latents are asked for, or nothing turns them back and nobody insists."""
    if not images or config.form == "latents":
        return {}
    found = [e for e in entry_points(group="pipelines.services") if e.name == "pictures"]
    forced = config.form != "auto" or config.decoder is not None
    if not found or "encoders" not in data.card:
        if forced:
            raise InputError("nothing here makes pictures of latents", where=data.path, next="install the encode package, or say form=latents")
        return {}
    try:
        made = found[0].load()(np.stack(list(images.values())), data.card["encoders"], config.decoder, "png")
    except InputError:
        if forced:
            raise
        return {}
    return dict(zip(images, made, strict=True))


def _page(config: Generate, lines: list[dict[str, Any]], pictures: dict[str, bytes]) -> str:
    """Rows of prompt, what was made, and the truth."""
    head = tag("tr", *(tag("th", x) for x in ("", "Given", "Made", "Held out")))
    name = lambda x: tag("td", f"{x['id'][:12]} · {x['sample']}", tag("div", x["stop"], class_="soft"))
    cells = lambda x: [tag("td", *(_shown(p, pictures) for p in x.get(k, []))) for k in ("prompt", "pieces", "truth")]
    body = [tag("tr", name(x), *cells(x)) for x in lines[:SHOWN]]
    more = f", {SHOWN} of them shown" if len(lines) > SHOWN else ""
    how = config.sampling.model_dump(mode="json")
    facts = tag("p", f"{len(lines)} outputs{more}. ", tag("code", json.dumps(how, sort_keys=True)), class_="soft")
    return page.page(f"Generated by {storage.absolute(config.run).rpartition('/')[2]}", facts, tag("div", tag("table", head, *body), class_="wide"))


def _shown(piece: dict[str, Any], pictures: dict[str, bytes]) -> Html:
    if "image" in piece:
        name = piece["image"].rpartition("/")[2].removesuffix(".png")
        return page.picture(pictures[name], "image", WIDTH) if name in pictures else tag("code", piece["image"])
    return tag("span", "▢", class_="soft") if "paint" in piece else tag("p", piece["text"])
