"""Decoders on disk: a folder of config.json and safetensors, in either layout that RAE decoders are published in.

    RAE        decoder_embed, decoder_pos_embed, trainable_cls_token, decoder_layers.N.attention.attention.query …, decoder_norm, decoder_pred
    diffusers  the same below `decoder.`, attention as to_q, to_k, to_v, to_out.0; the frozen encoder and two image means beside it (AutoencoderRAE)

In: such a folder. Out: the network with its weights, and the image mean and deviation if the folder says them. What is written is the first
layout. Tensors decide every measure but the number of heads: the config.json of the release names another encoder's width and no patch size. Only
safetensors are opened; a release that is a pickled .pt goes through `pipelines run convert-decoder` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, TypeVar

import torch
from torch import Tensor

from encode.reconstruction.sizes import heads_of
from encode.reconstruction.vit import Shape, VitDecoder, sincos
from encode.weights import folder, read_json
from pipelines.format.errors import InputError

T = TypeVar("T")
Triple = tuple[float, float, float]
TOP = {"embed": "decoder_embed", "norm": "decoder_norm", "pixels": "decoder_pred"}
BLOCK = {
    "norm_attention": "layernorm_before",
    "norm_mlp": "layernorm_after",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
DIFFUSERS = BLOCK | {"query": "attention.to_q", "key": "attention.to_k", "value": "attention.to_v", "out": "attention.to_out.0"}
CLS, POSITIONS = "trainable_cls_token", "decoder_pos_embed"


@dataclass(frozen=True)
class Published:
    """A decoder as a folder holds it. `mean` and `std` are those that pixels were normalised by, None when the folder does not say."""

    model: VitDecoder
    mean: Triple | None
    std: Triple | None


def names(depth: int, block: Mapping[str, str] = BLOCK) -> dict[str, str]:
    """Our name -> the published name, for every tensor."""
    pairs = {"cls": CLS, "positions": POSITIONS}
    for kind in ("weight", "bias"):
        pairs |= {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in TOP.items()}
        pairs |= {f"blocks.{i}.{ours}.{kind}": f"decoder_layers.{i}.{theirs}.{kind}" for i in range(depth) for ours, theirs in block.items()}
    return pairs


def read(weights: str) -> Published:
    """The decoder of a folder or hub id, on the CPU in float32. InputError for what is missing, left over or of another shape."""
    config = read_json(weights, "config.json")
    tensors = {name.removeprefix("decoder."): value for name, value in _stored(weights, lambda f, n: f.get_tensor(n)).items()}
    return built(tensors, config, weights)


def measures(weights: str) -> Shape:
    """The shape of a folder's decoder, from the headers of its files: no tensor is read."""
    sizes = {name.removeprefix("decoder."): size for name, size in _stored(weights, lambda f, n: tuple(f.get_slice(n).get_shape())).items()}
    return shape_of(sizes, read_json(weights, "config.json"), weights)


def _stored(weights: str, take: Callable[[Any, str], T]) -> dict[str, T]:
    """Something of all tensors of the folder that belong to a decoder; a frozen encoder beside it is not read."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, T] = {}
    files = sorted(folder(weights).glob("*.safetensors"))
    if not files:
        pickled = [p.name for p in (*folder(weights).glob("*.pt"), *folder(weights).glob("*.bin"), *folder(weights).glob("*.pth"))]
        raise InputError(
            "a decoder is read from safetensors only",
            where=folder(weights),
            found=", ".join(pickled) or "no *.safetensors",
            next=f"pipelines run convert-decoder -c convert_decoder source={folder(weights)}/{pickled[0] if pickled else 'model.pt'} output=DIR",
        )
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as f:
                wanted = [n for n in f.keys() if not n.startswith("encoder.")]  # noqa: SIM118 - it is no mapping
                found |= {name: take(f, name) for name in wanted}
        except (SafetensorError, OSError) as e:
            raise InputError("this file is not safetensors", where=path, found=e) from None
    return found


def built(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> Published:
    """The network of these tensors (names without a prefix, either layout) and this config."""
    shape = shape_of({name: tuple(value.shape) for name, value in tensors.items()}, config, where)
    model = VitDecoder(shape)
    state = dict(tensors)
    if POSITIONS not in state:  # diffusers leaves out what is fixed
        state[POSITIONS] = torch.from_numpy(sincos(shape.rows, shape.columns, shape.width))
    pairs, wanted = names(shape.depth, _block(tensors)), model.state_dict()
    wrong = [theirs for ours, theirs in pairs.items() if theirs in state and state[theirs].shape != wanted[ours].shape]
    missing = sorted(set(pairs.values()) - set(state))
    extra = sorted(n for n in set(state) - set(pairs.values()) if n.startswith("decoder_"))
    for what, which in (("lack", missing), ("have more than", extra), ("differ in shape from", wrong)):
        if which:
            raise InputError(f"these weights {what} the tensors of a RAE decoder", where=where, found=", ".join(which[:5]))
    model.load_state_dict({ours: state[theirs].float() for ours, theirs in pairs.items()})
    mean, std = (_triple(config.get(f"image_{k}") or config.get(f"encoder_norm_{k}") or tensors.get(f"encoder_{k}"), where) for k in ("mean", "std"))
    return Published(model.eval().requires_grad_(False), mean, std)


def _block(names: Iterable[str]) -> Mapping[str, str]:
    return DIFFUSERS if any(".attention.to_q." in name for name in names) else BLOCK


def shape_of(sizes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], where: str) -> Shape:
    """The measures, from the sizes of the tensors."""
    try:
        width, channels = sizes["decoder_embed.weight"]
        patch = isqrt(sizes["decoder_pred.weight"][0] // 3)
        mlp = sizes[f"decoder_layers.0.{_block(sizes)['up']}.weight"][0]
    except (KeyError, ValueError) as e:
        raise InputError("these are not the weights of a RAE decoder", where=where, found=f"no usable {e}") from None
    depth = 1 + max(int(name.split(".")[1]) for name in sizes if name.startswith("decoder_layers."))
    heads = config.get("decoder_num_attention_heads") or heads_of(depth, width, mlp)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise InputError("the number of attention heads is not known", where=where, found=heads, next="config.json: decoder_num_attention_heads")
    if config.get("hidden_act", "gelu") != "gelu":
        raise InputError("this decoder has another activation", where=where, found=config["hidden_act"], allowed="gelu")
    rows, columns = _grid(sizes, config, where)
    return Shape(channels, patch, rows, columns, depth, width, heads, mlp, float(config.get("layer_norm_eps", 1e-12)))


def _grid(sizes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], where: str) -> tuple[int, int]:
    if isinstance(config.get("grid"), list):
        rows, columns = config["grid"]
        return int(rows), int(columns)
    if POSITIONS in sizes:
        n = sizes[POSITIONS][1] - 1
    elif "encoder_input_size" in config:
        n = (int(config["encoder_input_size"]) // int(config["encoder_patch_size"])) ** 2
    else:
        raise InputError("nothing says how many patches this decoder makes", where=where, allowed="decoder_pos_embed, or `grid` in config.json")
    if isqrt(n) ** 2 != n:
        raise InputError("the positions are of no square grid", where=where, found=n, next="config.json: grid: [rows, columns]")
    return isqrt(n), isqrt(n)


def _triple(value: Any, where: str) -> Triple | None:
    if value is None:
        return None
    flat = [float(v) for v in (value.flatten().tolist() if isinstance(value, Tensor) else value)]
    if len(flat) != 3:
        raise InputError("an image mean has three values", where=where, found=flat)
    return flat[0], flat[1], flat[2]


def config_json(shape: Shape, mean: Triple | None, std: Triple | None, encoder: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json of the first layout: the published keys, and what they leave to the reader (grid, image mean and deviation, the encoder)."""
    published = {
        "model_type": "vit_mae",
        "hidden_size": shape.channels,
        "decoder_hidden_size": shape.width,
        "decoder_num_hidden_layers": shape.depth,
        "decoder_num_attention_heads": shape.heads,
        "decoder_intermediate_size": shape.mlp,
        "hidden_act": "gelu",
        "layer_norm_eps": shape.eps,
        "num_channels": 3,
        "patch_size": shape.patch,
        "image_size": shape.rows * shape.patch,
        "qkv_bias": True,
    }
    said: dict[str, Any] = {"grid": [shape.rows, shape.columns]}
    if mean is not None and std is not None:
        said |= {"image_mean": list(mean), "image_std": list(std)}
    return published | said | ({"encoder": dict(encoder)} if encoder else {})


def written(model: VitDecoder) -> bytes:
    """model.safetensors of the first layout; equal weights give equal bytes."""
    from safetensors.torch import save

    state = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in model.state_dict().items()}
    pairs = names(model.shape.depth)
    return save({pairs[ours]: value for ours, value in sorted(state.items())}, metadata={"format": "pt"})
