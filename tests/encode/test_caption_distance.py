"""Distances of captions to text: nothing for the same words, more the more words differ, and blind to order, sharding and length."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

import encode
from encode.caption_distance import STAGE, CaptionDistance, distance
from encode.text_vectors.hashed import Hashed
from encode.text_vectors.sentence_model import SentenceModel
from pipelines.curate import Curate
from pipelines.engine import open_job
from pipelines.format.document import load, parse
from pipelines.format.errors import ConflictError, InputError
from pipelines.format.manifest import read_card
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Text
from pipelines.recipe import Recipe
from pipelines.summary import show_stats, stats
from tests.toys import seal

PROSE = ["the", "old", "road", "runs", "along", "the", "river", "and", "past", "the", "mill", "where", "nobody", "has", "lived", "for", "years"]
SHOP = ["new", "women", "summer", "dress", "blue", "cotton", "size", "free", "shipping", "sale", "best", "price", "buy", "online", "shop"]


def texts(words, n, seed, length=12):
    rng = random.Random(seed)
    return [" ".join(rng.choice(words) for _ in range(length)) for _ in range(n)]


def curated(tmp_path, name, lines, shard_bytes=10**6):
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    document = {"name": name, "source": {"jsonl": {"path": str(tmp_path / name)}}, "engine": "local", "shard_bytes": shard_bytes}
    with open_job("local") as job:
        return Curate("text").run(parse(Recipe, {**document, "output": str(tmp_path / f"{name}-set")}), job)


def measure(tmp_path, captions, text, output="out", **keys):
    config = parse(CaptionDistance, {"captions": captions, "text": text, "output": str(tmp_path / output), **keys})
    with open_job("local") as job:
        return STAGE.run(config, job)


def cos_distance(a, b, **keys):
    return distance(Hashed(**keys).sums(a)[0], Hashed(**keys).sums(b)[0])


def test_the_same_texts_are_at_no_distance_and_other_words_at_one():
    same, other = texts(PROSE, 50, 0), texts(SHOP, 50, 0)
    assert abs(cos_distance(same, same)) < 1e-12
    assert cos_distance(same, other) > 0.99
    half = texts(PROSE, 25, 1) + texts(SHOP, 25, 1)
    assert 0.2 < cos_distance(same, half) < 0.5


def test_sums_do_not_depend_on_order_or_grouping_to_the_last_bit():
    lines = texts(PROSE + SHOP, 300, 2, 21)
    whole, pieces = Hashed().sums(lines)
    shuffled = lines[:]
    random.Random(1).shuffle(shuffled)
    parts = [Hashed().sums(shuffled[i : i + 7]) for i in range(0, 300, 7)]
    assert np.array_equal(whole, sum(p for p, _ in parts)) and pieces == sum(n for _, n in parts) == 600


def test_a_long_document_counts_as_its_pieces():
    lines = texts(PROSE, 40, 3, 16)
    assert abs(cos_distance([" ".join(lines)], lines, words=1)) < 1e-12
    assert Hashed(words=1).sums([" ".join(lines)])[1] == 40


def test_word_order_shows_in_pairs_of_words_only():
    a, b = ["red fox and brown dog"], ["brown dog and red fox"]
    assert cos_distance(a, b, words=1) < 1e-12 < 0.1 < cos_distance(a, b, words=2)
    assert cos_distance(["Red fox!"], ["red  FOX !"]) < 1e-12, "capitals and spaces do not count"


def test_texts_without_words_give_nothing():
    vector, pieces = Hashed().sums(["", "  ", "\n"])
    assert pieces == 0 and not vector.any() and Hashed().sums([])[1] == 0


def test_captions_nearer_the_corpus_get_the_smaller_figure_and_chance_is_told_apart(tmp_path):
    corpus = curated(tmp_path, "corpus", texts(PROSE, 400, 4, 60))
    near = curated(tmp_path, "near", texts(PROSE * 3 + SHOP, 300, 5))
    far = curated(tmp_path, "far", texts(PROSE + SHOP * 3, 300, 6))
    path = measure(tmp_path, [near, far], [corpus])
    figures = stats(path)["figures"]
    f = figures["captions"] | {"corpus": figures["corpus"]}
    assert f["near"]["distance"] + 5 * f["near"]["error"] < f["far"]["distance"]
    assert f["near"]["within"] < f["near"]["distance"] and f["corpus"]["within"] < 0.05
    assert f["near"]["texts"] == 300 and f["corpus"]["pieces"] == 400 * 4
    assert read_card(path)["kind"] == "caption-distance" and [p["fingerprint"] for p in read_card(path)["parents"]]


def test_sharding_does_not_show_and_a_second_run_does_nothing(tmp_path):
    corpus = curated(tmp_path, "corpus", texts(PROSE, 60, 4, 30))
    figures = []
    for k, shard_bytes in enumerate((1, 10**6)):
        (tmp_path / str(k)).mkdir()
        captions = curated(tmp_path / str(k), "captions", texts(SHOP, 100, 5), shard_bytes)
        figures.append(stats(measure(tmp_path, [captions], [corpus], f"out{k}", max_records=50))["figures"])
    assert figures[0] == figures[1] and 20 < figures[0]["captions"]["captions"]["texts"] < 80
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out1").rglob("*")}
    measure(tmp_path, [captions], [corpus], "out1", max_records=50)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out1").rglob("*")} == before
    with pytest.raises(ConflictError):
        measure(tmp_path, [captions], [corpus], "out1", max_records=51)


def test_a_set_with_several_captions_an_image_gets_a_row_for_each_name(tmp_path):
    root = str(tmp_path / "pairs")
    with PartWriter(root, 0, fingerprint="f") as writer:
        for i, (a, b) in enumerate(zip(texts(PROSE, 80, 7), texts(SHOP, 80, 8), strict=True)):
            writer.emit()
            writer.add(Record.make("pairs", str(i), "image-text", [Text(a, atom=1, name="original"), Text(b, atom=2, name="recaption")]))
        commit = writer.commit()
    seal(root, "pairs", "image-text", [commit], {})
    corpus = curated(tmp_path, "corpus", texts(PROSE, 60, 4, 30))
    f = stats(measure(tmp_path, [root], [corpus]))["figures"]["captions"]
    assert list(f) == ["pairs: all", "pairs: original", "pairs: recaption"]
    assert f["pairs: original"]["distance"] < 0.1 < f["pairs: all"]["distance"] < 0.9 < f["pairs: recaption"]["distance"]
    assert f["pairs: all"]["texts"] == 160


def test_sets_of_one_name_are_told_apart_without_a_path_and_a_set_may_be_called_corpus(tmp_path):
    corpus = curated(tmp_path, "corpus", texts(PROSE, 60, 4, 30))
    again = tmp_path / "again"
    again.mkdir()
    other = curated(again, "corpus", texts(SHOP, 60, 4))
    path = measure(tmp_path, [corpus, other], [corpus])
    f = stats(path)["figures"]
    assert set(f["captions"]) == {f"corpus {read_card(p)['fingerprint'][:8]}" for p in (corpus, other)} and f["corpus"]["texts"] == 60
    assert str(tmp_path) not in json.dumps(read_card(path)["figures"])


def test_a_person_reads_all_sets_in_one_table(tmp_path, capsys):
    corpus = curated(tmp_path, "corpus", texts(PROSE, 60, 4, 30))
    near, far = curated(tmp_path, "near", texts(PROSE, 60, 5)), curated(tmp_path, "far", texts(SHOP, 60, 5))
    show_stats(stats(measure(tmp_path, [near, far], [corpus])))
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["distance", "error", "pieces", "texts", "within"] in said
    by = {row[0]: row for row in said if row and row[0] in ("near", "far")}
    assert float(by["near"][1]) < float(by["far"][1]) and by["far"][4] == "60"


def test_sets_without_captions_or_text_are_refused(tmp_path):
    corpus = curated(tmp_path, "corpus", texts(PROSE, 5, 0))
    with pytest.raises(InputError):
        measure(tmp_path, [str(tmp_path / "none")], [corpus])


@pytest.fixture
def tiny_model(tmp_path):
    """A sentence model of two layers with random weights, in the layout of sentence-transformers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *dict.fromkeys(PROSE + SHOP)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


def test_a_sentence_models_vectors_are_the_means_of_its_tokens_at_unit_length(tiny_model):
    import torch
    from transformers import AutoModel, AutoTokenizer

    lines = [*texts(PROSE, 5, 0, 4), *texts(SHOP, 4, 0, 9), ""]
    model, tokenizer = AutoModel.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)
    want = torch.zeros(16, dtype=torch.float64)
    for line in lines[:-1]:
        with torch.inference_mode():
            mean = model(**tokenizer(line, return_tensors="pt")).last_hidden_state[0].double().mean(0)
        want += mean / mean.norm()
    got, n = SentenceModel(weights=str(tiny_model), batch=3).sums(lines)
    assert n == 9 and np.allclose(got, want.numpy(), atol=1e-5)


def test_a_folder_says_how_it_pools_and_an_unknown_layer_is_refused(tiny_model):
    (tiny_model / "1_Pooling").mkdir()
    (tiny_model / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    assert SentenceModel(weights=str(tiny_model)).pooling() == "cls"
    (tiny_model / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(InputError, match="layer"):
        SentenceModel(weights=str(tiny_model)).pooling()


def test_the_packaged_recipe_is_understood():
    recipe = Path(encode.__file__).parent / "recipes" / "caption_distance.yaml"
    assert load(CaptionDistance, str(recipe)).vectors == Hashed()
