"""Large JPEGs are decoded small: the same window of the same picture, nearly the same pixels; what nothing is done to keeps its bytes."""

import io

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from pipelines.format.errors import Reject
from pipelines.format.record import Image as ImageSegment
from pipelines.format.record import Record
from pipelines.media import images, resizing
from pipelines.transforms.resize_image import ResizeImage

MODES = ["center_crop", "keep_ratio", "keep_ratio_largest", "border"]


def photo(height, width):
    """Slopes, waves and edges: what shifts or ringing would show in."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(40 * x + 15 * y), np.cos(55 * y * x), np.sign(np.sin(18 * x) * np.sin(14 * y)) * 0.6]
    return np.stack([127 + 110 * w for w in waves], axis=2).clip(0, 255).astype(np.uint8)


def saved(array, form="JPEG", **more):
    out = io.BytesIO()
    Image.fromarray(array).save(out, form, **more)
    return out.getvalue()


def psnr(a, b):
    error = np.mean((a.astype(float) - b) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.fixture
def steps(monkeypatch):
    """The scales at which JPEGs were decoded."""
    seen, real = [], JpegImagePlugin.JpegImageFile.draft

    def draft(self, mode, size):
        before = self.size
        found = real(self, mode, size)
        seen.append(round(max(before) / max(self.size)))
        return found

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", draft)
    return seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(640, 640), (997, 1203), (1201, 995), (641, 1999), (333, 2001)])
def test_a_reduced_decode_shows_the_same_window_and_nearly_the_same_pixels(monkeypatch, steps, shape, mode):
    data = saved(photo(*shape), quality=95)
    size = 64
    small, shown, _ = resizing.resized(data, size, mode, 95)
    assert steps and steps[0] in (2, 4, 8)
    monkeypatch.setattr(resizing, "REDUCE_FROM", 1e9)
    full, shown_full, _ = resizing.resized(data, size, mode, 95)
    assert len(steps) == 1 and shown == shown_full
    assert psnr(images.decode(small), images.decode(full)) > 30
    shifted = np.roll(images.decode(full), 1, axis=1)
    assert psnr(images.decode(small), images.decode(full)) > psnr(shifted, images.decode(full)) + 6


@pytest.mark.parametrize(("source", "scale"), [(96, None), (191, None), (192, 2), (319, 2), (320, 4), (639, 4), (640, 8), (4000, 8)])
def test_the_scale_leaves_a_quarter_more_than_the_target(steps, source, scale):
    resizing.resized(saved(photo(source, source)), 64)
    assert steps == ([scale] if scale else [])


def test_turned_images_and_other_formats_are_decoded_whole(steps):
    array = photo(400, 600)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, shape, _ = resizing.resized(saved(array, exif=exif.tobytes(), quality=95), 64, "keep_ratio", 95)
    assert shape == (96, 64, 3)
    wanted = resizing.resize(np.rot90(array, -1).copy(), 64, "keep_ratio")
    assert psnr(images.decode(turned).mean(2), wanted.mean(2)) > 25 > psnr(images.decode(turned)[::-1].mean(2), wanted.mean(2)) + 8
    resizing.resized(saved(array, "PNG"), 64)
    assert resizing.resized(saved(array), 64, "no")[1] == (400, 600, 3) and not steps


@pytest.mark.parametrize(
    ("mode", "upscale", "shape", "expected"),
    [
        ("keep_ratio_largest", True, (40, 80), (8, 16)),
        ("keep_ratio_largest", True, (4, 8), (8, 16)),
        ("keep_ratio_largest", False, (4, 8), (4, 8)),
        ("keep_ratio", True, (40, 80), (16, 32)),
        ("border", True, (40, 80), (16, 16)),
        ("center_crop", True, (40, 80), (16, 16)),
        ("no", True, (40, 80), (40, 80)),
    ],
)
def test_modes_have_the_sizes_their_users_know(mode, upscale, shape, expected):
    assert resizing.resized(saved(photo(*shape), "PNG"), 16, mode, upscale=upscale)[1] == (*expected, 3)


def test_a_size_is_judged_before_a_pixel_is_decoded(monkeypatch):
    data = saved(np.zeros((100, 100, 3), np.uint8))
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(Reject) as e:
        resizing.resized(data, 16, max_pixels=9_999)
    assert e.value.reason == "too_large"


def transformed(payload, dtype, **how):
    record = Record.make("s", "o", "image-text", [ImageSegment(payload, atom=0, shape=(8, 8, 3), dtype=dtype)])
    ((segment,),) = [r.segments for r in ResizeImage(**how).apply(record)]
    return segment


def test_what_nothing_is_done_to_keeps_its_bytes_and_format():
    array = photo(24, 24)
    for form, dtype in (("JPEG", "jpeg"), ("PNG", "png")):
        data = saved(array, form)
        for payload in (data, bytes(bytearray(data))):  # an equal image elsewhere is the same image
            kept = transformed(payload, dtype, mode="no")
            assert (kept.payload, kept.dtype, kept.shape) == (data, dtype, (24, 24, 3))
    assert transformed(saved(array), "jpeg", size=24).payload == saved(array)
    for data in (saved(array, "PNG"), saved(array[..., 0], "PNG"), saved(array, "WEBP")):
        made = transformed(data, "png", size=24)
        assert made.dtype == "jpeg" and made.payload.startswith(b"\xff\xd8")
    grey = transformed(saved(array[..., 0], "PNG"), "png", mode="no")
    assert grey.dtype == "jpeg"
    two = io.BytesIO()
    Image.fromarray(array).save(two, "PNG", save_all=True, append_images=[Image.fromarray(array[::-1])])
    assert transformed(two.getvalue(), "png", mode="no").dtype == "jpeg"


def test_a_record_of_one_image_gets_the_perceptual_hash_of_the_whole_picture_and_others_none():
    wide = saved(photo(400, 1200), quality=95)
    for mode in ("center_crop", "border", "no"):
        hashed = ResizeImage(size=64, mode=mode)
        (one,) = hashed.apply(Record.make("s", "a", "image-text", [ImageSegment(wide)]))
        assert one.phash is not None and (one.phash ^ images.phash(images.decode(wide))).bit_count() <= 4
    (two,) = hashed.apply(Record.make("s", "a", "video", [ImageSegment(wide), ImageSegment(wide)]))
    (off,) = ResizeImage(size=64, phash=False).apply(Record.make("s", "a", "image-text", [ImageSegment(wide)]))
    (known,) = hashed.apply(Record.make("s", "a", "image-text", [ImageSegment(wide)], phash=7))
    assert (two.phash, off.phash, known.phash) == (None, None, 7)


def test_a_comment_in_a_file_is_not_handed_on():
    data = saved(photo(100, 100), comment=b"somebody's name")
    assert b"somebody" in data and b"somebody" not in resizing.resized(data, 32)[0]
