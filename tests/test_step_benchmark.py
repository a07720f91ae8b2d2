"""The step benchmark runs at toy size, its sides read the same tokens, and both of them learn."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import packed, peers, step, step_sides
from benchmarks.step_sides import Plain, samples, text_rows

S = step_sides.TOY


def run(*only: str) -> dict[str, dict]:
    command = [sys.executable, "-m", "benchmarks.step", "--toy", "--json", "--runs", "1", "--only", *only]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


@pytest.mark.slow
@pytest.mark.skipif(not peers.installed("transfusion"), reason="the peer's venv is not here")
def test_the_peer_runs_at_toy_size() -> None:
    row = run("step.peer")["step.peer"]
    assert row["ours"] > 0 and row["peer"] > 0 and row["way"] in step.WAYS and "transfusion-pytorch" in row["versions"]


def test_every_comparison_runs_at_toy_size() -> None:
    rows = run("step.packed", "step.text", "step.wait")
    assert 0 <= rows["step.wait"]["ours"] <= 1
    for name in ("step.packed", "step.text"):
        row = rows[name]
        assert row["ours"] > 0 and row["peer"] > 0 and row["bar"] == 0.952
        assert abs(row["ours_parameters"] / row["peer_parameters"] - 1) < 0.2, "the same stack"


def test_a_peer_that_takes_a_document_a_row_gets_the_ids_and_latents_of_ours() -> None:
    rows = packed.rows(S.sequence, 3, S.patches, S.channels, S.vocab, kinds=((2, 5), (1, 9)))
    given = samples(rows)
    documents = [d for row in rows for d in row]
    assert len(given) == len(documents)
    for sample, d in zip(given, documents, strict=True):
        latents = [x for x in sample if x.is_floating_point()]
        assert all(x.shape == (S.patches, S.channels) for x in latents)
        assert torch.equal(torch.cat(latents) if latents else torch.zeros(0, S.channels), torch.from_numpy(d.latents))
        assert [int(i) for x in sample if not x.is_floating_point() for i in x] == d.tokens[d.kind == 0].tolist()
    assert step._payload(rows) == sum(x.shape[0] for sample in given for x in sample)


@pytest.mark.parametrize("causal", [False, True])
def test_the_plain_stack_learns_and_its_mask_lets_nothing_across_documents(causal: bool) -> None:
    rows = text_rows(S) if causal else packed.rows(S.sequence, S.rows, S.patches, S.channels, S.vocab, kinds=step.KINDS)
    batch = packed.batch(rows, S.sequence, S.vocab, S.channels)
    torch.manual_seed(0)
    plain = Plain(S, causal)
    plain.optimizer.param_groups[0]["lr"] = 3e-3
    losses = [plain.step(batch) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]
    if not causal:
        mask = plain._mask(batch).view(S.rows, S.heads, S.sequence, S.sequence)[:, 0]
        doc = batch.doc
        across = (doc[:, :, None] != doc[:, None, :]) & ~torch.eye(S.sequence, dtype=torch.bool)
        assert torch.isinf(mask[across]).all() and (mask[~torch.isinf(mask)] == 0).all()
