"""Sentence embeddings by a model in the layout of sentence-transformers (Reimers and Gurevych 2019), from a local folder or a hub id.

In: texts. Out: for each, the model's unit vector: the mean over its tokens, or its first token, as the folder's pooling file says (mean when it
has none). A text longer than the model reads is cut there. The folder needs config.json, tokenizer files and safetensors; what else such a
folder may hold (a dense layer after pooling) is refused rather than left out.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from encode.text_vectors import TextVectors
from encode.weights import folder, read_json, tensors_sha256
from pipelines.format.errors import InputError


class SentenceModel(TextVectors):
    """`weights` as above; `batch` texts at a time on `device` (cpu, cuda); `max_tokens` of a text."""

    weights: str
    batch: int = Field(64, ge=1)
    max_tokens: int = Field(256, ge=2)
    device: str = "cpu"

    def identity(self) -> dict[str, Any]:
        return {"weights_sha256": tensors_sha256(self.weights), "pooling": self.pooling()}

    def pooling(self) -> str:
        """mean or cls."""
        modules = folder(self.weights) / "modules.json"
        kinds = [m["type"].rsplit(".", 1)[-1] for m in read_list(self.weights)] if modules.is_file() else []
        if odd := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
            raise InputError("this sentence model has a layer that is not read", where=modules, found=", ".join(sorted(odd)))
        if not (folder(self.weights) / "1_Pooling" / "config.json").is_file():
            return "mean"
        said = read_json(self.weights, "1_Pooling/config.json")
        asked = sorted(k.removeprefix("pooling_mode_") for k, v in said.items() if k.startswith("pooling_mode_") and v is True)
        known = {"mean_tokens": "mean", "cls_token": "cls"}
        if len(asked) != 1 or asked[0] not in known:
            raise InputError("this kind of pooling is not read", where=f"{self.weights}/1_Pooling", found=", ".join(asked), allowed="mean or cls")
        return known[asked[0]]

    def sums(self, texts: list[str]) -> tuple[NDArray[np.float64], int]:
        import torch

        tokenizer, model = _loaded(str(folder(self.weights)), self.device)
        total: Any = None
        real = sorted((t for t in texts if t.strip()), key=len)  # neighbours of one length waste no padding
        for lo in range(0, len(real), self.batch):
            batch = real[lo : lo + self.batch]
            said = tokenizer(batch, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                states = model(**said).last_hidden_state.double()
                seen = said["attention_mask"].unsqueeze(-1).double()
                vectors = states[:, 0] if self.pooling() == "cls" else (states * seen).sum(1) / seen.sum(1)
                unit = torch.nn.functional.normalize(vectors, dim=1).sum(0).cpu().numpy()
            total = unit if total is None else total + unit
        width = model.config.hidden_size
        return (np.zeros(width) if total is None else total), len(real)


def read_list(weights: str) -> list[dict[str, Any]]:
    """modules.json, which is a list."""
    import json

    return list(json.loads((folder(weights) / "modules.json").read_bytes()))


@functools.lru_cache(maxsize=1)
def _loaded(path: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model: Any = AutoModel.from_pretrained(path, use_safetensors=True, local_files_only=True)
    return tokenizer, model.to(device).eval().requires_grad_(False)
