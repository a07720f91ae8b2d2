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


def test_sources_over_the_run_are_drawn_to_their_shares_and_stages_are_marked(tmp_path):
    sets = {n: dataset(tmp_path / n, "text", [20] * 400, n) for n in ("early", "late")}
    stages = [{"until": "25%", "share": {"early": "100%"}}, {"until": "100%", "share": {"late": "100%"}}]
    entries = {n: {"dataset": d} for n, d in sets.items()}
    path = make_plan(mixture(entries, tmp_path / "p", total=8000, stages=stages))
    ((_, html),) = pages(path)
    over = html[html.index('aria-label="sources over the run"') - 400 :]
    over = over[: over.index("</svg>")]
    widths = {n: sum(float(w) for w in re.findall(rf'width="([\d.]+)"[^>]*><title>{n}: 100.0%', over)) for n in sets}
    assert abs(widths["early"] / sum(widths.values()) - 0.25) < 0.02 and "25 %" in over
    assert all(label in html for label in ("fill over the run", "Predicted cost of a sequence", "documents by length"))


def test_a_plan_without_its_rows_or_without_any_still_has_a_page(tmp_path):
    a = dataset(tmp_path / "a", "text", [30] * 20, "a")
    path = make_plan(mixture({"prose": {"dataset": a, "tokens": 200}}, tmp_path / "p"))
    for file in (tmp_path / "p").glob("sequences-*"):
        file.unlink()
    assert "Over the run" not in pages(path)[0][1] and "prose" in pages(path)[0][1]
    empty = make_plan(mixture({"prose": {"dataset": a, "tokens": 0}}, tmp_path / "q"))
    assert "prose" in pages(empty)[0][1]
