"""Packing: nothing lost, nothing torn, nothing too long, and little left empty."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.packing import best_fit, pack, shortest_piece

ROW = 64
units = st.lists(st.tuples(st.integers(1, 400), st.booleans()), max_size=200)


def packed(lengths, cut, row=ROW, window=None):
    """(unit, start, stop, row) of every piece, rows numbered over all windows."""
    out, rows = [], 0
    for window_of in pack(np.array(lengths, np.int64), np.array(cut, np.bool_), row, window):
        out += zip(window_of.unit.tolist(), window_of.start.tolist(), window_of.stop.tolist(), (window_of.row + rows).tolist(), strict=True)
        assert sorted(set(window_of.row.tolist())) == list(range(window_of.rows))
        rows += window_of.rows
    return out, rows


def fitting(drawn):
    return [n if cut else min(n, ROW) for n, cut in drawn], [cut for _, cut in drawn]


@settings(max_examples=150, deadline=None)
@given(units, st.sampled_from([1, 7, 64, None]))
def test_every_position_of_every_unit_is_placed_exactly_once(drawn, window):
    lengths, cut = fitting(drawn)
    pieces, _ = packed(lengths, cut, window=window)
    where = {i: [] for i in range(len(lengths))}
    for unit, start, stop, _ in sorted(pieces):
        where[unit].append((start, stop))
    for i, length in enumerate(lengths):
        edges = [0, *(stop for _, stop in where[i])]
        assert [start for start, _ in where[i]] == edges[:-1] and edges[-1] == length


@settings(max_examples=150, deadline=None)
@given(units)
def test_no_row_is_too_long_and_only_what_may_be_cut_is_cut(drawn):
    lengths, cut = fitting(drawn)
    pieces, rows = packed(lengths, cut)
    used = np.zeros(rows, np.int64)
    for unit, start, stop, row in pieces:
        used[row] += stop - start
        assert cut[unit] or stop - start == lengths[unit]
        assert stop - start == lengths[unit] or stop - start >= shortest_piece(ROW)
    assert (used <= ROW).all() and (used > 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=120))
def test_best_fit_places_every_item_in_a_bin_that_holds_it(sizes):
    size = np.sort(np.array(sizes, np.int64))[::-1]
    bins, count = best_fit(size, 50)
    held = np.bincount(bins, weights=size, minlength=count)
    assert len(bins) == len(size) and (held <= 50).all() and (held > 0).all()
    assert count <= 2 * size.sum() / 50 + 1  # at most one bin is less than half full


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_best_fit_equals_the_textbook_that_looks_at_every_bin(sizes):
    size = np.sort(np.array(sizes, np.int64))[::-1]
    room = []
    for s in size.tolist():
        fits = [(r, i) for i, r in enumerate(room) if r >= s]
        if fits:
            room[min(fits)[1]] -= s
        else:
            room.append(30 - s)
    bins, count = best_fit(size, 30)
    ours = 30 - np.bincount(bins, weights=size, minlength=count).astype(int)
    assert sorted(ours.tolist()) == sorted(room)


def field_mix(n):
    """The field's synthetic mix: a quarter each of texts, image-text pairs, clips of 4 to 15 frames and questions, for rows of 4,096."""
    rng, q = np.random.default_rng(0), n // 4
    text = np.clip(rng.lognormal(6.2, 1, q), 8, 40_000).astype(int) + 2
    pairs, clips = 260 + rng.integers(8, 80, q), rng.integers(4, 16, q) * 258 + 2
    lengths = np.concatenate([text, pairs, clips, 260 + rng.integers(20, 300, q)])
    order = rng.permutation(len(lengths))
    return lengths[order], (np.arange(len(lengths)) < q)[order]


@pytest.mark.parametrize("n", [2_000, 20_000])
def test_rows_are_99_percent_full_when_texts_may_fill_the_gaps(n):
    lengths, cut = field_mix(n)
    _, rows = packed(lengths, cut, 4096)
    assert lengths.sum() / (rows * 4096) >= 0.99


@pytest.mark.parametrize("n", [2_000, 20_000])
def test_rows_are_97_and_a_half_percent_full_when_nothing_may_be_cut(n):
    lengths = np.minimum(field_mix(n)[0], 4096)
    _, rows = packed(lengths, np.zeros(len(lengths), bool), 4096)
    assert lengths.sum() / (rows * 4096) >= 0.975


def test_a_text_that_fits_is_cut_at_most_once_when_packed_with_others():
    lengths, cut = field_mix(4_000)
    pieces, _ = packed(lengths, cut, 4096)
    times = np.bincount([p[0] for p in pieces], minlength=len(lengths))
    assert times[lengths <= 4096].max() <= 2 + 1  # once in its own window, once more in the very last rounds


def test_units_leave_in_about_the_order_they_came_in():
    lengths, cut = field_mix(20_000)
    pieces, _ = packed(lengths, cut, 4096)
    unit, row = np.array([p[0] for p in pieces]), np.array([p[3] for p in pieces])
    assert np.corrcoef(unit, row)[0, 1] > 0.98


def test_the_examples_in_docstrings_hold():
    import doctest

    import mixtures.mixture
    import mixtures.packing

    for module in (mixtures.mixture, mixtures.packing):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed
