"""What a GPU codes and counts is what the host would have: the same bytes, and statistics equal to 1e-12. Shown on CPU tensors, whose
arithmetic is the same IEEE 754."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from encode.codec_error import CodecError
from encode.coding import coded_on_device, coded_on_host
from encode.device import TorchNetwork
from encode.encoder import Grid, ImageEncoding, Machine
from encode.encoders.pixels import Pixels
from encode.stats import Moments
from encode.tensors import Tally, stored
from pipelines.format import codec
from pipelines.format.errors import InputError

torch = pytest.importorskip("torch")

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 70))
# Zeros of both signs, subnormals, halves that tie in int8, ties of e4m3 and bf16, the edges of a range.
EDGES = [0.0, -0.0, 2.0**-149, -(2.0**-140), 2.0**-126, 0.5, 1.5, 2.5, -2.5, 127.0, 126.5, 448.0, 17.0, 19.0, 1 + 2**-8, 1 + 3 * 2**-8, 2.0**126]
FINITE = st.one_of(st.sampled_from(EDGES), st.floats(-(2.0**127), 2.0**127, width=32), st.floats(-4, 4, width=32))


def by_numpy(x: np.ndarray, name: str) -> list[bytes]:
    return [codec.encode_latents(image, name) for image in x]


def by_torch(x: np.ndarray, name: str) -> list[bytes]:
    out, back = stored(torch.from_numpy(x), name)
    for image, payload in zip(back.numpy(), out.numpy(), strict=True):
        np.testing.assert_array_equal(image, codec.decode_latents(payload, name, *x.shape[1:]))
    return [image.tobytes() for image in out.numpy()]


@settings(deadline=None, max_examples=300)
@given(arrays(np.float32, SHAPES, elements=FINITE), st.sampled_from(codec.CODECS))
def test_any_finite_values_are_stored_in_the_same_bytes_and_read_back_as_the_tally_saw_them(x, name):
    assert by_torch(x, name) == by_numpy(x, name)


@pytest.mark.parametrize("name", codec.CODECS)
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-6, 1.0, 1e30])
def test_many_values_of_any_size_are_stored_in_the_same_bytes(name, scale):
    x = (np.random.default_rng(0).standard_normal((3, 16, 1152)) * scale).astype(np.float32)
    x[0, 0, :32], x[1] = 0, np.round(x[1] / np.float32(scale) * 2) * np.float32(scale / 2)  # a group of zeros; ties
    x[2, :, [7, 300]] *= 20
    assert by_torch(x, name) == by_numpy(x, name)


def test_every_bf16_pattern_of_a_number_is_stored_in_the_same_bytes():
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 16, 64)
    x = (patterns.astype(np.uint32) << 16).view(np.float32)
    x = np.where(np.isfinite(x) & (np.abs(x) < 2.0**127), x, np.float32(0))
    half = torch.from_numpy(x).to(torch.bfloat16)
    for name in codec.CODECS:
        assert [image.tobytes() for image in stored(half, name)[0].numpy()] == by_numpy(x, name)


def network(latents: np.ndarray, dtype: str = "f32") -> ImageEncoding:
    """An encoding whose network gives these latents, row by row of its pictures' first byte."""
    encoding = ImageEncoding(Pixels(size=8, patch=8, batch=4), "cpu")
    encoding.grid = Grid(8, 8, *latents.shape[1:])
    table = torch.from_numpy(latents).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    encoding.network = TorchNetwork(lambda pictures: table[pictures[:, 0, 0, 0].long()], Machine("cpu", dtype, "cpu"))
    return encoding


def pictures(n: int) -> np.ndarray:
    return np.tile(np.arange(n, dtype=np.uint8)[:, None, None, None], (1, 8, 8, 3))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", codec.CODECS)
def test_a_part_is_the_same_either_way_and_padding_counts_nowhere(name, dtype):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((10, 6, 80)) * np.linspace(0.1, 5, 80) + np.linspace(-3, 1000, 80)).astype(np.float32)
    x[0] = 1e6  # the row that padding takes, black, is a picture here too: were padding counted, it would show
    encoding = network(x, dtype)
    host, device = coded_on_host(encoding, pictures(10), name), coded_on_device(encoding, encoding.network, pictures(10), name)
    assert host.payloads.tobytes() == device.payloads.tobytes() and len(host.payloads) == 10
    assert host.moments.n == device.moments.n == 10
    np.testing.assert_allclose(device.moments.mean, host.moments.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(device.moments.m2, host.moments.m2, rtol=1e-12)
    for field in ("n", "error", "norm", "cosine", "worst"):
        assert getattr(device.error, field) == pytest.approx(getattr(host.error, field), rel=1e-12), field


@pytest.mark.parametrize("name", codec.CODECS)
def test_a_part_without_pictures_is_empty_either_way(name):
    encoding = network(np.ones((1, 6, 80), np.float32))
    for part in (coded_on_host(encoding, pictures(0), name), coded_on_device(encoding, encoding.network, pictures(0), name)):
        assert len(part.payloads) == 0 and part.moments.n == 0 and part.error == CodecError()


@pytest.mark.parametrize("name", codec.CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_refused_on_the_device_too(name, bad):
    x = np.ones((10, 6, 80), np.float32)
    x[7, 3, 11] = bad
    encoding = network(x)
    with pytest.raises(InputError, match="not finite"):
        coded_on_device(encoding, encoding.network, pictures(10), name)


def test_statistics_do_not_depend_on_how_many_images_are_looked_at_together(monkeypatch):
    from encode import tensors

    x = torch.from_numpy(np.random.default_rng(2).standard_normal((9, 4, 64), dtype=np.float32) + 100)
    found = []
    for chunk in (1, 3 * 4 * 64, 1 << 23):
        monkeypatch.setattr(tensors, "CHUNK", chunk)
        tally = Tally((4, 64), "int8")
        blobs = [image.tobytes() for some in tally.add(x) for image in some.numpy()]
        found.append((blobs, *tally.done(lambda x: x.cpu().numpy)()))
    for other in found[1:]:
        assert other[0] == found[0][0] and other[1]
        np.testing.assert_allclose(other[2].mean, found[0][2].mean, rtol=1e-12)
        np.testing.assert_allclose(other[2].m2, found[0][2].m2, rtol=1e-12)
    kept = np.stack([codec.decode_latents(b, "int8", 4, 64) for b in found[0][0]])
    np.testing.assert_allclose(found[0][2].m2, Moments.of(kept).m2, rtol=1e-12)


def test_errors_add_up_to_those_of_the_whole_in_any_order_and_survive_a_commit_record():
    rng = np.random.default_rng(3)
    exact = rng.standard_normal((700, 40)).astype(np.float32)
    kept = codec.decode_latents(codec.encode_latents(exact, "f8e4m3"), "f8e4m3", *exact.shape)
    cuts = [CodecError.of(a, b) for a, b in zip(np.split(exact, [1, 130, 400]), np.split(kept, [1, 130, 400]), strict=True)]
    total = CodecError.total(cuts)
    assert total == CodecError.total(cuts[::-1]) == CodecError.total([CodecError.from_json(e.as_json()) for e in cuts])
    assert total.n == 700 and total.relative_l2 == pytest.approx(np.linalg.norm(exact - kept) / np.linalg.norm(exact), rel=1e-6)
    cosines = np.einsum("nc,nc->n", exact, kept) / np.linalg.norm(exact, axis=1) / np.linalg.norm(kept, axis=1)
    assert total.mean_cosine == pytest.approx(cosines.mean(), rel=1e-6) and total.worst == pytest.approx(cosines.min(), rel=1e-6)


def test_what_is_stored_bit_for_bit_has_lost_nothing_and_counts():
    encoding = network(np.random.default_rng(4).standard_normal((3, 6, 80)).astype(np.float32), "bf16")
    error = coded_on_device(encoding, encoding.network, pictures(3), "bf16").error
    assert (error.n, error.error, error.relative_l2, error.mean_cosine, error.worst) == (18, 0.0, 0.0, 1.0, 1.0) and error.norm > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", codec.CODECS)
def test_a_gpu_gives_the_hosts_bytes(name):
    x = (np.random.default_rng(0).standard_normal((40, 64, 1152)) * 3).astype(np.float32)
    x[0, 0, :32], x[2, :, [7, 300]] = 0, x[2, :, [7, 300]] * 20
    x[3] *= np.float32(1e-40)
    assert [image.tobytes() for image in stored(torch.from_numpy(x).cuda(), name)[0].cpu().numpy()] == by_numpy(x, name)
