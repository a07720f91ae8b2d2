"""What a decoder is: latents of an encoder -> pictures. The other way round of encoder.py, with the same cut between CPU and device.

A decoder knows its weights; the latents' grid and the encoder that made them come from the dataset. What goes in is what the encode step stored
or what a model sampled in the same units: latents as the encoder gave them. Statistics belong to whoever normalised.

    class Mine(Decoder):                     encode/decoders/mine.py, named `decoder: {mine: {...}}` in a decode recipe
        def size(self, grid): ...            height and width of a picture
        def network(self, grid, encoder, machine): ...   -> a function that starts float32 [B, tokens, channels] and returns one that waits for uint8
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from encode.encoder import Grid, ImageEncoder, Machine, Network, in_batches, machine_for
from pipelines.format.document import Part, part_name


class Decoder(Part):
    """Latents to pictures. `batch` is fixed and padded, as an encoder's is: equal latents give equal pictures whatever stands beside them."""

    version: ClassVar[int] = 1
    batch: int = Field(32, ge=1)
    dtype: Literal["auto", "f32", "bf16"] = "auto"

    def size(self, grid: Grid) -> tuple[int, int]:
        """Height and width in pixels of the picture that latents of this grid become. InputError when they are not for this decoder."""
        raise NotImplementedError

    def network(self, grid: Grid, encoder: ImageEncoder, machine: Machine) -> Network:
        """The loaded network: takes float32 [B, tokens, channels], gives uint8 [B, height, width, 3] when waited for."""
        raise NotImplementedError

    def weights_sha256(self) -> str | None:
        """Hash of the weights; None when there are none."""
        return None

    def machine(self, device: str | None = None) -> Machine:
        """Where the network runs."""
        return machine_for(self.dtype, device)

    def identity(self) -> dict[str, Any]:
        """What the pictures depend on, apart from latents and machine; no path stands in it."""
        settings = {k: v for k, v in self.model_dump(mode="json").items() if k not in ("weights", "batch", "dtype")}
        said = {"decoder": part_name(self), "version": self.version, "weights": self.weights_sha256(), "config": settings}
        return {**said, "dtype": self.dtype, "batch": self.batch}


class Decoding:
    """A decoder with its network loaded."""

    def __init__(self, decoder: Decoder, encoder: ImageEncoder, device: str | None = None) -> None:
        self.decoder, self.grid = decoder, encoder.grid()
        self.size = decoder.size(self.grid)
        self.machine = decoder.machine(device)
        self.network = decoder.network(self.grid, encoder, self.machine)

    def pictures(self, latents: np.ndarray) -> np.ndarray:
        """float32 [n, tokens, channels] -> uint8 [n, height, width, 3], in padded batches of one size."""
        done = list(in_batches(self.network, latents, self.decoder.batch))
        return np.concatenate(done) if done else np.empty((0, *self.size, 3), np.uint8)
