"""The comparison of readers runs on toys, says what machines read, and the page for other trainers shows code that works."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mixtures.samples import Samples
from tests.toys import curated, encoded

REPO = Path(__file__).resolve().parents[1]
KEYS = {"name", "ours", "peer", "unit", "ratio", "bar", "ok", "runs", "versions"}


def test_our_side_and_the_limit_read_the_same_bytes_of_toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import reader

    monkeypatch.setattr(reader, "installed", lambda side: False)
    found = json.loads(json.dumps(reader.measure(1, 0.001, True, ["text", "latents"], tmp_path)))
    assert [r["name"] for r in found] == [f"reader.{size}.{row}" for size in ("text", "latents") for row in ("limit", "resume")]
    assert all(set(r) >= KEYS and r["facts"]["same_bytes_read"] and r["ours"] > 0 for r in found)


def test_the_barest_example_of_the_page_reads_what_the_iterator_reads(tmp_path: Path) -> None:
    text = (REPO / "docs" / "other_trainers.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    root = encoded(str(tmp_path / "encoded"), curated(str(tmp_path / "curated")))
    said = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True).stdout
    expected = Counter[str]()
    for sample, _ in Samples(root).read():
        for array, form in zip(sample.arrays, sample.forms, strict=True):
            if form.kind == "tokens":
                expected[f"{sample.id} {array.sum()}"] += 1
    assert Counter(said.splitlines()) == expected and len(expected) == 6
