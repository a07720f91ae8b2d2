"""An image encoder whose network is a published model: weights by folder or hub id, the model's own image processor, compiled or not.

In: uint8 pictures. Out: what `forward` makes of the processor's float pixels. Vision towers (`towers.py`) and autoencoders (`autoencoder.py`) say
how a picture is prepared and what the network gives; everything else an encoder of published weights needs is here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from encode.compiled import Compile, compiled, compiler, compiles
from encode.device import TorchNetwork
from encode.encoder import ImageEncoder, Machine, Network
from encode.processor import Processor
from encode.weights import tensors_sha256
from pipelines.format.document import fingerprint

Forward = Callable[[Any], Any]


class FrozenEncoder(ImageEncoder):
    """`weights`: a local folder or a hub id. `size`: pixels a side, where not the model's own. `resize`: `exact` for Pillow's kernel to the last
    bit, `fast` for torch's, within a level of it at an eighth of the time. `compile`: the network through torch.compile; `auto` does so on a GPU."""

    weights: str
    size: int | None = Field(None, ge=1)
    resize: Literal["fast", "exact"] = "fast"
    compile: Compile = "auto"

    def prepared(self) -> Processor:
        """How a picture becomes the network's pixels."""
        raise NotImplementedError

    def forward(self, machine: Machine) -> Forward:
        """The loaded network: float32 [B, 3, height, width] on its device -> [B, tokens, channels]."""
        raise NotImplementedError

    @cached_property
    def processor(self) -> Processor:
        """Asked for once per picture, so read once."""
        return self.prepared()

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        return self.processor.picture(pixels)

    def preprocessing(self) -> dict[str, Any]:
        return self.processor.describe()

    def weights_sha256(self) -> str:
        return tensors_sha256(self.weights)

    def network(self, machine: Machine) -> Network:
        numbers, forward = self.processor.numbers(machine.device), self.forward(machine)
        run = compiled(forward) if compiles(self.compile, machine) else forward
        return TorchNetwork(lambda pictures: run(numbers(pictures)), machine)

    def identity(self) -> dict[str, Any]:
        """Whether `auto` compiles is known with the machine only; `off` is as if nothing were said."""
        said = super().identity()
        if self.compile != "on":
            del said["config"]["compile"]
        return said

    def fingerprint(self, machine: Machine) -> str:
        plain = super().fingerprint(machine)
        return fingerprint({"compiled": compiler(), "encoder": plain}) if compiles(self.compile, machine) else plain
