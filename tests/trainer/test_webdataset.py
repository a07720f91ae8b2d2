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
from pipelines.format.manifest import read_card
from trainer.batch import Batch
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
