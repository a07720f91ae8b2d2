"""Text as token ids of a `tokenizer.json` (the format of the `tokenizers` library: BPE, WordPiece or unigram, any published model's).

In: texts. Out: uint16 or uint32 ids, by the size of the vocabulary. No structure token is ever stored, and text that spells one
("<|endoftext|>" on a web page) is taken as ordinary text, so that no document can end another. The five structure tokens get the ids
after the tokenizer's own; `specials` maps some or all of them to tokens that the tokenizer already has (names or ids).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import field_validator

from encode.encoder import SPECIALS, LoadedTokenizer, TextEncoder
from pipelines.format import storage
from pipelines.format.document import sha256_hex
from pipelines.format.errors import InputError

BATCH_CHARACTERS = 1 << 22


class TextTokens(TextEncoder):
    """`tokenizer`: a tokenizer.json, or the folder that holds one."""

    tokenizer: str
    specials: dict[str, int | str] = {}

    @field_validator("specials")
    @classmethod
    def _known(cls, value: dict[str, int | str]) -> dict[str, int | str]:
        unknown = sorted(set(value) - set(SPECIALS))
        if unknown:
            raise ValueError(f"unknown structure token {unknown[0]!r}; known: {', '.join(SPECIALS)}")
        return value

    def load(self) -> LoadedTokenizer:
        path = self.tokenizer if self.tokenizer.endswith(".json") else storage.join(self.tokenizer, "tokenizer.json")
        if not storage.exists(path):
            raise InputError("no tokenizer there", where=path, next="make one with `pipelines run fit-tokenizer`, or name a tokenizer.json")
        return JsonTokenizer(storage.read(path), self.specials, path)


class JsonTokenizer(LoadedTokenizer):
    """A tokenizer.json in memory."""

    def __init__(self, file: bytes, specials: dict[str, int | str], name: str) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer: Any = Tokenizer.from_str(file.decode())
        except Exception as e:  # the library raises bare Exception
            raise InputError("not a tokenizer.json", where=name, found=str(e)[:200]) from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True
        self.file, self.sha256 = file, sha256_hex(file)
        known = self.tokenizer.get_vocab(with_added_tokens=True)
        first_free = max(known.values(), default=-1) + 1
        self.specials = placed(specials, known, first_free, name)
        self.vocab = max(first_free, *(i + 1 for i in self.specials.values()))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One id array per text. Some texts at a time: the library's own encodings take about a hundred bytes a token."""
        out: list[np.ndarray] = []
        for some in batched(texts, BATCH_CHARACTERS):
            out += [np.array(e.ids, self.dtype) for e in self.tokenizer.encode_batch_fast(some, add_special_tokens=False)]
        return out

    def decode(self, ids: np.ndarray) -> str:
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))


def batched(texts: Sequence[str], characters: int) -> Iterator[list[str]]:
    """The texts in order, in lists that reach `characters`."""
    some: list[str] = []
    held = 0
    for text in texts:
        some.append(text)
        held += len(text)
        if held >= characters:
            yield some
            some, held = [], 0
    if some:
        yield some


def placed(wanted: dict[str, int | str], known: dict[str, int], first_free: int, name: str) -> dict[str, int]:
    """Where each structure token lives: mapped onto a token of the tokenizer, or the next id after all of its own."""
    out: dict[str, int] = {}
    for special in SPECIALS:
        if special not in wanted:
            out[special] = first_free
            first_free += 1
            continue
        value = wanted[special]
        found = known.get(value) if isinstance(value, str) else value if value in set(known.values()) else None
        if found is None:
            raise InputError(f"the tokenizer has no token {value!r} to serve as {special}", where=name)
        out[special] = found
    if len(set(out.values())) < len(SPECIALS):
        raise InputError("two structure tokens share one id", where=name, found=out)
    return out
