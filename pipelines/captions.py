"""Captions of an image by name, and the convention that ties a score to them.

A record with one caption has one score, `clip`. With several, `clip` is the record's own (which of them or what of them, the score's recipe says) and
`clip.<caption>` is each caption's. So a threshold on `clip` works everywhere, and a choice among captions finds what it needs.
"""

from __future__ import annotations

from dataclasses import replace

from pipelines.format.record import Record, Segment


def named(record: Record) -> list[tuple[str, Segment]]:
    """The captions of an image-text record in their order, each with a name of its own: the one it has, else `original`, `caption2` … by its place;
    a name that comes again is followed by `~` and its place."""
    out: dict[str, Segment] = {}
    for place, segment in enumerate((s for s in record.segments if s.kind == "text"), 1):
        name = segment.member or ("original" if place == 1 else f"caption{place}")
        out[name if name not in out else f"{name}~{place}"] = segment
    return list(out.items())


def column(score: str, caption: str) -> str:
    """The name of one caption's score."""
    return f"{score}.{caption}"


def only(record: Record, kept: str) -> Record:
    """The record with the caption of this name alone. What is known of it becomes the record's own score, and scores of the captions that went go
    with them: also the record's own, where nothing is known of the one that stays."""
    captions = named(record)
    if len(captions) == 1:
        return record
    gone = {id(segment) for name, segment in captions if name != kept}
    scores = dict(record.scores)
    for score in record.scores:
        known = {name: scores.pop(column(score, name)) for name, _ in captions if column(score, name) in scores}
        if kept in known:
            scores[score] = known[kept]
        elif known:
            scores.pop(score)
    return replace(record, segments=tuple(s for s in record.segments if id(s) not in gone), scores=scores)
