"""Feature spaces for distances: the network of the usual FID by its names and sizes, weights that are data alone, encoders as they encode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encode.encoders.pixels import Pixels
from encode.features import features
from encode.inception import Inception, build
from pipelines.format.errors import InputError

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as people have it: the classifier and counters among it."""
    torch.manual_seed(0)
    state = build().state_dict()
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save({**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return str(path)


def test_the_network_has_the_sizes_and_names_of_the_published_one():
    state = build().state_dict()
    names = [k for k in state if k.endswith("conv.weight")]
    assert len(names) == 94
    assert sum(v.numel() for k, v in state.items() if k.endswith((".weight", ".bias"))) == 21_785_568  # Inception v3 without its classifiers
    assert state["Mixed_5b.branch_pool.conv.weight"].shape == (32, 192, 1, 1) and state["Conv2d_1a_3x3.bn.running_var"].shape == (32,)
    assert state["Mixed_6c.branch7x7dbl_4.conv.weight"].shape == (160, 160, 7, 1)
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)


def test_pictures_of_any_size_become_2048_values_each_for_itself(weights):
    pictures = [RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((32, 32), (40, 64), (32, 32))]
    found = features(pictures, {"inception": {"weights": weights, "batch": 2}})
    assert found.shape == (3, 2048) and np.isfinite(found).all()
    alone = features(pictures[2:], {"inception": {"weights": weights, "batch": 2}})
    assert alone == pytest.approx(found[2:], rel=1e-3, abs=1e-5) and np.abs(found[0] - found[2]).max() > 0


def test_pools_do_not_count_the_padding_and_the_last_block_pools_by_maximum():
    network = build()
    x = torch.ones(1, 4, 5, 5)
    assert (network.Mixed_5b._pooled(x) == 1).all()
    peak = torch.zeros(1, 1, 5, 5)
    peak[0, 0, 2, 2] = 9
    assert network.Mixed_7c._pooled(peak)[0, 0, 1:4, 1:4].eq(9).all() and network.Mixed_7b._pooled(peak)[0, 0, 2, 2] == 1


def test_a_weights_file_of_something_else_or_with_code_in_it_is_refused(tmp_path, weights):
    wrong = dict(build().state_dict())
    wrong.pop("Conv2d_2a_3x3.conv.weight")
    torch.save(wrong, tmp_path / "part.pth")

    class Deed:
        def __reduce__(self):
            return (open, (str(tmp_path / "done"), "w"))

    torch.save({"x": Deed()}, tmp_path / "deed.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"\x08" + bytes(30))
    for name, said in (("part.pth", "1 tensors differ"), ("deed.pth", "cannot be read"), ("noise.safetensors", "cannot be read"), ("none", "cannot")):
        with pytest.raises(InputError, match=said):
            Inception(weights=str(tmp_path / name)).load()
    assert not (tmp_path / "done").exists()


def test_an_encoder_is_a_space_by_the_mean_of_its_latents():
    pictures = [RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
    found = features(pictures, {"pixels": {"size": 32, "patch": 8}})
    blocks = np.stack(pictures).reshape(3, 4, 8, 4, 8, 3).mean(axis=(1, 3)).reshape(3, -1) / 127.5 - 1
    assert found == pytest.approx(blocks, abs=1e-5) and Pixels(size=32, patch=8).grid().channels == found.shape[1]
    with pytest.raises(InputError, match="no image encoder"):
        features(pictures, {"text_tokens": {"tokenizer": "x"}})
