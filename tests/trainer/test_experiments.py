"""The packaged ablations: each is read at the paper's size and on the little world, and on tiny data sets its plans are what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import mixtures
import trainer
from mixtures import latent_stats
from mixtures.mixture import Mixture
from mixtures.plan import Plan, make_plan
from pipelines import journey
from pipelines.format import codec
from pipelines.format.document import dump, fingerprint, load
from pipelines.format.part import PartWriter
from pipelines.format.record import Record
from tests.toys import seal
from tests.trainer import toyplan
from trainer.ablate_stage import ABLATE
from trainer.ablation import Ablation, arm_runs, mixture_of, plan_paths
from trainer.ledger import consumed

FOLDER = Path(trainer.__path__[0]) / "ablations"
EXPERIMENTS = {
    "specialists": "E1", "encoders": "E2", "composition": "E3", "pairs_needed": "E4", "pair_sources": "E5", "text_image_grid": "E6",
    "vqa_synergy": "E7", "world_model_source": "E8", "world_model_share": "E9", "experts_design": "E10", "specialisation": "E11",
    "stacking": "E12", "isoflop": "E13", "unified": "E13",
}  # fmt: skip
KINDS = {"text": "text", "video": "video", "pairs": "image-text", "photos": "image-text", "image_text": "image-text", "vqa": "vqa", "action": "video"}
B = 10**9


def read(name: str, *overrides: str) -> Ablation:
    return load(Ablation, name, overrides, [FOLDER])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_a_document_that_asks_a_question_and_says_how_it_is_answered(name):
    a = read(name)
    assert a.experiment == EXPERIMENTS[name] and str(a.question).endswith("?") and a.compare and a.report and a.evaluate
    assert (FOLDER / f"{name}.yaml").read_text().startswith(f"# {a.experiment}")
    assert {r.run.batch for r in arm_runs(a)} and all(mixture_of(a, arm).sequence_length == 4096 for arm in a.arms)
    assert a.output == f"out/ablations/{name}"


@pytest.mark.parametrize("name", [*EXPERIMENTS, "world_synergy", "world_models"])
@pytest.mark.parametrize("setting", ["world_smoke", "world_inference"])
def test_every_experiment_is_a_small_one_on_the_little_world(name, setting):
    a = read(name, f"on={setting}")
    assert {r.run.model.width for r in arm_runs(a)} <= {8, 12, 16, 24, 32, 96}
    assert all(mixture_of(a, arm).sequence_length == 256 and why for arm in a.arms for why in a.left_out.values() or ["-"])
    paths = {p for arm in a.arms for s in mixture_of(a, arm).sources.values() for p in s.paths}
    assert all(p.startswith("encoded/") for p in paths), paths
    if a.isoflop is None:
        largest = max(sum((s.tokens or 0) for s in mixture_of(a, arm).sources.values()) for arm in a.arms)
        assert 20_000 <= largest * a.scale <= 700_000


def test_what_the_little_world_names_is_what_its_journey_makes():
    made = {str(step.set["output"]) for step in journey.read("experiments").steps}
    made |= {f"{m}/{side}" for m in made for side in ("context", "target") if m.endswith("_dual")}
    for name in EXPERIMENTS:
        a = read(name, "on=world_smoke")
        assert {p for arm in a.arms for s in mixture_of(a, arm).sources.values() for p in s.paths} <= made, name


def test_the_journey_s_steps_are_valid_and_it_begins_as_the_demo_does_so_that_their_data_are_the_same():
    ours, demo = (journey.read(name) for name in ("experiments", "demo"))
    assert ours.steps[:11] == demo.steps[:11]
    made: set[str] = set()
    for _, _, config in journey.prepare(ours):
        reads = [getattr(config, "dataset", None), *getattr(config, "datasets", [])]
        assert {r for r in reads if r} <= made, "every step reads only what an earlier one has made"
        assert config.output not in made
        made.add(config.output)


@pytest.mark.parametrize(
    ("name", "arm", "recipe"),
    [
        ("specialists", "text", "text_only"), ("specialists", "images", "image_only"), ("specialists", "unified", "all_kinds"),
        ("encoders", "siglip2", "encoder_siglip2"), ("composition", "text+video", "text_video"), ("composition", "text+pairs", "text_image"),
        ("composition", "text+all", "all_kinds"), ("pairs_needed", "without_pairs", "without_pairs"), ("pair_sources", "metaclip", "text_image"),
        *(("text_image_grid", f"image{i}" + (f"+text{t}" if t else ""), f"grid_image{i}_text{t}") for i in (25, 100) for t in (0, 25, 100)),
        ("vqa_synergy", "vqa20+text80", "vqa20_text80"), ("vqa_synergy", "vqa20x5", "vqa20x5"), ("vqa_synergy", "vqa100", "vqa100"),
        ("world_model_source", "action50+video50", "world_model_video"), ("world_model_source", "action100", "world_model_alone100"),
        *(("world_model_share", f"share{s}", f"world_share_{s}") for s in ("0.1", "0.5", "1", "10", "15", "25")),
        ("experts_design", "dense", "text_photos_57b"), ("specialisation", "moe", "trillion"), ("stacking", "siglip2", "stacking_siglip2"),
    ],
)  # fmt: skip
def test_an_arm_s_budgets_are_those_of_the_packaged_mixture(name, arm, recipe):
    ours = mixture_of(read(name), arm)
    theirs = load(Mixture, recipe, (), [Path(mixtures.__path__[0]) / "recipes"])
    same = {"photos": "pairs"} if "pairs" in theirs.sources and "pairs" not in ours.sources else {}
    wanted = {n: int(s.tokens if s.tokens is not None else round(s.share * theirs.total)) for n, s in theirs.sources.items()}
    assert {same.get(n, n): s.tokens for n, s in ours.sources.items() if s.tokens} == {n: t for n, t in wanted.items() if t}


# ---- on tiny data sets -------------------------------------------------------------------------------------------------------------------


def encoded(root: str, data: str, n: int, patches: int) -> str:
    """toyplan's records with a second caption, their images in `patches` latents: equal ids whatever the encoding."""

    def one(i: int) -> Record:
        made = toyplan.record(data, i)
        segments = tuple(_cut(s, patches) if s.kind == "latents" else s for s in made.segments)
        if data == "image-text":
            segments += (toyplan.ids([41, 42, 43, 44], atom=2, member="recaption"),)
        return replace(made, segments=segments)

    with PartWriter(root, 0, fingerprint=fingerprint([data, n, patches]), encoded=True) as w:
        for i in range(n):
            w.emit()
            w.add(one(i))
        commits = [w.commit()]
    encoding: dict[str, Any] = {"text": {"tokenizer_sha256": "0" * 64, "vocab": toyplan.VOCAB, "specials": toyplan.SPECIALS}}
    if data != "text":
        x = np.concatenate([codec.decode_latents(s.payload, "f32", patches, toyplan.WIDTH) for s in one(0).segments if s.kind == "latents"])
        moments = (len(x), x.mean(axis=0).astype(np.float64), ((x - x.mean(axis=0)) ** 2).sum(axis=0).astype(np.float64))
        encoding["stats"], _ = latent_stats.publish(root, moments)
        encoding["image"] = {"encoder": f"toy{patches}", "fingerprint": str(patches) * 64, "tokens": patches, "width": toyplan.WIDTH, "codec": "f32"}
    return seal(root, f"toy-{data}", data, commits, {"dataset": "toy"}, encoding)


def _cut(segment: Any, patches: int) -> Any:
    x = codec.decode_latents(segment.payload, "f32", toyplan.PATCHES, toyplan.WIDTH)[:patches]
    return replace(segment, payload=codec.encode_latents(x, "f32"), shape=(patches, toyplan.WIDTH), tokens=patches)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A setting on tiny data sets: autoencoders make two latents of an image, all others four."""
    root = tmp_path_factory.mktemp("toys")
    places: dict[str, Any] = {}
    for name in {d for n in EXPERIMENTS for d in read(n, "compare=[]", "report=[]").datasets}:
        kind = KINDS[name if name in KINDS else name.partition("_")[0]]
        patches = 2 if name.endswith("vae") else 4
        places[name] = str(root / f"{kind}-{patches}")
    for path in set(places.values()):
        kind, _, patches = Path(path).name.rpartition("-")
        encoded(path, kind, 600 if kind in ("vqa", "video") else 300, int(patches))
    places["photos_two"] = {"context": str(root / "image-text-4"), "target": str(root / "image-text-2")}
    shape = {"layers": 1, "width": 16, "heads": 2, "ffn": "shared", "norm": "layer", "activation": "relu2"}
    plenty = {name: {"max_epochs": 9999} for name in KINDS}
    families = {"moe": {"budgets": [2e8], "sizes": None}}
    sweep = {"budgets": [2e8, 4e8], "sizes": {"widths": [8, 16, 24, 32, 48], "head": 8}, "near": None, "families": families}
    setting = {
        "datasets": places, "largest": "16K", "seeds": [0], "sequence_length": 96, "held_out": {"fraction": 0.2},
        "run": {"model": {"transfusion": shape}, "batch": 1, "plan": "", "output": "", "flow": {"predict": "v", "shift": 1}},
        "sources": plenty, "output": str(root / "out/{name}"),
        "ablations": {"isoflop": {"scale": 1, "isoflop": {**sweep, "shape": {"vocab": 55, "channels": 8, "patches": 4}}}},
    }  # fmt: skip
    (root / "toy.yaml").write_text(yaml.safe_dump(setting))
    return lambda name, *more: read(name, f"on={root / 'toy.yaml'}", *more)


def plans_of(a: Ablation) -> dict[str, Plan]:
    paths = plan_paths(a)
    for arm in sorted(a.arms, key=lambda x: a.settled(x).records_from is not None):
        other = a.settled(arm).records_from
        make_plan(mixture_of(a, arm, paths[arm]), paths[arm], records_from=None if other is None else paths[other])
    return {arm: Plan.open(paths[arm]) for arm in a.arms}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_plan_of_every_arm_is_consumed_to_the_token_and_its_schedule_ends_there(name, toy):
    a = toy(name)
    plans = plans_of(a)
    for item in arm_runs(a):
        plan = plans[item.arm]
        planned = {n: int((s.get("tokens") or {}).get("all", 0)) for n, s in plan.card["sources"].items()}
        steps = -(-plan.sequences("train") // item.run.batch)
        assert consumed(plan, steps, item.run.batch).tokens == planned, item.arm
        if a.isoflop is None:
            assert item.run.steps is None  # the schedule is as long as the arm's own plan
            if a.settled(item.arm).records_from is None:
                wanted = {n: (s.tokens or 0) * a.scale for n, s in mixture_of(a, item.arm).sources.items()}
                assert all(abs(planned[n] - t) <= 100 for n, t in wanted.items()), item.arm  # to within a record
        else:
            assert item.run.steps is not None and item.run.steps <= steps
    held = {a.output: {plan.sequences("heldout") for plan in plans.values() if not plan.card["encoding"].get("target")}}
    assert all(min(h) > 0 for h in held.values())


@pytest.mark.parametrize(
    ("name", "plans"),
    [("experts_design", 1), ("specialisation", 1), ("isoflop", 1), ("stacking", 4), ("encoders", 6), ("vqa_synergy", 9), ("text_image_grid", 20)],
)
def test_arms_that_differ_in_the_run_alone_share_a_plan(name, plans):
    assert len(set(plan_paths(read(name)).values())) == plans


@pytest.mark.parametrize("name", ["encoders", "stacking"])
def test_arms_of_several_encoders_hold_identical_lists_of_records(name, toy):
    a = toy(name)
    held = {}
    for arm, plan in plans_of(a).items():
        spans = [s for i in range(plan.sequences("train")) for s in plan.row(i).spans]
        names = [(plan.sources[s.source], plan.record(s).id, s.epoch, s.caption, s.image_first) for s in spans]
        held[arm] = sorted(set(names))  # a clip may be laid in two pieces where its frames are longer
    assert len(held) == len(a.arms) and len({str(v) for v in held.values()}) == 1


def test_arms_of_the_encoder_comparison_differ_in_the_encoding_and_its_prediction_alone():
    a = read("encoders")
    runs = {r.arm: dump(r.run) for r in arm_runs(a) if r.seed == 0}
    rest = [{**r, "flow": {**r["flow"], "predict": None}, "plan": None, "output": None, "name": None} for r in runs.values()]
    assert all(r == rest[0] for r in rest)
    mixtures_ = [dump(mixture_of(a, arm)) for arm in a.arms]
    plain = [{n: {k: v for k, v in s.items() if k != "dataset"} for n, s in m["sources"].items()} for m in mixtures_]
    assert all(p == plain[0] for p in plain)


@pytest.mark.parametrize("name", ["composition", "encoders", "stacking", "isoflop"])
def test_the_dry_run_says_what_every_arm_takes(name, toy):
    a = toy(name)
    rows = ABLATE.plan(a).table
    assert [r["arm"] for r in rows] == list(a.arms) and all(r["tokens"] > 0 and r["steps"] > 0 for r in rows)


def test_experts_of_every_granularity_hold_and_use_as_much_as_the_paper_s():
    active = {}
    for r in arm_runs(read("experts_design", "seeds=[0]")):
        if r.run.model.ffn == "moe":
            e = r.run.model.experts
            active[r.arm] = (e.top_k * r.run.model.inner, e.count * r.run.model.inner)
    assert {a for a, _ in active.values()} == {4 * 2048}
    assert {active[f"granularity{g}"][1] for g in (1, 4, 16, 32, 64)} == {256 * 512}
    assert [active[f"experts{n}"][1] // 512 for n in (32, 64, 128, 512, 1008)] == [32, 64, 128, 512, 1008]
