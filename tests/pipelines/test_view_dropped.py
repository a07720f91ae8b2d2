"""The page of a dataset shows what was dropped: some of every reason, with pictures, and nothing that a caption says is taken for markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pipelines import view_dataset, view_dropped
from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.format.document import parse
from pipelines.recipe import Recipe
from tests import toys

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)></style><svg onload=alert(3)>'
MARKUP = [f"{HOSTILE} number {i}" for i in range(7)]
SHORT = ["one", "two", "six"]


class Tags(HTMLParser):
    """What a browser would take for markup."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen |= {tag, *(key for key, _ in attrs)}


def made(folder: Path, name: str = "d", **rest: Any) -> str:
    """Twelve pictures: two stay, seven have hostile captions, three a single word."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i, caption in enumerate(["a plain caption", "another plain caption", *MARKUP, *SHORT]):
        (folder / f"p{i}.jpg").write_bytes(toys.jpeg(i))
        rows.append(json.dumps({"image": f"p{i}.jpg", "caption": caption}))
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    out = str(folder.parent / name)
    filters = ["caption_rules", {"caption_length": {"min_words": 2}}]
    source = {"image_folder": {"path": str(folder), "captions": "pairs.jsonl"}}
    recipe = parse(Recipe, {"name": "seen", "source": source, "filters": filters, "output": out, "engine": "local", **rest})
    with open_job("local") as job:
        Curate("image-text").run(recipe, job)
    return out


def dropped(root: str) -> str:
    """The part of the page that tells what was dropped, without the table of rejects below it."""
    text = view_dataset.pages(root)[0][1]
    _, found, after = text.partition("<h2>What was dropped, by reason")
    return after.partition("<h2>Some that did not make it")[0] if found else ""


def test_each_reason_is_shown_with_its_count_and_a_few_pictures_commonest_first(tmp_path: Path) -> None:
    text = dropped(made(tmp_path / "in", keep_dropped=True))
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["caption_rules.markup: 7", "caption_length.min_words: 3"]
    assert text.count("data:image/jpeg;base64") == view_dropped.EACH + 3
    assert all(f">{word}<" in text for word in SHORT)


def test_a_hostile_caption_that_was_dropped_stays_text(tmp_path: Path) -> None:
    text = dropped(made(tmp_path / "in", keep_dropped=True))
    assert text.count("&lt;script&gt;alert(1)") == view_dropped.EACH
    assert not {"script", "svg", "onerror", "onload", "style"} & Tags(text).seen


def test_without_kept_records_the_page_says_nothing_of_them(tmp_path: Path) -> None:
    assert dropped(made(tmp_path / "in")) == ""


def test_what_is_shown_does_not_depend_on_how_the_records_lie_in_shards(tmp_path: Path) -> None:
    one = made(tmp_path / "in", "one", keep_dropped=True)
    many = made(tmp_path / "in", "many", keep_dropped=True, shard_bytes=1000)
    assert dropped(one) == dropped(many) != ""
