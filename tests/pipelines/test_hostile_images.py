"""Hostile pictures: pixels or a reason, in time and within the child's memory; unusual good ones come through."""

from __future__ import annotations

import time

import pytest

from pipelines.format.errors import Reject
from pipelines.media import images, still
from pipelines.media.child import close_children
from tests.peak import held_from_now, most_held
from tests.pipelines.hostile_corpus import peak
from tests.pipelines.hostile_images import bombs, headers, plain

REASONS = {"invalid_image", "too_large", "truncated", "unreadable", "timeout"}


@pytest.fixture(autouse=True)
def _no_child_left():
    close_children()
    yield
    close_children()


def outcome(data: bytes) -> tuple[str, str]:
    """What a pipeline makes of it: first its header is read, then it is made small."""
    try:
        still.verify(data)
        jpeg, shape, _ = still.resized(data, 32, "center_crop", 90, True, images.MAX_PIXELS)
    except Reject as e:
        return e.reason, e.detail
    assert shape == (32, 32, 3) and jpeg.startswith(b"\xff\xd8")
    return "pixels", "whole"


@pytest.mark.parametrize("name", headers())
def test_a_header_that_says_huge_is_refused_before_a_pixel_is_made(name):
    data = headers()[name]
    before = held_from_now()
    said, detail = outcome(data)
    assert said in ("too_large", "invalid_image", "truncated", "unreadable") and detail, (said, detail)
    assert peak() < 200 and most_held() - before < 64 << 20


def test_small_files_that_unpack_to_much_end_in_pixels_or_a_reason_within_bounds():
    for name, data in bombs().items():
        before, started = held_from_now(), time.monotonic()
        said, detail = outcome(data)
        seconds, here = time.monotonic() - started, (most_held() - before) >> 20
        assert said in REASONS | {"pixels"} and detail, name
        assert seconds < 30 and peak() < 512 and here < 64, (name, seconds, peak(), here)


@pytest.mark.parametrize("name", plain())
def test_unusual_pictures_come_through(name):
    assert outcome(plain()[name]) == ("pixels", "whole")


@pytest.mark.parametrize("name", plain())
def test_every_cut_of_them_is_pixels_or_a_reason(name):
    data = plain()[name]
    for cut in range(0, len(data), max(1, len(data) // 12)):
        said, detail = outcome(data[:cut])
        assert said in REASONS or len(data) - cut <= 12, (cut, said, detail)  # a PNG without its end mark has all its pixels
