"""Encoders say what the networks say: latents equal the reference computed by hand, on any batch, from bytes."""

import json

import numpy as np
import pytest

from encode.coding import coded
from encode.encoder import ImageEncoding, as_written, finite, opened, values
from encode.encoders.pixels import Pixels
from encode.encoders.siglip2 import Siglip2
from encode.encoders.text_tokens import TextTokens
from encode.processor import read_processor
from pipelines.format import codec
from pipelines.format.errors import InputError, Reject
from pipelines.media import images

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def save_tower(folder, **changes):
    """A small SigLIP of true architecture with random weights, its LayerNorm affine far from 1 and 0, and its image processor."""
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(**{**TOWER, **changes})
    model = transformers.SiglipVisionModel(config).eval()
    norm = getattr(model, "vision_model", model).post_layernorm
    torch.nn.init.normal_(norm.weight, 3.0)
    torch.nn.init.normal_(norm.bias, 5.0)
    model.save_pretrained(folder)
    size = config.image_size
    processor = transformers.SiglipImageProcessor(size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)
    return model, processor


def photo(seed, height=60, width=44):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_hand(model, processor, pictures, **options):
    """The tower's own modules, and the affine of its last LayerNorm left out by inverting it."""
    norm = getattr(model, "vision_model", model).post_layernorm
    with torch.inference_mode():
        values = processor(images=list(pictures), return_tensors="pt", **options)["pixel_values"]
        out = model(pixel_values=values, interpolate_pos_encoding=True).last_hidden_state
        return ((out.double() - norm.bias) / norm.weight).float().numpy()


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    return str(folder), *save_tower(folder)


def test_siglip2_equals_the_tower_called_by_hand(tower):
    folder, model, processor = tower
    pictures = [photo(i) for i in range(3)]
    encoding = ImageEncoding(Siglip2(weights=folder, batch=2, dtype="f32"), "cpu")
    ours = encoding.encode_bytes([images.encode_png(p) for p in pictures])
    assert ours.shape == (3, 4, 32)
    assert np.abs(ours - by_hand(model, processor, pictures)).max() <= 1e-5


def test_siglip2_tokens_have_mean_0_and_variance_1(tower):
    latents = ImageEncoding(Siglip2(weights=tower[0], dtype="f32"), "cpu").encode_bytes([images.encode_png(photo(7))])
    np.testing.assert_allclose(latents.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(latents.var(axis=-1), 1, atol=1e-3)


def test_siglip2_in_bf16_points_the_same_way(tower):
    pictures = np.stack([photo(i, 28, 28) for i in range(4)])
    full, half = (ImageEncoding(Siglip2(weights=tower[0], dtype=d), "cpu").encode(pictures).ravel() for d in ("f32", "bf16"))
    assert full @ half / np.linalg.norm(full) / np.linalg.norm(half) >= 0.9995


def test_another_resolution_interpolates_positions_as_the_tower_does(tower):
    folder, model, processor = tower
    encoding = ImageEncoding(Siglip2(weights=folder, size=42, dtype="f32"), "cpu")
    ours = encoding.encode_bytes([images.encode_png(photo(1))])
    assert ours.shape == (1, 9, 32)
    assert np.abs(ours - by_hand(model, processor, [photo(1)], size={"height": 42, "width": 42})).max() <= 1e-5


def test_so400m_at_224_gives_256_by_1152(tmp_path):
    so400m = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 1, "image_size": 224}
    save_tower(tmp_path, **so400m)
    latents = ImageEncoding(Siglip2(weights=str(tmp_path), batch=1, dtype="f32"), "cpu").encode(photo(0, 224, 224)[None])
    assert latents.shape == (1, 256, 1152)


@pytest.mark.parametrize("resample", [0, 2, 3])
def test_the_picture_half_and_the_number_half_make_the_processors_pixels(resample):
    processor = transformers.SiglipImageProcessor(
        size={"height": 24, "width": 20}, resample=resample, image_mean=[0.48, 0.45, 0.40], image_std=[0.26, 0.27, 0.28]
    )
    ours = read_processor(processor.to_dict(), None, "test")
    picture = ours.picture(photo(3))
    values = ((picture * ours.scale).astype(np.float32) - np.float32(ours.mean)) / np.float32(ours.std)
    theirs = processor(images=photo(3), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(values, theirs, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(61, 44), (44, 61), (50, 50)])
def test_shortest_edge_and_centre_crop_are_done_as_in_transformers(height, width):
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 30}, crop_size={"height": 24, "width": 24}, do_rescale=False, do_normalize=False
    )
    ours = read_processor(processor.to_dict(), None, "test").picture(photo(4, height, width))
    theirs = processor(images=photo(4, height, width), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(ours, theirs)


def test_a_processor_that_pads_or_has_no_fixed_size_is_refused():
    with pytest.raises(InputError, match="fixed size"):
        read_processor({"size": {"shortest_edge": 224}}, None, "x")
    with pytest.raises(InputError, match="pads"):
        read_processor({"size": 224, "do_pad": True}, None, "x")


def test_pixels_equal_patches_cut_by_hand_and_come_back_exactly():
    encoder = Pixels(size=32, patch=8)
    picture = photo(5, 32, 32)
    latents = ImageEncoding(encoder).encode(picture[None])
    assert latents.shape == (1, 16, 192)
    np.testing.assert_allclose(latents[0, 6], picture[8:16, 16:24].reshape(-1) / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(encoder.pictures(latents), picture[None])


def test_pixels_survive_bf16_within_one_level():
    from pipelines.format import codec

    encoder, picture = Pixels(size=28, patch=14), photo(6, 28, 28)
    latents = ImageEncoding(encoder).encode(picture[None])[0]
    stored = codec.decode_latents(codec.encode_latents(latents, "bf16"), "bf16", *latents.shape)
    assert np.abs(encoder.pictures(stored[None])[0].astype(int) - picture).max() <= 1


def test_the_paper_sizes_of_raw_pixels():
    grid = Pixels().grid()
    assert (grid.tokens, grid.channels) == (256, 588)


def test_a_padded_batch_gives_what_single_images_give(tower):
    encoding = ImageEncoding(Siglip2(weights=tower[0], batch=4, dtype="f32"), "cpu")
    pictures = np.stack([photo(i, 28, 28) for i in range(6)])
    whole = encoding.encode(pictures)
    np.testing.assert_array_equal(whole[4:], encoding.encode(pictures[4:]))


def test_the_fingerprint_follows_weights_settings_and_arithmetic_but_not_the_place(tower, tmp_path):
    import shutil

    moved = tmp_path / "elsewhere"
    shutil.copytree(tower[0], moved)
    fingerprint = lambda **k: (e := Siglip2(**{"weights": tower[0], "dtype": "f32", **k})).fingerprint(e.machine("cpu"))
    assert fingerprint() == fingerprint(weights=str(moved))
    others = [fingerprint(batch=8), fingerprint(size=42), fingerprint(dtype="bf16")]
    settings = json.loads((moved / "preprocessor_config.json").read_text())
    (moved / "preprocessor_config.json").write_text(json.dumps({**settings, "resample": 2}))
    others.append(fingerprint(weights=str(moved)))
    assert len({fingerprint(), *others}) == 5


def test_a_folder_without_safetensors_or_with_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2_vision_model"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match="fixed-resolution"):
        Siglip2(weights=str(tmp_path)).tower()
    with pytest.raises(InputError, match="safetensors"):
        Siglip2(weights=str(tmp_path)).weights_sha256()


def test_bytes_that_are_no_image_are_a_reject():
    with pytest.raises(Reject):
        ImageEncoding(Pixels()).encode_bytes([b"no image"])


def test_latents_that_are_not_finite_are_refused():
    encoding = ImageEncoding(Pixels(size=8, patch=8))
    encoding.network = lambda batch: lambda: np.full((len(batch), 1, 192), np.nan, np.float32)
    with pytest.raises(InputError, match="not finite"):
        encoding.encode(np.zeros((1, 8, 8, 3), np.uint8))


def test_an_encoder_without_a_decoder_says_what_is_needed(tower):
    with pytest.raises(InputError, match="decoder"):
        Siglip2(weights=tower[0]).pictures(np.zeros((1, 4, 32), np.float32))


def test_a_card_entry_opens_as_the_encoder_it_was_written_from():
    encoder = Pixels(size=32, patch=8)
    assert opened(as_written(encoder)) == encoder


def small_tokenizer(folder, added=("<|endoftext|>",)):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in added])
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_structure_tokens_follow_the_tokenizers_ids_or_are_mapped_onto_them(tmp_path):
    folder = small_tokenizer(tmp_path)
    plain = TextTokens(tokenizer=folder).load()
    assert plain.specials == {"bos": 257, "eos": 258, "boi": 259, "eoi": 260, "pad": 261} and plain.vocab == 262
    mapped = TextTokens(tokenizer=folder + "/tokenizer.json", specials={"eos": "<|endoftext|>", "pad": 3}).load()
    assert mapped.specials == {"bos": 257, "eos": 256, "boi": 258, "eoi": 259, "pad": 3} and mapped.vocab == 260


def test_text_that_spells_a_structure_token_stays_text_and_nothing_is_truncated_or_added(tmp_path):
    tokenizer = TextTokens(tokenizer=small_tokenizer(tmp_path)).load()
    said = "a <|endoftext|> in a page, ünïcode 漢字"
    (ids,) = tokenizer.encode([said])
    assert ids.dtype == np.uint16 and 256 not in ids
    assert len(ids) == len(said.encode()) and tokenizer.decode(ids) == said


def test_a_specials_name_or_token_that_does_not_exist_is_refused(tmp_path):
    folder = small_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="unknown structure token 'sep'"):
        TextTokens(tokenizer=folder, specials={"sep": 1})
    with pytest.raises(InputError, match="no token '<eot>'"):
        TextTokens(tokenizer=folder, specials={"eos": "<eot>"}).load()
    with pytest.raises(InputError, match="share one id"):
        TextTokens(tokenizer=folder, specials={"eos": 3, "pad": 3}).load()
    with pytest.raises(InputError, match="no tokenizer there"):
        TextTokens(tokenizer=str(tmp_path / "nowhere")).load()


def test_many_texts_are_encoded_in_order_whatever_the_batch(tmp_path, monkeypatch):
    from encode.encoders import text_tokens

    tokenizer = TextTokens(tokenizer=small_tokenizer(tmp_path)).load()
    said = ["a" * n for n in range(20)]
    whole = tokenizer.encode(said)
    monkeypatch.setattr(text_tokens, "BATCH_CHARACTERS", 7)
    for one, other, text in zip(whole, tokenizer.encode(said), said, strict=True):
        assert one.tolist() == other.tolist() and len(one) == len(text)


def test_what_a_network_gives_in_bf16_is_stored_bit_for_bit_and_reads_as_the_same_floats():
    encoding = ImageEncoding(Pixels(size=28, batch=2), "cpu")
    grid = encoding.grid
    x = np.random.default_rng(0).standard_normal((3, grid.tokens, grid.channels), dtype=np.float32)
    bits = codec.bf16_bits(x)
    given = [bits[:2], np.concatenate([bits[2:], bits[:1]])]
    encoding.network = lambda pictures: given.pop(0).copy
    pictures = np.zeros((3, grid.height, grid.width, 3), np.uint8)
    stored = [row.tobytes() for row in coded(encoding, pictures, "bf16").payloads]
    assert stored == [codec.encode_latents(image, "bf16") for image in x]
    assert (values(bits) == np.stack([codec.decode_latents(s, "bf16", grid.tokens, grid.channels) for s in stored])).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bf16_pattern_that_is_no_number_is_seen(bad):
    x = np.ones((2, 3), np.float32)
    assert finite(codec.bf16_bits(x)) and finite(x)
    x[1, 2] = bad
    assert not finite(codec.bf16_bits(x)) and not finite(x)
