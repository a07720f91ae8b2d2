"""The shape of a model's ends: what the encoding of its data says of it. Of cards alone, so that a plan need not be there and torch is not loaded."""

from __future__ import annotations

from typing import Any


def ends(encoding: dict[str, Any]) -> dict[str, int]:
    """Ids (structure tokens included), channels and number of an image's latents; without images 1. Of two encoders also what images with loss are.
    `encoding` is a card's."""
    text, image, made = encoding.get("text") or {}, encoding.get("image") or {}, encoding.get("target")
    vocab = max([int(text.get("vocab", 0)), *(int(i) + 1 for i in (text.get("specials") or {}).values())])
    out = {"vocab": vocab, "channels": int(image.get("width", 1)), "patches": int(image.get("tokens", 1))}
    return out | ({} if made is None else {"made_channels": int(made["width"]), "made_patches": int(made["tokens"])})
