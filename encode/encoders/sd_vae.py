"""The autoencoder of Stable Diffusion (Rombach et al., arXiv 2112.10752): 8 x 8 pixels to one of 4 channels, and back.

In: any picture, its middle square at `size`. Out: at 224 px 28 x 28 x 4, in patches of 2 x 2: 196 tokens of 16 (`autoencoder.py` says in which
order). `pictures` decodes with the model's own decoder.
"""

from __future__ import annotations

from typing import ClassVar

from encode.autoencoder import Autoencoder


class SdVae(Autoencoder):
    """`weights`: a local folder or a hub id such as stabilityai/sd-vae-ft-mse."""

    latents: ClassVar[int] = 4
