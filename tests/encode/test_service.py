"""The `pictures` service gives JPEGs of what the latents hold, by the encoder itself or by a decoder that is named."""

from importlib.metadata import entry_points

import numpy as np
import pytest

from encode.encoder import as_written
from encode.encoders.pixels import Pixels
from encode.service import pictures
from pipelines.format.errors import InputError
from pipelines.media import images
from tests.encode.decoders import save_decoder

ENCODER = Pixels(size=32, patch=8)
CARD = {"image": as_written(ENCODER)}
PLAIN = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 90, 255)])


def test_pictures_are_what_the_encoder_makes_of_its_own_latents_enlarged():
    (service,) = entry_points(group="pipelines.services", name="pictures")
    shown = [images.decode(p) for p in service.load()(ENCODER.patches(PLAIN), CARD)]
    assert [p.shape for p in shown] == [(96, 96, 3)] * 3
    assert np.abs(np.stack(shown).astype(int) - PLAIN.repeat(3, 1).repeat(3, 2)).max() <= 2


def test_pngs_are_the_pictures_pixel_for_pixel():
    shown = pictures(ENCODER.patches(PLAIN), CARD, None, "png")
    assert all(p.startswith(b"\x89PNG") for p in shown) and np.array_equal(np.stack([images.decode(p) for p in shown]), PLAIN)


def test_a_named_decoder_makes_them_instead(tmp_path):
    pytest.importorskip("torch")
    save_decoder(tmp_path, channels=192, patch=4, side=4)
    assert images.decode(pictures(ENCODER.patches(PLAIN), CARD, {"rae": {"weights": str(tmp_path)}})[0]).shape == (96, 96, 3)


def test_latents_that_cannot_be_turned_back_say_what_is_missing(tmp_path):
    from tests.encode.test_encoders import save_tower

    save_tower(tmp_path)
    with pytest.raises(InputError, match="cannot be turned back"):
        pictures(np.zeros((1, 4, 32), np.float32), {"image": {"siglip2": {"weights": str(tmp_path)}}})


def test_pixels_come_without_a_codec_and_a_decoder_is_loaded_once(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    assert np.array_equal(np.stack(pictures(ENCODER.patches(PLAIN), CARD, None, "pixels")), PLAIN)
    save_decoder(tmp_path, channels=192, patch=4, side=4)
    asked = {"rae": {"weights": str(tmp_path)}}
    first = pictures(ENCODER.patches(PLAIN), CARD, asked, "pixels")
    monkeypatch.setattr("encode.service.Decoding", lambda *a: pytest.fail("loaded again"))
    again = pictures(ENCODER.patches(PLAIN[1:]), CARD, asked, "pixels")
    assert first[0].shape == (16, 16, 3) and np.array_equal(np.stack(first[1:]), np.stack(again))
