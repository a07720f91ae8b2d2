"""A dry run says what the plan then comes to: by cards alone, by a sample, and at the size of the paper in seconds."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mixtures.plan import Plan, make_plan
from mixtures.stage import STAGE
from pipelines.format.document import dump
from pipelines.format.errors import BudgetError, RecipeError
from pipelines.format.manifest import card, publish_card
from tests.mixtures.sets import SPECIALS, dataset, mixture

rng = np.random.default_rng(11)


def spread(mean: float, n: int = 3000) -> list[int]:
    return [1 + int(x) for x in rng.exponential(mean, n)]


SIZES = {
    "text": spread(120),
    "image-text": [(4, n) for n in spread(20)],
    "video": spread(12),
    "action-video": [20] * 3000,
    "vqa": [(4, (q, a)) for q, a in zip(spread(12), spread(2), strict=True)],
}
MIXES = {
    "alone": [{k: 1.0} for k in SIZES],
    "together": [{"vqa": 0.3, "text": 0.8}, {"vqa": 0.3, "video": 0.8}, {"vqa": 0.3, "image-text": 0.8}, dict.fromkeys(SIZES, 0.6)],
}
HELD = {"fraction": "2%"}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return {k: dataset(root / k, k, sizes, k, parts=6) for k, sizes in SIZES.items()}


@pytest.fixture
def by_card(monkeypatch):
    monkeypatch.setattr("mixtures.estimate.COUNTED", 0)
    monkeypatch.setattr("mixtures.expected.SHARDS_READ", 0)


@pytest.fixture
def by_sample(monkeypatch):
    monkeypatch.setattr("mixtures.estimate.COUNTED", 0)
    monkeypatch.setattr("mixtures.expected.SAMPLED_RECORDS", 1200)


def near(said, card, within: float, loss: float | None = None) -> None:
    """Every figure of the tree against the plan's."""
    facts = said.facts
    assert facts["sequences"] == pytest.approx(card["records"], rel=within, abs=2)
    assert facts["fill"] == pytest.approx(card["fill"], rel=within)
    assert facts["structure"] == pytest.approx(card["structure"], rel=within)
    for k in ("text", "visual", "all"):
        assert facts["tokens"][k] == pytest.approx(card["tokens"][k], rel=within, abs=50)
    if "heldout" in facts:
        assert facts["heldout"]["tokens"]["all"] == pytest.approx(card["heldout"]["tokens"]["all"], rel=0.5)  # some sixty records, by chance
    for row in said.table:
        found = card["sources"][row["source"]]
        assert row["wanted"] == pytest.approx(found["wanted"], rel=within)
        assert row["available"] == pytest.approx(found["available"], rel=within)
        assert row["epochs"] == pytest.approx(found["epochs"], rel=within)
        assert row["records"] == pytest.approx(found["records"], rel=2 * within, abs=5)  # a pool is a few hundred
        assert row["structure"] == pytest.approx(found["structure"], rel=within)
        assert row["loss_tokens"] == pytest.approx(found["loss_tokens"], rel=loss or within)


@pytest.mark.parametrize("mix", [m for k in MIXES for m in MIXES[k]], ids=lambda m: "+".join(m))
def test_what_cards_let_expect_is_what_planning_finds_within_a_few_per_cent(tmp_path, sets, by_card, mix):
    entries = {k: {"dataset": sets[k], "epochs": e} for k, e in mix.items()}
    m = mixture(entries, tmp_path / "p", sequence_length=256, held_out=HELD)
    said = STAGE.plan(m)
    assert said.title == "plan, expected from the datasets' cards"
    near(said, Plan.open(make_plan(m)).card, 0.04)


@pytest.mark.parametrize(
    "change",
    [
        {"history": "clean_copy"},
        {"image_first": 0.9},
        {"both": True},
        {"loss": "all"},
        {"loss": "text"},
        {"turns": "isolated"},
        {"pool": "30K", "epochs": 2.5, "max_epochs": 3},
        {"epochs": 3.5, "max_epochs": 4},
    ],
    ids=str,
)
def test_how_records_are_shown_is_part_of_the_expectation(tmp_path, sets, by_card, change):
    entries = {k: {"dataset": sets[k], "epochs": 0.7, **change} for k in SIZES}
    m = mixture(entries, tmp_path / "p", sequence_length=256, held_out=HELD)
    near(STAGE.plan(m), Plan.open(make_plan(m)).card, 0.05)


def test_a_sample_of_the_indexes_knows_filters_captions_and_questions_that_cards_do_not(tmp_path, by_sample):
    pairs = [(4, a, b) for a, b in zip(spread(10, 4000), spread(60, 4000), strict=True)]
    vqa = [(4, *[(q, 2)] * (1 + q % 4)) for q in spread(9, 4000)]
    scores = [{"clip": float(x)} for x in rng.random(4000)]
    entries = {
        "pairs": {"dataset": dataset(tmp_path / "a", "image-text", pairs, "a", parts=16, scores=scores), "epochs": 0.8},
        "vqa": {"dataset": dataset(tmp_path / "b", "vqa", vqa, "b", parts=16), "epochs": 0.8, "turns": "isolated"},
    }
    entries["pairs"] |= {"captions": {"original": 3, "recaption": 1}, "where": {"scores": {"clip": {"min": 0.4}}, "text_tokens": {"max": 150}}}
    m = mixture(entries, tmp_path / "p", sequence_length=256, held_out=HELD)
    said = STAGE.plan(m)
    assert "indexes, some shards of each" in said.title and any("1,000 of 4,000 records, in 4 of 16 shards" in w for w in said.warnings)
    near(said, Plan.open(make_plan(m)).card, 0.06)


def of_images(tokens: int, root: Path, data: str, sizes: list, **more) -> str:
    """A set whose images have so many tokens; the toys' cards say 4."""
    path = dataset(root, data, sizes, data, image=lambda n: tokens, **more)
    found = json.loads((root / "manifest.json").read_text())
    found["encoding"]["image"]["tokens"] = tokens
    (root / "manifest.json").write_text(json.dumps(found))
    return path


@pytest.mark.parametrize("other", ["text", "video", "image-text"])
def test_at_the_shapes_of_the_paper_fifteen_frames_fill_a_row_as_far_as_they_can(tmp_path, by_card, other):
    sets = {"vqa": of_images(256, tmp_path / "vqa", "vqa", [(256, (q, 3)) for q in spread(40, 400)])}
    make = {"text": spread(900, 600), "video": spread(12, 150), "image-text": [(256, n) for n in spread(25, 1500)]}
    sets[other] = dataset(tmp_path / "o", "text", make[other]) if other == "text" else of_images(256, tmp_path / "o", other, make[other])
    m = mixture({k: {"dataset": path, "epochs": 0.9} for k, path in sets.items()}, tmp_path / "p", sequence_length=4096)
    near(STAGE.plan(m), Plan.open(make_plan(m)).card, 0.04, loss=0.08)  # which of 1,350 pairs train their image is chance


def test_stages_the_largest_share_and_another_plan_s_records_are_in_the_estimate(tmp_path, sets, by_card):
    stages = [{"until": "75%", "share": {"text": 1}}, {"until": "100%", "share": {"text": 0.5, "vqa": 0.5}}]
    staged = mixture({k: {"dataset": sets[k]} for k in ("text", "vqa")}, tmp_path / "s", sequence_length=256, total=80_000, stages=stages)
    said = STAGE.plan(staged)
    assert said.facts["stages"] == ["until 0.75 of the run: text 60,000", "until 1 of the run: text 10,000, vqa 10,000"]
    with pytest.raises(BudgetError, match="more of the mixture than it may"):
        STAGE.plan(mixture({k: {"dataset": sets[k], "epochs": 1, "max_share": 0.6} for k in ("text", "vqa")}))
    larger = of_images(16, tmp_path / "l", "image-text", SIZES["image-text"], encoder="wide")
    held = {"held_out": HELD, "sequence_length": 256}
    base = make_plan(mixture({"x": {"dataset": sets["image-text"], "epochs": 0.5}}, tmp_path / "base", **held))
    arm = mixture({"x": {"dataset": larger}}, tmp_path / "arm", records_from=base, **held)
    near(STAGE.plan(arm), Plan.open(make_plan(arm)).card, 0.04)


def test_only_what_cannot_be_is_refused_and_what_may_be_is_said(tmp_path, by_card):
    pairs = dataset(tmp_path / "d", "image-text", [(4, 10, 10)] * 500, "d")
    ask = {"dataset": pairs, "captions": {"original": 1, "recaption": 1}}
    said = STAGE.plan(mixture({"x": {**ask, "tokens": 9000}}))  # 7,000 with one caption a pair, 12,000 if every pair had one of 20
    assert any("only planning can tell" in w for w in said.warnings) and any("2 assumed" in w for w in said.warnings)
    with pytest.raises(BudgetError) as e:
        STAGE.plan(mixture({"x": {**ask, "tokens": 12_001}}))
    assert e.value.exit == 3
    with pytest.raises(BudgetError, match="count: visual"):
        STAGE.plan(mixture({"x": {"dataset": dataset(tmp_path / "t", "text", [5] * 9, "t"), "tokens": 3}}, count="visual"))
    video = dataset(tmp_path / "v", "video", [3] * 20, "v")
    with pytest.raises(BudgetError, match="cannot give"):
        STAGE.plan(mixture({"x": {"dataset": video, "tokens": 30, "history": "clean_copy"}}, sequence_length=12))


# ---- at full size ------------------------------------------------------------------------------------------------------------------------

# 520B tokens each, with what a record of such data holds: tokens of text, images of 256, answers.
FULL = {
    "out/text": ("text", 1200, 0, 1200),
    "out/video-siglip2": ("video", 0, 12, 12 * 256),
    "out/metaclip-siglip2": ("image-text", 30, 1, 286),
    "out/vqa-siglip2": ("vqa", 60, 1, 12),
}
E7 = {"vqa20": 20, "vqa100": 100, "vqa20x5": 100, "vqa20_text80": 100, "vqa20_video80": 100, "vqa20_image_text80": 100}


def declare(root: Path, name: str) -> None:
    """A card that declares 520B tokens, and nothing behind it."""
    data, text, images, loss = FULL[name]
    records = 520 * 10**9 // (text + 256 * images)
    tokens = {"text": records * text, "visual": records * 256 * images, "loss": records * loss, "all": records * (text + 256 * images)}
    encoding = {"text": {"tokenizer_sha256": "0", "vocab": 128_256, "specials": SPECIALS}}
    if images:
        encoding["image"] = {"encoder": "siglip2", "fingerprint": "0", "tokens": 256, "width": 1152, "codec": "bf16"}
    shards = {"file": "shards-0.parquet", "sha256": "0" * 64, "n": 2_000_000}
    facts = {"data": data, "records": records, "tokens": tokens, "encoding": encoding, "shards": shards, "bytes": 10**15, "files": []}
    publish_card(str(root / name), "manifest.json", card("dataset", name, name, {}, **facts))


@pytest.mark.parametrize("arm", E7)
def test_an_arm_of_e7_at_full_size_is_answered_in_seconds_by_a_fresh_process(tmp_path, arm):
    for name in FULL:
        declare(tmp_path, name)
    code = "import resource, sys; from pipelines.commands import main; "
    command = [sys.executable, "-c", code + "s = main(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF), file=sys.stderr); sys.exit(s)"]
    done = subprocess.run([*command, "run", "mix", "-c", arm, "--dry-run", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert not (tmp_path / "out/plans").exists() and "cards" in said["estimate"]
    used = sum(map(float, re.findall(r"ru_[us]time=([0-9.]+)", done.stderr)))
    assert 0 < used <= 5  # seconds of the processor; 0.7 measured
    assert sum(row["wanted"] for row in said["table"]) == E7[arm] * 10**9 == pytest.approx(said["tokens"]["all"], rel=1e-6)
    for row in said["table"]:
        assert {"wanted", "available", "epochs", "records", "loss_tokens", "structure", "fill_alone"} <= set(row)
    row = {r["source"]: r for r in said["table"]}["vqa"]
    assert row["available"] == pytest.approx((20 if arm == "vqa20x5" else 520 * 0.98) * 10**9, rel=1e-3)
    assert row["epochs"] == pytest.approx(5 if arm == "vqa20x5" else row["wanted"] / (520 * 0.98 * 10**9), rel=1e-3)
    assert row["loss_tokens"] == pytest.approx(row["wanted"] * 12 / 316, rel=1e-3)
    assert said["sequences"] * 4096 == pytest.approx(said["tokens"]["all"] + said["structure"] + said["padding"], rel=1e-6)
    assert (0.99 if arm == "vqa20_text80" else 0.93) < said["fill"] <= 1
    assert said["heldout"]["tokens"]["all"] == 5_000_000 * len(said["table"])


def test_cards_that_disagree_are_refused_before_anything_is_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in FULL:
        declare(tmp_path, name)
    found = json.loads((tmp_path / "out/text/manifest.json").read_text())
    found["encoding"]["text"]["tokenizer_sha256"] = "1"
    (tmp_path / "out/text/manifest.json").write_text(json.dumps(found))
    m = mixture({"a": {"dataset": "out/text", "tokens": 5}, "b": {"dataset": "out/vqa-siglip2", "tokens": 5}})
    with pytest.raises(RecipeError, match="tokenizer"):
        STAGE.plan(m)
    assert dump(m)["sources"]
