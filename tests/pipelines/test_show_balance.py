"""What explains a balanced dataset to a person: the numbers add up, and no caption or entry is ever taken for markup."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import show_balance
from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.format import chart
from pipelines.format.document import parse
from pipelines.recipe import Recipe
from pipelines.summary import show_stats, stats
from pipelines.view_dataset import pages
from tests.pipelines.balanced import drops, pair, recipe, stage

HOSTILE = '<script>alert(1)</script>"><img/src=x'


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """200 lines: 20 too short, 30 doubles, 50 that name nothing, the rest foxes and hostile things; t = 10."""
    path = tmp_path_factory.mktemp("balance")
    lines = ["no"] * 20 + ["the same fox"] * 31 + [f"nothing here {i}" for i in range(50)]
    lines += [f"a fox in {i}" for i in range(60)] + [f"see {HOSTILE} here {i}" for i in range(39)]
    (path / "in").mkdir()
    (path / "in" / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    (path / "entries.json").write_text(json.dumps(["fox", HOSTILE, "owl"]))
    across = ["exact_text", {"metaclip": {"entries": str(path / "entries.json"), "t": 10}}]
    more = {"source": {"jsonl": {"path": str(path / "in")}}, "filters": [{"text_length": {"min_words": 2}}]}
    document = recipe(path, across=across)
    with open_job("local") as job:
        return Curate("text").run(parse(Recipe, {**document, **more}), job)


def test_the_funnel_goes_from_what_came_in_to_what_is_written_and_agrees_with_the_drops(dataset):
    found = stats(dataset)
    rows = show_balance.funnel(found, found["figures"]["metaclip"])
    assert [n for _, n in rows[:3]] == [200, 150, 100]
    kept = 100 - found["filtered"]["metaclip.balanced"]
    assert rows[3:] == [("kept by the draws", kept), ("written", kept)] and found["written"] == kept < 100
    twice = {**found, "figures": {**found["figures"], "metaclip 2": found["figures"]["metaclip"]}}
    assert len(show_balance.funnel(twice, found["figures"]["metaclip"])) == 4, "two stages share one count of drops"


def test_every_entry_and_every_text_stands_in_one_row(dataset):
    figures = stats(dataset)["figures"]["metaclip"]
    rows = show_balance.lists(figures)
    assert sum(n for _, n, _, _ in rows) == 3 and sum(m for _, _, m, _ in rows) == figures["matches"]["all"] == 100
    assert show_balance.bars(figures) == {"0": 50, "1": 100}


def test_stats_tell_a_person_the_funnel_the_head_and_other_limits(dataset, capsys):
    show_stats(stats(dataset))
    said = " ".join(capsys.readouterr().out.split())
    for part in ("metaclip: t = 10", "with an entry in a text 100", "the commonest entries", "fox 61", "what another t would keep"):
        assert part in said
    assert "exact_text 30" in said


def test_the_page_shows_it_and_takes_nothing_for_markup(dataset):
    text = pages(dataset)[0][1]
    section = text[text.index("How the pairs were balanced") :]
    for part in ("kept by the draws", "The commonest entries", "What another t would keep", "&lt;script&gt;alert(1)"):
        assert part in section
    assert text.count("<script") == text.count("<img") == 0 and section.count("<svg") == 2


def test_where_nothing_is_thinned_the_page_says_so(tmp_path):
    s = stage(tmp_path, ["fox", "owl"], t=50, curve=False, texts="one")
    figures = s.report(drops(s, [[pair(i, "a fox", "an owl") for i in range(5)]])[1])
    html = "".join(show_balance.blocks("metaclip", {"in": 5, "written": 5, "figures": {"metaclip": figures}}, figures))
    assert "nothing was thinned" in html and "one of its texts, drawn" in html and "What another t" not in html


def test_nothing_at_all_is_shown_too(tmp_path, capsys):
    s = stage(tmp_path, ["fox"], t=5)
    figures = s.report(drops(s, [[]])[1])
    found = {"in": 0, "written": 0, "figures": {"metaclip": figures}}
    assert show_balance.blocks("metaclip", found, figures)
    show_balance.show("metaclip", found, figures)
    assert "t = 5" in capsys.readouterr().out


POINTS = st.lists(st.tuples(st.floats(1, 1e12), st.floats(0, 1e12)), min_size=1, max_size=20)


@given(st.dictionaries(st.text(), POINTS, min_size=1, max_size=3), st.booleans(), st.none() | st.floats(1, 1e9))
def test_a_chart_stays_in_its_frame_and_escapes_its_names(series, log, mark):
    svg = chart.lines(series, "<x>", '"y', log, None if mark is None else (mark, "<t>"))
    inside = [tuple(map(float, p.split(","))) for line in re.findall(r'points="([^"]+)"', svg) for p in line.split(" ")]
    assert all(0 <= x <= chart.WIDTH and 0 <= y <= chart.HEIGHT for x, y in inside)
    assert svg.count("<polyline") >= len(series) and "<x>" not in svg and "<t>" not in svg and 'aria-label="&quot;y by &lt;x&gt;"' in svg


def test_axes_have_few_round_levels():
    for top in (1, 7, 19, 101, 6594, 5e9):
        levels = chart._levels(top)
        assert levels[0] == 0 and levels[-1] <= top * 1.001 and 3 <= len(levels) <= 7
    assert chart.short(1_500_000) == "1.5M" and chart.short(20) == "20" and chart.lines({"a": []}, "x", "y") == ""
