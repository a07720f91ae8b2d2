"""Keys of a mixture, each by what the plan then holds: records of another plan, the largest share, what is counted, captions, loss, direction."""

import numpy as np
import pytest

from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from mixtures.stage import STAGE
from pipelines.format.document import load
from pipelines.format.errors import BudgetError, ConflictError, InputError, RecipeError
from pipelines.summary import stats
from tests.mixtures.sets import dataset, mixture

rng = np.random.default_rng(3)
PAIRS = [(4, int(a), int(b)) for a, b in rng.integers(2, 30, (200, 2))]
TEXTS = [int(n) for n in rng.integers(1, 90, 200)]
VQA = [(4, *((int(q), int(a)) for q, a in rng.integers(1, 6, (int(k), 2)))) for k in rng.integers(1, 6, 200)]
HELD = {"fraction": 0.1}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    wide = [(9, a, b) for _, a, b in PAIRS]
    return {
        "pairs": dataset(root / "pairs", "image-text", PAIRS, "pairs"),
        "wide": dataset(root / "wide", "image-text", wide, "pairs", encoder="wide"),
        "text": dataset(root / "text", "text", TEXTS, "text"),
        "vqa": dataset(root / "vqa", "vqa", VQA, "vqa"),
    }


def spans(path: str) -> list:
    plan = Plan.open(path)
    return [s for i in range(plan.sequences()) for s in plan.row(i).spans]


def test_the_records_of_a_plan_named_in_the_document_are_those_of_the_argument(tmp_path, sets):
    base = make_plan(mixture({"x": {"dataset": sets["pairs"], "tokens": 2500}}, tmp_path / "base", held_out=HELD))
    keyed = make_plan(mixture({"x": {"dataset": sets["wide"]}}, tmp_path / "keyed", held_out=HELD, records_from=base))
    passed = make_plan(mixture({"x": {"dataset": sets["wide"], "tokens": 2500}}, tmp_path / "passed", held_out=HELD), records_from=base)

    def seen(path):
        return sorted((Plan.open(path).record(s).id, s.caption, s.image_first, s.epoch) for s in spans(path))

    assert seen(base) == seen(keyed) == seen(passed)
    assert Plan.open(keyed).card["files"] == Plan.open(passed).card["files"]
    assert base in {entry["path"] for entry in stats(keyed)["lineage"]}


def test_it_is_the_other_plan_that_counts_and_not_where_it_lies(tmp_path, sets):
    first = mixture({"x": {"dataset": sets["pairs"], "tokens": 2500}}, held_out=HELD)
    here, there = (make_plan(first, str(tmp_path / n)) for n in ("here", "there"))
    another = make_plan(mixture({"x": {"dataset": sets["pairs"], "tokens": 2400}}, tmp_path / "c", held_out=HELD))
    arm = {"x": {"dataset": sets["wide"]}}
    prints = [
        Plan.open(make_plan(mixture(arm, tmp_path / f"p{i}", held_out=HELD, records_from=of))).card["fingerprint"]
        for i, of in enumerate((here, there, another))
    ]
    assert prints[0] == prints[1] != prints[2]
    with pytest.raises(ConflictError):
        make_plan(mixture(arm, tmp_path / "p0", held_out=HELD, records_from=another))
    with pytest.raises(InputError, match="no artifact here"):
        make_plan(mixture(arm, tmp_path / "p9", held_out=HELD, records_from=str(tmp_path / "gone")))


def test_records_of_another_plan_come_in_one_stretch_and_need_no_budget(sets):
    stages = [{"until": "100%", "share": {"x": 1}}]
    with pytest.raises(RecipeError, match="in one stretch"):
        mixture({"x": {"dataset": "d"}}, total=5, stages=stages, records_from="p")
    with pytest.raises(RecipeError, match="exactly one of"):
        mixture({"x": {"dataset": "d"}})
    with pytest.raises(RecipeError, match="found tokens, epochs"):
        mixture({"x": {"dataset": "d", "tokens": 1, "epochs": 1}}, records_from="p")


def test_a_largest_share_that_follows_from_the_data_ends_with_status_3_and_the_figures(tmp_path, sets):
    entries = {"text": {"dataset": sets["text"], "epochs": 1, "max_share": 0.3}, "pairs": {"dataset": sets["pairs"], "epochs": 1}}
    for act in (lambda m: make_plan(m, str(tmp_path / "p")), STAGE.plan):
        with pytest.raises(BudgetError) as e:
            act(mixture(entries))
        assert e.value.exit == 3 and "sources.text.max_share" in str(e.value.where)
        assert f"{sum(TEXTS):,} of" in str(e.value.found) and "30" in str(e.value.allowed)
    entries["text"]["max_share"] = float(f"{sum(TEXTS) / (sum(TEXTS) + 4 * 200):.2f}")
    assert make_plan(mixture(entries, tmp_path / "q"))


def test_a_share_that_is_just_allowed_is_not_refused_for_a_rounded_token(tmp_path, sets):
    entries = {k: {"dataset": sets[k], "share": s, "max_share": s} for k, s in (("text", "33.3%"), ("vqa", "66.7%"))}
    assert make_plan(mixture(entries, tmp_path / "p", total=1001, scale=0.7))


def test_a_balance_changes_the_fingerprint_and_nothing_unset_does(tmp_path, sets):
    entries = {"text": {"dataset": sets["text"], "tokens": 900}}
    plans = [make_plan(mixture(entries, tmp_path / f"p{i}", **k)) for i, k in enumerate(({}, {"balance": None}, {"balance": 4}))]
    prints = [Plan.open(p).card["fingerprint"] for p in plans]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(("count", "of"), [("text", "text"), ("visual", "visual"), ("loss", "loss"), ("all", "all")])
def test_shares_are_of_what_is_counted(tmp_path, sets, count, of):
    entries = {k: {"dataset": sets[k], "share": s} for k, s in (("pairs", 0.25), ("vqa", 0.75))}
    card = Plan.open(make_plan(mixture(entries, tmp_path / "p", total=600, count=count))).card
    assert abs(card["sources"]["pairs"]["tokens"][of] - 150) <= 16 and abs(card["sources"]["vqa"]["tokens"][of] - 450) <= 16


def test_image_first_is_the_share_of_pairs_shown_so_and_they_train_no_image_unless_both(tmp_path, sets):
    for i, (first, both) in enumerate(((0, False), (1, False), (0.25, False), (1, True))):
        entry = {"dataset": sets["pairs"], "epochs": 1, "image_first": first, "both": both}
        path = make_plan(mixture({"x": entry}, tmp_path / f"p{i}"))
        found = spans(path)
        assert abs(np.mean([s.image_first for s in found]) - first) < 0.1 * (first not in (0, 1)) + 1e-9
        tokens = Plan.open(path).card["sources"]["x"]["tokens"]
        text_first = sum(4 for s in found if not s.image_first)
        assert tokens["loss"] == tokens["text"] + (tokens["visual"] if both else text_first)


def test_captions_are_drawn_by_their_weights_and_a_weight_of_0_never(tmp_path, sets):
    for i, (weights, share) in enumerate((({"original": 1}, 0), ({"recaption": 1}, 1), ({"original": 3, "recaption": 1}, 0.25), (None, 0.5))):
        entry = {"dataset": sets["pairs"], "epochs": 1} | ({"captions": weights} if weights else {})
        found = spans(make_plan(mixture({"x": entry}, tmp_path / f"p{i}")))
        assert len(found) == 200 and abs(np.mean([s.caption == 2 for s in found]) - share) < 0.1 * (share not in (0, 1)) + 1e-9


def test_loss_says_which_of_a_record_s_tokens_teach(tmp_path, sets):
    whole = {"answers": sum(a for _, *turns in VQA for _, a in turns), "text": sum(q + a for _, *turns in VQA for q, a in turns)}
    expected = {"role": whole["answers"], "text": whole["text"], "all": whole["text"] + 4 * len(VQA)}
    for loss, tokens in expected.items():
        path = make_plan(mixture({"x": {"dataset": sets["vqa"], "epochs": 1, "loss": loss}}, tmp_path / loss))
        assert Plan.open(path).card["sources"]["x"]["loss_tokens"] == tokens


def test_an_extended_file_and_one_written_out_make_one_plan(tmp_path, sets):
    lines = ["sequence_length: 64", "held_out: {fraction: 10%}", "sources:"]
    lines += [f"  x: {{dataset: {sets['text']}, tokens: 700}}", f"  y: {{dataset: {sets['vqa']}, tokens: 9}}", ""]
    (tmp_path / "base.yaml").write_text("\n".join(lines) + f"output: {tmp_path}/plans/{{name}}\n")
    (tmp_path / "arm.yaml").write_text("extends: base.yaml\nsources: {y: null, x: {tokens: 0.8K}}\n")
    written = mixture({"x": {"dataset": sets["text"], "tokens": 800}}, tmp_path / "written", held_out={"fraction": "10%"})
    arm = make_plan(load(Mixture, str(tmp_path / "arm.yaml")))
    assert arm == f"{tmp_path}/plans/arm"
    a, b = Plan.open(arm).card, Plan.open(make_plan(written)).card
    assert a["fingerprint"] == b["fingerprint"] and a["files"] == b["files"]
    assert {**a["recipe"], "name": None, "output": None} == {**b["recipe"], "name": None, "output": None}
