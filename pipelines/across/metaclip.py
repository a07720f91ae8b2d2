"""MetaCLIP curation: keep what names rare things, thin out what names common ones (Xu et al., "Demystifying CLIP Data", ICLR 2024).

In: records with texts, and a list of entries. Out: the ids of the others, as `metaclip.no_match` (no entry occurs in any text) or
`metaclip.balanced` (drawn away). In words: every text is matched to the entries (`matching`, the published rule); how many texts match an entry is
its count; an entry with count ≤ t keeps all of its records, one with more keeps each with probability t / count; a record stays if any of its
entries keeps it. So the tail stays whole and the head is cut to about t records an entry.

    round 0   count: texts per entry over all parts
    (round 1  with `pairs`: the whole-number t from which each record stays, as a histogram; t is the smallest with at least that many)
    last      each record's draws against its entries' counts

The draw of (record, entry) is uniform(draw(h, seed, "balance", entry)), and a record stays from t = min over its entries of
min(count, ⌊draw · count⌋ + 1) on. So nothing depends on order, sharding or workers, a larger t keeps all that a smaller one keeps, and t can be
solved for exactly. The published code draws without a seed and takes an image once for each of its kept texts; here an image is one record.

`languages` is the second version's rule ("Meta CLIP 2", 2025): a list for each language, t given for the first; the share of matches that fall to
its entries below t is p, and every other language gets the count at which its own share comes nearest to p.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from pipelines.entries import EntryLists, Matches, entry_file, entry_lists
from pipelines.format import storage
from pipelines.format.chance import draw_by, uniform
from pipelines.format.document import Size
from pipelines.format.errors import BudgetError
from pipelines.format.record import Record
from pipelines.matching import Boundaries
from pipelines.stage import Across, Map, Reduce, Row

I64 = NDArray[np.int64]
CHUNK = 8_192  # records matched at a time
_MOST = 16  # matches a text from which on the histogram of the report is one bar
DEFAULT_T = 20_000  # the published one, for a pool of 1.6 billion texts


class Metaclip(Across):
    """`entries` is a list's path, or `languages` one for each value of the record's field `language_field`. `t` or `pairs`, t = 20,000 by default.

    `captions` names the texts that are matched (all by default). `boundaries: scripts` is the second version's matching rule.
    """

    again: ClassVar[tuple[int, ...]] = (1, 2)
    entries: str | None = None
    languages: dict[str, str] | None = None
    language_field: str = "language"
    t: Size | None = None
    pairs: Size | None = None
    boundaries: Boundaries = "spaces"
    captions: list[str] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Metaclip:
        if (self.entries is None) == (not self.languages):
            raise ValueError("give `entries: FILE`, or `languages: {en: FILE, …}`, and one of them only")
        if self.t is not None and self.pairs is not None:
            raise ValueError("`t` and `pairs` are two ways to say one thing; give one")
        if self.pairs is not None and self.languages:
            raise ValueError("`pairs` is for one list; with `languages`, give t for the first")
        return self

    def files(self) -> list[str]:
        """The entry lists."""
        return [entry_file(storage.absolute(path)) for path in self._paths().values()]

    def rounds(self) -> Sequence[tuple[Map, Reduce | None]]:
        """Counting, perhaps solving for t, and drawing."""
        solving: list[tuple[Map, Reduce | None]] = [(self._needs, self._histogram)] if self.pairs is not None else []
        return [(self._count, self._total), *solving, (self._drops, None)]

    def report(self, told: list[list[Any]]) -> dict[str, Any]:
        """Why the numbers are what they are: matches a text, head and tail of the list, the limit t."""
        lists, counts = self.lists, self._counts(told)
        limits = self._limits(told, counts)
        seen: Counter[str] = Counter()
        for value in told[0]:
            seen.update(value["seen"])
        head = counts > limits
        at = {language: int(limits[lo]) for language, (lo, _) in lists.places.items()}
        texts, matches = seen.pop("texts"), int(counts.sum())
        bars = {k.removeprefix("with "): n for k, n in sorted(seen.items()) if k.startswith("with ")}
        return {
            "entries": {"all": len(counts), "matched": int((counts > 0).sum()), "unreachable": lists.unreachable, "head": int(head.sum())},
            "t": at if self.languages else at[""],
            "records": {"all": seen["records"], "matched": seen["records matched"]},
            "texts": {"all": texts, "matched": texts - bars.get("00", 0)},
            "texts_with_entries": bars,
            "matches": {"all": matches, "head": int(counts[head].sum()), "a_text": round(matches / max(texts, 1), 4)},
        }

    # ---- round 0 -----------------------------------------------------------------------------------------------------------------------

    def _count(self, records: Iterable[Record]) -> Iterator[Row]:
        lists = self.lists
        counts = np.zeros(len(lists.entries), np.int64)
        seen: Counter[str] = Counter()
        for found in self._found(records, lists):
            counts += np.bincount(found.entry, minlength=len(counts))
            a_text = np.bincount(found.text, minlength=len(found.owner))
            seen.update({"records": len(found.records), "texts": len(a_text), "records matched": len(np.unique(found.owner[found.text]))})
            bars, heights = np.unique(np.minimum(a_text, _MOST), return_counts=True)
            seen.update({f"with {b:02}{'+' if b == _MOST else ''}": n for b, n in zip(bars.tolist(), heights.tolist(), strict=True)})
        matched = np.flatnonzero(counts)
        for b in range(self.buckets):
            ids = matched[matched % self.buckets == b]
            if len(ids):
                yield b, b"count", {"entries": ids.tolist(), "counts": counts[ids].tolist()}
        yield 0, b"seen", dict(seen)

    def _total(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        counts: Counter[int] = Counter()
        seen: Counter[str] = Counter()
        for _, key, value in rows:
            if key == b"seen":
                seen.update(value)
            else:
                counts.update(dict(zip(value["entries"], value["counts"], strict=True)))
        yield {"entries": list(counts), "counts": list(counts.values()), "seen": dict(seen)}

    # ---- solving for t -----------------------------------------------------------------------------------------------------------------

    def _needs(self, records: Iterable[Record], told: list[list[Any]]) -> Iterator[Row]:
        histogram: Counter[int] = Counter()
        for _, need in self._needed(records, self._counts(told)):
            values, heights = np.unique(_rounded(need), return_counts=True)
            histogram.update(dict(zip(values.tolist(), heights.tolist(), strict=True)))
        yield 0, b"", {"t": list(histogram), "n": list(histogram.values())}

    def _histogram(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        histogram: Counter[int] = Counter()
        for _, _, value in rows:
            histogram.update(dict(zip(value["t"], value["n"], strict=True)))
        yield {"t": list(histogram), "n": list(histogram.values())}

    def _solved(self, values: list[dict[str, Any]]) -> int:
        pairs = sorted((t, n) for value in values for t, n in zip(value["t"], value["n"], strict=True))
        kept = np.cumsum([n for _, n in pairs]) if pairs else np.zeros(0, np.int64)
        assert self.pairs is not None
        place = int(np.searchsorted(kept, self.pairs))
        if place == len(kept):
            there = int(kept[-1]) if len(kept) else 0
            raise BudgetError(
                "more pairs are wanted than match any entry",
                where="across.metaclip.pairs",
                found=f"{there:,} records match",
                allowed=f"at most {there:,}",
                next="more records, or a longer entry list",
            )
        return int(pairs[place][0])

    # ---- the last round ----------------------------------------------------------------------------------------------------------------

    def _drops(self, records: Iterable[Record], told: list[list[Any]]) -> Iterator[tuple[str, str]]:
        counts = self._counts(told)
        limits = self._limits(told, counts)
        for ids, (kept, matched) in self._kept(records, counts, limits):
            for id, stays, has in zip(ids, kept.tolist(), matched.tolist(), strict=True):
                if not stays:
                    yield id, "metaclip.balanced" if has else "metaclip.no_match"

    def _kept(self, records: Iterable[Record], counts: I64, limits: I64) -> Iterator[tuple[list[str], tuple[NDArray[np.bool_], NDArray[np.bool_]]]]:
        for found in self._found(records, self.lists):
            kept = np.zeros(len(found.records), bool)
            matched = kept.copy()
            owner = found.owner[found.text]
            matched[owner] = True
            kept[owner[self._need(found, counts) <= limits[found.entry]]] = True
            yield [r.id for r in found.records], (kept, matched)

    def _needed(self, records: Iterable[Record], counts: I64) -> Iterator[tuple[None, I64]]:
        for found in self._found(records, self.lists):
            never = np.iinfo(np.int64).max
            need = np.full(len(found.records), never)
            np.minimum.at(need, found.owner[found.text], self._need(found, counts))
            yield None, need[need < never]

    def _need(self, found: Matches, counts: I64) -> I64:
        """For each (text, entry): the smallest whole t at which this entry keeps this record."""
        count = counts[found.entry]
        u = uniform(draw_by(found.h[found.owner[found.text]], self.lists.keys(found.entry, self.seed)))
        return np.minimum(count, np.floor(u * count).astype(np.int64) + 1)

    # ---- what all rounds share ---------------------------------------------------------------------------------------------------------

    def _paths(self) -> dict[str, str]:
        return self.languages if self.languages else {"": self.entries or ""}

    @cached_property
    def lists(self) -> EntryLists:
        """The lists, read and indexed once in a process."""
        tags = [storage.listing(path)[0][2] for path in self.files()]
        return entry_lists(tuple(self._paths()), tuple(self.files()), tuple(tags), self.boundaries)

    def _counts(self, told: list[list[Any]]) -> I64:
        counts = np.zeros(len(self.lists.entries), np.int64)
        for value in told[0]:
            counts[value["entries"]] = value["counts"]
        return counts

    def _limits(self, told: list[list[Any]], counts: I64) -> I64:
        """t of each entry."""
        t = self._solved(told[1]) if self.pairs is not None else self.t or DEFAULT_T
        limits = np.full(len(counts), t, np.int64)
        (lo, hi), *others = self.lists.places.values()
        share = tail_share(counts[lo:hi], t)
        for lo, hi in others:
            limits[lo:hi] = t_of_share(counts[lo:hi], share)
        return limits

    def _found(self, records: Iterable[Record], lists: EntryLists) -> Iterator[Matches]:
        source = iter(records)
        while chunk := list(islice(source, CHUNK)):
            yield lists.match(chunk, [self._texts(r) for r in chunk], [str(r.fields.get(self.language_field, "")) for r in chunk])

    def _texts(self, record: Record) -> list[str]:
        return [s.text for s in record.segments if s.text is not None and (self.captions is None or s.member in self.captions)]


def tail_share(counts: I64, t: int) -> float:
    """The share of all matches that fall to entries with fewer than t."""
    return float(counts[counts < t].sum() / max(int(counts.sum()), 1))


def t_of_share(counts: I64, share: float) -> int:
    """The count up to which the entries, rarest first, hold the share of all matches that comes nearest to `share`."""
    rising = np.sort(counts[counts > 0])
    if not len(rising):
        return DEFAULT_T
    return int(rising[np.argmin(np.abs(np.cumsum(rising) / rising.sum() - share))])


def _rounded(t: I64) -> I64:
    """Up to four significant digits, so that histograms of any data stay small."""
    unit = 10 ** np.maximum(np.floor(np.log10(np.maximum(t, 1))).astype(np.int64) - 3, 0)
    return -(-t // unit) * unit
