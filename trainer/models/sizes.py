"""Named sizes. In: the `size` of a model's YAML. Out: the values that stand where the YAML says nothing.

    python -m trainer.models.sizes        prints what every row comes to

Rows up to 7b name the blocks' parameters with a shared feed-forward, and leave `ffn` to the YAML. The rest are the paper's models
(arXiv 2603.03276), named by everything they hold: blocks, and embeddings and logits of 128,256 ids. One width and depth, 1.5B active in each.
"""

from __future__ import annotations

from typing import Any, Literal

Size = Literal["1m", "10m", "30m", "100m", "200m", "400m", "700m", "1.5b", "3b", "7b", "2.3b", "2.3b-moe", "3.9b", "7.1b", "13.5b", "26.5b", "51.5b"]

_PAPER: dict[str, Any] = {"layers": 16, "width": 2048, "heads": 32, "kv_heads": 8, "ffn_width": 8192}


def _dims(layers: int, width: int, heads: int, kv_heads: int, ffn_width: int) -> dict[str, Any]:
    return {"layers": layers, "width": width, "heads": heads, "kv_heads": kv_heads, "ffn_width": ffn_width}


def _moe(count: int) -> dict[str, Any]:
    """16 active of `count` experts of inner width 512; of these none shared, as in the paper's sweep over sparsity."""
    return {**_PAPER, "ffn": "moe", "experts": {"count": count, "granularity": 16, "top_k": 16, "shared": "none"}}


SIZES: dict[Size, dict[str, Any]] = {
    "1m": _dims(4, 128, 4, 4, 512),
    "10m": _dims(6, 320, 5, 5, 1280),
    "30m": _dims(8, 512, 8, 4, 2048),
    "100m": _dims(12, 768, 12, 4, 2816),
    "200m": _dims(14, 1024, 16, 4, 4096),
    "400m": _dims(16, 1280, 20, 4, 5120),
    "700m": _dims(16, 1792, 28, 4, 7168),
    "1.5b": {**_PAPER, "ffn": "shared"},
    "3b": _dims(22, 3072, 48, 8, 12288),
    "7b": _dims(28, 4096, 64, 8, 16384),
    "2.3b": {**_PAPER, "ffn": "per_modality"},
    "2.3b-moe": _moe(32),
    "3.9b": _moe(64),
    "7.1b": _moe(128),
    "13.5b": _moe(256),
    "26.5b": _moe(512),
    "51.5b": _moe(1008),
}


def filled(said: dict[str, Any]) -> dict[str, Any]:
    """The YAML's values laid on those of its size, `experts` key by key. A row's experts fall where the YAML chooses another feed-forward."""
    row = SIZES.get(said.get("size") or "")  # type: ignore[arg-type]
    if row is None:
        return said
    out = {**row, **said}
    if isinstance(row.get("experts"), dict) and isinstance(said.get("experts", {}), dict):
        out["experts"] = {**row["experts"], **said.get("experts", {})}
    if out.get("ffn") != "moe" and "experts" not in said:
        out.pop("experts", None)
    return out


def table(vocab: int = 128_256, channels: int = 1152, patches: int = 256) -> list[dict[str, Any]]:
    """A row per size: its shape, and parameters as trainer/models/flops.py counts them. Nothing is allocated."""
    import torch

    from trainer.models.transfusion import Transfusion

    rows = []
    for name in SIZES:
        shape = Transfusion(size=name)
        with torch.device("meta"):
            of = shape.build(vocab, channels, patches).parameters_by_use()
        dims = {"layers": shape.layers, "width": shape.width, "heads": f"{shape.heads}/{shape.kv_heads}"}
        experts = f"{shape.experts.count} x {shape.inner}" if shape.ffn == "moe" else f"{shape.inner}"
        rows.append({"size": name, "ffn": shape.ffn, **dims, "inner": experts, **of})
    return rows


def main() -> None:
    """Print the table, parameters in millions."""
    rows = table()
    print(" | ".join(rows[0]))
    for row in rows:
        counts = ("total", "blocks", "embedding", "projections", "time", "positions", "active_text", "active_latent")
        print(" | ".join(f"{v / 1e6:,.1f}" if k in counts else str(v) for k, v in row.items()))


if __name__ == "__main__":
    main()
