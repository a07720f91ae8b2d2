"""A small tower with random weights: as a downloaded one is, the same every time, and refused where it cannot be."""

from pathlib import Path

import numpy as np
import pytest

from encode.encoders.dinov2 import Dinov2
from encode.encoders.siglip2 import Siglip2
from encode.random_tower import STAGE, RandomTower
from pipelines.check_files import check
from pipelines.format.document import parse
from pipelines.format.errors import ConflictError, RecipeError
from pipelines.format.manifest import read_card

SMALL = {"width": 32, "layers": 1, "heads": 2}


@pytest.mark.parametrize(("architecture", "encoder"), [("siglip2", Siglip2), ("dinov2", Dinov2)])
def test_an_encoder_takes_it_for_a_downloaded_one(tmp_path, architecture, encoder):
    made = STAGE.run(RandomTower(architecture=architecture, output=str(tmp_path / "a"), **SMALL), None)
    tower = encoder(weights=made)
    assert (tower.grid().tokens, tower.grid().channels) == (16, 32)
    pictures = np.stack([tower.picture(np.full((32, 32, 3), shade, np.uint8)) for shade in (0, 200)])
    latents = tower.network(tower.machine("cpu"))(pictures)()
    assert latents.shape == (2, 16, 32) and np.isfinite(latents).all() and not np.allclose(latents[0], latents[1])


def test_the_same_recipe_makes_the_same_bytes_and_a_second_call_makes_nothing(tmp_path):
    one, two = (RandomTower(architecture="siglip2", output=str(tmp_path / name), **SMALL) for name in "ab")
    STAGE.run(one, None), STAGE.run(two, None)
    assert Path(tmp_path, "a/model.safetensors").read_bytes() == Path(tmp_path, "b/model.safetensors").read_bytes()
    before = Path(tmp_path, "a/manifest.json").stat().st_mtime_ns
    assert STAGE.run(one, None) == one.output and Path(tmp_path, "a/manifest.json").stat().st_mtime_ns == before
    assert check(one.output, {}) == [] and read_card(one.output)["kind"] == "tower"
    other = one.model_copy(update={"seed": 1})
    with pytest.raises(ConflictError):
        STAGE.run(other, None)


def test_a_tower_that_cannot_be_is_refused():
    with pytest.raises(RecipeError, match="multiple of patch"):
        parse(RandomTower, {"architecture": "siglip2", "size": 30, "output": "x"})
