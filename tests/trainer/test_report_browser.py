"""The report as a reader meets it: opened in Chromium on a desk and on a phone, in light and dark, and on paper. Nothing is clipped or covered.

The page has no script and forbids any, so a copy without its policy is measured by one that is put there here. Skipped without a Chromium.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.media import images
from tests.trainer.shown import ablation
from trainer.report.evidence import Evidence
from trainer.report.page import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look with")
ARMS = {
    f"arm{i:02d}_pairs{p}+text{t}_with_a_long_name": {"pairs": p * 1_000_000, "text": t * 1_000_000, "video": 9_000_000}
    for i, p, t in ((i, 25 * (i // 5), 25 * (i % 5)) for i in range(20))
}
PAPER = 717  # pixels of A4 between Chromium's own margins
MEASURE = """<script>addEventListener('load', () => {
  const out = {width: innerWidth, wide: document.documentElement.scrollWidth, beyond: [], outside: [], covered: [], small: [], drawings: 0, words: 0,
               ground: getComputedStyle(document.body).backgroundColor};
  const say = (e) => (e.closest('section')?.id || '') + ' ' + e.tagName + ' ' + (e.textContent || '').trim().slice(0, 40);
  const scrolls = (e) => { const box = e.closest('.scroll'); return box && getComputedStyle(box).overflowX !== 'visible'; };
  for (const e of document.querySelectorAll('body *')) {
    const r = e.getBoundingClientRect();
    if (r.width && (r.right > innerWidth + 1 || r.left < -1) && !scrolls(e)) out.beyond.push(say(e));
  }
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width, texts = [];
    out.drawings += 1;
    for (const t of svg.querySelectorAll('text')) {
      const r = t.getBoundingClientRect(), size = parseFloat(getComputedStyle(t).fontSize) * scale;
      out.words += 1;
      if (r.left < frame.left - 1 || r.right > frame.right + 1 || r.top < frame.top - 1 || r.bottom > frame.bottom + 1) out.outside.push(say(t));
      if (size < 11) out.small.push(say(t) + ' ' + size.toFixed(1));
      for (const [o, q] of texts) {
        const w = Math.min(r.right, q.right) - Math.max(r.left, q.left), h = Math.min(r.bottom, q.bottom) - Math.max(r.top, q.top);
        if (w > 2 && h > 0.4 * Math.min(r.height, q.height)) out.covered.push(say(t) + ' on ' + o.textContent);
      }
      texts.push([t, r]);
    }
  }
  const p = document.createElement('pre'); p.id = 'measured'; p.textContent = JSON.stringify(out); parent.document.body.append(p);
});</script>"""
# A window of Chromium is never narrower than 500 pixels, so the page stands in a frame; the frame's scheme is that of the page around it.
FRAME = '<!doctype html><html style="color-scheme:light dark">'
FRAME += '<body><iframe style="border:0;width:{}px;height:900px" srcdoc="{}"></iframe></body></html>'

def everything() -> Evidence:
    """Twenty arms with long names, and every part that draws."""
    at = {a: i for i, a in enumerate(ARMS)}
    values = {
        "vqa": {a: 0.3 + i / 100 for a, i in at.items()},
        "vqa.constant": dict.fromkeys(ARMS, 0.28),
        "vqa.shuffled": {a: 0.29 + i / 400 for a, i in at.items()},
        "text_perplexity": {a: 13.6 + i / 50 for a, i in at.items()},
        "text_perplexity|held_out:text": {a: 13.6 + i / 50 for a, i in at.items()},
        "text_perplexity|set:a_set_with_a_long_name": {a: 24.6 + i / 50 for a, i in at.items()},
        "flow_loss": {a: 0.54 - 0.008 * (i % 5) ** 0.5 - 0.01 * (i // 5) for a, i in at.items() if i != 7},
        "planning.ate": {a: 1.2 + 1 / (1 + i) for a, i in at.items()},
    }
    experts = lambda i: {"model": {"transfusion": {"experts": {"count": 2 ** (4 + i % 6)}}}}
    runs = {a: {**experts(i), "flow": {"predict": "vx"[i % 2]}} for a, i in at.items() if i < 12}
    evidence = ablation(ARMS, values, runs=runs, items=40)
    arms = list(ARMS)
    asked = [{"difference": {"metric": "vqa", "of": arms[1:4], "against": arms[0]}}]
    evidence.card["recipe"] |= {"question": "does it fit?", "compare": asked, "report": [
        {"bars": {"metric": "vqa", "baselines": ["constant", "shuffled", arms[3]]}},
        {"bars": {"metric": ["text_perplexity", "flow_loss", "planning.ate"], "baselines": [arms[0]]}},
        {"bars": {"metric": "text_perplexity", "split": ["held_out:text", "set:a_set_with_a_long_name"], "arms": arms[:6]}},
        {"grid": {"metric": ["flow_loss", "text_perplexity"], "x": "text", "lines": "pairs"}},
        {"saturation": {"metric": ["planning.ate", "text_perplexity"], "x": "text", "arms": arms[5:10]}},
        {"lines": {"metric": ["text_perplexity", "flow_loss"], "x": "experts.count", "group": "flow.predict"}},
        {"progression": {"metrics": ["text_perplexity", "flow_loss"], "steps": [
            {"name": "feed-forward", "arms": arms[:3]}, {"name": "a long name of a choice", "arms": arms[3:9]}]}},
    ]}  # fmt: skip
    jpeg = images.encode_jpeg(np.full((64, 64, 3), 120, np.uint8))
    kept = pa.table({"caption": ["a small red square left of a large blue disc"] * 2, "held_out": [jpeg] * 2, "sampled": [jpeg] * 2})
    answers = pa.table({"type": ["colour", "yes_no"] * 30, "correct": [True, False] * 30, "correct_constant": [False] * 60})
    return replace(evidence, runs={k: replace(r, pictures=kept, answers=answers) for k, r in evidence.runs.items()})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(everything()))
    return path


def browse(page: Path, *flags: str) -> str:
    """Chromium's standard output."""
    assert CHROMIUM is not None
    profile = page.parent / "profile"
    fixed = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}", "--virtual-time-budget=4000"]
    done = subprocess.run([CHROMIUM, *fixed, *flags, page.as_uri()], capture_output=True, timeout=120, check=False)
    return done.stdout.decode()


def measured(page: Path, width: int, *flags: str, printed: bool = False) -> dict[str, Any]:
    """What the script found on a copy of the page at a width; `printed` lays it out by its rules for paper."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    html = html.replace("@media print{", "@media all{") if printed else html
    copy = page.with_name(f"copy-{width}.html")
    copy.write_text(FRAME.format(width, escape(html.replace("</body>", MEASURE + "</body>"))))
    found = re.search(r'<pre id="measured">(.*?)</pre>', browse(copy, "--window-size=1500,1000", "--dump-dom", *flags), re.S)
    assert found, "the page was not measured"
    return dict(json.loads(unescape(found[1])))


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
def test_nothing_is_clipped_covered_or_small_on_a_screen(page, width, dark):
    found = measured(page, width, *(["--blink-settings=preferredColorScheme=0"] if dark else []))
    assert (found["width"], found["wide"]) == (width, width)
    assert found["ground"] == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")
    assert found["drawings"] >= 9 and found["words"] > 400
    assert {k: found[k] for k in ("beyond", "outside", "covered", "small")} == {"beyond": [], "outside": [], "covered": [], "small": []}


def test_nothing_is_clipped_on_paper(page):
    found = measured(page, PAPER, printed=True)
    assert found["wide"] == PAPER
    assert {k: found[k] for k in ("beyond", "outside", "covered")} == {"beyond": [], "outside": [], "covered": []}


def test_the_page_prints(page):
    pdf = page.with_suffix(".pdf")
    browse(page, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes())) <= 60


def test_the_measuring_finds_what_is_clipped(page):
    bad = page.with_name("bad.html")
    words = '<text x="90" y="12" style="font-size:3px">gone over</text>'
    wide = f'<div style="width:2000px">wide</div><svg viewBox="0 0 100 20" width="300">{words}</svg>'
    bad.write_text(f"<!doctype html><body>{wide}</body>")
    found = measured(bad, 390)
    assert found["wide"] > 390 and found["beyond"] and found["outside"] and found["small"]
