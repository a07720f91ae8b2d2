"""What becomes of a part's pictures: stored bytes of latents, and what was measured on the way, in one pass over each batch.

In: uint8 pictures of a part and an encoder with its network loaded. Out: `CodedPart`: the payload of each picture as the codec stores it, the
moments of the latents *as stored* per position and channel, and how far what is stored lies from what the encoder said. It is all the encode
step gives, so that the step after it writes and never looks inside a latent.

A network on a GPU has its values coded and counted there (`encode/tensors.py`), and only stored bytes cross to the host; elsewhere numpy does it,
in runs that stay in the cache (2 to 4 ms of one core for 256 x 1152; torch takes 17). The bytes are the same either way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from encode.codec_error import CodecError
from encode.device import TorchNetwork
from encode.encoder import AHEAD, ImageEncoding, Pending, in_batches, refuse, values
from encode.stats import Moments
from encode.tensors import Tally
from pipelines.format.codec import decode_latents, encode_latents, nbytes


@dataclass(frozen=True)
class CodedPart:
    """A part's pictures as stored: `payloads` is uint8 [images, bytes of each], one block from the device to the disk. `moments` are of
    [tokens, channels]; `fingerprint` names the arithmetic; `notes` say what went another way than planned (a smaller batch after running out of
    memory)."""

    payloads: np.ndarray
    moments: Moments
    error: CodecError
    fingerprint: str
    notes: tuple[str, ...] = ()


def coded(encoding: ImageEncoding, pictures: np.ndarray, codec: str) -> CodedPart:
    """uint8 [n, height, width, 3] -> the part. InputError for latents that are not finite."""
    network = encoding.network
    if isinstance(network, TorchNetwork) and network.machine.device == "cuda":
        return coded_on_device(encoding, network, pictures, codec)
    return coded_on_host(encoding, pictures, codec)


def coded_on_host(encoding: ImageEncoding, pictures: np.ndarray, codec: str) -> CodedPart:
    """With numpy, from latents that came to the host."""
    grid = encoding.grid
    shape = (grid.tokens, grid.channels)
    payloads, filled = np.empty((len(pictures), nbytes(codec, *shape)), np.uint8), 0
    moments, errors = Moments.none(shape), []
    for batch in encoding.raw(pictures):
        rows, filled = payloads[filled : filled + len(batch)], filled + len(batch)
        if batch.dtype == np.uint16 and codec == "bf16":
            stored = values(batch)
            rows[...] = np.ascontiguousarray(batch).reshape(len(batch), -1).view(np.uint8)
            found = Moments.of(stored)
            errors.append(CodecError.nothing(found))
        else:
            exact = values(batch)
            for row, image in zip(rows, exact, strict=True):
                row[...] = np.frombuffer(encode_latents(image, codec), np.uint8)
            stored = exact if codec == "f32" else np.stack([decode_latents(row, codec, *shape) for row in rows])
            found = Moments.of(stored)
            lossless = CodecError.nothing(found) if codec == "f32" else None
            errors.append(lossless or CodecError.of(exact.reshape(-1, shape[1]), stored.reshape(-1, shape[1])))
        moments = moments.merged(found)
    return CodedPart(payloads, moments, CodecError.total(errors), encoding.fingerprint)


def coded_on_device(encoding: ImageEncoding, network: TorchNetwork, pictures: np.ndarray, codec: str) -> CodedPart:
    """Where the network is; the bytes of a batch come over while the next ones are made."""
    grid = encoding.grid
    tally = Tally((grid.tokens, grid.channels), codec)
    payloads, filled = np.empty((len(pictures), nbytes(codec, grid.tokens, grid.channels)), np.uint8), 0
    coming = deque[list[Pending]]()

    def take() -> None:
        nonlocal filled
        for wait in coming.popleft():
            some = wait()
            payloads[filled : filled + len(some)] = some
            filled += len(some)

    for batch in in_batches(network.resident, pictures, encoding.encoder.batch):
        coming.append([network.to_host(some) for some in tally.add(batch)])
        if len(coming) > AHEAD:
            take()
    counted = tally.done(network.to_host)  # asked for before anything is waited for: what other threads give the device comes after it
    while coming:
        take()
    finite, moments, error = counted()
    if not finite:
        raise refuse(encoding.encoder)
    return CodedPart(payloads, moments, error, encoding.fingerprint)
