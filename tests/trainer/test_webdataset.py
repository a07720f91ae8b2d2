"""Packed sequences as tars: read back by webdataset itself, they are the trainer's batches."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toyplan
import webdataset as wds

from mixtures.materialise import Materialise
from mixtures.plan import Plan
from pipelines.engine import open_job
from pipelines.format.errors import ConflictError
from pipelines.format.manifest import read_card
from trainer.batch import Batch
from trainer.check_webdataset import check
from trainer.materialise import STAGE
from trainer.stream import Stream
from trainer.webdataset import PER_IMAGE, PER_LATENT, PER_POSITION


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toyplan.make(tmp_path_factory.mktemp("toyplan"), tokens=900, n=60)


def tars(plan: str, output: Path, **keys: Any) -> str:
    with open_job("local") as job:
        return STAGE.run(Materialise(plan=plan, output=str(output), form="webdataset", engine="local", **keys), job)


def samples(root: str, split: str) -> list[dict[str, Any]]:
    """As somebody reads them who has webdataset and nothing of ours."""
    names = Path(root, f"{split}.txt").read_text().split()
    return list(wds.WebDataset([f"{root}/{name}" for name in names], shardshuffle=False).decode()) if names else []


@pytest.mark.parametrize("shard_bytes", [1, 200_000, 256 << 20])
def test_samples_are_the_rows_of_the_trainers_batches(plan: str, tmp_path: Path, shard_bytes: int) -> None:
    root = tars(plan, tmp_path / "tars", shard_bytes=shard_bytes)
    for split in ("train", "heldout"):
        batches = [batch for batch, _ in Stream(Plan.open(plan), 1, split=split)]
        found = samples(root, split)
        assert len(found) == len(batches) == read_card(root)["sequences"]["splits"][split]["records"] > 0
        for sample, batch in zip(found, batches, strict=True):
            for name in (*PER_POSITION, *PER_LATENT, *PER_IMAGE):
                wanted = getattr(batch, name).numpy()
                wanted = wanted[0] if name in PER_POSITION else wanted
                array = sample[f"{name}.npy"]
                assert array.dtype == wanted.dtype and np.array_equal(array, wanted), name
            assert sample["json"]["seq"] == int(sample["__key__"]) == int(batch.seq[0])


def test_a_sample_names_every_field_of_a_batch() -> None:
    assert {f.name for f in fields(Batch)} == {*PER_POSITION, *PER_LATENT, *PER_IMAGE, "seq"}


@pytest.mark.parametrize("latents, dtype, relative", [("float16", np.float16, 2.0**-11), ("bfloat16", np.uint16, 2.0**-8)])
def test_rounded_latents_are_as_near_as_their_type_allows(plan: str, tmp_path: Path, latents: str, dtype: Any, relative: float) -> None:
    root = tars(plan, tmp_path / "tars", latents=latents)
    for sample, (batch, _) in zip(samples(root, "train"), Stream(Plan.open(plan), 1), strict=True):
        array = sample["latents.npy"]
        assert array.dtype == dtype
        found = (array.astype(np.uint32) << 16).view(np.float32) if latents == "bfloat16" else array.astype(np.float32)
        assert np.abs(found - batch.latents.numpy()).max(initial=0) <= relative * np.abs(batch.latents.numpy()).max(initial=1)


def test_verify_reads_every_sample_and_names_the_tar_that_changed(plan: str, tmp_path: Path) -> None:
    root = tars(plan, tmp_path / "tars", shard_bytes=100_000)
    assert check(root, {"deep": True}) == check(root, {}) == []
    card, planned = read_card(root), Plan.open(plan).card
    assert card["records"] == planned["records"] + planned["heldout"]["records"] == card["in"] == card["written"]
    assert card["tokens"] == {k: planned["tokens"][k] + planned["heldout"]["tokens"][k] for k in card["tokens"]}
    victim = sorted(Path(root).glob("train-*.tar"))[1]
    data = bytearray(victim.read_bytes())
    data[1000] ^= 1
    victim.write_bytes(data)
    assert check(root, {}) == [] and [p["file"] for p in check(root, {"deep": True})][:1] == [victim.name]
    victim.unlink()
    assert check(root, {}) == [{"file": victim.name, "what": "is not there"}]


def tree(root: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(root).rglob("*") if p.is_file() and p.name not in ("log.jsonl", "manifest.json")}


@pytest.mark.ray
def test_ray_and_this_process_write_the_same_tars(plan: str, tmp_path: Path) -> None:
    here = tars(plan, tmp_path / "here", shard_bytes=100_000)
    config = Materialise(plan=plan, output=str(tmp_path / "there"), form="webdataset", shard_bytes=100_000)
    with open_job("ray", cpus=2) as job:
        there = STAGE.run(config, job)
    assert tree(here) == tree(there) and read_card(here)["fingerprint"] == read_card(there)["fingerprint"]


def test_an_output_is_not_taken_from_another_plan_and_a_finished_one_is_left_alone(plan: str, tmp_path: Path) -> None:
    root = tars(plan, tmp_path / "tars")
    before = {p: p.stat().st_mtime_ns for p in Path(root).rglob("*") if p.is_file()}
    assert tars(plan, tmp_path / "tars") == root
    assert {p: p.stat().st_mtime_ns for p in Path(root).rglob("*") if p.is_file()} == before
    with pytest.raises(ConflictError):
        tars(plan, tmp_path / "tars", latents="float16")
