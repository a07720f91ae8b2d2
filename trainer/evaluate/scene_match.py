"""Does the picture hold what the caption says? A deterministic score for captions of the little world, whose pictures can be read from pixels.

    caption ─▶ facts it states (kind, colour, size, place of every named shape)
    caption ─▶ the model paints ─▶ pixels ─▶ shapes seen ─▶ share of the facts that hold

The service `scene` reads both. A shape that the caption names must be one of those seen, another for each; shapes that it does not name cost
nothing, since short captions leave some out. Controls, always: `.truth`, the held-out pictures of the captions through the same encoder and decoder,
1.0 where those lose nothing; `.shuffled`, the model's own pictures under other captions, which is what painting without reading them would
score. `chance` is the mean score of true pictures under all other captions.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from pipelines.format import page, storage
from pipelines.format.errors import InputError
from trainer.evaluate._items import write_items
from trainer.evaluate._painting import CHUNK, OfCaptions, captions, of_captions, painted, pixels, service, words_of

if TYPE_CHECKING:
    from trainer.evaluate._subject import Subject

PAGE = "scene_match.html"
WIDTH = 96  # of a shown picture
OTHERS = 16  # other captions that each picture is held against; all, where there are fewer


class SceneMatch(OfCaptions):
    """Of a source of world pictures in `grid` × `grid` cells."""

    grid: int = Field(2, ge=2, le=3)
    shown: int = Field(32, ge=1, le=256, description="pictures on the page scene_match.html, with what holds of each")

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Rows scene_match (share of the stated facts, mean over captions; by kind of fact `held_out:<fact>`), scene_match.all (share of captions of
        which all facts hold), and both controls of each. Items: a caption."""
        if self.passes(subject):
            return []
        scenes = service("scene", "install the pipelines package; other pictures are scored by `prompts` and the scorers it writes for")(self.grid)
        pairs = captions(subject, self)
        words = words_of(subject, self.source)
        said = [words.decode(p.ids.tolist()) for p in pairs]
        stated = [_stated(scenes, caption, p.id) for caption, p in zip(said, pairs, strict=True)]
        true, made, shown = list[Any](), list[Any](), list[Any]()
        for first, latents in painted(subject, out, self, of_captions(pairs)):
            some = pairs[first : first + CHUNK]
            pictures = pixels(some[0].data, latents, self.decoder)
            held_out = pixels(some[0].data, np.stack([p.truth() for p in some]), self.decoder)
            made, true = made + [scenes.read(x) for x in pictures], true + [scenes.read(x) for x in held_out]
            shown += list(zip(held_out, pictures, strict=True))[: self.shown - len(shown)]
        facts = [list(zip(scenes.values(s), scenes.held(s, m), strict=True)) for s, m in zip(stated, made, strict=True)]
        _page(storage.join(out, PAGE), said, facts, shown, out)
        return _rows(scenes, [p.id for p in pairs], stated, true, made, out)


def _stated(scenes: Any, caption: str, record: str) -> Any:
    try:
        return scenes.said(caption)
    except ValueError as e:
        said = "this caption is not of the world, so nothing says whether a picture holds it"
        raise InputError(said, where=record, found=f"{caption!r}: {e}") from None


def _rows(scenes: Any, ids: list[str], stated: list[Any], true: list[Any], made: list[Any], out: str) -> list[dict[str, Any]]:
    n = len(ids)
    turns = [1 + k * (n - 1) // min(OTHERS, n - 1) for k in range(min(OTHERS, n - 1))]  # places that pictures move on, evenly spread, never 0
    under = lambda seen, moved: [scenes.held(stated[i], seen[(i + moved) % n]) for i in range(n)]
    scored = {"": [under(made, 0)], ".truth": [under(true, 0)], ".shuffled": [under(made, t) for t in turns]}
    chance = [under(true, t) for t in turns]
    rows = []
    for control, tries in scored.items():
        for metric, score in (("scene_match", share), ("scene_match.all", whole)):
            rows.append(_row(metric + control, "held_out", _mean(tries, score), n, None if control else _mean(chance, score)))
            write_items(out, metric + control, ids, [float(np.mean([score(t[i]) for t in tries])) for i in range(n)])
        for fact, (value, count) in by_fact(tries).items():
            rows.append(_row("scene_match" + control, f"held_out:{fact}", value, count, None if control else by_fact(chance)[fact][0]))
    return rows


def _page(place: str, captions_: list[str], facts: list[list[Any]], shown: list[Any], out: str) -> None:
    """The first few: held out, painted, the caption, and what it states that holds or does not."""
    png = service("png", "install the pipelines package")
    tick = lambda value, fact: page.tag("span", f"{'✓' if fact[1] else '✗'} {value}", class_="tag target" if fact[1] else "tag")
    cards = []
    for caption, held, (true, made) in zip(captions_, facts, shown, strict=False):
        both = [page.tag("figure", page.picture(bytes(png(x)), name, WIDTH), page.tag("figcaption", name))
                for x, name in ((true, "held out"), (made, "painted"))]  # fmt: skip
        cards.append(page.tag("div", page.tag("div", *both, class_="strip"), page.tag("p", caption), *(tick(*f) for f in held), class_="card"))
    mean = np.mean([share([fact for _, fact in f]) for f in facts])
    told = f"{len(cards)} of {len(captions_)} held-out captions; {mean:.3f} of what they state holds in what was painted."
    html = page.page("What captions say, and what was painted", page.tag("p", told), page.tag("div", *cards, class_="grid"))
    storage.replace(place, html.encode(), scratch=out)


def share(facts: list[tuple[str, bool]]) -> float:
    """Of the stated facts, those that hold."""
    return sum(holds for _, holds in facts) / len(facts)


def whole(facts: list[tuple[str, bool]]) -> float:
    """1.0 where all hold."""
    return float(all(holds for _, holds in facts))


def by_fact(tries: list[list[list[tuple[str, bool]]]]) -> dict[str, tuple[float, int]]:
    """Fact → (share that holds, how many are stated), over all captions, facts counted one by one."""
    found: dict[str, list[bool]] = defaultdict(list)
    for fact, holds in (f for one in tries for facts in one for f in facts):
        found[fact].append(holds)
    return {fact: (float(np.mean(holds)), len(holds) // len(tries)) for fact, holds in found.items()}


def _mean(tries: list[list[list[tuple[str, bool]]]], score: Any) -> float:
    return float(np.mean([score(facts) for one in tries for facts in one]))


def _row(metric: str, split: str, value: float, n: int, chance: float | None) -> dict[str, Any]:
    return {"metric": metric, "split": split, "value": value, "n": n, "chance": chance}
