"""What becomes of a part that does not fit in memory: it starts again in batches of half the size, down to one picture.

In: a part's pictures and a loaded encoding. Out: the part as coded, with a note that names the batch it was made in, as its fingerprint does:
bytes are equal only within one batch size, so a part is never half of one and half of another. The worker keeps the smaller batch, since what was
too large once will be again. Where even one picture does not fit, or the network itself, the person has to choose: an InputError says between what.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import replace

import numpy as np

from encode.coding import CodedPart, coded
from encode.encoder import ImageEncoder, ImageEncoding
from pipelines.format.document import part_name
from pipelines.format.errors import InputError

# Allocators under torch say it in a RuntimeError: the CPU's, CUDA's for pinned memory, cuBLAS and cuDNN for their workspaces.
SAID = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether this is want of memory, on a device or here."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


def opened(encoder: ImageEncoder, device: str | None = None) -> ImageEncoding:
    """The encoder with its network loaded; InputError where there is no room for it."""
    try:
        return ImageEncoding(encoder, device)
    except Exception as e:
        if not out_of_memory(e):
            raise
        where, found = part_name(encoder), _short(e)
    raise InputError("the network does not fit in memory", where=where, found=found, next="fewer workers on a device (`resources.gpus`), or a larger one")


def coded_as_fits(encoding: ImageEncoding, pictures: np.ndarray, codec: str) -> CodedPart:
    """`coded`, in the largest batches that fit: those of `encoding`, or half of them, and so on. InputError where one picture does not."""
    while True:
        try:
            part = coded(encoding, pictures, codec)
            return replace(part, notes=(*part.notes, *_notes(encoding)))
        except Exception as e:
            if not out_of_memory(e):
                raise
            found = _short(e)
        # Only here, with the error and all that its frames held gone, is there anything to give back.
        _give_back()
        if encoding.batch == 1:
            raise InputError(
                "the network does not fit in memory with a single picture",
                where=part_name(encoding.encoder),
                found=found,
                next="fewer workers on a device (`resources.gpus`), `dtype: bf16`, smaller pictures or a larger device",
            )
        encoding.resize(encoding.batch // 2)


def _notes(encoding: ImageEncoding) -> tuple[str, ...]:
    if encoding.batch == encoding.asked:
        return ()
    return (f"out of memory: made in batches of {encoding.batch} instead of {encoding.asked}",)


def _give_back() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()  # what is left is in pieces of the size that did not fit


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
