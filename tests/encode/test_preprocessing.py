"""Pictures and numbers are what the published image processors make of the same file, for real photos and for the odd ones among them.

The convention that differs from a bare `Image.open(f).convert("RGB")`, on purpose: EXIF turns are applied, transparency lies on white (not on the
hidden colour below it), 16-bit greys are scaled to 8 bits (not cut off at 255), and of an animation the first frame counts.
"""

import io
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from encode import resampling
from encode.processor import Processor, published
from pipelines.format.errors import Reject
from pipelines.media import images
from tests.encode.models import photo

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DATA = os.environ.get("HEADWATER_DATA")
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"crop_size": {"height": 224, "width": 224}}


def siglip():
    return transformers.SiglipImageProcessorPil(size={"height": 224, "width": 224})


def dinov2(short=256):
    return transformers.BitImageProcessorPil(size={"shortest_edge": short}, **SQUARE, **IMAGENET)


PROCESSORS = {"siglip2": siglip, "dinov2": dinov2, "webssl": lambda: dinov2(224)}


@cache
def theirs_of(name):
    return PROCESSORS[name]()


def ours_of(name, exact=False):
    return published(theirs_of(name).to_dict(), "test", exact=exact)


def shown(data):
    """The convention, by Pillow's own means."""
    image = Image.open(io.BytesIO(data))
    image.seek(0)
    if image.mode.startswith("I"):
        return Image.fromarray(np.rint(np.asarray(image).astype(float) / 257).astype(np.uint8)).convert("RGB")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def levels_apart(ours, theirs, name):
    """Differences on the scale of the pixels, 0 to 255."""
    std = np.array(theirs_of(name).image_std, np.float64)[:, None, None]
    return np.abs(ours.astype(np.float64) - theirs) * std * 255


def difference(data, picture, name, exact=False):
    """(largest, mean) of ours from bytes against theirs from the picture."""
    ours = ours_of(name, exact)
    numbers = ours.numbers("cpu")(torch.from_numpy(ours.read(data)[None].copy()))[0].numpy()
    apart = levels_apart(numbers, theirs_of(name)(images=picture, return_tensors="np")["pixel_values"][0], name)
    return apart.max(), apart.mean()


def files(*folders):
    there = (p for folder in folders for p in sorted((Path(DATA or "") / folder).rglob("*")))
    return [p for p in there if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA names no real files")
@pytest.mark.parametrize("name", PROCESSORS)
def test_200_real_photos_are_within_the_rounding_of_a_level_and_exact_where_asked(name):
    photos = files("image_text", "vqa/vqa_rad")
    seen = []
    for path in photos[:: len(photos) // 200][:200]:
        data = path.read_bytes()
        picture = shown(data)
        seen.append(difference(data, picture, name))
        assert difference(data, picture, name, exact=True) == (0, 0), path
    worst, mean = max(s[0] for s in seen), [s[1] for s in seen]
    print(f"{name}: {len(seen)} photos, max {worst:.2f}, mean {np.mean(mean):.4f} levels, worst mean {max(mean):.4f}")
    assert len(seen) == 200 and worst <= 2.01 and np.mean([s[0] <= 1.01 for s in seen]) >= 0.95 and max(mean) <= 0.02


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA names no real files")
def test_odd_files_follow_the_stated_convention():
    """CMYK, 16 bits, palettes, transparency in every form, EXIF turns, animations, broken metadata: equal to Pillow plus the convention."""
    turned = read = 0
    for path in sorted((Path(DATA) / "images_nasty/pillow").iterdir()):
        data = path.read_bytes()
        try:
            ours = images.decode(data, 10_000_000)
        except Reject:
            continue
        if path.suffix in (".tif", ".tiff"):
            continue  # Pillow turns these itself while it loads them
        picture = shown(data)
        np.testing.assert_array_equal(ours, np.asarray(picture), err_msg=str(path))
        read += 1
        turned += "orientation" in path.name
        for name in PROCESSORS:
            worst, mean = difference(data, picture, name)
            assert worst <= 2.01 and mean <= 0.1, (path, name, worst, mean)
    assert read > 40 and turned >= 4, (read, turned)


def saved(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def made():
    """Synthetic odd files: (name, bytes)."""
    rgb = Image.fromarray(photo(1, 300, 240))
    alpha = Image.fromarray(np.dstack([photo(2, 300, 240), np.tile(np.arange(240, dtype=np.uint8), (300, 1))]), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "jpeg", saved(rgb, "JPEG", quality=90)
    yield "turned", saved(rgb, "JPEG", quality=90, exif=exif)
    yield "cmyk", saved(rgb.convert("CMYK"), "JPEG", quality=95)
    yield "grey", saved(rgb.convert("L"))
    yield "palette", saved(rgb.quantize(64))
    yield "alpha", saved(alpha)
    yield "grey and alpha", saved(alpha.convert("LA"))
    yield "16 bits", saved(Image.fromarray(np.random.default_rng(0).integers(0, 65536, (200, 300)).astype(np.uint16)))
    yield "one bit", saved(rgb.convert("1"))


@pytest.mark.parametrize("name", PROCESSORS)
def test_synthetic_files_of_every_mode_follow_the_convention(name):
    for kind, data in made():
        worst, mean = difference(data, shown(data), name)
        assert worst <= 2.01 and mean <= 0.1, (kind, worst, mean)
        assert difference(data, shown(data), name, exact=True) == (0, 0), kind


def test_a_plain_picture_needs_no_convention():
    data = saved(Image.fromarray(photo(3, 400, 300)), "JPEG", quality=92)
    assert difference(data, Image.open(io.BytesIO(data)).convert("RGB"), "siglip2", exact=True) == (0, 0)


@pytest.mark.parametrize("size", [64, 224])
def test_an_autoencoders_pixels_are_those_of_its_own_processor(size):
    image_processor = pytest.importorskip("diffusers.image_processor")
    half = (0.5,) * 3
    ours = Processor(size, size, size, "lanczos", 1 / 255, half, half)
    for height, width in ((300, 200), (200, 301), (257, 257), (40, 90)):
        pixels = photo(5, height, width)
        theirs = image_processor.VaeImageProcessor().preprocess(Image.fromarray(pixels), size, size, resize_mode="crop")
        numbers = ours.numbers("cpu")(torch.from_numpy(ours.picture(pixels)[None].copy()))
        assert torch.equal(numbers, theirs)


@pytest.mark.parametrize(
    "settings", [{}, IMAGENET, {"do_rescale": False}, {"do_normalize": False}, {"rescale_factor": 1 / 127.5}, {"rescale_factor": 0.0039}]
)
def test_the_table_gives_the_processors_floats_to_the_last_bit(settings):
    theirs = transformers.SiglipImageProcessorPil(size={"height": 16, "width": 48}, **settings)
    ours = published(theirs.to_dict(), "test")
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3).repeat(3, axis=1)
    expected = theirs(images=levels, return_tensors="np")["pixel_values"]
    got = ours.numbers("cpu")(torch.from_numpy(levels[None])).numpy()
    np.testing.assert_array_equal(got, expected.astype(np.float32))


# ---- the fast kernel -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", resampling.KERNELS)
def test_the_fast_kernel_is_within_two_levels_of_pillow_on_noise_of_any_shape(filter):
    """Noise is the worst case, and a wrong order of the two passes would show as 20 levels."""
    rng = np.random.default_rng(7)
    for _ in range(60):
        h, w = (int(x) for x in np.exp(rng.uniform(np.log(130), np.log(700), 2)))
        height, width = (int(x / s) for x, s in zip((h, w), np.exp(rng.uniform(np.log(8 / 7), np.log(9), 2)), strict=True))
        assert resampling.fast(h, w, height, width, filter)
        pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        apart = np.abs(resampling.stretch(pixels, height, width, filter).astype(int) - images.stretch(pixels, height, width, filter))
        assert apart.max() <= 2 and apart.mean() <= 0.02, ((h, w), (height, width), apart.max(), apart.mean())


def test_reading_a_file_gives_what_its_pixels_give():
    for data in (saved(Image.fromarray(photo(8, *shape))) for shape in ((700, 500), (250, 260), (60, 44), (224, 224))):
        for name in PROCESSORS:
            for exact in (False, True):
                ours = ours_of(name, exact)
                np.testing.assert_array_equal(ours.read(data), ours.picture(images.decode(data)))


def test_a_line_of_pixels_is_refused_before_it_grows():
    with pytest.raises(Reject, match="allowed"):
        ours_of("dinov2").read(saved(Image.new("RGB", (40_000, 2))))


def test_small_pictures_other_kernels_and_sides_that_hardly_shrink_are_pillows_own():
    small, large = photo(1, 127, 128), photo(2, 300, 300)
    np.testing.assert_array_equal(resampling.stretch(large, 60, 280, "bicubic"), images.stretch(large, 60, 280, "bicubic"))
    np.testing.assert_array_equal(resampling.stretch(small, 60, 50, "bicubic"), images.stretch(small, 60, 50, "bicubic"))
    np.testing.assert_array_equal(resampling.stretch(large, 60, 50, "lanczos"), images.stretch(large, 60, 50, "lanczos"))
    assert resampling.stretch(large, 300, 300, "bicubic") is large


def test_the_fast_kernel_takes_what_cannot_be_written_to_and_leaves_it_alone(recwarn):
    pixels = photo(3, 200, 260)
    before = pixels.copy()
    pixels.flags.writeable = False
    flipped = pixels[:, ::-1]
    resampling.stretch(pixels, 100, 100, "bicubic")
    np.testing.assert_array_equal(
        resampling.stretch(flipped, 100, 100, "bicubic"), resampling.stretch(np.ascontiguousarray(flipped), 100, 100, "bicubic")
    )
    np.testing.assert_array_equal(pixels, before)
    assert not [w for w in recwarn if "writable" in str(w.message)]


def test_a_fingerprint_says_how_pictures_were_resized():
    assert ours_of("siglip2").describe() != ours_of("siglip2", exact=True).describe()
