"""Scorers say what the models say: values equal the published network called by hand, and what cannot be done exactly is refused."""

import json
import shutil

import numpy as np
import pytest

from encode.encoder import in_batches, machine_for
from encode.processor import published
from encode.scorer import folded
from encode.scorers.embedding_head import EmbeddingHead
from encode.scorers.image_class import Classifier, ImageClass
from encode.scorers.similarity import Similarity
from encode.scoring.towers import Towers, tokenizer
from pipelines.format.errors import InputError
from tests.encode import models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["a lamp", "", "river and stone " * 9, "ünïcode 漢字", "A LAMP"]
PICTURES = [models.photo(i, 60 + i, 44 + 7 * i) for i in range(5)]


@pytest.fixture(scope="module", params=["siglip", "clip"])
def towers(request, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp(request.param))
    return folder, getattr(models, f"save_{request.param}")(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("classifier"))
    return folder, models.save_classifier(folder)


def values(scorer, pictures, texts=()):
    """A scorer as the stage uses it: prepared, batched, valued."""
    sight = scorer.sight()
    look, read = sight.look(machine_for(sight.dtype, "cpu"))
    prepared = np.stack([sight.processor().picture(p) for p in pictures])
    seen = np.concatenate(list(in_batches(look, prepared, sight.batch)))
    said = np.concatenate(list(in_batches(read, sight.written(list(texts)), sight.batch))) if texts else None
    return scorer.values(seen, said)


def embeddings(folder, model, pictures, texts):
    """By the library's own processor and forward."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    said = tokenizer(folder)(texts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.inference_mode():
        out = model(pixel_values=processor(images=pictures, return_tensors="pt")["pixel_values"], **said)
    return out.image_embeds.numpy(), out.text_embeds.numpy()


def test_similarity_is_the_cosine_of_the_models_own_embeddings(towers):
    folder, model = towers
    images, texts = embeddings(folder, model, PICTURES, TEXTS)
    ours = values(Similarity(weights=folder, batch=2, dtype="f32"), PICTURES, TEXTS)
    assert np.abs(ours - (images * texts).sum(1)).max() <= 1e-5
    assert np.ptp(ours) > 1e-3, "a network that says the same of everything would prove nothing"


def test_values_do_not_depend_on_the_batch_or_on_neighbours(towers):
    whole = values(Similarity(weights=towers[0], batch=5, dtype="f32"), PICTURES, TEXTS)
    split = values(Similarity(weights=towers[0], batch=2, dtype="f32"), PICTURES, TEXTS)
    np.testing.assert_allclose(whole, split, atol=1e-6)
    turned = values(Similarity(weights=towers[0], batch=2, dtype="f32"), PICTURES[::-1], TEXTS[::-1])
    np.testing.assert_allclose(split, turned[::-1], atol=1e-6)


def test_half_precision_moves_a_cosine_by_little(towers):
    full, half = (values(Similarity(weights=towers[0], batch=5, dtype=d), PICTURES, TEXTS) for d in ("f32", "bf16"))
    assert 0 < np.abs(full - half).max() < 0.02


def test_a_label_is_the_classifiers_probability_and_several_add_up(classifier):
    folder, model = classifier
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        by_hand = model(**processor(images=PICTURES, return_tensors="pt")).logits.softmax(-1).numpy()
    one = values(ImageClass(weights=folder, label="nsfw", batch=2, dtype="f32"), PICTURES)
    both = values(ImageClass(weights=folder, label=("nsfw", "drawing"), dtype="f32"), PICTURES)
    assert np.abs(one - by_hand[:, 1]).max() <= 1e-5 and np.ptp(one) > 1e-3
    assert np.abs(both - by_hand[:, 1:].sum(1)).max() <= 1e-5


def test_labels_that_do_not_exclude_one_another_are_sigmoids_and_the_largest_counts(tmp_path):
    model = models.save_classifier(str(tmp_path), problem_type="multi_label_classification")
    processor = transformers.AutoImageProcessor.from_pretrained(str(tmp_path))
    with torch.inference_mode():
        by_hand = model(**processor(images=PICTURES, return_tensors="pt")).logits.sigmoid().numpy()
    ours = values(ImageClass(weights=str(tmp_path), label=("nsfw", "drawing"), dtype="f32"), PICTURES)
    assert np.abs(ours - by_hand[:, 1:].max(1)).max() <= 1e-5


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "silu"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_head_gives_what_its_layers_give_by_hand(tmp_path, activation, normalize):
    model, head = models.save_clip(str(tmp_path)), str(tmp_path / "head.safetensors")
    layers = models.save_head(head)
    x = model.get_image_features(**transformers.AutoImageProcessor.from_pretrained(str(tmp_path))(images=PICTURES, return_tensors="pt"))
    x = getattr(x, "pooler_output", x).detach()
    x = torch.nn.functional.normalize(x, dim=-1) if normalize else x
    between = {"none": lambda v: v, "relu": torch.relu, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}[activation]
    for i, (weight, bias) in enumerate(layers):
        x = torch.nn.functional.linear(x, weight, bias)
        x = between(x) if i < len(layers) - 1 else x
    ours = EmbeddingHead(tower=str(tmp_path), head=head, normalize=normalize, activation=activation, dtype="f32", batch=2)
    ours.check()
    assert np.abs(values(ours, PICTURES) - x[:, 0].numpy()).max() <= 1e-5


def test_a_head_with_several_values_names_the_one_that_counts(tmp_path):
    models.save_clip(str(tmp_path))
    head = str(tmp_path / "h.safetensors")
    ((weight, bias),) = models.save_head(head, (16, 3), (0,))
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    made = x.astype(np.float64) @ weight.double().numpy().T + bias.double().numpy()
    keys = {"tower": str(tmp_path), "head": head, "normalize": False}
    with pytest.raises(InputError, match="which of the head's values"):
        EmbeddingHead(**keys).check()
    for output in range(3):
        assert np.abs(EmbeddingHead(**keys, output=output).values(x, None) - made[:, output]).max() < 1e-12
        sigmoid = EmbeddingHead(**keys, output=output, final="sigmoid").values(x, None)
        assert np.abs(sigmoid - 1 / (1 + np.exp(-made[:, output]))).max() < 1e-12
    softmax = sum(EmbeddingHead(**keys, output=output, final="softmax").values(x, None) for output in range(3))
    assert np.abs(softmax - 1).max() < 1e-12


def test_a_head_that_does_not_fit_or_is_no_stack_of_layers_is_refused(tmp_path):
    from safetensors.torch import save_file

    models.save_clip(str(tmp_path))
    wrong, norm, pickled = (str(tmp_path / f"{name}.safetensors") for name in ("wrong", "norm", "pickled"))
    models.save_head(wrong, (8, 1), (0,))
    save_file({"0.weight": torch.zeros(1, 16), "1.weight": torch.zeros(16)}, norm)
    torch.save({"a": 1}, pickled)
    refused = {wrong: "does not fit", norm: "something else than linear layers", pickled: "not a safetensors", "nowhere": "no such file"}
    for head, said in refused.items():
        with pytest.raises(InputError, match=said):
            EmbeddingHead(tower=str(tmp_path), head=head).check()


def test_a_label_that_the_classifier_lacks_is_refused_with_those_it_has(classifier):
    with pytest.raises(InputError, match="normal, nsfw, drawing"):
        ImageClass(weights=classifier[0], label="nfsw").check()


def test_weights_that_lack_a_tensor_are_refused_and_not_filled_with_chance(towers, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(towers[0], tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if "vision_model.embeddings.patch" not in k}
    save_file(tensors, file, metadata={"format": "pt"})
    sight = Towers(str(tmp_path / "m"), 2, "f32")
    with pytest.raises(InputError, match="lack tensors"):
        sight.look(machine_for("f32", "cpu"))


def test_a_model_of_another_kind_and_a_folder_without_tokenizer_are_refused(towers, tmp_path):
    shutil.copytree(towers[0], tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    said = json.loads(config.read_text())
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "m" / file).unlink()
    with pytest.raises(InputError, match="tokenizer of these weights"):
        Similarity(weights=str(tmp_path / "m")).check()
    config.write_text(json.dumps({**said, "model_type": "siglip2"}))
    with pytest.raises(InputError, match="two-tower model"):
        Similarity(weights=str(tmp_path / "m")).check()


@pytest.mark.parametrize(
    "settings",
    [
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 28, "crop_size": 28, "resample": 3},
        {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 30}, "crop_size": {"height": 28, "width": 28}},
        {"image_processor_type": "ViTImageProcessor", "size": 28, "do_rescale": None},
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 28, "width": 20}},
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 28},
    ],
)
def test_a_published_processor_makes_transformers_pixels_with_whatever_keys_its_file_leaves_out(settings, tmp_path):
    kind = settings.get("image_processor_type") or settings["feature_extractor_type"]
    kind = kind.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    given = {k: v for k, v in settings.items() if v is not None and not k.endswith("_type")}
    theirs = getattr(transformers, kind)(**given)(images=models.photo(3), return_tensors="np")["pixel_values"][0]
    ours = published(settings, "test")
    picture = torch.from_numpy(ours.picture(models.photo(3)).copy())[None]
    np.testing.assert_allclose(ours.numbers("cpu")(picture)[0].numpy(), theirs, atol=1e-6)


def test_processors_with_steps_of_their_own_are_refused():
    kinds = ({"image_processor_type": "ConvNextImageProcessor"}, {}, {"image_processor_type": "ViTImageProcessor", "do_resize": False})
    for settings in kinds:
        with pytest.raises(InputError, match="not known exactly"):
            published(settings, "test")


def test_the_identity_follows_weights_tokenizer_settings_and_rule_but_not_the_place(towers, tmp_path):
    shutil.copytree(towers[0], tmp_path / "m")
    moved = str(tmp_path / "m")
    base = Similarity(weights=towers[0]).identity()
    assert base == Similarity(weights=moved).identity() and "m" not in json.dumps(base["rule"]).split()
    others = [Similarity(weights=moved, **k).identity() for k in ({"batch": 8}, {"captions": "min"}, {"dtype": "bf16"})]
    file = tmp_path / "m" / "tokenizer_config.json"
    file.write_text(file.read_text().replace("24", "23").replace("20", "19"))
    others.append(Similarity(weights=moved).identity())
    assert len({json.dumps(i, sort_keys=True) for i in (base, *others)}) == 5


def test_scores_of_one_model_share_its_sight(classifier):
    a, b = (ImageClass(weights=classifier[0], label=label).sight() for label in ("nsfw", "drawing"))
    assert a == b and hash(a) == hash(b) and a != Classifier(classifier[0], 8, "auto")


def test_a_fold_with_a_value_that_is_no_number_is_none():
    for how in ("max", "mean", "min", "first"):
        assert np.isnan(folded([1.0, float("nan")], how)) and folded([2.0], how) == 2.0
    assert [folded([1.0, 4.0, 1.0], how) for how in ("max", "mean", "min", "first")] == [4.0, 2.0, 1.0, 1.0]
