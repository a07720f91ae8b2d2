"""The benchmark of generation compares equal answers, and prints what machines read."""

from __future__ import annotations

import numpy as np

from benchmarks import generation


def test_both_sides_say_the_same_tokens_and_the_row_has_its_keys() -> None:
    row = generation.measure("1m", 2, 5, 4, runs=1)  # raises where the sides disagree
    assert {"name", "ours", "peer", "unit", "ratio", "bar", "ok", "runs", "versions"} <= row.keys() and row["ours"] > 0


def test_reading_again_is_greedy_decoding_of_each_document_alone() -> None:
    net = generation.model("1m")
    texts = [np.arange(5), np.arange(40, 45)]
    assert generation.again(net, texts, 3) == [generation.again(net, [t], 3)[0] for t in texts]
