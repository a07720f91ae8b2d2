"""Scenes → words: captions and prose, in some sixty different words, so that a vocabulary of 512 to 1,024 entries holds each as one token.

A picture has two captions. `original` is what a web page might carry: true, short and incomplete (colours and kinds of most of the shapes,
no sizes, no places). `recaption` tells everything. Prose tells everything too, in sentences, and may be followed by questions with answers
on what it told, in the very form in which they are asked about pictures.
"""

from __future__ import annotations

from pipelines.world.questions import NUMBERS, RELATIONS, TYPES, Phrasing, ask, phrase, standing
from pipelines.world.scene import Dice, Scene, place_name

KEPT = 0.75  # of the shapes are named in an original caption, and at least one
_PHRASES: dict[str, tuple[str, str]] = {
    "caption shape": ("{look} at the {place}", "at the {place} {look}"),
    "there is one": ("There is one shape.", "One shape is here."),
    "there are": ("There are {n} shapes.", "Here are {n} shapes."),
    "stands": ("{Look} is at the {place}.", "At the {place} is {look}."),
    "relation": ("The {a} is {relation} the {b}.", "We see the {a} {relation} the {b}."),
}


def original(scene: Scene, phrasing: Phrasing = "plain") -> str:
    """A short caption: "red circle and blue square"; in other words, "a picture of a red circle and a blue square"."""
    dice = scene.dice("original")
    shapes = dice.sample(scene.shapes, len(scene.shapes))
    named = [s for i, s in enumerate(shapes) if i == 0 or dice.share() < KEPT]
    if phrasing == "other" or (phrasing == "both" and dice.below(2)):
        return "a picture of " + _listed([f"a {s.colour} {s.kind}" for s in named])
    return _listed([f"{s.colour} {s.kind}" for s in named])


def recaption(scene: Scene, phrasing: Phrasing = "plain") -> str:
    """A full caption: "a large red circle at the top left and a small blue square at the bottom right"."""
    dice = scene.dice("recaption")
    shapes = dice.sample(scene.shapes, len(scene.shapes))
    form = phrase("caption shape", dice, phrasing, _PHRASES)
    return _listed([form.format(look=f"a {s.look}", place=place_name(scene.grid, s.cell)) for s in shapes])


def prose(scene: Scene, phrasing: Phrasing = "plain") -> str:
    """Sentences that tell the whole scene: how many, each shape with its place, and one relation where there are two shapes or more."""
    dice = scene.dice("prose")
    n = len(scene.shapes)
    out = [phrase("there is one" if n == 1 else "there are", dice, phrasing, _PHRASES).format(n=NUMBERS[n])]
    for s in dice.sample(scene.shapes, n):
        place = place_name(scene.grid, s.cell)
        out.append(phrase("stands", dice, phrasing, _PHRASES).format(Look=f"A {s.look}", look=f"a {s.look}", place=place))
    if n > 1:
        out.append(_relation(scene, dice, phrasing))
    return " ".join(out)


def prose_with_questions(scene: Scene, n: int, phrasing: Phrasing = "plain") -> str:
    """Prose, then `n` questions with their answers."""
    asked = ask(scene, scene.dice("prose questions"), n, TYPES, phrasing)
    return " ".join([prose(scene, phrasing), *(q.prompt + q.target for q in asked)])


def _relation(scene: Scene, dice: Dice, phrasing: Phrasing) -> str:
    true = [(a, r, b) for b in scene.shapes for r in RELATIONS for a in standing(scene, r, b)]
    a, relation, b = dice.pick(true)
    return phrase("relation", dice, phrasing, _PHRASES).format(a=a.kind, relation=relation, b=b.kind)


def _listed(things: list[str]) -> str:
    return " and ".join([", ".join(things[:-1]), things[-1]]) if len(things) > 1 else things[0]
