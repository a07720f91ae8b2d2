"""Words of a text, found once and shared by every filter that asks; the very words datatrove's tokenizers give, thirty times as fast.

What comes in: a text and a language. What goes out: `Words`: the ids of its words in this process's lexicon, beside arrays that say of each word in
the lexicon how long it is, whether it is only punctuation, whether it holds a letter. A filter is then a few sums over `lexicon.length[ids]`.

Why it is fast. spaCy's rule tokenizer cuts at white space first and then looks at each chunk alone, so a chunk that was seen before need
not be looked at again: running text repeats itself, and some 100,000 chunks hold almost all there is (60,000 words in 0.04 s, not 1.3 s).

Why it is exact. One thing looks over the border of a chunk: spaCy finds special cases (":)", "e.g.") inside chunks by matching token
sequences over the whole text, where a longer match across white space can hide one inside a chunk ("x:) )"). So a chunk with a special case
inside is marked, and a text where such a chunk and its neighbour touch with two tokens that stand side by side in some special case is
given to spaCy whole (1 text of 50). Tokenizers that are not of this kind (Chinese, Japanese, Thai …) always get the whole text.
`tests/pipelines/test_words.py` holds the equality.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.extra import need
from pipelines.format.errors import Reject
from pipelines.format.record import Record

CHUNKS = 400_000  # remembered chunks; a full lexicon takes 270 MB (measured), then a new one is begun
MOST = 200_000  # different chunks of one text: more than any book; what has more is a table of numbers, or made to fill memory
_STEP = 10_000  # chunks given to spaCy at a time: it takes 1.5 KB for each until it is done
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by its powers loses nothing modulo 2^64
_APART = "\n \n \n"
_OTHER, _PUNCT, _END = 0, 1, 2  # how a word ends sentences: not, punctuation, a full stop of some script


@dataclass(frozen=True, eq=False)
class Words:
    """The words of one text, int64 ids [n] into `lexicon`."""

    lexicon: Lexicon
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def texts(self) -> list[str]:
        """The words themselves."""
        return list(map(self.lexicon.words.__getitem__, self.ids.tolist()))


@dataclass(eq=False)
class Lexicon:
    """Every word met so far in one language. `length`, `symbol`, `letter`, `mix` are arrays over word ids."""

    language: str
    words: list[str] = field(default_factory=list)
    _ids: dict[str, int] = field(default_factory=dict)
    _arrays: dict[str, tuple[int, NDArray[Any]]] = field(default_factory=dict)
    _marked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._whole = need("datatrove.utils.word_tokenizers", "words").load_word_tokenizer(self.language)
        self._symbols = need("datatrove.utils.text", "words").PUNCTUATION_SET
        self._chunks: _Chunks | None = None
        self._inside: set[tuple[str, str]] = set()  # tokens that stand side by side in some special case
        self._first: dict[str, list[tuple[str, str]]] = {}
        self._second: dict[str, list[tuple[str, str]]] = {}
        self._ends: frozenset[str] = frozenset()
        spacy_tokenizer: Any = getattr(getattr(self._whole, "tokenizer", None), "tokenizer", None)
        if type(self._whole).__name__ == "SpaCyTokenizer" and type(spacy_tokenizer).__module__ == "spacy.tokenizer":
            rules = spacy_tokenizer.rules
            if not any(len(key.split()) > 1 for key in rules):
                pipe = self._whole.tokenizer
                bare = _without_special_cases(spacy_tokenizer)
                cut = {key: [token.text for token in bare(key)] for key in rules}
                self._inside = {pair for pieces in cut.values() for pair in pairwise(pieces)}
                for pair in self._inside:
                    self._first.setdefault(pair[0], []).append(pair)
                    self._second.setdefault(pair[1], []).append(pair)
                self._chunks = _Chunks(self, spacy_tokenizer, pipe, {key for key, pieces in cut.items() if len(pieces) > 1})
                self._ends = frozenset(pipe.get_pipe("sentencizer").punct_chars)

    def of(self, text: str) -> Words:
        """The words of a text."""
        return Words(self, self._find(text))

    def id(self, word: str) -> int:
        """The id of a word, new or known."""
        known = self._ids.get(word)
        if known is None:
            known = self._ids[word] = len(self.words)
            self.words.append(word)
        return known

    def sentences(self, line: str) -> int:
        """How many sentences datatrove's splitter finds in a line."""
        chunks = line.split()
        plain = self._chunks is not None and len(chunks) > 0 and " ".join(chunks) == line
        if self._chunks is None or not plain or self._pieces(chunks) is None:
            return len(need("datatrove.utils.text", "words").split_into_sentences(line, self.language))
        role, found, after = self._chunks.roles, 1, False
        for chunk in chunks:
            for kind in role(chunk):
                if kind == _OTHER and after:
                    found, after = found + 1, False
                elif kind == _END:
                    after = True
        return found

    def _find(self, text: str) -> NDArray[np.int64]:
        text = text.replace("IS_ALPHA", "")  # makes spaCy raise, depending on what it read before; datatrove then leaves it out, we always do
        pieces = None if self._chunks is None else self._pieces(text.split())
        if pieces is None:
            return self._listed(self._whole.word_tokenize(text))
        return np.fromiter(chain.from_iterable(pieces), np.int64)

    def _listed(self, words: Iterable[str]) -> NDArray[np.int64]:
        return np.fromiter(map(self.id, words), np.int64)

    def _pieces(self, chunks: list[str]) -> list[tuple[int, ...]] | None:
        """The words of each chunk; None where a match across white space could hide a special case inside a marked chunk."""
        assert self._chunks is not None
        if len(chunks) > MOST and len(set(chunks)) > MOST:  # whatever this process happens to know of them already
            raise Reject("too_large", f"more than {MOST} different words in one text")
        try:
            pieces = list(map(self._chunks.__getitem__, chunks))
        except KeyError:
            self._chunks.learn(chunks)
            pieces = list(map(self._chunks.__getitem__, chunks))
        return pieces if self._marked.isdisjoint(chunks) or not self._touch(chunks, self._chunks) else None

    def _touch(self, chunks: list[str], chunk: _Chunks) -> bool:
        for left, right in pairwise(chunks):
            if left in self._marked or right in self._marked:
                before = left if left in self._marked else chunk.last(left)  # a marked chunk's own last token before special cases is not known
                after = right if right in self._marked else chunk.first(right)
                known = (
                    self._second.get(after, ()) if right not in self._marked else self._first.get(before, ()) if left not in self._marked else None
                )
                if any(before.endswith(a) and after.startswith(b) for a, b in (self._inside if known is None else known)):
                    return True
        return False

    # ---- arrays over the lexicon, made for the words that are new since the last time ----

    @property
    def length(self) -> NDArray[np.int64]:
        """Characters of each word."""
        return self._array("length", np.int64, lambda words: list(map(len, words)))

    @property
    def symbol(self) -> NDArray[np.bool_]:
        """Whether each word is nothing but punctuation, by datatrove's table."""
        symbols = self._symbols
        return self._array("symbol", np.bool_, lambda words: [symbols.issuperset(word) for word in words])

    @property
    def letter(self) -> NDArray[np.bool_]:
        """Whether each word holds a letter."""
        return self._array("letter", np.bool_, lambda words: [word.isalpha() or any(map(str.isalpha, word)) for word in words])

    @property
    def mix(self) -> NDArray[np.uint64]:
        """A polynomial of each word's characters modulo 2^64, so that a run of words hashes as the one string it makes (`powers` below)."""
        return self._array("mix", np.uint64, _polynomials)

    def _array(self, name: str, dtype: Any, of: Any) -> NDArray[Any]:
        filled, array = self._arrays.get(name, (0, np.empty(1024, dtype)))
        if filled < len(self.words):
            if len(self.words) > len(array):  # doubled, so that a new word in every text does not copy a million each time
                array = np.concatenate([array, np.empty(2 * len(self.words), dtype)])
            array[filled : len(self.words)] = of(self.words[filled:])
            self._arrays[name] = len(self.words), array
        return array


class _Chunks(dict[str, tuple[int, ...]]):
    """Chunk → ids of its words, filled as texts bring new chunks."""

    def __init__(self, lexicon: Lexicon, tokenizer: Any, pipe: Any, special: set[str]) -> None:
        self._lexicon, self._tokenizer, self._pipe = lexicon, tokenizer, pipe
        self._is_punct = pipe.vocab.lex_attr_getters[need("spacy.attrs", "words").IS_PUNCT]
        self._special = special  # cases that affix rules alone would cut, and that are therefore found by matching tokens
        self._roles: dict[str, tuple[int, ...]] = {}
        self._apart = pipe.vocab.strings.add(_APART)
        self._of_orth: dict[int, int] = {}  # spaCy's number of a word → ours

    def learn(self, chunks: list[str]) -> None:
        """Take in the chunks that are new, in the order met. They are given to spaCy as one text (four times as fast as one by one) with a token
        between them that is in no special case, so that nothing is matched across."""
        new = [chunk for chunk in dict.fromkeys(chunks) if chunk not in self]
        for at in range(0, len(new), _STEP):
            self._learn(new[at : at + _STEP])

    def _learn(self, new: list[str]) -> None:
        found: list[list[int]] = [[]]
        ids, strings = self._of_orth, self._pipe.vocab.strings
        with self._pipe.memory_zone():  # spaCy would keep every word for ever
            for orth in self._tokenizer(_APART.join(new)).to_array("ORTH").tolist():
                if orth == self._apart:
                    found.append([])
                    continue
                if orth not in ids:
                    ids[orth] = self._lexicon.id(strings[orth])
                found[-1].append(ids[orth])
        words = self._lexicon.words
        for chunk, here in zip(new, found, strict=True):
            if len(here) > 1 and _special_case_inside(chunk, [words[i] for i in here], self._special):
                self._lexicon._marked.add(chunk)
            self[chunk] = tuple(here)

    def first(self, chunk: str) -> str:
        return self._lexicon.words[self[chunk][0]]

    def last(self, chunk: str) -> str:
        return self._lexicon.words[self[chunk][-1]]

    def roles(self, chunk: str) -> tuple[int, ...]:
        """How each word of a chunk ends sentences."""
        known = self._roles.get(chunk)
        if known is None:
            words = (self._lexicon.words[i] for i in self[chunk])
            known = self._roles[chunk] = tuple(self._role(word) for word in words)
        return known

    def _role(self, word: str) -> int:
        if word in self._lexicon._ends:
            return _END
        return _PUNCT if self._is_punct(word) else _OTHER


def _special_case_inside(chunk: str, words: list[str], special: set[str]) -> bool:
    for i in range(len(words)):
        run = ""
        for word in words[i:]:
            run += word
            if run in special and run != chunk:
                return True
    return False


def _without_special_cases(tokenizer: Any) -> Any:
    affixes = tokenizer.prefix_search, tokenizer.suffix_search, tokenizer.infix_finditer, tokenizer.token_match
    bare = type(tokenizer)(tokenizer.vocab, {}, *affixes)
    bare.url_match = tokenizer.url_match
    return bare


def _polynomials(words: list[str]) -> NDArray[np.uint64]:
    """Σ (code of character k) · base^k of each word, all at once."""
    codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    terms = (codes * np.uint64(0xD6E8FEB86659FD93) + np.uint64(1)) * powers(int(lengths.max()))[place]
    return np.add.reduceat(terms, starts)


@functools.lru_cache(maxsize=4)
def _powers(exponent: int) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return np.concatenate([np.ones(1, np.uint64), np.cumprod(np.full((1 << exponent) - 1, _BASE, np.uint64), dtype=np.uint64)])


def powers(n: int) -> NDArray[np.uint64]:
    """The first n or more powers of the base of `Lexicon.mix`."""
    return _powers(max(16, n.bit_length()))


_lexicons: dict[str, Lexicon] = {}
_last: tuple[str, str, Words] | None = None


def lexicon(language: str = "eng") -> Lexicon:
    """This process's lexicon of a language (ISO 639-3, as datatrove names them); begun anew when it is full."""
    have = _lexicons.get(language)
    if have is None or len(have._chunks or ()) > CHUNKS or len(have.words) > CHUNKS:
        have = _lexicons[language] = Lexicon(language)
    return have


def words_of(text: str, language: str = "eng") -> Words:
    """The words of a text. The text asked for last is remembered by identity, so the filters of a chain share one search."""
    global _last
    last = _last
    if last is not None and last[0] is text and last[1] == language:
        return last[2]
    found = lexicon(language).of(text)
    _last = (text, language, found)
    return found


def text_of(record: Record) -> str:
    """A record's text: its one text segment itself (the same object each time), or several joined by line ends."""
    texts = [s.text or "" for s in record.segments if s.kind == "text"]
    return texts[0] if len(texts) == 1 else "\n".join(texts)
