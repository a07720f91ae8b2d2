"""A small head on an image embedding: LAION's aesthetic predictors, and anything trained in their form.

In: a two-tower model's image embedding (for LAION's, CLIP ViT-L/14, at unit length) and a safetensors file of linear layers. Out: the head's
number, for the aesthetic predictors a mark from 1 to 10. The layers are read from the tensors: every `weight` [out, in] with its `bias` [out], in
the order of their names, numbers in them counted as numbers (`layers.2` before `layers.10`). LAION's `improved-aesthetic-predictor` has five with
nothing between them (its dropout rests, its activations were left out), the older linear one has one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from encode.scorer import Fold, Scorer, Sight, Values
from encode.scoring.towers import Towers
from encode.weights import file_sha256
from pipelines.format.errors import InputError

Layers = list[tuple[NDArray[np.float64], NDArray[np.float64]]]


class EmbeddingHead(Scorer):
    """`tower`: folder or hub id of a CLIP, SigLIP or SigLIP 2 model; `head`: a .safetensors file. `normalize`: embeddings at unit length, as
    LAION's heads expect. `activation` stands between layers, `final` after the last; `output` is the number of the value where there are several."""

    tower: str
    head: str
    normalize: bool = True
    activation: Literal["none", "relu", "gelu", "silu"] = "none"
    final: Literal["none", "sigmoid", "softmax"] = "none"
    output: int | None = Field(None, ge=0)
    images: Fold = "mean"

    def sight(self) -> Sight:
        return Towers(self.tower, self.batch, self.dtype)

    def rule(self) -> dict[str, Any]:
        return {**super().rule(), "head": file_sha256(*_state(self.head))}

    def check(self) -> None:
        super().check()
        width = Towers(self.tower, self.batch, self.dtype).width()
        shapes = [shape for _, shape in head_layers(self.head)]
        for (out, into), (_, after) in zip([(width, 0), *shapes], shapes, strict=False):
            if after != out:
                what = "the embedding's" if into == 0 else "a layer's"
                raise InputError(f"the head does not fit: {what} {out} values meet a layer of {after}", where=self.head, found=shapes)
        last = shapes[-1][0]
        if (self.output is None and last != 1) or (self.output or 0) >= last:
            raise InputError("`output` must say which of the head's values counts", where=self.head, found=self.output, allowed=f"0 to {last - 1}")

    def values(self, seen: NDArray[np.float32], said: NDArray[np.float32] | None) -> Values:
        x = seen.astype(np.float64)
        if self.normalize:
            length = np.linalg.norm(x, axis=1, keepdims=True)
            x = x / np.where(length == 0, 1, length)
        layers = loaded(*_state(self.head))
        for i, (weight, bias) in enumerate(layers):
            x = x @ weight.T + bias
            x = _ACTIVATIONS[self.activation](x) if i + 1 < len(layers) else x
        if self.final == "softmax":
            x = np.exp(x - x.max(axis=1, keepdims=True))
            x = x / x.sum(axis=1, keepdims=True)
        x = x[:, self.output or 0]
        return np.asarray(_sigmoid(x) if self.final == "sigmoid" else x)


def _sigmoid(x: Values) -> Values:
    return 0.5 * (1 + np.tanh(x / 2))


def _gelu(x: Values) -> Values:
    from scipy.special import erf

    return np.asarray(x * 0.5 * (1 + erf(x / np.sqrt(2))))


_ACTIVATIONS: dict[str, Any] = {"none": lambda x: x, "relu": lambda x: np.maximum(x, 0), "gelu": _gelu, "silu": lambda x: x * _sigmoid(x)}


def _state(head: str) -> tuple[Path, int, int]:
    path = Path(head)
    if not path.is_file():
        raise InputError("there is no such file", where=head, next="a head is one .safetensors file; convert a pickled one first")
    return path, path.stat().st_size, path.stat().st_mtime_ns


def head_layers(head: str) -> list[tuple[str, tuple[int, int]]]:
    """(name of the weight, its [out, in]) of each layer in order, from the file's header. InputError for what is no stack of linear layers."""
    from safetensors import SafetensorError, safe_open

    _state(head)
    try:
        with safe_open(head, framework="numpy") as f:
            shapes = {key: tuple(f.get_slice(key).get_shape()) for key in f.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as e:
        raise InputError("this is not a safetensors file", where=head, found=e, next="convert the head; pickled ones are never loaded") from None
    weights = sorted((k for k in shapes if k.rpartition(".")[2] == "weight" and len(shapes[k]) == 2), key=_natural)
    biases = {_bias(k): (shapes[k][0],) for k in weights}
    odd = [k for k in shapes if k not in weights and shapes[k] != biases.get(k)]
    if odd or not weights:
        found = ", ".join(f"{k} {list(shapes[k])}" for k in sorted(odd)[:5]) or "no weight [out, in]"
        allowed = "`….weight` [out, in] and `….bias` [out]"
        raise InputError("the head holds something else than linear layers", where=head, found=found, allowed=allowed)
    return [(k, (shapes[k][0], shapes[k][1])) for k in weights]


def _bias(weight: str) -> str:
    return weight[: -len("weight")] + "bias"


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]


@lru_cache(maxsize=4)
def loaded(path: Path, size: int, mtime_ns: int) -> Layers:
    """The layers in float64; the state of the file is part of the question."""
    from safetensors.torch import load_file

    tensors = {key: value.double().numpy() for key, value in load_file(path).items()}
    names = [name for name, _ in head_layers(str(path))]
    return [(tensors[n], tensors.get(_bias(n), np.zeros(len(tensors[n])))) for n in names]
