"""The planner's arithmetic against the layout that models are fed: the same lengths, payloads and losses for every kind of record."""

import numpy as np
import pytest

from mixtures.layout import LATENT, TEXT
from mixtures.plan import Plan, layout, make_plan
from tests.mixtures.sets import dataset, mixture

rng = np.random.default_rng(1)
SIZES = {
    "text": [int(n) for n in rng.integers(1, 200, 120)],
    "image-text": [(4, *(int(x) for x in rng.integers(1, 30, int(k)))) for k in rng.integers(1, 4, 120)],
    "video": [int(n) for n in rng.integers(1, 40, 60)],
    "action-video": [int(n) for n in rng.integers(2, 20, 60)],
    "vqa": [(4, *((int(q), int(a)) for q, a in rng.integers(1, 6, (int(k), 2)))) for k in rng.integers(1, 6, 120)],
}
OPTIONS = [
    ("text", {}),
    ("image-text", {}),
    ("image-text", {"image_first": 1, "both": True}),
    ("image-text", {"captions": {"recaption": 1, "original": 3}, "image_first": 0}),
    ("video", {}),
    ("video", {"history": "clean_copy"}),
    ("action-video", {}),
    ("action-video", {"loss": "all"}),
    ("vqa", {}),
    ("vqa", {"turns": "isolated"}),
    ("vqa", {"turns": "isolated", "loss": "text"}),
    ("vqa", {"loss": "all"}),
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return {data: dataset(root / data, data, sizes, data) for data, sizes in SIZES.items()}


@pytest.mark.parametrize(("data", "options"), OPTIONS)
def test_planned_lengths_payloads_and_losses_are_those_of_the_layout(tmp_path, sets, data, options):
    source = {"dataset": sets[data], "epochs": 1, **options}
    plan = Plan.open(make_plan(mixture({"x": source}, tmp_path / "plan", held_out={"fraction": 0.1})))
    found = {"all": 0, "text": 0, "loss": 0, "structure": 0}
    for i in range(plan.sequences()):
        row = plan.row(i)
        laid = [layout(s, plan.record(s), plan.rules(s.source), plan.specials) for s in row.spans]
        assert sum(map(len, laid)) == row.length <= 64
        assert [x.payload for x in laid] == [s.payload for s in row.spans]
        for x in laid:
            first = x.image_loss if not x.image_hidden.any() else x.image_hidden  # with copies, the noised one bears the loss
            copies = ~x.image_hidden & ~x.image_loss & bool(x.image_hidden.any())
            shown = x.image[x.kind == LATENT]
            found["all"] += x.payload
            found["text"] += int((x.kind == TEXT).sum())
            found["structure"] += len(x) - x.payload
            found["loss"] += int(first[shown].sum())
            assert int(copies[shown].sum()) == int((x.kind != 2).sum()) - x.payload
        found["loss"] += sum(_text_loss(s, plan.record(s)) for s in row.spans)
    tokens = plan.card["sources"]["x"]["tokens"]
    assert {k: found[k] for k in ("all", "text", "loss")} == {k: tokens[k] for k in ("all", "text", "loss")}
    assert found["structure"] == plan.card["structure"]
    assert plan.card["padding"] == plan.sequences() * 64 - found["all"] - found["structure"]


def _text_loss(span, record):
    """Payload ids whose segment has its loss bit set."""
    if record.data == "text":
        return span.payload if span.loss[0] else 0
    segments = [s for i, s in enumerate(record.segments) if span.caption < 0 or s.kind == "latents" or i == span.caption]
    segments = segments if record.data != "video" else segments[: len(span.loss)]
    return sum(s.tokens for s, bit in zip(segments, span.loss, strict=True) if bit and s.kind == "tokens")


def test_a_clip_too_long_for_a_row_is_split_at_frames_and_keeps_them_all(tmp_path, sets):
    plan = Plan.open(make_plan(mixture({"x": {"dataset": sets["video"], "epochs": 1}}, tmp_path / "plan")))
    frames = {}
    for i in range(plan.sequences()):
        for s in plan.row(i).spans:
            frames.setdefault((s.shard, s.row), []).extend(range(s.first, s.first + s.count))
            assert s.payload == 4 * s.count and s.count <= 62 // 6
    assert sorted(len(f) for f in frames.values()) == sorted(SIZES["video"])
    assert all(sorted(f) == list(range(len(f))) for f in frames.values())


def test_captions_are_drawn_by_their_weights_and_anew_in_each_pass(tmp_path):
    data = dataset(tmp_path / "p", "image-text", [(4, 2, 3)] * 400, "p")
    source = {"dataset": data, "epochs": 2, "max_epochs": 2, "captions": {"original": 1, "recaption": 3}}
    plan = Plan.open(make_plan(mixture({"x": source}, tmp_path / "plan")))
    drawn = {}
    for i in range(plan.sequences()):
        for s in plan.row(i).spans:
            drawn.setdefault(s.epoch, {})[s.shard, s.row] = s.caption
    share = np.mean([c == 2 for c in drawn[0].values()])
    assert 0.68 < share < 0.82
    assert drawn[0] != drawn[1] and set(drawn[0]) == set(drawn[1])


def test_records_that_fit_no_row_are_left_out_and_counted(tmp_path):
    vqa = dataset(tmp_path / "q", "vqa", [(4, (10, 10)), (4, (40, 40)), (4, (5, 5))], "q")
    card = Plan.open(make_plan(mixture({"x": {"dataset": vqa, "epochs": 1}}, tmp_path / "plan"))).card
    assert card["sources"]["x"]["unfit"] == {"held_out": 0, "too_long": 1}
    assert card["sources"]["x"]["records"] == 2


def test_image_first_takes_the_loss_from_the_image_and_text_first_gives_it_back(tmp_path, sets):
    source = {"dataset": sets["image-text"], "epochs": 1, "image_first": 0.2}
    plan = Plan.open(make_plan(mixture({"x": source}, tmp_path / "plan")))
    spans = [s for i in range(plan.sequences()) for s in plan.row(i).spans]
    assert all(s.loss == (not s.image_first, True) for s in spans)
    assert 0.08 < np.mean([s.image_first for s in spans]) < 0.35
