"""Latents that are made while training: `latents: encode`. The plan is the same; where a batch would hold stored latents, it holds pictures first.

    plan ─▶ documents ─▶ bytes ─▶ decoded, each distinct picture once ─▶ encoder on the device ─▶ codec ─▶ normalised ─▶ Batch
            └────── worker processes, or threads of this one ──────┘└──── this process, in the thread that works ahead ───┘

In: the plan's spans and the encoder that a service of `pipelines.services` offers, which is refused where it does not make the latents that the plan
is of. Out: the arrays of a batch as if they had been read. Pictures travel as uint8, an eighth of float latents of 256 x 1152. A picture that
cannot be decoded costs itself: the mean of all latents stands in its place and takes no loss, and it is counted; encoding to disk would have
rejected its record.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipelines.format import codec, storage
from pipelines.format.errors import ErrorBudgetSpent, InputError, Reject
from trainer.document import Document
from trainer.normalise import Normaliser
from trainer.origin import Origin, Places

if TYPE_CHECKING:
    from mixtures.plan import Plan
    from trainer.run import Run
    from trainer.shard import Shard

Place = tuple[int, int, int]  # dataset, shard, segment of the shard's index
UNREADABLE = 100  # pictures of one rank that may be lost; more, and it is the data that is wrong
THREADS = 8


class Encoding(NamedTuple):
    """How latents are made; plain values, so that worker processes can be told. encoder: as an encode recipe names it (None: as the plan's
    datasets do). codec: latents go through it as if they had been stored. device: where the network runs."""

    service: str = "latents"
    encoder: dict[str, Any] | None = None
    codec: str | None = None
    device: str | None = None


def image_of(plan: Plan) -> dict[str, Any] | None:
    """What the plan says of its images."""
    found: dict[str, Any] | None = (plan.card.get("encoding") or {}).get("image")
    return found


def encoding_of(run: Run, plan: Plan, device: str | None = None) -> Encoding | None:
    """How this run's latents are made; None when they are read. InputError where they were to be read and are not stored."""
    image = image_of(plan)
    if run.latents != "stored" and "target" in plan.card["encoding"]:
        raise InputError("this plan has two encoders, and latents are made by one while training", where=run.plan, found="latents: encode",
                         allowed="latents: stored")  # fmt: skip
    if image is None or run.latents == "stored":
        if image is not None and image.get("codec") == "none":
            raise InputError(
                "the latents of this plan are not stored", where=run.plan, found="storage: none", allowed="latents: encode",
                next="say `latents: encode` in the run, or encode the datasets with another `storage`",
            )  # fmt: skip
        return None
    if run.latents == "encode":
        return Encoding(device=device)
    return Encoding(run.latents.service, run.latents.encode, run.latents.codec, device)


def fingerprint_of(run: Run, plan: Plan) -> str | None:
    """The encoder that a run encodes by, as the plan names it: part of the run's identity. None where latents are read."""
    image = image_of(plan)
    return None if image is None or run.latents == "stored" else str(image["fingerprint"])


def shares(pictures: Pictures | None, seconds: float) -> dict[str, float]:
    """For a line of metrics: time of the encoder over the time of the step. Above 0.5 or so, or with `data_wait` beside it, storing may pay."""
    if pictures is None:
        return {}
    spent, pictures.seconds = pictures.seconds, 0.0
    return {"encode": round(spent / max(seconds, 1e-9), 4)}


class Pictures:
    """The pictures of a plan's spans, for one Reader: `arrays` in any process, `latents` where the device is."""

    def __init__(self, plan: Plan, how: Encoding, serial: bool = False) -> None:
        self.plan, self.how = plan, how
        found = next((e for e in entry_points(group="pipelines.services") if e.name == how.service), None)
        if found is None:
            names = sorted(e.name for e in entry_points(group="pipelines.services"))
            raise InputError("no installed package offers this service", where="latents", found=how.service, allowed=", ".join(names))
        card = next(d.card for d in plan.datasets if (d.encoding or {}).get("image"))
        self.encoder = found.load()(card, how.encoder)
        grid, image = self.encoder.grid, image_of(plan)
        assert image is not None, "a plan without images has no pictures"
        if (grid.tokens, grid.channels) != (image["tokens"], image["width"]):
            raise InputError("the encoder makes latents of another shape than the plan's", where=plan.path,
                             found=(grid.tokens, grid.channels), allowed=(image["tokens"], image["width"]))  # fmt: skip
        self.shape = (grid.height, grid.width, 3)
        self.seconds, self.lost, self.encoded = 0.0, 0, 0
        self._threads = 1 if serial else min(THREADS, len(os.sched_getaffinity(0)))
        self._pool: ThreadPoolExecutor | None = None
        self._network: Any = None
        self._origin = lru_cache(maxsize=None)(lambda dataset: Origin(plan.datasets[dataset]))
        self._places = lru_cache(maxsize=256)(self._find)

    # ---- pictures: no torch --------------------------------------------------------------------------------------------------------------

    def arrays(self, documents: Sequence[Document], shard: Any) -> dict[str, np.ndarray]:
        """`pictures` u8 [D, H, W, 3], each distinct one once, `picture` i32 [I]: which is each image's, `unreadable` bool [D]. `shard` opens one."""
        number: dict[tuple[Any, ...], int] = {}
        data: list[memoryview] = []
        picture = []
        for place in (p for d in documents for p in d.pictures):
            key, read = self._bytes(shard(place[0], place[1]), place)
            if key not in number:
                number[key] = len(number)
                data.append(read())
            picture.append(number[key])
        pictures, unreadable = np.zeros((len(data), *self.shape), np.uint8), np.zeros(len(data), np.bool_)

        def fill(k: int) -> None:
            try:
                pictures[k] = self.encoder.read(bytes(data[k]))
            except Reject:
                unreadable[k] = True

        if self._threads > 1 and len(data) > 1:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
            list(self._pool.map(fill, range(len(data))))
        else:
            for k in range(len(data)):
                fill(k)
        return {"pictures": pictures, "picture": np.array(picture, np.int32), "unreadable": unreadable}

    def largest(self, positions: int) -> int:
        """Bytes that the pictures of so many positions take at most, each of an image of its own."""
        return (positions // self.encoder.grid.tokens + 1) * (int(np.prod(self.shape)) + 1 + 4) + (1 << 12)

    def _bytes(self, shard: Shard, place: Place) -> tuple[tuple[Any, ...], Any]:
        """(what tells this picture from others, a function that reads its bytes)."""
        dataset, number, i = place
        if shard.dtype[i] not in codec.CODECS:  # the index points at the picture itself
            offset, nbytes = int(shard.offset[i]), int(shard.nbytes[i])
            return (dataset, number, offset), lambda: shard.slice("data", offset, nbytes)
        origin, places = self._origin(dataset), self._places(dataset, shard)
        assert places.shard[i] >= 0, f"segment {i} of shard {number} is no picture in {origin.parent.path}"
        return (dataset, "parent", int(places.shard[i]), int(places.offset[i])), lambda: origin.picture(places, i)

    def _find(self, dataset: int, shard: Shard) -> Places:
        if not shard.local:
            raise InputError(
                "stored latents in an object store are not encoded again from their parent's pictures", where=shard.dataset.path,
                next="`latents: stored`; or encode with `storage: none`, whose pictures are fetched early like any other data",
            )  # fmt: skip
        return self._origin(dataset).places(shard)

    # ---- latents: where the device is ----------------------------------------------------------------------------------------------------

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """u8 [n, H, W, 3] -> f32 [n, tokens, channels], in the encoder's own units."""
        begun = time.monotonic()
        if self._network is None:
            self._network = self.encoder.load(self.how.device)
        latents: np.ndarray = self._network(pictures, self.how.codec)
        self.seconds, self.encoded = self.seconds + time.monotonic() - begun, self.encoded + len(pictures)
        return latents

    def latents(self, arrays: dict[str, np.ndarray], normaliser: Normaliser | None) -> dict[str, np.ndarray]:
        """The arrays of a batch with latents [N, C], normalised, where its pictures were."""
        rest = {name: array for name, array in arrays.items() if name not in ("pictures", "picture", "unreadable")}
        picture, bad = arrays["picture"], arrays["unreadable"][arrays["picture"]]
        grid = self.encoder.grid
        found = self.encode(arrays["pictures"]) if len(picture) else np.empty((0, grid.tokens, grid.channels), np.float32)
        rows = found[picture].reshape(-1, grid.channels)
        if normaliser is not None:
            normaliser.apply(rows, rows)
        if bad.any():
            self._lose(int(bad.sum()))
            rows.reshape(-1, grid.tokens, grid.channels)[bad] = 0
            rest["image_loss"] = rest["image_loss"] & ~bad
        return {**rest, "latents": rows}

    def made_by(self) -> dict[str, Any]:
        """For the run's card: which encoder made the latents, with what arithmetic, and what it lost."""
        network = {} if self._network is None else {"fingerprint": self._network.fingerprint, "exact": self._network.exact}
        lost = {"unreadable": self.lost} if self.lost else {}
        return {"encoder": self.encoder.name, "codec": self.how.codec, **network, **lost}

    def close(self) -> None:
        """Let go of the threads that decode."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _lose(self, count: int) -> None:
        self.lost += count
        if self.lost > UNREADABLE:
            raise ErrorBudgetSpent(
                "too many pictures of this plan cannot be decoded", where=self.plan.path, found=f"{self.lost} places",
                allowed=f"{UNREADABLE} a process", next=f"pipelines verify --deep {storage.absolute(self.plan.datasets[0].path)} and its parents",
            )  # fmt: skip
