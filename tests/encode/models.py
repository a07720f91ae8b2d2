"""Small models of true architecture with random weights, saved as published ones are: CLIP, SigLIP, an image classifier, heads."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300}


def photo(seed: int, height: int = 60, width: int = 44) -> np.ndarray:
    """Smooth colours with some noise: a small network tells such pictures apart."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3)).repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)[:height, :width]
    return np.clip(coarse + rng.integers(-20, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays as one vector each."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@cache
def jpeg(seed: int) -> bytes:
    from pipelines.media import images

    return images.encode_jpeg(photo(seed), 95)


def save_tokenizer(folder: str, mask: bool, length: int) -> Any:
    """Bytes as tokens, an end token after each text, padding on the right."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    names = ["input_ids", "attention_mask"] if mask else ["input_ids"]
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "model_max_length": length, "model_input_names": names}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    made.save_pretrained(folder)
    return made


def save_siglip(folder: str, seed: int = 0) -> Any:
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.SiglipConfig(vision_config=VISION, text_config={**TEXT, "max_position_embeddings": 24, "projection_size": 32})
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    save_tokenizer(folder, mask=False, length=24)
    return model


def save_clip(folder: str, seed: int = 0, width: int = 16) -> Any:
    import torch
    import transformers

    torch.manual_seed(seed)
    text = {**TEXT, "max_position_embeddings": 20, "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 0}
    model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=VISION, text_config=text, projection_dim=width)).eval()
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    save_tokenizer(folder, mask=True, length=20)
    return model


def save_classifier(folder: str, labels: tuple[str, ...] = ("normal", "nsfw", "drawing"), **config: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(1)
    named = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, **named, **config)).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.5)  # the library's own start gives nearly the same probability to everything
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return model


def save_head(path: str, sizes: tuple[int, ...] = (16, 12, 5, 1), names: tuple[int, ...] = (0, 2, 10)) -> list[tuple[Any, Any]]:
    """Linear layers named as a Sequential with dropout between them; returns (weight, bias) in order."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(2)
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    named = [(f"layers.{n}.{key}", p.data) for n, layer in zip(names, layers, strict=True) for key, p in layer.named_parameters()]
    tensors = {name: value.contiguous() for name, value in named}
    save_file(tensors, path)
    return [(layer.weight.detach(), layer.bias.detach()) for layer in layers]


def save_dinov2(folder: str, registers: int = 0, **changes: Any) -> Any:
    """The tower and its image processor (short side to 8/7 of the crop, as published); the final LayerNorm's affine is far from 1 and 0."""
    import torch
    import transformers

    torch.manual_seed(3)
    base = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    settings = {**base, **({"num_register_tokens": registers} if registers else {}), **changes}
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    for name, p in model.named_parameters():
        if name.endswith("layernorm.weight"):
            torch.nn.init.normal_(p, 3.0)
        elif name.endswith("layernorm.bias"):
            torch.nn.init.normal_(p, 5.0)
        elif name.endswith(("cls_token", "position_embeddings", "register_tokens")):
            torch.nn.init.normal_(p)
    model.save_pretrained(folder)
    side = 28
    processor = transformers.BitImageProcessorPil(
        size={"shortest_edge": side * 8 // 7},
        crop_size={"height": side, "width": side},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    processor.save_pretrained(folder)
    return model


def save_vae(folder: str, channels: int = 4, **changes: Any) -> Any:
    """An AutoencoderKL with the published number of levels (8 pixels to one) and few channels."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(4)
    levels = 4
    flux = {"shift_factor": 0.1159, "scaling_factor": 0.3611, "use_quant_conv": False, "use_post_quant_conv": False}
    made: dict[str, Any] = {
        "latent_channels": channels,
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 4,
        **(flux if channels == 16 else {"scaling_factor": 0.18215}),
        **changes,
    }
    model = AutoencoderKL(**made).eval()
    model.save_pretrained(folder, safe_serialization=True)
    return model
