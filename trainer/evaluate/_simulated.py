"""What lies beyond latents: pixels of latents, and where the data have a simulator the frames that it shows. All through services, found by their
names.

In: a plan's dataset, starts. Out: pixels of latents by the service `pictures`; and for a start its simulator (by default the service `walker`), whose
frames the service `latents` encodes as the data were. A simulator is believed after it has shown the start's own present frame: its latents must be
those that are stored, to within SAME of their variance, else it is refused, since a score against a wrong truth is worse than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from pipelines.format.errors import InputError
from trainer.evaluate._walks import Start

SAME = 0.02  # of the variance: bf16 costs 2e-5, int8 about 1e-4, another frame of the same walk 0.3 and more


def service(name: str) -> Any:
    """A service by its name, or None where no installed package offers it."""
    found = [e for e in entry_points(group="pipelines.services") if e.name == name]
    return found[0].load() if found else None


class Seen:
    """Latents <-> pixels for one data set, by the services `pictures` and `latents`. `decoder` as a decode recipe names it."""

    def __init__(self, data: Any, decoder: dict[str, Any] | None = None, device: str = "cpu") -> None:
        self.data, self.decoder, self.device = data, decoder, device
        self._encode: Any = None

    @property
    def size(self) -> int | None:
        """Side of the pictures that were encoded; None where the card does not say, or they were not square."""
        pixels = ((self.data.encoding or {}).get("image") or {}).get("pixels")
        return int(pixels[0]) if pixels and pixels[0] == pixels[1] else None

    def pixels(self, latents: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [n, height, width, 3] of latents [tokens, C] as stored. InputError where nothing turns them back."""
        made = service("pictures")
        if made is None:
            raise InputError("no installed package offers the service `pictures`", next="install the encode package, or pixels: false")
        return np.stack(made(np.stack(latents), self.data.card["encoders"], self.decoder, form="pixels"))

    def png(self, latents: Sequence[np.ndarray]) -> list[bytes]:
        """The same as files."""
        return list(service("pictures")(np.stack(latents), self.data.card["encoders"], self.decoder, form="png"))

    def shows(self) -> bool:
        """Whether latents of these data can be turned back into pixels."""
        image = self.data.encoding["image"]
        try:
            self.pixels([np.zeros((image["tokens"], image["width"]), np.float32)])
        except InputError:
            return False
        return True

    def latents(self, pictures: np.ndarray) -> np.ndarray:
        """float32 [n, tokens, C] of pictures uint8 [n, S, S, 3], encoded and stored as the data were."""
        if self._encode is None:
            found = service("latents")
            if found is None:
                raise InputError("no installed package offers the service `latents`", next="install the encode package, or simulator: null")
            self._encode = found(self.data.card).load(self.device)
        codec = self.data.encoding["image"]["codec"]  # none: nothing is stored, and a trainer is given latents as they are encoded
        return np.asarray(self._encode(pictures, None if codec == "none" else codec), np.float32)


def simulators(name: str | None, seen: Seen, found: Sequence[Start]) -> list[Any] | None:
    """A simulator for each start; None where `name` is None, no package offers it, or the data are not of its world. InputError where it shows
    something else than what was encoded."""
    made = service(name) if name is not None else None
    if made is None:
        return None
    out: list[Any] = []
    for start in found:
        simulator = made(start.record.origin, start.record.fields, seen.size or 1)
        if simulator is None:
            return None
        if seen.size is None:
            raise InputError("the card does not say how large square pictures were encoded", where=seen.data.path, next="simulator: null")
        out.append(simulator)
    first = found[0]
    shown = seen.latents(out[0].now())[0]
    off = float(np.mean((shown - first.context[-1]) ** 2) / max(float(np.var(first.context[-1])), 1e-12))
    if off > SAME:
        raise InputError("the simulator does not show what the data hold", where=first.record.origin, found=f"{off:.3f} of the latents' variance",
                         allowed=f"at most {SAME}", next="simulator: null")  # fmt: skip
    return out
