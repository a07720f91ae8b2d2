"""Still images: every readable file gives the pixels a viewer shows, every other one a named reject, and none does harm."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.format.errors import Reject
from pipelines.media import images, jpeg, resizing, still


def scene(height=48, width=64, seed=0):
    """A smooth coloured picture with an edge: compresses like a photo, and no two turns of it look alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / width * a + y / height * b + c) for a, b, c in rng.uniform(1, 6, (3, 3))]
    out = (np.stack(waves, -1) * 100 + 128).astype(np.uint8)
    out[: height // 4, : width // 3] = rng.integers(0, 255, 3)
    return out


def saved(array, form, **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, form, **options)
    return out.getvalue()


def rejected(data, *reasons, fn=images.decode, **options):
    with pytest.raises(Reject) as caught:
        fn(data, **options)
    assert caught.value.reason in reasons, caught.value
    return caught.value


def test_png_gives_back_exactly_what_was_encoded_and_equal_arrays_give_equal_bytes():
    array = scene()
    assert np.array_equal(images.decode(images.encode_png(array)), array)
    assert images.encode_png(array) == images.encode_png(array.copy())
    assert images.encode_jpeg(array) == images.encode_jpeg(np.asfortranarray(array))


def test_jpeg_at_92_stays_within_a_few_grey_levels():
    array = scene()
    error = np.abs(images.decode(images.encode_jpeg(array)).astype(int) - array)
    assert error.mean() < 4
    assert len(images.encode_jpeg(array, 30)) < len(images.encode_jpeg(array, 92))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_each_allowed_format_is_probed_and_decoded_to_the_same_size(form):
    data = saved(scene(), form)
    info = images.verify(data)
    assert (info.format, info.width, info.height, info.frames) == (form.lower(), 64, 48, 1)
    assert images.decode(data).shape == (48, 64, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "TIFF"])
def test_the_camera_orientation_is_applied_to_pixels_and_to_the_probed_size(form, orientation):
    upright = scene()
    stored = {  # how a camera stores the scene, so that the tag turns it upright
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} | ({"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {})
    data = saved(np.ascontiguousarray(stored), form, **options)
    info, array = images.probe(data), images.decode(data)
    assert (info.height, info.width) == array.shape[:2] == (48, 64)
    assert info.upright == (orientation == 1)
    assert np.abs(array.astype(int) - upright).mean() < 4


def test_transparency_is_laid_over_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 0, 0, 255)
    rgba[0, 1] = (200, 0, 0, 0)
    rgba[1, 0] = (0, 0, 0, 128)
    array = images.decode(saved(rgba, "PNG"))
    assert array[0, 0].tolist() == [200, 0, 0]
    assert array[0, 1].tolist() == [255, 255, 255]
    assert abs(int(array[1, 0, 0]) - 127) <= 1
    palette = Image.fromarray(np.zeros((2, 2), np.uint8), "P")
    palette.putpalette([10, 20, 30])
    out = io.BytesIO()
    palette.save(out, "PNG", transparency=0)
    assert (images.decode(out.getvalue()) == 255).all()


def test_greys_of_16_bits_are_scaled_and_cmyk_and_palettes_become_rgb():
    grey = np.array([[0, 257 * 128, 65535]], np.uint16)
    assert images.decode(saved(grey, "PNG"))[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    out = io.BytesIO()
    Image.fromarray(scene()).convert("CMYK").save(out, "JPEG", quality=95)
    assert np.abs(images.decode(out.getvalue()).astype(int) - scene()).mean() < 6
    out = io.BytesIO()
    Image.fromarray(scene()).quantize(64).save(out, "PNG")
    assert images.decode(out.getvalue()).shape == (48, 64, 3)


def test_floating_point_pixels_are_refused_since_their_range_is_unknown():
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(out, "TIFF")
    rejected(out.getvalue(), "invalid_image")


def test_an_animation_gives_its_first_frame():
    out = io.BytesIO()
    first, second = (Image.fromarray(np.full((4, 4, 3), v, np.uint8)) for v in (10, 200))
    first.save(out, "GIF", save_all=True, append_images=[second])
    assert images.probe(out.getvalue()).frames == 2
    assert images.decode(out.getvalue())[0, 0, 0] == 10


def png_header(width, height):
    chunk = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"IHDR" + chunk
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_a_bomb_is_refused_by_its_header_before_any_pixel():
    body = struct.pack(">I", 4) + b"IDAT" + b"\0" * 8
    for width, height in [(7072, 7072), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]:
        for fn in (images.probe, images.verify, images.decode):
            rejected(png_header(width, height) + body, "too_large", "invalid_image", fn=fn)
    rejected(images.encode_png(scene()), "too_large", max_pixels=48 * 64 - 1)
    assert images.decode(images.encode_png(scene()), max_pixels=48 * 64).shape == (48, 64, 3)


@pytest.mark.parametrize(
    "data",
    [b"", b"<html><body>404</body></html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"%!PS-Adobe", b"\x89PNG\r\n\x1a\n", b"GIF89a",
     b"\0\0\0\x1cftypheic", b"\xff\xd8\xff", b"8BPS\0\1", b"P6 4 4 255 ", b"#define x_width 4\n"],
)  # fmt: skip
def test_what_is_no_allowed_image_is_a_named_reject(data):
    for fn in (images.probe, images.verify, images.decode):
        rejected(data, "invalid_image", "truncated", fn=fn)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_file_cut_anywhere_is_found_without_decoding_the_whole_ones(form, monkeypatch):
    data = saved(scene(96, 128), form)
    for stop in range(0, len(data) - 16, max(1, len(data) // 40)):
        rejected(data[:stop], "truncated", "invalid_image", fn=images.verify)
    if form != "BMP":
        monkeypatch.setattr(images, "decode", lambda *_: pytest.fail("decoded"))
        images.verify(data)


def test_bytes_that_a_phone_appends_behind_the_end_do_no_harm():
    for form in ("JPEG", "PNG", "WEBP"):
        assert images.verify(saved(scene(), form) + b"appended").format == form.lower()


def test_a_thumbnail_that_ends_well_does_not_hide_that_the_photo_is_cut():
    exif, thumbnail = Image.Exif(), images.encode_jpeg(scene(8, 8))
    exif[0x9286] = thumbnail
    data = saved(scene(96, 128), "JPEG", exif=exif)
    assert data.count(b"\xff\xd9") == 2
    rejected(data[: len(data) * 3 // 4], "truncated", fn=images.verify)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_flipped_bytes_give_pixels_or_a_reject_never_another_error(form, flips):
    data = bytearray(saved(scene(24, 24), form))
    for where, value in flips:
        data[int(where * (len(data) - 1))] = value
    for fn in (images.probe, images.verify, images.decode):
        try:
            fn(bytes(data))
        except Reject as reject:
            assert reject.reason in ("invalid_image", "truncated", "too_large")


@pytest.mark.parametrize(
    ("shape", "mode", "upscale", "expected"),
    [
        ((40, 80), "center_crop", True, (16, 16)),
        ((40, 80), "keep_ratio", True, (16, 32)),
        ((80, 40), "border", True, (16, 16)),
        ((40, 80), "no", True, (40, 80)),
        ((8, 12), "center_crop", True, (16, 16)),
        ((8, 12), "center_crop", False, (8, 8)),
        ((8, 12), "keep_ratio", False, (8, 12)),
        ((8, 12), "border", False, (16, 16)),
        ((1, 5000), "border", True, (16, 16)),
    ],
)
def test_each_resize_mode_gives_the_size_it_says(shape, mode, upscale, expected):
    assert resizing.resize(scene(*shape), 16, mode, upscale).shape == (*expected, 3)


def test_a_line_of_pixels_is_not_blown_up_without_limit():
    line = images.encode_png(np.zeros((1, 60_000, 3), np.uint8))
    with pytest.raises(Reject) as caught:
        resizing.resized(line, 224, "keep_ratio")
    assert caught.value.reason == "too_large"
    assert resizing.resized(line, 224, "border")[1] == (224, 224, 3)


def test_a_file_resized_in_one_go_equals_its_steps():
    for form in ("JPEG", "PNG", "GIF"):
        data = saved(scene(), form)
        for mode in ("center_crop", "keep_ratio", "border", "no"):
            steps = resizing.resize(images.decode(data), 24, mode)
            whole, shape, _ = resizing.resized(data, 24, mode)
            assert shape == steps.shape and (whole == images.encode_jpeg(steps) or (form == "JPEG" and mode == "no" and whole is data))


def test_nothing_to_change_returns_the_same_array():
    square = scene(16, 16)
    assert resizing.resize(square, 16, "center_crop") is square
    assert resizing.resize(scene(16, 32), 16, "keep_ratio").shape == (16, 32, 3)


def test_center_crop_takes_the_middle_and_border_is_white():
    array = np.zeros((10, 30, 3), np.uint8)
    array[:, 10:20] = 255
    assert (resizing.resize(array, 10, "center_crop") == 255).all()
    framed = resizing.resize(np.zeros((10, 20, 3), np.uint8), 20, "border")
    assert (framed[:5] == 255).all() and (framed[15:] == 255).all() and (framed[5:15] == 0).all()


def test_reduction_averages_instead_of_picking_pixels():
    checker = np.indices((64, 64)).sum(0) % 2 * 255
    small = resizing.resize(np.repeat(checker[..., None], 3, 2).astype(np.uint8), 8)
    assert np.abs(small.astype(int) - 127).max() <= 4


def distance(a, b):
    return (images.phash(a) ^ images.phash(b)).bit_count()


def test_the_perceptual_hash_survives_scaling_and_compression_and_tells_pictures_apart():
    for seed in range(5):
        array = scene(96, 128, seed)
        assert distance(array, resizing.resize(array, 64, "keep_ratio")) <= 10
        assert distance(array, images.decode(images.encode_jpeg(array, 50))) <= 10
        assert distance(array, scene(96, 128, seed + 1)) >= 14
    assert 0 <= images.phash(scene()) < 2**64


def test_the_perceptual_hash_is_the_same_on_every_machine():
    y, x = np.mgrid[0:64, 0:64]
    pattern = ((x * 3 + y * y // 9 + (x // 16) * 40 * (y // 8)) % 256).astype(np.uint8)[..., None].repeat(3, 2)
    assert f"{images.phash(pattern):016x}" == "821a0fb9702bef6c"

def test_the_guarded_child_gives_the_same_answers_as_this_process():
    for form in ("JPEG", "PNG", "GIF", "WEBP"):
        data = saved(scene(), form)
        assert still.verify(data) == images.verify(data)
        assert still.resized(data, 24, "center_crop", 92, True, 10**6) == resizing.resized(data, 24, "center_crop", 92, True, 10**6)
    ready = images.encode_jpeg(scene(24, 24))
    assert still.resized(ready, 24, "center_crop", 92, True, 10**6)[0] is ready
    rejected(saved(scene(), "GIF")[:-300], "truncated", "invalid_image", fn=still.verify)
    rejected(b"GIF89a", "truncated", "invalid_image", fn=still.verify)
    rejected(images.encode_jpeg(scene())[:-300], "truncated", fn=lambda d: still.resized(d, 24, "no", 92, True, 10**6))


DATA = os.environ.get("HEADWATER_DATA")


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA is not set")
def test_every_hostile_image_of_the_real_corpus_is_pixels_or_a_reject():
    seen = {"ok": 0}
    for path in sorted(Path(str(DATA), "images_nasty").rglob("*")):
        if path.is_file():
            try:
                assert images.decode(path.read_bytes()).dtype == np.uint8
                reason = "ok"
            except Reject as reject:
                reason = reject.reason
            seen[reason] = seen.get(reason, 0) + 1
    assert seen["ok"] > 100 and set(seen) <= {"ok", "invalid_image", "truncated", "too_large"}, seen


@given(st.data())
def test_a_jpegs_header_read_from_its_markers_is_what_pillow_reads_however_damaged(data):
    exif = Image.Exif()
    exif[0x0112] = data.draw(st.sampled_from([1, 6]))
    more = data.draw(st.sampled_from([{}, {"exif": exif.tobytes()}, {"progressive": True}, {"comment": b"x" * 300}, {"subsampling": 0}]))
    mode = data.draw(st.sampled_from(["RGB", "L", "CMYK"]))
    out = io.BytesIO()
    Image.fromarray(scene(24, 40)).convert(mode).save(out, "JPEG", **more)
    found = bytearray(out.getvalue())
    for at in data.draw(st.lists(st.integers(2, 700), max_size=3)):
        if at < len(found):
            found[at] = data.draw(st.integers(0, 255))
    bytes_ = bytes(found[: data.draw(st.integers(4, len(found)))])
    plain = jpeg.header(bytes_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "header", lambda _: None)
        try:
            info = images.probe(bytes_)
        except Reject:
            info = None
    if plain is not None:
        assert info is not None and (info.width, info.height, info.frames, info.upright) == (plain.width, plain.height, 1, True)
        assert info.mode == ("L" if plain.components == 1 else "RGB")


def test_the_markers_alone_answer_for_what_cameras_and_the_web_write():
    for mode, more in (("RGB", {}), ("L", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0, "comment": b"a"})):
        out = io.BytesIO()
        Image.fromarray(scene(24, 40)).convert(mode).save(out, "JPEG", **more)
        assert jpeg.header(out.getvalue()) == (40, 24, 1 if mode == "L" else 3)
