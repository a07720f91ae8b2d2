"""The page of a plan: every source with its figures, every row to scale, nothing from data taken for markup."""

import re

from mixtures.plan import make_plan
from mixtures.view import pages
from tests.mixtures.sets import dataset, mixture


def test_a_page_shows_each_source_and_each_document_and_escapes_names(tmp_path):
    a = dataset(tmp_path / "a", "vqa", [(4, (3, 2), (2, 1))] * 20, "a")
    b = dataset(tmp_path / "b", "text", [30] * 20, "b")
    entries = {"<b>questions": {"dataset": a, "epochs": 1, "turns": "isolated"}, "prose": {"dataset": b, "epochs": 1}}
    ((name, html),) = pages(make_plan(mixture(entries, tmp_path / "p", held_out={"fraction": "10%"})))
    assert name == "index.html" and "&lt;b&gt;questions" in html and "<b>questions" not in html
    assert "<script" not in html and not re.search(r'(?:src|href)="(?!data:)', html)
    assert len(re.findall(r"<title>(?:prose|&lt;b&gt;questions):", html)) >= 40
    for x, width in re.findall(r'<rect x="(\d+)" y="0" width="([\d.]+)"', html):
        assert int(x) + float(width) <= 64
