"""Decoders say what the published network says, from either published layout; `decode` makes its pictures and knows it by its weights."""

import json
from pathlib import Path

import numpy as np
import pytest

from encode.convert_decoder import STAGE as CONVERT
from encode.convert_decoder import ConvertDecoder
from encode.decode import STAGE as DECODE
from encode.decode import DecodeRecipe
from encode.decoder import Decoding
from encode.decoders.rae import Rae, rows_columns
from encode.encoder import Grid
from encode.encoders.pixels import Pixels
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import load, parse
from pipelines.format.errors import ConflictError, InputError
from pipelines.media import images
from tests.encode.decoders import encoded_toys, run, save_decoder

torch = pytest.importorskip("torch")
layout = pytest.importorskip("encode.reconstruction.layout")
vit = pytest.importorskip("encode.reconstruction.vit")


def latents(n, tokens, channels, seed=0):
    return np.random.default_rng(seed).standard_normal((n, tokens, channels)).astype(np.float32)


def diffusers_decoder(folder, grid=16):
    """diffusers' AutoencoderRAE with random weights, saved as that library saves it, with statistics that a generator would normalise by."""
    diffusers = pytest.importorskip("diffusers", minversion="0.37")
    torch.manual_seed(0)
    model = diffusers.AutoencoderRAE(
        encoder_type="mae", encoder_hidden_size=64, encoder_patch_size=16, encoder_num_hidden_layers=1, encoder_input_size=16 * grid,
        decoder_hidden_size=48, decoder_num_hidden_layers=2, decoder_num_attention_heads=4, decoder_intermediate_size=96, patch_size=4,
        encoder_norm_mean=[0.3, 0.4, 0.5], encoder_norm_std=[0.2, 0.25, 0.3],
        latents_mean=torch.randn(64, grid, grid), latents_std=torch.rand(64, grid, grid) + 0.5,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.copy_(torch.randn_like(p) * 0.2)
    model.save_pretrained(str(folder))
    return model


def test_diffusers_decoder_decodes_as_in_diffusers_from_latents_without_statistics(tmp_path):
    model, z = diffusers_decoder(tmp_path), torch.from_numpy(latents(2, 256, 64))
    published = layout.read(str(tmp_path))
    with torch.no_grad():
        normalised = model._normalize_latents(z.transpose(1, 2).reshape(2, 64, 16, 16))  # what a generator would have made
        theirs = model.decode(normalised).sample
        ours = published.model(z) * torch.tensor(published.std).view(3, 1, 1) + torch.tensor(published.mean).view(3, 1, 1)
    assert theirs.std() > 0.05 and torch.allclose(ours, theirs, atol=2e-5)
    assert published.mean == pytest.approx((0.3, 0.4, 0.5)) and layout.measures(str(tmp_path)) == published.model.shape


def test_the_first_layout_has_the_published_names_and_comes_back_unchanged(tmp_path):
    model = save_decoder(tmp_path, channels=6, patch=4, side=2, depth=2)
    from safetensors import safe_open

    with safe_open(str(tmp_path / "model.safetensors"), "pt") as f:
        found = set(f.keys())
    block = ["attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense", "intermediate.dense"]
    block += ["output.dense", "layernorm_before", "layernorm_after"]
    layers = [f"decoder_layers.{i}.{name}" for i in range(2) for name in block]
    named = {f"{name}.{kind}" for name in [*layers, "decoder_embed", "decoder_norm", "decoder_pred"] for kind in ("weight", "bias")}
    assert found == named | {"trainable_cls_token", "decoder_pos_embed"}
    again = layout.read(str(tmp_path)).model
    assert again.shape == model.shape
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_config_of_the_release_names_another_width_and_no_patch_and_is_read_all_the_same(tmp_path):
    model = save_decoder(tmp_path, channels=6, patch=4, side=2)
    config = {"hidden_size": 768, "patch_size": "SHOULD BE RELOADED", "image_size": 224, "decoder_num_attention_heads": 2, "layer_norm_eps": 1e-12}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert layout.read(str(tmp_path)).model.shape == model.shape


def test_positions_are_sine_and_cosine_of_column_then_row_with_zeros_for_the_slot():
    found, width = vit.sincos(3, 5, 24)[0], 24
    for row in range(3):
        for column in range(5):
            for k in range(width // 4):
                omega = 10000 ** (-4 * k / width)
                said = [np.sin(column * omega), np.cos(column * omega), np.sin(row * omega), np.cos(row * omega)]
                np.testing.assert_allclose(found[1 + 5 * row + column, k :: width // 4], said, atol=1e-6)
    assert not found[0].any()


def test_patches_are_put_back_where_they_were_cut():
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    encoder = Pixels(size=16, patch=4)
    values = torch.from_numpy(encoder.patches(picture))
    back = vit.unpatchify(values, 4, 4, 4).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(back, picture / 127.5 - 1, atol=1e-6)


def test_a_larger_grid_makes_a_larger_picture_and_its_own_grid_is_not_touched(tmp_path):
    model = save_decoder(tmp_path, channels=6, patch=4, side=2)
    z = torch.from_numpy(latents(1, 4, 6))
    with torch.no_grad():
        assert torch.equal(model(z, (2, 2)), model(z))
        assert model(torch.from_numpy(latents(1, 8, 6)), (2, 4)).shape == (1, 3, 8, 16)
    assert rows_columns(Grid(28, 56, 8, 6)) == (2, 4)
    with pytest.raises(InputError, match="no rectangular grid"):
        rows_columns(Grid(28, 28, 8, 6))


def test_a_padded_batch_gives_what_single_latents_give(tmp_path):
    save_decoder(tmp_path, channels=192, patch=8, side=4)
    decoding, z = Decoding(Rae(weights=str(tmp_path), batch=4), Pixels(size=32, patch=8), "cpu"), latents(6, 16, 192)
    whole = decoding.pictures(z)
    assert whole.shape == (6, 32, 32, 3) and whole.dtype == np.uint8 and whole.std() > 5
    np.testing.assert_array_equal(whole[4:], decoding.pictures(z[4:]))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda t: t.pop("decoder_norm.bias"), "lack the tensors"),
        (lambda t: t.update(decoder_mask=torch.zeros(1)), "more than"),
        (lambda t: t.update({"decoder_norm.bias": torch.zeros(3)}), "differ in shape"),
        (lambda t: t.pop("decoder_embed.weight"), "not the weights of a RAE decoder"),
    ],
)
def test_weights_that_are_not_a_whole_decoder_are_refused(tmp_path, harm, said):
    from safetensors.torch import load_file, save_file

    save_decoder(tmp_path, channels=6, patch=4, side=2)
    tensors = load_file(str(tmp_path / "model.safetensors"))
    harm(tensors)
    save_file(tensors, str(tmp_path / "model.safetensors"))
    with pytest.raises(InputError, match=said):
        layout.read(str(tmp_path))


def test_a_pickled_release_is_refused_with_the_way_to_convert_it(tmp_path):
    save_decoder(tmp_path, channels=6, patch=4, side=2)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, str(tmp_path / "model.pt"))
    with pytest.raises(InputError, match="safetensors only") as e:
        layout.read(str(tmp_path))
    assert "convert-decoder" in str(e.value.next)


# ---- the decode stage ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    return encoded_toys(tmp_path_factory.mktemp("toys"), size=32, patch=16, n=6)


def decode(**keys):
    with open_job("local") as job:
        return Dataset.open(DECODE.run(parse(DecodeRecipe, keys), job))


def test_decode_shows_what_the_decoder_makes_of_each_stored_latent(encoded, tmp_path):
    save_decoder(tmp_path / "w", channels=768, patch=8, side=2)
    decoded = decode(dataset=encoded.path, decoder={"rae": {"weights": str(tmp_path / "w"), "batch": 2}}, output=str(tmp_path / "d"))
    decoding = Decoding(Rae(weights=str(tmp_path / "w"), batch=2), Pixels(size=32, patch=16), "cpu")
    assert decoded.card["records"] == encoded.card["records"]
    for i in range(len(encoded.shards)):
        for before, after in zip(encoded.records(i), decoded.records(i), strict=True):
            s, t = before.segments[0], after.segments[0]
            picture = images.decode(bytes(decoded.payload(i, t)))
            np.testing.assert_array_equal(picture, decoding.pictures(encoded.array(i, s)[None])[0])
            assert t.shape == picture.shape == (16, 16, 3)
    sheet = next(f for f in decoded.card["files"] if f["path"] == "sheet.png")
    assert images.decode((tmp_path / "d" / "sheet.png").read_bytes()).shape[2] == 3 and sheet["bytes"] > 100


def test_other_weights_are_another_decode_and_the_same_weights_elsewhere_are_not(encoded, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        save_decoder(tmp_path / name, channels=768, patch=8, side=2, seed=seed)
    (tmp_path / "moved").mkdir()
    for file in (tmp_path / "a").iterdir():
        (tmp_path / "moved" / file.name).write_bytes(file.read_bytes())
    given = {"dataset": encoded.path, "output": str(tmp_path / "d")}
    first = decode(**given, decoder={"rae": {"weights": str(tmp_path / "a")}})
    assert decode(**given, decoder={"rae": {"weights": str(tmp_path / "moved")}}).fingerprint == first.fingerprint
    for other in ({"decoder": {"rae": {"weights": str(tmp_path / "b")}}}, {}):
        with pytest.raises(ConflictError):
            decode(**given, **other)


def test_latents_of_another_width_are_refused_before_anything_is_written(encoded, tmp_path):
    save_decoder(tmp_path / "w", channels=32, patch=8, side=2)
    with pytest.raises(InputError, match="another width"):
        decode(dataset=encoded.path, decoder={"rae": {"weights": str(tmp_path / "w")}}, output=str(tmp_path / "d"))
    assert not (tmp_path / "d").exists()


def test_a_folder_that_names_no_image_numbers_takes_the_encoders_or_asks(tmp_path):
    save_decoder(tmp_path, channels=192, patch=8, side=4, numbers=False)
    grid = Pixels(size=32, patch=8)
    with pytest.raises(InputError, match="which mean and deviation"):
        Decoding(Rae(weights=str(tmp_path)), grid, "cpu")
    told = Decoding(Rae(weights=str(tmp_path), image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5)), grid, "cpu")
    assert told.pictures(latents(1, 16, 192)).shape == (1, 32, 32, 3)


def test_a_decode_dry_run_says_what_it_will_make_without_reading_a_weight(encoded, tmp_path):
    save_decoder(tmp_path / "w", channels=768, patch=8, side=2)
    recipe = parse(DecodeRecipe, {"dataset": encoded.path, "decoder": {"rae": {"weights": str(tmp_path / "w")}}, "output": "x"})
    assert DECODE.plan(recipe).facts["pixels"] == "16 x 16" and DECODE.plan(recipe).facts["image_references"] == 6


# ---- pickled releases ------------------------------------------------------------------------------------------------------------------


def published_state(folder):
    """The state_dict of a small decoder as the release names it, and the model."""
    from safetensors.torch import load_file

    model = save_decoder(folder, channels=6, patch=4, side=2)
    return model, load_file(str(folder / "model.safetensors"))


def convert(tmp_path, stored, **keys):
    torch.save(stored, str(tmp_path / "model.pt"))
    return run(CONVERT, ConvertDecoder, source=str(tmp_path / "model.pt"), heads=2, output=str(tmp_path / "out"), **keys)


@pytest.mark.parametrize("wrap", ["", "module.decoder.", "module._orig_mod.decoder."])
def test_a_pickled_release_is_converted_once_to_what_decode_loads(tmp_path, wrap):
    model, state = published_state(tmp_path / "from")
    inside = {f"{wrap}{name}": value for name, value in state.items()}
    stored = (
        inside
        if not wrap
        else {"ema": inside | {"module.encoder.weight": torch.zeros(1)}, "model": {k: v * 0 for k, v in inside.items()}, "epoch": 3}
    )
    out = convert(tmp_path, stored, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    published = layout.read(out)
    assert published.mean == (0.1, 0.2, 0.3) and published.std == (0.4, 0.5, 0.6)
    assert all(torch.equal(value, published.model.state_dict()[name]) for name, value in model.state_dict().items())
    from encode.check_decoder import check

    assert check(out, {"deep": True}) == [] and convert(tmp_path, stored, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]) == out


class Evil:
    def __reduce__(self):
        return (print, ("a pickle ran",))


@pytest.mark.parametrize("stored", [Evil(), {"decoder_embed.weight": Evil()}, {"a": torch.zeros(1)}, [1, 2]])
def test_what_is_no_state_dict_is_refused_and_nothing_in_it_runs(tmp_path, stored, capsys):
    with pytest.raises(InputError, match=r"more than tensors|no RAE decoder"):
        convert(tmp_path, stored)
    assert "ran" not in capsys.readouterr().out and not (tmp_path / "out" / "manifest.json").exists()


def test_the_recipes_of_decoding_that_ship_are_valid():
    for cls, name in ((ConvertDecoder, "convert_decoder"), (DecodeRecipe, "decode")):
        assert load(cls, f"{name}.yaml", packaged=[Path(__file__).parents[2] / "encode/recipes"]).output.startswith("out/")
