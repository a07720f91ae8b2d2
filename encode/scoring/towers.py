"""Two-tower models: CLIP (Radford et al., arXiv 2103.00020), SigLIP and SigLIP 2 (Tschannen et al., arXiv 2502.14786).

In: pictures and captions prepared exactly as the model's own processor does. Out: an embedding of each, in one space; not normalised, that is the
scorer's part. Captions are cut and padded to the text tower's length, as SigLIP was trained and as leaves CLIP's result the same, so that every
batch has one shape. Fixed-resolution checkpoints only (the NaFlex variants have another input).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from encode.device import TorchNetwork
from encode.encoder import Machine, Network
from encode.scorer import Sight
from encode.weights import file_sha256, folder, pretrained, read_json
from pipelines.format.errors import InputError

MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
# Whatever of these a folder has says how its texts are cut. Without a list of words the library would go on with an empty one.
WORDS = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")
TOKENIZER = (*WORDS, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Towers(Sight):
    """Both towers of one model; a picture's vector is its embedding."""

    reads: ClassVar[bool] = True

    def config(self) -> dict[str, Any]:
        """config.json, of a kind that is known."""
        config = read_json(self.weights, "config.json")
        if config.get("model_type") not in MODELS:
            raise InputError(
                "these weights are not a two-tower model that is known",
                where=self.weights,
                found=config.get("model_type"),
                allowed="clip, siglip (which SigLIP 2 of fixed resolution is too)",
                next="name one such as google/siglip2-so400m-patch14-384 or openai/clip-vit-large-patch14",
            )
        return config

    def width(self) -> int:
        """Channels of an embedding; files leave out what equals the architecture's defaults."""
        config = self.config()
        return int(config.get("projection_dim", 512) if config["model_type"] == "clip" else config.get("vision_config", {}).get("hidden_size", 768))

    def length(self) -> int:
        """Tokens that the text tower takes."""
        config = self.config()
        return int(config.get("text_config", {}).get("max_position_embeddings", 77 if config["model_type"] == "clip" else 64))

    def written(self, texts: list[str]) -> NDArray[np.int64]:
        said = tokenizer(self.weights)(texts, padding="max_length", truncation=True, max_length=self.length(), return_tensors="np")
        kept = [said[key] for key in ("input_ids", "attention_mask") if key in said]
        return np.stack(kept, axis=1).astype(np.int64)

    def text_identity(self) -> Any:
        files = [folder(self.weights) / name for name in TOKENIZER]
        return [[p.name, file_sha256(p, p.stat().st_size, p.stat().st_mtime_ns)] for p in files if p.is_file()]

    def look(self, machine: Machine) -> tuple[Network, Network | None]:
        model = pretrained(MODELS[self.config()["model_type"]], self.weights, machine)
        numbers = self.processor().numbers(machine.device)

        def pictures(batch: Any) -> Any:
            return embedding(model.get_image_features(pixel_values=numbers(batch).to(model.dtype)))

        def texts(batch: Any) -> Any:
            mask = batch[:, 1] if batch.shape[1] > 1 else None
            return embedding(model.get_text_features(input_ids=batch[:, 0], attention_mask=mask))

        return TorchNetwork(pictures, machine), TorchNetwork(texts, machine)


def embedding(out: Any) -> Any:
    """What `get_image_features` gives is the embedding, or since transformers 5 holds it as the pooled output."""
    return getattr(out, "pooler_output", out)


@lru_cache(maxsize=4)
def tokenizer(weights: str) -> Any:
    """The model's own tokenizer, once per process."""
    from transformers import AutoTokenizer

    try:
        if not any((folder(weights) / name).is_file() for name in WORDS):
            raise OSError(f"none of {', '.join(WORDS)} is there")
        return AutoTokenizer.from_pretrained(str(folder(weights)), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as e:
        said = str(e).strip().splitlines()
        raise InputError(
            "the tokenizer of these weights cannot be loaded",
            where=weights,
            found=f"{type(e).__name__}: {said[0] if said else ''}"[:200],
            next="the folder needs tokenizer.json and tokenizer_config.json; an older one with spiece.model needs `pip install sentencepiece`",
        ) from None
