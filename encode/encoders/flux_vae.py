"""The autoencoder of FLUX.1 (Black Forest Labs, 2024): 8 x 8 pixels to one of 16 channels, and back.

In: any picture, its middle square at `size`. Out: at 224 px 28 x 28 x 16, in patches of 2 x 2: 196 tokens of 64 (`autoencoder.py` says in which
order), moved by the config's shift_factor and scaled by its scaling_factor. `pictures` decodes with the model's own decoder.
"""

from __future__ import annotations

from typing import ClassVar

from encode.autoencoder import Autoencoder


class FluxVae(Autoencoder):
    """`weights`: a local folder or a hub id, of the autoencoder or of the whole pipeline, such as black-forest-labs/FLUX.1-schnell."""

    latents: ClassVar[int] = 16
