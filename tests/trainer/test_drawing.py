"""What figures are drawn with: axes that show every value, names that do not collide, colours that all eyes can tell on both papers."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest

from trainer.report import drawing as d
from trainer.report.marks import _apart, _moved

# Viénot-style simulation of full dichromacy, on linear RGB: Machado, Oliveira and Fernandes 2009, severity 1.0.
PROTAN = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]])
DEUTAN = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x = (XYZ @ np.clip(rgb, 0, 1)) / np.array([0.95047, 1, 1.08883])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("paper", ["#ffffff", "#15181c"])
def test_colours_stand_at_three_to_one_on_white_and_on_near_black(paper):
    for colour in d.COLOURS:
        light, dark = sorted((float(XYZ[1] @ linear(c)) for c in (colour, paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, colour


@pytest.mark.parametrize("sight", [np.eye(3), PROTAN, DEUTAN], ids=["full", "protan", "deutan"])
def test_no_two_colours_look_the_same(sight):
    seen = [lab(sight @ linear(c)) for c in d.COLOURS]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]) >= 20


def test_the_first_lines_differ_by_more_than_colour():
    looks = [d.look(i) for i in range(40)]
    assert len({(x["color"], str(x["linestyle"])) for x in looks}) == 40
    assert len({str(x["linestyle"]) for x in looks[:8]}) == len({x["marker"] for x in looks[:8]}) == 8


def test_one_wide_interval_does_not_press_the_values_together():
    low, high = d.limits([1.0, 1.1, 1.2], [-50.0, 50.0, 0.9, math.nan])
    assert low < 1.0 and high > 1.2 and high - low < 1.0


def test_limits_hold_every_value_and_bars_start_at_nothing():
    assert d.limits([3.0], [2.0, 4.0], from_nothing=True)[0] == 0
    low, high = d.limits([5.0])
    assert low < 5 < high
    low, high = d.limits([1.0, 1e4], [-1.0, 1e9], log=True)
    assert 0 < low < 1 and 1e4 < high < 1e10


@pytest.mark.parametrize("heights", [[0.5], [0.5, 0.5, 0.5], [0.0, 0.01, 0.9, 0.91, 1.0], [1.0] * 9])
def test_names_at_line_ends_keep_their_order_and_distance(heights):
    moved = _moved(heights, 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(moved)) and moved[0] >= -1e-9 and moved[-1] <= 1 + 1e-9


def test_names_that_do_not_collide_stay():
    assert _moved([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])


def test_ticks_keep_the_ends_and_their_distance():
    assert _apart([0.1, 0.5, 1, 10, 15, 25]) == [0.1, 0.5, 1, 10, 25]
    assert _apart([0.19, 0.57, 0.96, 10, 15, 25], "{:g}".format) == [0.19, 0.57, 10, 25]  # longer words need more room
    assert d.even_ticks([276, 1242, 1380, 1514]) == [276, 1242, 1514]
    assert d.even_ticks([3]) == [3] and d.even_ticks([]) == []


def test_long_names_are_broken_at_their_joints_and_never_longer_than_three_lines():
    assert d.ragged(["vqa20+image_text80_and_video"]) == ["vqa20+image_\ntext80_and_video"]
    (long,) = d.ragged(["x" * 90])
    assert long.count("\n") == 2 and long.endswith("…") and max(map(len, long.split("\n"))) <= 18
    assert d.rows(["a"])[0] < d.rows(["long_names_of_" * 6])[0]


def test_numbers_are_said_shortly():
    assert [d.short(v) for v in (950, 20_000, 1.5e6, 1e11)] == ["950", "20K", "1.5M", "100B"]
    assert [d.power(v) for v in (6e18, 1e19, 2.5e-3)] == ["6×10¹⁸", "10¹⁹", "2.5×10⁻³"]
    assert [d.number(v) for v in (1008, 0.35, 12)] == ["1008", "0.35", "12"]


def test_a_drawing_scales_up_but_never_below_its_own_size_and_fits_paper():
    page = d.figure(d.draw(lambda f: f.subplots().plot([1, 2]), width=d.PHONE, label="two <points>"), "words")
    least, most = (int(n) for n in re.findall(r"(?:min|max)-width:(\d+)px", page[page.index("<svg") :])[:2])
    assert least == round(d.PHONE * 96) <= 358 and most > least and d.WIDEST * 96 <= 717
    assert "two &lt;points&gt;" in page and "#010203" not in page and "currentColor" in page


def test_a_wide_log_axis_has_few_round_ticks():
    seen = []

    def make(fig):
        panel = fig.subplots()
        panel.plot([1, 1e6], [1, 2])
        d.log_axis(panel, "x", "parameters")
        seen.extend(t for t in panel.get_xticks() if 1 <= t <= 1e6)

    d.draw(make)
    assert 3 <= len(seen) <= 5 and all(math.log10(t).is_integer() for t in seen)
