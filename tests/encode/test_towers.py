"""DINOv2, WebSSL and SigLIP towers say what transformers' own modules say, at their own resolution and at others, compiled or not."""

import json
import shutil

import numpy as np
import pytest

from encode.encoder import ImageEncoding
from encode.encoders.dinov2 import Dinov2
from encode.encoders.siglip2 import Siglip2
from encode.encoders.webssl import Webssl
from pipelines.format.errors import InputError
from pipelines.media import images
from tests.encode.models import cosine, photo, save_dinov2, save_siglip

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=[0, 4], ids=["plain", "registers"])
def dino(request, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("dino"))
    return folder, save_dinov2(folder, request.param), transformers.BitImageProcessorPil.from_pretrained(folder), 1 + request.param


def by_hand(model, values, first, dtype=None):
    """The model's own modules on pixel values; the affine of its last LayerNorm undone, the leading tokens dropped."""
    with torch.inference_mode():
        hidden = model.encoder(model.embeddings(values.to(dtype or torch.float32))).last_hidden_state
        plain = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=model.config.layer_norm_eps)
    return plain[:, first:].float().numpy()


def encoded(encoder, pictures):
    return ImageEncoding(encoder, "cpu").encode_bytes([images.encode_png(p) for p in pictures])


@pytest.mark.parametrize("kind", [Dinov2, Webssl])
def test_a_dinov2_tower_equals_its_modules_called_by_hand(dino, kind):
    folder, model, processor, first = dino
    pictures = [photo(i) for i in range(3)]
    ours = encoded(kind(weights=folder, batch=2, dtype="f32"), pictures)
    assert ours.shape == (3, 4, 32)
    theirs = by_hand(model, processor(images=pictures, return_tensors="pt")["pixel_values"], first)
    assert np.abs(ours - theirs).max() <= 1e-5


def test_the_whole_view_sees_what_the_processor_cuts_off(dino):
    folder, model, processor, first = dino
    pictures = [photo(i) for i in range(2)]
    values = processor(images=pictures, size={"shortest_edge": 28}, return_tensors="pt")["pixel_values"]
    ours = encoded(Dinov2(weights=folder, view="whole", dtype="f32"), pictures)
    assert np.abs(ours - by_hand(model, values, first)).max() <= 1e-5
    assert np.abs(ours - encoded(Dinov2(weights=folder, dtype="f32"), pictures)).max() > 0.1


@pytest.mark.parametrize("size", [42, 56])
def test_another_resolution_interpolates_positions_as_the_model_does(dino, size):
    folder, model, processor, first = dino
    scaled = {"size": {"shortest_edge": size * 8 // 7}, "crop_size": {"height": size, "width": size}}
    ours = encoded(Dinov2(weights=folder, size=size, dtype="f32"), [photo(1)])
    assert ours.shape == (1, (size // 14) ** 2, 32)
    values = processor(images=[photo(1)], return_tensors="pt", **scaled)["pixel_values"]
    assert np.abs(ours - by_hand(model, values, first)).max() <= 1e-5


def test_bf16_is_the_models_own_bf16_and_near_f32(dino, tmp_path):
    folder, model, processor, first = dino
    pictures = [photo(i) for i in range(4)]
    half, full = (encoded(Dinov2(weights=folder, dtype=d), pictures) for d in ("bf16", "f32"))
    kind = type(model).from_pretrained(folder, dtype=torch.bfloat16).eval()
    theirs = by_hand(kind, processor(images=pictures, return_tensors="pt")["pixel_values"], first, torch.bfloat16)
    assert cosine(half, theirs) >= 0.9999 and cosine(half, full) >= 0.9995


def test_weights_trained_at_518_pixels_take_pictures_of_224(tmp_path):
    """ViT-L/14 as published: 1,024 channels, 16 heads, 37 x 37 positions; one block instead of 24."""
    save_dinov2(str(tmp_path), hidden_size=1024, num_attention_heads=16, num_hidden_layers=1, image_size=518)
    encoder = Dinov2(weights=str(tmp_path), size=224, batch=1, dtype="f32")
    assert encoder.processor.short == 256
    grid = encoder.grid()
    assert (grid.height, grid.tokens, grid.channels) == (224, 256, 1024)
    assert ImageEncoding(encoder, "cpu").encode(photo(0, 224, 224)[None]).shape == (1, 256, 1024)


def test_webssl_has_a_gated_feed_forward_and_no_mask_token(tmp_path):
    model = save_dinov2(str(tmp_path), use_swiglu_ffn=True, use_mask_token=False)
    processor = transformers.BitImageProcessorPil.from_pretrained(tmp_path)
    ours = encoded(Webssl(weights=str(tmp_path), dtype="f32"), [photo(5)])
    assert np.abs(ours - by_hand(model, processor(images=[photo(5)], return_tensors="pt")["pixel_values"], 1)).max() <= 1e-5


def test_a_mask_token_that_nothing_reads_may_be_missing_and_any_other_tensor_may_not(tmp_path):
    from safetensors.torch import load_file, save_file

    save_dinov2(str(tmp_path))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("embeddings.mask_token", None)
    save_file(tensors, file, metadata={"format": "pt"})
    assert encoded(Dinov2(weights=str(tmp_path), dtype="f32"), [photo(0)]).shape == (1, 4, 32)
    tensors.pop("layernorm.weight")
    tensors.pop("encoder.layer.0.norm1.weight", None)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="lack tensors"):
        encoded(Dinov2(weights=str(tmp_path), dtype="f32"), [photo(0)])


def test_a_siglip_tower_is_read_out_of_a_two_tower_model(tmp_path):
    model = save_siglip(str(tmp_path)).vision_model
    processor = transformers.SiglipImageProcessorPil.from_pretrained(tmp_path)
    ours = encoded(Siglip2(weights=str(tmp_path), dtype="f32"), [photo(2)])
    with torch.inference_mode():
        values = processor(images=[photo(2)], return_tensors="pt")["pixel_values"]
        hidden = model.encoder(inputs_embeds=model.embeddings(values)).last_hidden_state
        plain = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=model.config.layer_norm_eps)
    assert np.abs(ours - plain.numpy()).max() <= 1e-5


@pytest.mark.parametrize(("patch", "side", "size"), [(16, 32, None), (14, 28, 42), (14, 30, None), (16, 48, 96), (32, 64, None)])
def test_siglip_of_any_patch_and_resolution(tmp_path, patch, side, size):
    """so400m/14 at 384 px has 27 x 27 patches and six pixels over."""
    torch.manual_seed(0)
    config = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**config, patch_size=patch, image_size=side)).eval()
    model.save_pretrained(tmp_path)
    processor = transformers.SiglipImageProcessorPil(size={"height": side, "width": side})
    processor.save_pretrained(tmp_path)
    final = size or side
    ours = encoded(Siglip2(weights=str(tmp_path), size=size, dtype="f32"), [photo(3)])
    assert ours.shape == (1, (final // patch) ** 2, 32)
    tower = getattr(model, "vision_model", model)
    with torch.inference_mode():
        values = processor(images=[photo(3)], size={"height": final, "width": final}, return_tensors="pt")["pixel_values"]
        hidden = tower.encoder(inputs_embeds=tower.embeddings(values, interpolate_pos_encoding=True)).last_hidden_state
        plain = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=tower.config.layer_norm_eps)
    assert np.abs(ours - plain.numpy()).max() <= 1e-5


def test_positions_are_interpolated_from_floats_also_in_bf16(tmp_path):
    """transformers would interpolate the bf16 table in bf16, which moves SigLIP's positions; here only the result is rounded."""
    from encode.towers import interpolated

    table = torch.randn(16, 8)
    exact, half = interpolated(table, (7, 7)), interpolated(table.bfloat16(), (7, 7))
    assert half.dtype == torch.bfloat16 and (half.float() - exact).abs().max() < 0.05
    assert interpolated(table, (4, 4)) is None


def test_weights_of_another_kind_are_refused(tmp_path, dino):
    for kind in ("vit_mae", "dinov3_vit", None):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} if kind else {}))
        with pytest.raises(InputError, match="not a DINOv2 tower") as e:
            Webssl(weights=str(tmp_path)).tower()
        assert kind is None or kind in str(e.value)
    with pytest.raises(InputError, match="fixed-resolution"):
        Siglip2(weights=dino[0]).tower()


def test_a_processor_whose_steps_are_unknown_is_refused_and_one_without_a_name_is_taken_at_its_word(tmp_path, dino):
    folder = tmp_path / "copy"
    shutil.copytree(dino[0], folder)
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "image_processor_type": "VideoMAEImageProcessor"}))
    with pytest.raises(InputError, match="not known exactly"):
        Dinov2(weights=str(folder)).grid()
    settings.pop("image_processor_type")
    file.write_text(json.dumps(settings))
    assert Dinov2(weights=str(folder)).processor == Dinov2(weights=dino[0]).processor
    file.write_text(json.dumps({**settings, "crop_size": {"height": 28, "width": 14}}))
    with pytest.raises(InputError, match="square"):
        Dinov2(weights=str(folder)).grid()


def test_the_fingerprint_tells_compiled_from_plain_and_the_views_apart(dino):
    folder = dino[0]

    def fingerprint(**settings):
        encoder = Dinov2(**{"weights": folder, "dtype": "f32", **settings})
        return encoder.fingerprint(encoder.machine("cpu"))

    assert fingerprint() == fingerprint(compile="off") == fingerprint(compile="auto")
    told_apart = {fingerprint(), fingerprint(compile="on"), fingerprint(view="whole"), fingerprint(resize="exact"), fingerprint(size=42)}
    assert len(told_apart) == 5


@pytest.mark.slow
def test_a_compiled_tower_gives_the_same_latents_up_to_rounding(dino):
    folder = dino[0]
    pictures = [photo(i) for i in range(3)]
    plain, compiled = (encoded(Dinov2(weights=folder, batch=2, dtype="f32", compile=c), pictures) for c in ("off", "on"))
    assert np.abs(plain - compiled).max() <= 1e-4
