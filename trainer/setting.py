"""A setting: where and how large ablations are run. One document, laid over any ablation that says `on: NAME` (or on the command line, `on=NAME`).

    datasets: {vqa: encoded/vqa, pairs: encoded/pairs}     what the names in `dataset:` are here
    models: {moe: {transfusion: {…}}}                      what the names in `run.model` are here
    largest: 150K                                          payload tokens of the largest arm; or `scale`
    run: {extends: tiny}                                   with a model it is a whole run, and stands in place of the ablation's
    evaluate: {vqa: {questions: 200}}                      keys laid over that evaluation, where the ablation asks for it
    instead: {prompts: [scene_match]}                      what to ask where the ablation asks for that: a list, which may hold nothing
    metrics: {geneval: {metric: scene_match}}              what comparisons and figures are about where the ablation's are about that
    left_out: {dual: why}                                  arms that cannot be here
    ablations: {isoflop: {…}}                              the same keys, laid over these for the ablation of that name

An ablation is written at its own size and says what is asked; a setting says on what. It is laid over the ablation's document before that is
validated, command-line overrides come last, and the resolved document is what is fingerprinted and saved. So what a setting names and an ablation
lacks (a source, an evaluation, a model) is passed over: it is for others. Errors name the line of the setting.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, model_validator

from pipelines.format.document import At, Document, PartOf, Percent, Size, exact, parse
from pipelines.format.errors import InputError, RecipeError
from pipelines.format.extends import Home, Places, extended, find, lay, read_text
from pipelines.format.sizes import read_size
from pipelines.format.yaml_text import read_yaml
from trainer.evaluate import Evaluation
from trainer.run import Run

EVALUATIONS = PartOf("trainer.evaluate")
ASKING = {"compare": PartOf("trainer.report.compare"), "report": PartOf("trainer.report.figures")}
AS_IT_IS = ("seeds", "parallel", "engine", "resources", "slurm", "hardware", "assume", "output", "datasets")  # keys of an ablation by the same name
FOLDER = Path(__file__).parent / "settings"


class About(Document):
    """What a comparison or a figure is about here: another metric, split or control rows; what is not said stays."""

    metric: str | None = None
    split: str | list[str] | None = None
    baselines: list[str] | None = None


class Keys(Document):
    """What a setting says, in general or of one ablation. scale, largest: one of them. sources: laid over the mixture's of that name; arms,
    isoflop: over the ablation's. models and datasets by name, each in place of the ablation's. metrics: null of one leaves out what is about it.
    output: `{name}` is the ablation's name."""

    datasets: dict[str, str | dict[str, str]] = {}
    models: dict[str, dict[str, Any]] = {}
    scale: Annotated[Percent, Field(gt=0)] | None = None
    largest: Annotated[Size, Field(gt=0)] | None = None
    seeds: Annotated[list[int], Field(min_length=1)] | None = None
    sequence_length: int | None = Field(None, ge=8)
    held_out: dict[str, Any] | None = None
    sources: dict[str, dict[str, Any]] = {}
    arms: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    isoflop: dict[str, Any] = {}
    run: dict[str, Any] = {}
    evaluate: dict[str, dict[str, Any]] = {}
    instead: dict[str, list[Evaluation]] = {}
    metrics: dict[str, About | None] = {}
    parallel: Annotated[int, Field(ge=1)] | None = None
    engine: str | None = None
    resources: dict[str, Any] | None = None
    slurm: dict[str, Any] | None = None
    hardware: dict[str, Any] | None = None
    assume: dict[str, Any] | None = None
    output: str | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Keys:
        if self.scale is not None and self.largest is not None:
            raise ValueError("say `scale` or `largest`, not both")
        for name, fields in self.evaluate.items():
            try:
                known = EVALUATIONS.find(name).model_fields
            except ValueError as e:
                raise At(("evaluate", name), str(e)) from None
            for key in fields:
                if key not in known:
                    raise At(("evaluate", name, key), f"unknown key {key!r}; known: {', '.join(known)}")
        return self


class Setting(Keys):
    """A setting document. ablations: what holds of one ablation only, by its name."""

    blocks: ClassVar[dict[str, type[BaseModel]]] = {"run": Run}  # may say `extends` of its own
    name: str | None = None
    ablations: dict[str, Keys] = {}


def laid(cls: type[BaseModel], data: dict[str, Any], places: Places, home: Home) -> tuple[dict[str, Any], Places]:
    """An ablation's plain values with its setting laid over them, and where each value stands. As they were where it says no `on`.

    Raises RecipeError or InputError at the line of the setting, or at the one that names it."""
    data = dict(data)
    ref, said_at = data.pop("on", None), places.get(("on",), home.name)
    if ref is None:
        return data, places
    keys, where = _read(ref, said_at, home, str(data.get("name")))
    data, places = lay(data, _as_ablation(keys, data), cls, places, _moved(where))
    for block in ("run", "models"):  # these stand in place of what was there, where they are whole
        data[block] = _in_place(block, keys, data.get(block) or {})
    data["evaluate"] = _evaluations(data.get("evaluate") or [], keys)
    for i, part in enumerate(data["evaluate"]):
        (word, *_) = part if isinstance(part, dict) else (part,)
        places |= {("evaluate", i, *p[1:]): at for p, at in where.items() if p[:2] == ("evaluate", word)}
    for block in ASKING:
        data[block], places = _asking(block, data.get(block) or [], keys.get("metrics") or {}, places)
    return _sized(data, keys), places


def _read(ref: Any, said_at: str, home: Home, ablation: str) -> tuple[dict[str, Any], Places]:
    """The setting's plain values, those for this ablation laid on the general ones; and where each stands."""
    if not isinstance(ref, str) or not ref:
        raise RecipeError("an ablation is on one setting", where=f"{said_at}: on", found=ref, allowed="a path from this file, or a packaged name")
    beside = Path(ref) if os.path.isabs(ref) else home.folder / ref
    packaged = [FOLDER, *home.packaged]
    try:
        path = next((p for p in (beside, Path(ref)) if p.is_file()), None) or find(ref, [FOLDER])
    except InputError as e:
        raise InputError("there is no such setting", where=f"{said_at}: on", found=ref, allowed=e.allowed) from None
    name = os.path.normpath(path)
    raw, marks = read_yaml(read_text(path), name)
    parse(Setting, raw, marks, name=name, folder=path.parent, stem=path.stem, packaged=packaged)
    plain, where = extended(Setting, raw or {}, marks, Home(path.parent, name, packaged, (path.resolve(),)))
    own = (plain.pop("ablations", None) or {}).get(ablation) or {}
    at = ("ablations", ablation)
    for one, other in (("scale", "largest"), ("largest", "scale")):
        if own.get(one) is not None:
            plain.pop(other, None)
    return lay(plain, own, Keys, where, {p[len(at) :]: s for p, s in where.items() if p[: len(at)] == at and len(p) > len(at)})


def _as_ablation(keys: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """The setting's values as keys of the ablation, without what the ablation does not have."""
    over: dict[str, Any] = {k: keys[k] for k in AS_IT_IS if keys.get(k) is not None}
    mixture = {k: keys[k] for k in ("sequence_length", "held_out") if keys.get(k) is not None}
    known = (data.get("mixture") or {}).get("sources") or {}
    sources = {name: said for name, said in (keys.get("sources") or {}).items() if name in known}
    over["mixture"] = {**mixture, **({"sources": sources} if sources else {})}
    arms = {name: said for name, said in (keys.get("arms") or {}).items() if name in (data.get("arms") or {})}
    left = {name: why for name, why in (keys.get("left_out") or {}).items() if name in (data.get("arms") or {})}
    over |= {"arms": arms} if arms else {}
    over |= {"left_out": left} if left else {}
    if keys.get("isoflop") and data.get("isoflop"):
        over["isoflop"] = keys["isoflop"]
    over |= {"run": keys["run"]} if keys.get("run") else {}
    return over


def _moved(where: Places) -> Places:
    """Places of the setting as places of the ablation."""
    inside, elsewhere = ("sequence_length", "held_out", "sources"), ("evaluate", "instead", "metrics", "ablations")
    return {(("mixture", *p) if p and p[0] in inside else p): at for p, at in where.items() if p and p[0] not in elsewhere}


def _in_place(block: str, keys: dict[str, Any], had: dict[str, Any]) -> dict[str, Any]:
    said = keys.get(block) or {}
    if block == "run":
        return said if "model" in said else had
    return {**had, **said}


def _evaluations(asked: list[Any], keys: dict[str, Any]) -> list[Any]:
    """The ablation's evaluations, each with the setting's keys for it, or what the setting asks instead (once, where several are replaced)."""
    over, instead = keys.get("evaluate") or {}, keys.get("instead") or {}
    out: list[Any] = []
    for part in asked:
        name, fields = next(iter(part.items())) if isinstance(part, dict) and len(part) == 1 else (part, {})
        found = [part] if not isinstance(name, str) or name not in instead else [_taking(one, fields or {}) for one in instead[name]]
        for one in found:
            word, said = next(iter(one.items())) if isinstance(one, dict) else (one, {})
            one = {word: lay(said or {}, over[word])[0]} if word in over else one
            if one not in out:
                out.append(one)
    return out


def _taking(one: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """An evaluation asked instead of another, with that one's keys where it has them too and does not say otherwise: the source, say."""
    word, said = next(iter(one.items())) if isinstance(one, dict) else (one, {})
    known = EVALUATIONS.find(word).model_fields
    return {word: {**{k: v for k, v in fields.items() if k in known}, **(said or {})}}


def _asking(block: str, asked: Any, metrics: dict[str, Any], places: Places) -> tuple[Any, Places]:
    """The ablation's comparisons or figures, about what is measured here in place of their metrics (once, where several then are the same), and where
    each stands."""
    if not metrics or not isinstance(asked, list):  # what is no list is refused where the ablation is validated
        return asked, places
    out: list[Any] = []
    moved: Places = {}
    for i, part in enumerate(asked):
        found = _about(ASKING[block], part, metrics)
        if found is not None and found not in out:
            moved |= {(block, len(out), *p[2:]): at for p, at in places.items() if p[:2] == (block, i)}
            out.append(found)
    return out, {p: at for p, at in places.items() if p[:1] != (block,) or len(p) == 1} | moved


def _about(parts: PartOf, part: Any, metrics: dict[str, Any]) -> Any:
    """The part about other metrics; None where nothing is left that it would be about. Its split and baselines change where all its metrics do."""
    name, fields = next(iter(part.items())) if isinstance(part, dict) and len(part) == 1 else (part, None)
    key = next((k for k in ("metric", "metrics") if isinstance(fields, dict) and k in fields), None)
    if not isinstance(fields, dict) or key is None:
        return part
    before = [fields[key]] if isinstance(fields[key], str) else fields[key]
    if not isinstance(before, list) or not any(isinstance(m, str) and m in metrics for m in before):
        return part
    kept = {m: metrics.get(m, {}) for m in before if metrics.get(m, {}) is not None}
    if not kept:
        return None
    now = list(dict.fromkeys(over.get("metric", m) for m, over in kept.items()))
    more = {k: v for over in kept.values() for k, v in over.items() if k != "metric"} if all(m in metrics for m in kept) else {}
    known = parts.find(name).model_fields if name in parts.names() else {}  # a name that is none is refused where the ablation is validated
    return {name: {**fields, **{k: v for k, v in more.items() if k in known}, key: now[0] if isinstance(fields[key], str) else now}}


def _sized(data: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """With `scale` as said, or such that the largest arm has so many payload tokens."""
    if keys.get("scale") is not None:
        return {**data, "scale": keys["scale"]}
    if keys.get("largest") is None:
        return data
    sums = [n for name in data.get("arms") or {} if name not in (data.get("left_out") or {}) if (n := _budget(data["arms"], name))]
    if not sums:  # arms of a sweep over FLOPs have their sizes from there
        return data
    return {**data, "scale": float(Fraction(read_size(keys["largest"])) / max(sums))}


def _budget(arms: dict[str, Any], name: str, depth: int = 0) -> Fraction:
    """Payload tokens of an arm as written, with what it extends; 0 where that cannot be told (validation says why)."""
    tokens: dict[str, Any] = {}
    while isinstance(arm := arms.get(name), dict) and depth <= len(arms):
        tokens = {**(arm.get("tokens") or {}), **tokens}
        name, depth = str(arm.get("extends")), depth + 1
    try:
        return sum((Fraction(exact(read_size(n))) for n in tokens.values()), Fraction(0))
    except ValueError:
        return Fraction(0)
