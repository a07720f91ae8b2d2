"""Two datasets for one source: each image has the tokens of the one that its loss bit selects, and everything counted is laid out so."""

import tempfile
from collections import Counter

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mixtures.check import check
from mixtures.estimate import estimate
from mixtures.layout import layout
from mixtures.plan import Plan, make_plan
from pipelines import uses
from pipelines.format.errors import RecipeError
from pipelines.format.manifest import read_card
from tests.mixtures.sets import dataset, mixture

KINDS = ("text", "image-text", "video", "action-video", "vqa")
few = st.integers(1, 12)
SIZES = {
    "text": st.lists(st.integers(0, 300), max_size=12),
    "image-text": st.lists(st.tuples(st.integers(1, 20), few, few), max_size=12),
    "video": st.lists(st.integers(1, 40), max_size=8),
    "action-video": st.lists(st.integers(1, 25), max_size=8),
    "vqa": st.lists(st.tuples(st.integers(1, 20), st.tuples(few, few), st.tuples(few, few)), max_size=12),
}
options = st.fixed_dictionaries(
    {"turns": st.sampled_from(["chained", "isolated"]), "loss": st.sampled_from(["role", "text", "all"])}
    | {"both": st.booleans(), "image_first": st.sampled_from([0, 0.5, 1])}
)


def larger(n):
    return 2 * n + 1


def two(root, kind, sizes, **more):
    """A dataset and what another encoder makes of it: 2n + 1 tokens where the first makes n."""
    context = dataset(f"{root}/{kind}-c", kind, sizes, kind, **more)
    return {"context": context, "target": dataset(f"{root}/{kind}-t", kind, sizes, kind, image=larger, encoder="1", **more)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    sizes = {"text": range(40, 80), "image-text": [(4, 6, 9)] * 40, "video": [3] * 40, "action-video": [5] * 40, "vqa": [(4, (3, 2), (5, 1))] * 40}
    return {kind: two(root, kind, list(of)) for kind, of in sizes.items()}


@settings(max_examples=25, deadline=None, phases=(Phase.reuse, Phase.generate))
@given(st.fixed_dictionaries(SIZES), options, st.floats(0.2, 2.5), st.integers(0, 3), st.sampled_from([0.0, 0.3]))
def test_every_plan_of_two_encoders_passes_its_deep_check(sizes, chosen, epochs, seed, fraction):
    """The check lays every span out anew, from records whose images are those that the loss bits select, and compares lengths and payloads."""
    with tempfile.TemporaryDirectory() as root:
        entries = {kind: {"dataset": two(root, kind, of), "epochs": epochs, "max_epochs": 3, **chosen} for kind, of in sizes.items()}
        path = make_plan(mixture(entries, f"{root}/plan", seed=seed, held_out={"fraction": fraction}))
        assert check(path, {"deep": True}) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_with_loss_has_the_targets_tokens_and_one_without_the_contexts(tmp_path, sets, kind):
    entry = {"dataset": sets[kind], "epochs": 1, "image_first": 0.5}
    plan = Plan.open(make_plan(mixture({"x": entry}, tmp_path / "plan")))
    seen = Counter()
    tokens = Counter()
    for i in range(plan.sequences()):
        for span in plan.row(i).spans:
            laid = layout(span, plan.record(span), plan.rules(span.source), plan.specials)
            for n, loss in enumerate(laid.image_loss.tolist()):
                assert int((laid.image == n).sum()) == (larger(4) if loss else 4)
                seen[loss] += 1
            tokens["all"] += laid.payload
            tokens["loss"] += int((laid.is_target & (laid.kind == 0)).sum()) + sum(larger(4) for loss in laid.image_loss if loss)
    expected = {"text": (0, 0), "video": (0, 120), "action-video": (160, 40), "vqa": (40, 0)}
    if kind == "image-text":
        assert seen.total() == 40 and min(seen.values()) > 10, "some show the image first, some the text"
    else:
        assert (seen[False], seen[True]) == expected[kind]
    assert plan.card["tokens"]["all"] == tokens["all"] and plan.card["tokens"]["loss"] == tokens["loss"]


def test_the_plan_names_both_datasets_both_encoders_and_statistics_of_each(tmp_path, sets):
    path = make_plan(mixture({"v": {"dataset": sets["vqa"], "epochs": 1}, "i": {"dataset": sets["image-text"], "epochs": 1}}, tmp_path / "plan"))
    card = Plan.open(path).card
    for name, kind in (("v", "vqa"), ("i", "image-text")):
        entry = card["sources"][name]
        places = [card["datasets"][entry[side]] for side in ("dataset", "target")]
        assert [p["fingerprint"] for p in places] == [read_card(sets[kind][side])["fingerprint"] for side in ("context", "target")]
    assert (card["encoding"]["image"]["fingerprint"], card["encoding"]["target"]["fingerprint"]) == ("0", "1")
    assert card["encoding"]["stats"]["n"] == card["encoding"]["target_stats"]["n"] == 80
    assert {f["path"] for f in card["files"]} >= {card["encoding"][k]["file"] for k in ("stats", "target_stats")}


def test_the_order_of_records_is_that_of_one_dataset_alone(tmp_path, sets):
    """Draws are of ids: two encoders take the same records in the same order as one, to the end of the shorter budget."""

    def ids(named, out):
        plan = Plan.open(make_plan(mixture({"x": {"dataset": named, "epochs": 1}}, tmp_path / out)))
        return {plan.record(s).id for i in range(plan.sequences()) for s in plan.row(i).spans}

    assert ids(sets["vqa"], "two") == ids(sets["vqa"]["context"], "one")


def test_a_dry_run_says_what_the_plan_then_holds(tmp_path, sets, monkeypatch):
    made = mixture({k: {"dataset": sets[k], "epochs": 1} for k in KINDS}, tmp_path / "plan")
    facts = estimate(made).facts
    card = Plan.open(make_plan(made)).card
    assert facts["sequences"] == card["records"] and facts["tokens"] == card["tokens"]
    monkeypatch.setattr("mixtures.estimate.COUNTED", 1)
    whole = estimate(made)  # of so few, every shard is looked at
    assert whole.facts["tokens"]["all"] == pytest.approx(card["tokens"]["all"], rel=0.01) and len(whole.warnings) == 5
    monkeypatch.setattr("mixtures.expected.SHARDS_READ", 1)
    assert sum("counted as those of" in said for said in estimate(made).warnings) == 5


def test_datasets_whose_rows_are_not_each_others_are_refused(tmp_path, sets):
    good = sets["vqa"]
    sizes = [(4, (3, 2), (5, 1))] * 40
    others = {
        "other shards": dataset(tmp_path / "a", "vqa", sizes, "vqa", parts=4, image=larger, encoder="1"),
        "fewer records": dataset(tmp_path / "b", "vqa", sizes[:-1], "vqa", image=larger, encoder="1"),
        "other ids": dataset(tmp_path / "c", "vqa", sizes, "strangers", image=larger, encoder="1"),
        "other texts": dataset(tmp_path / "d", "vqa", [(4, (3, 3), (5, 1)), *sizes[1:]], "vqa", image=larger, encoder="1"),
        "another kind": sets["video"]["target"],
    }
    for path in others.values():
        with pytest.raises(RecipeError, match="do not hold the same"):
            make_plan(mixture({"x": {"dataset": {**good, "target": path}, "epochs": 1}}, tmp_path / "plan"))


def test_one_tokenizer_and_one_encoder_of_each_kind_is_asked_of_all(tmp_path, sets):
    def plan(**sources):
        return make_plan(mixture({k: {"dataset": v, "epochs": 1} for k, v in sources.items()}, tmp_path / "plan"))

    sizes = [(4, (3, 2), (5, 1))] * 40
    other = dataset(tmp_path / "t", "vqa", sizes, "vqa", image=larger, encoder="1", tokenizer="9")
    with pytest.raises(RecipeError, match="disagree on the tokenizer"):
        plan(x={**sets["vqa"], "target": other})
    third = dataset(tmp_path / "e", "vqa", sizes, "vqa", image=larger, encoder="2")
    with pytest.raises(RecipeError, match="disagree on the image encoder"):
        plan(x={**sets["vqa"], "target": third}, y=sets["video"])
    with pytest.raises(RecipeError, match="two datasets of every source with images"):
        plan(x=sets["vqa"], y=sets["video"]["context"])
    plan(x=sets["vqa"], y=sets["text"]["context"])


def test_a_clean_copy_of_each_frame_is_refused_with_two_datasets(sets):
    with pytest.raises(RecipeError, match="one frame in two ways"):
        mixture({"x": {"dataset": sets["video"], "epochs": 1, "history": "clean_copy"}})
    with pytest.raises(RecipeError, match="target"):
        mixture({"x": {"dataset": {"context": "a"}, "epochs": 1}})


def test_another_target_is_another_plan(tmp_path, sets):
    one = {"x": {"dataset": sets["vqa"], "epochs": 1}}
    other = {"x": {"dataset": {**sets["vqa"], "target": sets["vqa"]["context"]}, "epochs": 1}}
    alone = {"x": {"dataset": sets["vqa"]["context"], "epochs": 1}}
    cards = [Plan.open(make_plan(mixture(m, tmp_path / str(i)))).card for i, m in enumerate((one, other, alone))]
    assert len({card["fingerprint"] for card in cards}) == 3
    assert all("stats" in card["encoding"] for card in cards), "one encoder for both has its statistics twice"


def test_a_record_of_the_target_dataset_is_traced_to_the_spans_that_show_it(tmp_path, sets):
    card = Plan.open(make_plan(mixture({"x": {"dataset": sets["vqa"], "epochs": 1}}, tmp_path / "plan"))).card
    for side in ("context", "target"):
        number = uses.number_in(card, sets["vqa"][side], read_card(sets["vqa"][side])["fingerprint"])
        assert len(list(uses.spans(card, number, [(0, 3)]))) == 1
    assert uses.number_in(card, sets["video"]["target"], "f" * 64) is None


def test_a_trainer_reads_each_image_from_the_dataset_that_its_loss_bit_selects(tmp_path, sets):
    pytest.importorskip("torch")
    from trainer.stream import Reader

    plan = Plan.open(make_plan(mixture({"x": {"dataset": sets["image-text"], "epochs": 1, "image_first": 0.5}}, tmp_path / "plan")))
    reader = Reader(plan)
    for seq in range(plan.sequences()):
        for span in plan.row(seq).spans:
            document = reader.document(span)
            assert len(document.latents) == (larger(4) if document.image_loss[0] else 4)
            assert len(document) == len(layout(span, plan.record(span), plan.rules(span.source), plan.specials))
