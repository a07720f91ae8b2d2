"""What a model holds and what a step of it costs. In: a model, on whatever device, the meta device included. Out: whole numbers.

Parameters are counted once each, in groups that add up to all. FLOPs are those of matrix products, two a multiplication: norms, softmaxes,
activations and rotary positions are left out, as torch's own counter leaves them. Pairs of attention are those the mask lets through, whatever
a back end computes beyond them. Backward counts once more for each operand that has a gradient: latents and time waves have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.models.transfusion import TransfusionModel


def parameters(model: TransfusionModel) -> dict[str, int]:
    """total, and its parts: blocks (feed-forwards, attention, norms, routers, the last norm), embedding (ids in and out), projections (latents in
    and out), time (its embedding and modulation), positions (of patches). active_text and active_latent: what acts on one token of the kind, of
    blocks and, for a latent, projections; time acts on an image, not on its latents, and logits are counted with embeddings. Of two encoders
    the latent is one that is made."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    time = sum(n for name, n in sizes.items() if name.startswith("time.") or "modulation." in name)
    blocks = sum(n for name, n in sizes.items() if name.startswith(("blocks.", "final_norm."))) - modulation(sizes)
    out = {
        "total": sum(sizes.values()), "blocks": blocks, "embedding": sizes["embed"] + sizes.get("head", 0),
        "projections": sum(n for name, n in sizes.items() if name.startswith(("latent_in.", "latent_out.", "made_in."))),
        "time": time, "positions": sizes.get("patch", 0) + sizes.get("made_patch", 0),
    }  # fmt: skip
    text, latent = (blocks - _idle(model, sizes, kind) for kind in ("text", "latent"))
    doors = out["projections"] - (0 if model.looked is None else sum(n for name, n in sizes.items() if name.startswith("latent_in.")))
    return {**out, "active_text": text, "active_latent": latent + doors}


def modulation(sizes: dict[str, int]) -> int:
    """Parameters through which time acts on blocks."""
    return sum(n for name, n in sizes.items() if "modulation." in name and name.startswith("blocks."))


def _idle(model: TransfusionModel, sizes: dict[str, int], kind: str) -> int:
    """Parameters of blocks that do not act on a token of this kind: the other modality's, and experts it did not choose."""
    other = {"text": ".latent.", "latent": ".text."}[kind]
    split = sum(n for name, n in sizes.items() if other in name)
    stacked = sum(n for name, n in sizes.items() if ".ffn.experts." in name)
    if not stacked:
        return split
    experts = model.shape.experts
    return split + stacked - stacked * experts.chosen // experts.routed


def training_flops(
    model: TransfusionModel, text: int, latents: int, targets: int, pairs: int, images: int | None = None, made: int | None = None
) -> int:
    """FLOPs of forward and backward: 6 per matrix entry and position it acts on, 12 per layer, pair and channel.

    text: text and structure positions; latents: latent rows; targets: positions with logits; pairs: query-key pairs; images: distinct ones
    (None: latents over the number of an image's); made: of the latents those with loss, which matters where another encoder makes them (None: all).
    """
    shape, width = model.shape, model.shape.width
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith("qk_gain")}
    blocks = sum(n for name, n in matrices.items() if name.startswith("blocks.")) - modulation(matrices)
    text_each, latent_each = (blocks - _idle(model, matrices, kind) for kind in ("text", "latent"))
    into, out_of, each = _doors(model, latents, latents if made is None else made)
    images = each if images is None else images
    flops = 6 * (text_each * text + latent_each * latents) + 12 * shape.layers * width * pairs
    flops += 6 * model.vocab * width * targets + 4 * into * width + 6 * out_of * width
    once = sum(n for name, n in matrices.items() if "modulation." in name or name == "time.down.weight")
    return flops + images * (6 * once + 4 * matrices.get("time.up.weight", 0))


def _doors(model: TransfusionModel, latents: int, made: int) -> tuple[int, int, int]:
    """(values that enter the model as latents, values that leave it, images)."""
    if model.looked is None:
        return model.channels * latents, model.channels * latents, -(-latents // max(model.patches, 1))
    channels, patches = model.looked
    images = -(-(latents - made) // max(patches, 1)) - (-made // max(model.patches, 1))
    return channels * (latents - made) + model.channels * made, model.channels * made, images
