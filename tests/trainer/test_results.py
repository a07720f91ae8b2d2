"""What docs/results says is what its results.parquet hold, and what the dry run assumes is what they show."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from trainer.ablate_estimate import ASSUMED

RESULTS = Path(__file__).parents[2] / "docs/results"
SAID = (RESULTS / "README.md").read_text()
E7 = ("vqa20", "vqa20+video80", "vqa20+image_text80", "vqa20+text80", "vqa20x5", "vqa100")
E9 = ("share0", "share0.1", "share0.5", "share1", "share10", "share15", "share25")


def values(folder: str, metric: str, split: str = "held_out", seeds: int = 6) -> dict[str, np.ndarray]:
    """Arm → value of each seed."""
    rows = pq.read_table(RESULTS / folder / "results.parquet").to_pylist()
    found: dict[str, dict[int, float]] = {}
    for r in rows:
        if (r["metric"], r["split"]) == (metric, split):
            found.setdefault(r["arm"], {})[r["seed"]] = r["value"]
    assert all(sorted(by_seed) == list(range(seeds)) for by_seed in found.values())
    return {arm: np.array([by_seed[s] for s in range(seeds)]) for arm, by_seed in found.items()}


def table(after: str) -> list[list[str]]:
    """Cells of the first table after a heading, its head left out, bold and intervals too."""
    lines = SAID[SAID.index(after) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|--"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("*", "").replace("−", "-").partition(" (")[0] for cell in line.strip("|").split("|")])
    return rows


@pytest.mark.parametrize("folder", ["vqa_synergy_world", "world_model_share_world"])
def test_six_paired_seeds_of_every_arm_are_there(folder: str) -> None:
    rows = pq.read_table(RESULTS / folder / "results.parquet", columns=["arm", "seed"]).to_pylist()
    pairs = {(r["arm"], r["seed"]) for r in rows}
    arms = {arm for arm, _ in pairs}
    assert pairs == {(arm, seed) for arm in arms for seed in range(6)} and len(arms) == {"vqa_synergy_world": 9, "world_model_share_world": 7}[folder]


def test_the_table_of_vqa_synergy_is_the_means_of_its_results() -> None:
    vqa = {arm: 100 * v.mean() for arm, v in values("vqa_synergy_world", "vqa").items()}
    rows = table("## E7")
    assert [r[0] for r in rows] == ["video", "image-text", "text"]
    for kind, *said in rows:
        arm = f"vqa20+{kind.replace('-', '_')}80"
        for base, cell in zip(("vqa20", "vqa100", "vqa20x5"), said, strict=False):
            assert float(cell) == pytest.approx(vqa[arm] - vqa[base], abs=0.051), (kind, base)
    for arm, said in (("vqa20x5", "52.2 %"), ("vqa100", "51.2 %")):
        assert said in SAID and f"{vqa[arm]:.1f} %" == said


def test_the_table_of_shares_is_the_means_of_its_results() -> None:
    of = "world_model_share_world"
    flow, ate, text = values(of, "flow_loss", "held_out:action"), values(of, "planning.ate"), values(of, "text_perplexity")
    rows = table("## E9")
    assert [f"share{r[0].removesuffix(' %')}" for r in rows] == list(E9)
    for arm, (_, loss, more_loss, error, more_error, perplexity) in zip(E9, rows, strict=True):
        assert float(loss) == pytest.approx(flow[arm].mean(), abs=0.00051) and float(error) == pytest.approx(ate[arm].mean(), abs=0.0051)
        assert float(perplexity) == pytest.approx(text[arm].mean(), abs=0.00051)
        if arm not in ("share0", "share1"):
            assert float(more_loss) == pytest.approx((flow[arm] - flow["share1"]).mean(), abs=0.00051)
            assert float(more_error) == pytest.approx((ate[arm] - ate["share1"]).mean(), abs=0.0051)
    for metric, said in (("planning.ate.uninformed", "2.56 steps"), ("planning.ate.simulator", "2.02 with the true simulator")):
        assert said in SAID and f"{np.mean(list(values(of, metric).values())):.2f}" == re.match(r"[\d.]+", said)[0]  # type: ignore[index]


@pytest.mark.parametrize(("part", "folder", "metric", "split", "arms"), [
    ("vqa", "vqa_synergy_world", "vqa", "held_out", E7),
    ("text_perplexity", "world_model_share_world", "text_perplexity", "held_out", E9),
    ("flow_loss", "world_model_share_world", "flow_loss", "held_out", E9),
    ("planning", "world_model_share_world", "planning.ate", "held_out", E9),
])  # fmt: skip
def test_what_the_dry_run_assumes_of_seeds_is_what_the_results_show(part: str, folder: str, metric: str, split: str, arms: tuple[str, ...]) -> None:
    by_arm = values(folder, metric, split)
    if part == "text_perplexity":  # in nats a token
        by_arm = {arm: np.log(v) for arm, v in by_arm.items()}
    spread = np.median([(by_arm[a] - by_arm[b]).std(ddof=1) for a, b in combinations(arms, 2)])
    assert ASSUMED[part][0] == pytest.approx(spread, rel=0.03)


def test_the_table_of_walks_is_its_results() -> None:
    columns = [("flow_loss", "held_out", 1.0), ("rollout.follows", "horizon:1", 100.0), ("rollout.latent", "horizon:1", 1.0)]
    columns += [(f"rollout.latent.{c}", "horizon:1", 1.0) for c in ("zero_action", "other_action", "copy")]
    columns += [("commands", "wasd:w", 100.0), ("planning.ate", "held_out", 1.0)]
    rows = table("## From how much walking")
    assert [r[0] for r in rows] == ["500K", "2M", "8M"]
    for at, (metric, split, factor) in enumerate(columns, 1):
        found = values("world_walks", metric, split, 1)
        for row, arm in zip(rows, ("walks0.5", "walks2", "walks8"), strict=True):
            digits = len(row[at].partition(".")[2])
            assert float(row[at]) == pytest.approx(factor * found[arm][0], abs=0.51 * 10**-digits), (metric, arm)
    for metric, said in (("planning.ate.uninformed", "2.33"), ("planning.ate.simulator", "1.66")):
        assert f"{values('world_walks', metric, seeds=1)['walks8'][0]:.2f}" == said and said in SAID
    turned = sum(values("world_walks", "commands", f"wasd:{key}", 1)["walks8"][0] for key in "ads")
    assert turned == 0
