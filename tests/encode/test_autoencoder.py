"""Autoencoders of latent diffusion: latents are the posterior's mean, scaled and patched in a stated order, and `pictures` undoes it."""

import shutil

import numpy as np
import pytest

from encode import autoencoder
from encode.encoder import ImageEncoding
from encode.encoders.flux_vae import FluxVae
from encode.encoders.sd_vae import SdVae
from pipelines.format.errors import InputError
from pipelines.media import images
from tests.encode.models import cosine, photo, save_vae

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

KINDS = {4: SdVae, 16: FluxVae}


@pytest.fixture(scope="module", params=[4, 16], ids=["sd", "flux"])
def vae(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    return str(folder), save_vae(str(folder), request.param), KINDS[request.param], request.param


def mean_by_hand(model, pictures, size, dtype=torch.float32):
    """What diffusers' own processor and modules give: [n, channels, size / 8, size / 8]."""
    processor = diffusers.image_processor.VaeImageProcessor()
    from PIL import Image

    values = processor.preprocess([Image.fromarray(p) for p in pictures], size, size, resize_mode="crop")
    with torch.inference_mode():
        z = model.encode(values.to(dtype)).latent_dist.mode().float()
    return ((z - (model.config.shift_factor or 0)) * model.config.scaling_factor).numpy()


def encoded(encoder, pictures):
    return ImageEncoding(encoder, "cpu").encode_bytes([images.encode_png(p) for p in pictures])


def test_latents_are_the_mean_of_the_posterior_scaled_and_patched(vae):
    folder, model, kind, channels = vae
    pictures = [photo(i, 70, 90) for i in range(3)]
    ours = encoded(kind(weights=folder, size=64, batch=2, dtype="f32"), pictures)
    z = mean_by_hand(model, pictures, 64)
    assert ours.shape == (3, 16, channels * 4)
    for token, c, y, x in ((0, 0, 0, 0), (5, channels - 1, 1, 0), (11, 2, 0, 1), (15, 1, 1, 1)):
        row, column = 2 * (token // 4) + y, 2 * (token % 4) + x
        np.testing.assert_allclose(ours[:, token, c * 4 + y * 2 + x], z[:, c, row, column], atol=1e-5)
    theirs = z.reshape(3, channels, 4, 2, 4, 2).transpose(0, 2, 4, 1, 3, 5).reshape(3, 16, channels * 4)
    assert np.abs(ours - theirs).max() <= 1e-5


def test_a_picture_of_224_pixels_is_196_tokens(vae):
    folder, _, kind, channels = vae
    encoder = kind(weights=folder, batch=1, dtype="f32")
    latents = ImageEncoding(encoder, "cpu").encode(photo(0, 224, 224)[None])
    assert latents.shape == (1, 196, channels * 4)
    assert (encoder.grid().tokens, encoder.grid().channels) == (196, channels * 4)


def test_pictures_are_what_the_decoder_makes_of_the_unpatched_latents(vae):
    folder, model, kind, _ = vae
    encoder = kind(weights=folder, size=64, dtype="f32")
    latents = encoded(encoder, [photo(i, 64, 64) for i in range(9)])
    ours = encoder.pictures(latents)
    assert ours.shape == (9, 64, 64, 3) and ours.dtype == np.uint8
    z = torch.from_numpy(mean_by_hand(model, [photo(i, 64, 64) for i in range(9)], 64))
    with torch.inference_mode():
        x = model.decode(z / model.config.scaling_factor + (model.config.shift_factor or 0)).sample
    theirs = diffusers.image_processor.VaeImageProcessor().postprocess(x, output_type="np")
    assert np.abs(ours - theirs * 255).max() <= 0.51  # to the nearest level
    assert encoder.pictures(latents[:0]).shape == (0, 64, 64, 3)


def test_the_model_is_loaded_once_for_encoding_and_decoding(vae, monkeypatch):
    folder, _, kind, _ = vae
    autoencoder.autoencoder.cache_clear()
    encoder = kind(weights=folder, size=32, dtype="f32")
    encoder.pictures(encoded(encoder, [photo(0)]))
    encoder.pictures(encoded(encoder, [photo(1)]))
    assert autoencoder.autoencoder.cache_info().misses == 1


def test_equal_pictures_give_equal_latents(vae):
    folder, _, kind, _ = vae
    encoder = kind(weights=folder, size=32, dtype="f32")
    np.testing.assert_array_equal(encoded(encoder, [photo(2)]), encoded(encoder, [photo(2)]))


def test_bf16_is_the_models_own_bf16_and_near_f32(vae):
    folder, _, kind, _ = vae
    pictures = [photo(i) for i in range(3)]
    full, half = (encoded(kind(weights=folder, size=64, batch=3, dtype=d), pictures) for d in ("f32", "bf16"))
    model = diffusers.AutoencoderKL.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
    z = mean_by_hand(model, pictures, 64, torch.bfloat16)
    theirs = z.reshape(3, -1, 4, 2, 4, 2).transpose(0, 2, 4, 1, 3, 5).reshape(half.shape)
    # Random weights give means as small as FLUX's shift, which then cancels: bf16 has few bits left there.
    assert cosine(half, theirs) >= 0.9995 and cosine(half, full) >= 0.9995


def test_the_autoencoder_of_a_pipeline_is_found_in_its_folder(vae, tmp_path):
    folder, _, kind, _ = vae
    shutil.copytree(folder, tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    alone, within = (kind(weights=w, size=32, dtype="f32") for w in (folder, str(tmp_path)))
    np.testing.assert_array_equal(encoded(alone, [photo(3)]), encoded(within, [photo(3)]))
    assert alone.fingerprint(alone.machine("cpu")) == within.fingerprint(within.machine("cpu"))


def test_pickled_weights_and_incomplete_ones_are_refused(vae, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, model, kind, _ = vae
    shutil.copytree(folder, tmp_path / "half")
    file = tmp_path / "half" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("encoder.conv_in.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="lack tensors"):
        encoded(kind(weights=str(tmp_path / "half"), size=32), [photo(0)])
    model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert list((tmp_path / "pickled").glob("*.bin"))
    with pytest.raises(InputError, match="safetensors"):
        kind(weights=str(tmp_path / "pickled")).weights_sha256()
    with pytest.raises(InputError, match="cannot be loaded"):
        kind(weights=str(tmp_path / "pickled"), size=32).network(kind(weights=folder).machine("cpu"))


def test_the_wrong_family_and_a_size_that_does_not_divide_are_refused(vae):
    folder, _, kind, channels = vae
    other = KINDS[4 if channels == 16 else 16]
    with pytest.raises(InputError, match=r"4 channels: sd_vae, 16 channels: flux_vae"):
        other(weights=folder).grid()
    with pytest.raises(InputError, match="multiple of 16"):
        kind(weights=folder, size=40).grid()


def test_without_diffusers_the_message_says_what_to_install(vae, monkeypatch):
    folder, _, kind, _ = vae
    autoencoder._config.cache_clear()
    monkeypatch.setattr(autoencoder, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'headwater\[vae\]'"):
        kind(weights=folder).grid()
    autoencoder._config.cache_clear()


def test_larger_patches_hold_the_same_values(vae):
    folder, _, kind, channels = vae
    two, four = (encoded(kind(weights=folder, size=64, patch=p, dtype="f32"), [photo(4)]) for p in (2, 4))
    assert four.shape == (1, 4, channels * 16)
    np.testing.assert_array_equal(np.sort(two.ravel()), np.sort(four.ravel()))
