"""Latent codecs: what was encoded comes back within the error that the module states, in exactly the stated number of bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.format import codec
from pipelines.format.errors import InputError

torch = pytest.importorskip("torch")

SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 70))
FINITE = arrays(np.float32, SHAPES, elements=st.floats(-(2.0**127), 2.0**127, width=32))
ANY = arrays(np.float32, SHAPES, elements=st.floats(width=32))


def there_and_back(x: np.ndarray, name: str) -> np.ndarray:
    return codec.decode_latents(codec.encode_latents(x, name), name, *x.shape)


def scale_of(x: np.ndarray, largest: float) -> np.ndarray:
    width = x.shape[1]
    padded = np.pad(x, ((0, 0), (0, -width % 32))).reshape(len(x), -(-width // 32), 32)
    scales = np.abs(padded.astype(np.float64)).max(axis=2) / largest
    return np.repeat(scales, 32, axis=1)[:, :width]


@given(ANY)
def test_f32_is_exact(x):
    np.testing.assert_array_equal(there_and_back(x, "f32"), x)


@settings(deadline=None)
@given(ANY)
def test_bf16_rounds_as_torch_does(x):
    theirs = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    ours = np.frombuffer(codec.encode_latents(x, "bf16"), "<u2").reshape(x.shape)
    nan = np.isnan(x)
    np.testing.assert_array_equal(ours[~nan], theirs[~nan])
    assert (ours[nan] == 0x7FC0).all()


@settings(deadline=None)
@given(FINITE)
def test_int8_errs_by_at_most_half_a_scale(x):
    scale = scale_of(x, 127)
    error = np.abs(there_and_back(x, "int8").astype(np.float64) - x)
    assert (error <= 0.5001 * scale + 127 * 2.0**-149).all()


@settings(deadline=None)
@given(FINITE)
def test_f8e4m3_errs_by_at_most_a_sixteenth_of_each_value(x):
    scale = scale_of(x, 448)
    error = np.abs(there_and_back(x, "f8e4m3").astype(np.float64) - x)
    assert (error <= np.maximum(np.abs(x.astype(np.float64)) * 2**-4 * 1.0001, scale * 2**-10 * 1.0001) + 448 * 2.0**-149).all()


@given(arrays(np.float32, 64, elements=st.floats(-448, 448, width=32)))
@settings(max_examples=200, deadline=None)
def test_e4m3_bytes_equal_torchs(x):
    theirs = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(codec.e4m3_bits(x), theirs)


def test_every_e4m3_byte_decodes_as_in_torch():
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(codec.E4M3_VALUES, theirs)


@settings(deadline=None)
@given(FINITE, st.sampled_from(codec.CODECS))
def test_a_buffer_is_as_long_as_nbytes_says_and_another_length_is_refused(x, name):
    buffer = codec.encode_latents(x, name)
    assert len(buffer) == codec.nbytes(name, *x.shape)
    with pytest.raises(InputError, match="wrong length"):
        codec.decode_latents(buffer + b"\0", name, *x.shape)


def test_scales_stand_64_aligned_after_the_values():
    x = np.full((3, 40), 2.0, np.float32)
    buffer = codec.encode_latents(x, "int8")
    assert len(buffer) == 128 + 3 * 2 * 4
    np.testing.assert_allclose(np.frombuffer(buffer[128:], "<f4"), 2.0 / 127)
    assert set(buffer[:120]) == {127} and set(buffer[120:128]) == {0}


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize(("name", "bar"), [("bf16", 0.004), ("int8", 0.015), ("f8e4m3", 0.04)])
def test_relative_error_on_normal_latents_with_and_without_outlier_channels_stays_under_the_bar(name, bar, outliers):
    x = np.random.default_rng(0).standard_normal((256, 1152), dtype=np.float32)
    if outliers:
        x[:, [7, 300, 1151]] *= 20
    assert np.linalg.norm(there_and_back(x, name) - x) / np.linalg.norm(x) <= bar


@pytest.mark.parametrize("name", ["int8", "f8e4m3"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scaled_codecs_refuse_what_is_not_finite(name, bad):
    with pytest.raises(InputError, match="NaN or infinity"):
        codec.encode_latents(np.array([[1.0, bad]], np.float32), name)


def test_an_unknown_codec_is_named_with_the_known_ones():
    with pytest.raises(InputError) as caught:
        codec.nbytes("fp4", 1, 1)
    assert "f8e4m3" in str(caught.value)
