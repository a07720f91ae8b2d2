"""Pictures of published prompts, painted by the run and laid out as the scorers of GenEval, DPG-Bench and WISE read them; and what they found.

    <run>/prompts/<name>/pictures/…     what the scorer is given (layouts in _prompt_sets.py)
    <run>/prompts/<name>/prompts.json   the set, its file's hash, model and settings: what made the pictures, so that none of another are among them
    <run>/prompts/<name>/index.html     some of them with their prompts, to look at

The scorers are programs of their own with detectors, VQA models or a judge behind them. This part imitates none of them and gives no number without
one: rows appear when `results` names what a scorer wrote. Pictures are painted some prompts at a time and published whole, a prompt's last file last:
a stopped evaluation goes on where it was, with the same bytes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pipelines.format import page, storage
from pipelines.format.document import dump, fingerprint, sha256_hex
from pipelines.format.errors import InputError
from trainer.evaluate import _prompt_sets, _scorer_results
from trainer.evaluate._items import write_items
from trainer.evaluate._painting import CHUNK, VERSION, Painting, paint, pictured, pixels, service, weights_fingerprint, words_of
from trainer.evaluate._prompt_sets import IMAGES, NAME, Asked

if TYPE_CHECKING:
    from trainer.evaluate._subject import Subject

MARK, PAGE, PICTURES = "prompts.json", "index.html", "pictures"
SHOWN = 16  # prompts on the page
WIDTH = 256


class Prompts(Painting):
    """The prompts of a `set`, at `path` as its authors give them, `images` pictures each (none: as the scorer expects), in <run>/prompts/`name`.

    `count`: so many prompts, evenly spread over the set: for looking, since a part of a set is not the set. `results`: what the scorer wrote, paths
    as seen from the run's folder; while nothing is there, there are no rows."""

    set: Literal["geneval", "dpg", "wise"]
    path: str
    name: str | None = None
    images: int | None = Field(None, ge=1, le=16)
    count: int | None = Field(None, ge=1)
    results: list[str] = []

    def outside(self, run_dir: str) -> str:
        """What the rows depend on that neither the YAML nor the run says: an evaluation is done again when it changes."""
        there = [sha256_hex(storage.read(p)) for p in self._results(run_dir)]
        return fingerprint([_prompt_sets.fingerprint_of(self.path), there])

    def run(self, subject: Subject, out: str) -> list[dict[str, Any]]:
        """Paints what is missing; rows <set> for `all` and by kind of prompt, where there are results. Items: a picture (geneval) or a prompt."""
        asked, images = self._asked(), self.images or IMAGES[self.set]
        if self.set == "dpg" and images > 4:
            raise InputError("DPG-Bench reads up to 4 pictures a prompt", where="prompts.images", found=images)
        if not NAME.fullmatch(self.name or self.set):
            raise InputError("`name` is that of a folder", where="prompts.name", found=self.name, allowed="letters, digits, - and _")
        root = storage.join(out, "prompts", self.name or self.set)
        self._begin(subject, root, images, out)
        each = max(1, CHUNK // images)
        for first in range(0, len(asked), each):
            self._some(subject, root, asked[first : first + each], images, out)
        _page(self, root, asked, images, out)
        if not (results := self._results(out)):
            return []
        found = _scorer_results.read(self.set, results, asked, images)
        weights, kinds = _scorer_results.weights(self.set, found), [f.kind for f in found]
        write_items(out, self.set, [f.item for f in found], [f.value for f in found], weights, kinds)
        return _scorer_results.rows(self.set, found)

    def _asked(self) -> list[Asked]:
        asked = _prompt_sets.read(self.set, self.path)
        count = min(self.count or len(asked), len(asked))
        return [asked[k * len(asked) // count] for k in range(count)]

    def _results(self, out: str) -> list[str]:
        return [p for p in (storage.resolve(r, storage.absolute(out)) for r in self.results) if storage.exists(p)]

    def _begin(self, subject: Subject, root: str, images: int, out: str) -> None:
        """The mark; pictures that something else made go first."""
        said = {k: v for k, v in dump(self).items() if k not in ("path", "name", "count", "results", "batch")}
        made_by = {"version": VERSION, "model": weights_fingerprint(subject), "prompts": _prompt_sets.fingerprint_of(self.path)}
        mark = fingerprint({**made_by, **said, "images": images})
        place = storage.join(root, MARK)
        if storage.exists(place):
            if storage.read_json(place).get("fingerprint") == mark:
                return
            storage.delete(place)  # first: what is left of the pictures has no mark then, whenever this is stopped
        if storage.exists(root):
            storage.delete_tree(root)
        told = {"fingerprint": mark, **made_by, **said, "images": images}
        storage.replace(place, json.dumps(told, indent=1, sort_keys=True).encode(), scratch=out)

    def _some(self, subject: Subject, root: str, some: list[Asked], images: int, out: str) -> None:
        """Paint these prompts and publish their files, unless all are there. One that is missing is painted in the company it always has."""
        from trainer.generate.prompt import PAINT, Prompt

        here = lambda name: storage.join(root, PICTURES, name)
        missing = [a for a in some if not storage.exists(here(_prompt_sets.names(self.set, a, images)[-1]))]
        if not missing:
            return
        words, data, png = words_of(subject), pictured(subject), service("png", "install the pipelines package")
        ids = {a.id: np.array(words.encode(a.text, add_special_tokens=False).ids, np.int32) for a in some}
        prompts = [Prompt(f"{self.set}/{a.id}", (ids[a.id], PAINT), sample=k) for a in some for k in range(images)]
        made = pixels(data, np.stack(paint(subject, self, prompts)), self.decoder)
        for i, a in enumerate(some):
            if a in missing:
                found = _prompt_sets.files(self.set, a, made[i * images : (i + 1) * images], png)
                for name, content in zip(_prompt_sets.names(self.set, a, images), found, strict=True):
                    storage.replace(here(name), content, scratch=out)


def _page(part: Prompts, root: str, asked: list[Asked], images: int, out: str) -> None:
    """Some prompts, evenly spread, with all their pictures."""
    count = min(SHOWN, len(asked))
    some = [asked[k * len(asked) // count] for k in range(count)]
    grid = lambda a: next(n for n in _prompt_sets.names(part.set, a, images) if n.endswith(("grid.png", f"{a.id}.png")))
    shown = [page.picture(storage.read(storage.join(root, PICTURES, grid(a))), a.id, WIDTH) for a in some]
    cards = [page.tag("div", picture, page.tag("p", a.text), class_="card") for picture, a in zip(shown, some, strict=True)]
    each = "1 picture" if images == 1 else f"{images} pictures"
    said = f"{len(asked)} prompts of {part.set}, {each} each; {count} shown. {part.steps} steps of {part.sampler}, guidance {part.guidance:g}."
    note = page.tag("p", "Pictures alone: a score of this set is what its own scorer gives.", class_="soft")
    html = page.page(f"Painted: {part.name or part.set}", page.tag("p", said), note, page.tag("div", *cards, class_="grid"))
    storage.replace(storage.join(root, PAGE), html.encode(), scratch=out)
