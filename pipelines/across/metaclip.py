"""MetaCLIP curation: keep what names rare things, thin out what names common ones (Xu et al., "Demystifying CLIP Data", ICLR 2024).

In: records with texts, and a list of entries. Out: the ids of the others, as `metaclip.no_match` (no entry occurs in any text) or
`metaclip.balanced` (drawn away). In words: every text is matched to the entries (`matching`, the published rule); how many texts match an entry is
its count; an entry with count ≤ t keeps all of its records, one with more keeps each with probability t / count; a record stays if any of its
entries keeps it. So the tail stays whole and the head is cut to about t records an entry.

    round 0   count: texts per entry over all parts
    round 1   the whole-number t from which each record stays, as a histogram: for `pairs`, and for the `curve` of the report
    last      each record's draws against its entries' counts

The draw of (record, entry) is uniform(draw(h, seed, "balance", entry)), and a record stays from t = min over its entries of
min(count, ⌊draw · count⌋ + 1) on. So nothing depends on order, sharding or workers, a larger t keeps all that a smaller one keeps, and t can be
solved for exactly. The published code draws without a seed and takes an image once for each of its kept texts; here an image is one record.

The second version ("Meta CLIP 2", 2025) adds two things. `languages`: a list for each language, t given for the first; the share of matches that
fall to its entries below t is p, and every other language gets the count at which its own share comes nearest to p. `texts: one`: of a record
with several texts that match, one is drawn, and only its entries can keep the record, so that many captions do not buy an image many chances. The
draw is uniform(draw(h, seed, "balance_text")): every round takes the same text without a word about it on disk. Counts are of all texts that
match, as published: they say how common a thing is in the pool, and are the same whatever is drawn. Hence an entry above t keeps t / count of
the records whose drawn text names it, which is t at most, and a rare entry may lose a record whose other text was drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.balancing import DEFAULT_T, Needs, Tails, by_rank, by_t, commonest, histograms, merged, solve
from pipelines.entries import EntryLists, Matches, entry_file, entry_lists
from pipelines.format import storage
from pipelines.format.chance import draw, draw_by, uniform
from pipelines.format.document import Size
from pipelines.format.errors import BudgetError
from pipelines.format.record import Record
from pipelines.matching import Boundaries
from pipelines.stage import Across, Map, Reduce, Row

I64 = NDArray[np.int64]
CHUNK = 8_192  # records matched at a time
_MOST = 16  # matches a text from which on the histogram of the report is one bar


class Metaclip(Across):
    """`entries` is a list's path, or `languages` one for each value of the record's field `language_field`. `t` or `pairs`, t = 20,000 by default.

    `captions` names the texts that are matched (all by default); `texts` says whether all of those that match speak for a record, or one that is
    drawn. `boundaries: scripts` is the second version's matching rule. `curve: false` saves the pass that finds how many would stay at other t.
    """

    again: ClassVar[tuple[int, ...]] = (1, 2)
    entries: str | None = None
    languages: dict[str, str] | None = None
    language_field: str = "language"
    t: Size | None = Field(None, ge=1)
    pairs: Size | None = Field(None, ge=1)
    boundaries: Boundaries = "spaces"
    captions: list[str] | None = None
    texts: Literal["all", "one"] = "all"
    curve: bool = True
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Metaclip:
        if (self.entries is None) == (not self.languages):
            raise ValueError("give `entries: FILE`, or `languages: {en: FILE, …}`, and one of them only")
        if self.t is not None and self.pairs is not None:
            raise ValueError("`t` and `pairs` are two ways to say one thing; give one")
        return self

    def files(self) -> list[str]:
        """The entry lists."""
        return [entry_file(storage.absolute(path)) for path in self._paths().values()]

    def rounds(self) -> Sequence[tuple[Map, Reduce | None]]:
        """Counting, finding from which t on records stay, and drawing."""
        needs: list[tuple[Map, Reduce | None]] = [(self._needs, self._histogram)] if self._asks_needs else []
        return [(self._count, self._total), *needs, (self._drops, None)]

    @property
    def _asks_needs(self) -> bool:
        return self.curve or self.pairs is not None

    def report(self, told: list[list[Any]]) -> dict[str, Any]:
        """Why the numbers are what they are: matches a text, head and tail of the list, the limit t, what other limits would keep."""
        lists, counts = self.lists, self._counts(told)
        tails, t = self._limit(told, counts)
        limits = tails.limits(t)
        seen: Counter[str] = Counter()
        for value in told[0]:
            seen.update(value["seen"])
        head = counts > limits
        texts, matches = seen.pop("texts", 0), int(counts.sum())
        bars = {k.removeprefix("with "): n for k, n in sorted(seen.items()) if k.startswith("with ")}
        curve = {"records_by_t": by_t(tails, Needs(told[1], len(lists.places)))} if self._asks_needs else {}
        return {
            "entries": {"all": len(counts), "matched": int((counts > 0).sum()), "unreachable": lists.unreachable, "head": int(head.sum())},
            "t": dict(zip(lists.places, tails.at(t), strict=True)) if self.languages else t,
            "records": {"all": seen["records"], "matched": seen["records matched"]},
            "texts": {"all": texts, "matched": texts - bars.get("00", 0), **({"drawn": seen["records matched"]} if self.texts == "one" else {})},
            "texts_with_entries": bars,
            "matches": {"all": matches, "head": int(counts[head].sum()), "a_text": round(matches / max(texts, 1), 4)},
            **curve,
            "matches_by_rank": by_rank(counts, limits),
            "commonest": commonest(lists.entries, counts, limits),
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

    # ---- round 1 -----------------------------------------------------------------------------------------------------------------------

    def _needs(self, records: Iterable[Record], told: list[list[Any]]) -> Iterator[Row]:
        counts = self._counts(told)
        for value in histograms(self._needed(found, counts) for found in self._speaking(records)):
            yield value["list"], b"", value

    def _histogram(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        yield from merged(value for _, _, value in rows)

    def _needed(self, found: Matches, counts: I64) -> tuple[I64, I64]:
        """(list, smallest t that keeps it) of each record that matches."""
        never = np.iinfo(np.int64).max
        owner, need, of = found.owner[found.text], np.full(len(found.records), never), np.zeros(len(found.records), np.int64)
        np.minimum.at(need, owner, self._need(found, counts))
        of[owner] = np.searchsorted([lo for lo, _ in self.lists.places.values()], found.entry, side="right") - 1
        return of[need < never], need[need < never]

    # ---- the last round ----------------------------------------------------------------------------------------------------------------

    def _drops(self, records: Iterable[Record], told: list[list[Any]]) -> Iterator[tuple[str, str]]:
        counts = self._counts(told)
        tails, t = self._limit(told, counts)
        limits = tails.limits(t)
        for found in self._speaking(records):
            kept = np.zeros(len(found.records), bool)
            matched = kept.copy()
            owner = found.owner[found.text]
            matched[owner] = True
            kept[owner[self._need(found, counts) <= limits[found.entry]]] = True
            for record, stays, has in zip(found.records, kept.tolist(), matched.tolist(), strict=True):
                if not stays:
                    yield record.id, "metaclip.balanced" if has else "metaclip.no_match"

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

    def _limit(self, told: list[list[Any]], counts: I64) -> tuple[Tails, int]:
        """What gives every list its t, and the t of the first: given, or solved for."""
        tails = Tails(counts, self.lists.places.values())
        if self.pairs is None:
            return tails, self.t or DEFAULT_T
        needs = Needs(told[1], len(self.lists.places))
        t = solve(tails, needs, self.pairs)
        if t is None:
            raise BudgetError(
                "more pairs are wanted than match any entry",
                where="across.metaclip.pairs",
                found=f"{needs.all:,} records match",
                allowed=f"at most {needs.all:,}",
                next="more records, or a longer entry list",
            )
        return tails, t

    def _speaking(self, records: Iterable[Record]) -> Iterator[Matches]:
        """Matches that may keep a record: all, or those of one text of each record."""
        for found in self._found(records, self.lists):
            yield self._of_one_text(found) if self.texts == "one" else found

    def _of_one_text(self, found: Matches) -> Matches:
        """Of each record's texts that match, in the order of the record, the one at ⌊uniform(draw(h, seed, "balance_text")) · n⌋."""
        texts = np.unique(found.text)
        owners, first, n = np.unique(found.owner[texts], return_index=True, return_counts=True)
        drawn = np.floor(uniform(draw(found.h[owners], self.seed, "balance_text")) * n).astype(np.int64)
        mine = np.isin(found.text, texts[first + drawn])
        return replace(found, text=found.text[mine], entry=found.entry[mine])

    def _found(self, records: Iterable[Record], lists: EntryLists) -> Iterator[Matches]:
        source = iter(records)
        while chunk := list(islice(source, CHUNK)):
            yield lists.match(chunk, [self._texts(r) for r in chunk], [str(r.fields.get(self.language_field, "")) for r in chunk])

    def _texts(self, record: Record) -> list[str]:
        return [s.text for s in record.segments if s.text is not None and (self.captions is None or s.member in self.captions)]
