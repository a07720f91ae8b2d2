"""Questions about a scene, with every answer that counts: eight types, five open and three closed.

    type      asked when                     answers                          a bag of attributes would guess among
    colour    always                         six colours                      the colours in the picture
    shape     some colour appears once       four kinds                       the kinds in the picture
    count     always                         zero, one, two, three            (knows it)
    where     always                         the places                       the places that hold a shape
    relation  one shape stands that way      four kinds                       the other kinds in the picture
    yesno     always                         yes, no                          both, unless no shape or every shape has the colour
    size      two sizes are there            the two kinds named              both kinds named
    choice    always                         a, b, c                          the letters whose option is in the picture

"Bag of attributes" is a control: somebody who knows which sizes, colours, kinds and places there are, but not which belong together. A
model must beat it to have shown that it binds. Every prompt ends in an explicit answer mark ("Answer:"), since without one a prompt that
another kind of document would continue is continued that way, and scores 0 whatever the model knows.

Phrasing `plain` and `other` say the same things in other words, so that one dataset's questions can differ from another's in wording alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.world.scene import COLOURS, KINDS, SIZES, Dice, Scene, Shape, place_name

Phrasing = Literal["plain", "other", "both"]
Type = Literal["colour", "shape", "count", "where", "relation", "yesno", "size", "choice"]
TYPES: tuple[Type, ...] = ("colour", "shape", "count", "where", "relation", "yesno", "size", "choice")
NUMBERS = ("zero", "one", "two", "three")
LETTERS = ("a", "b", "c")
RELATIONS = ("left of", "right of", "above", "below")

_PHRASES: dict[str, tuple[str, str]] = {
    "colour": ("what colour is the {kind}?", "the {kind} has which colour?"),
    "shape": ("what shape is {colour}?", "which shape has the colour {colour}?"),
    "count": ("how many shapes are there?", "what is the number of shapes?"),
    "count of": ("how many shapes are {what}?", "what is the number of {what} shapes?"),
    "where": ("where is the {kind}?", "in which place is the {kind}?"),
    "relation": ("what is {relation} the {kind}?", "which shape is {relation} the {kind}?"),
    "yesno": ("is the {kind} {colour}?", "does the {kind} look {colour}?"),
    "size": ("which is larger, the {a} or the {b}?", "of the {a} and the {b}, which is larger?"),
    "choice colour": ("what colour is the {kind}? a {a}, b {b}, c {c}", "the {kind} has which colour? a {a}, b {b}, c {c}"),
    "choice shape": ("what shape is {colour}? a {a}, b {b}, c {c}", "which shape has the colour {colour}? a {a}, b {b}, c {c}"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `choices` is the closed set of answers; `bag` the answers left to a bag of attributes, None where it would know."""

    type: Type
    text: str
    answer: str
    choices: tuple[str, ...]
    bag: tuple[str, ...] | None

    @property
    def prompt(self) -> str:
        """The question up to and including its answer mark."""
        return f"Question: {self.text} Answer:"

    @property
    def target(self) -> str:
        """What follows the prompt."""
        return f" {self.answer}"

    def fields(self, turn: int) -> dict[str, Any]:
        """The question as a record's `fields.questions` holds it."""
        out: dict[str, Any] = {"turn": turn, "type": self.type, "question": self.text, "answers": [self.answer]}
        out["choices"] = list(self.choices)
        return out if self.bag is None else {**out, "bag": list(self.bag)}


def ask(scene: Scene, dice: Dice, n: int, types: Sequence[Type] = TYPES, phrasing: Phrasing = "plain") -> list[Question]:
    """Up to `n` questions about the scene, each of another type, in random order; fewer when fewer types can be asked of it."""
    out: list[Question] = []
    for type in dice.sample(types, len(types)):
        question = _ASK[type](scene, dice, phrasing) if len(out) < n else None
        if question is not None:
            out.append(question)
    return out


def phrase(key: str, dice: Dice, phrasing: Phrasing, table: dict[str, tuple[str, str]] = _PHRASES) -> str:
    """The wording of one sentence: the first of the pair is plain, the second other."""
    return table[key][dice.below(2) if phrasing == "both" else int(phrasing == "other")]


def standing(scene: Scene, relation: str, of: Shape) -> list[Shape]:
    """The shapes that stand `relation` of one shape: in a column further left, in a row higher up, and so on."""
    row, column = scene.place(of.cell)
    axis, side = {"left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1)}[relation]
    here = (row, column)[axis]
    return [s for s in scene.shapes if (scene.place(s.cell)[axis] - here) * side > 0]


def _colour(scene: Scene, dice: Dice, phrasing: Phrasing) -> Question:
    s = dice.pick(scene.shapes)
    text = phrase("colour", dice, phrasing).format(kind=s.kind)
    return Question("colour", text, s.colour, COLOURS, _different(x.colour for x in scene.shapes))


def _shape(scene: Scene, dice: Dice, phrasing: Phrasing) -> Question | None:
    s = _alone_in_colour(scene, dice)
    if s is None:
        return None
    text = phrase("shape", dice, phrasing).format(colour=s.colour)
    return Question("shape", text, s.kind, KINDS, _different(x.kind for x in scene.shapes))


def _count(scene: Scene, dice: Dice, phrasing: Phrasing) -> Question:
    """Half the time of all shapes, a quarter of one size, a quarter of one colour (two in three times a colour that is there)."""
    way = dice.below(4)
    if way < 2:
        return Question("count", phrase("count", dice, phrasing), NUMBERS[len(scene.shapes)], NUMBERS, None)
    if way == 2:
        what = dice.pick(SIZES)
    else:
        what = dice.pick(scene.shapes).colour if dice.below(3) else dice.pick(_absent(scene))
    n = sum(what in (s.size, s.colour) for s in scene.shapes)
    return Question("count", phrase("count of", dice, phrasing).format(what=what), NUMBERS[n], NUMBERS, None)


def _where(scene: Scene, dice: Dice, phrasing: Phrasing) -> Question:
    s = dice.pick(scene.shapes)
    places = tuple(place_name(scene.grid, c) for c in range(scene.grid**2))
    text = phrase("where", dice, phrasing).format(kind=s.kind)
    return Question("where", text, places[s.cell], places, _different(places[x.cell] for x in scene.shapes))


def _relation(scene: Scene, dice: Dice, phrasing: Phrasing) -> Question | None:
    asked = [(s, r, there[0]) for s in scene.shapes for r in RELATIONS if len(there := standing(scene, r, s)) == 1]
    if not asked:
        return None
    s, relation, other = dice.pick(asked)
    text = phrase("relation", dice, phrasing).format(relation=relation, kind=s.kind)
    return Question("relation", text, other.kind, KINDS, _different(x.kind for x in scene.shapes if x is not s))


def _yesno(scene: Scene, dice: Dice, phrasing: Phrasing) -> Question:
    """Half yes. A no names the colour of another shape half the time (where there is one), else a colour that is not in the picture."""
    s, colour = dice.pick(scene.shapes), ""
    others = [x.colour for x in scene.shapes if x.colour != s.colour]
    yes = dice.below(2) == 1
    if yes:
        colour = s.colour
    else:
        colour = dice.pick(others) if others and dice.below(2) else dice.pick(_absent(scene))
    possible = {"yes" if x.colour == colour else "no" for x in scene.shapes}
    text = phrase("yesno", dice, phrasing).format(kind=s.kind, colour=colour)
    return Question("yesno", text, "yes" if yes else "no", ("yes", "no"), tuple(sorted(possible)))


def _size(scene: Scene, dice: Dice, phrasing: Phrasing) -> Question | None:
    pairs = [(s, x) for s in scene.shapes for x in scene.shapes if s.size != x.size]
    if not pairs:
        return None
    a, b = dice.pick(pairs)
    text = phrase("size", dice, phrasing).format(a=a.kind, b=b.kind)
    return Question("size", text, a.kind if a.size == "large" else b.kind, (a.kind, b.kind), (a.kind, b.kind))


def _choice(scene: Scene, dice: Dice, phrasing: Phrasing) -> Question:
    """Three lettered options: the right one and two wrong ones, wrong ones that are in the picture first. Colours or kinds, half each."""
    s = _alone_in_colour(scene, dice) if dice.below(2) else None
    by_kind = s is not None
    s = s or dice.pick(scene.shapes)
    right, pool = (s.kind, KINDS) if by_kind else (s.colour, COLOURS)
    there = _different(x.kind if by_kind else x.colour for x in scene.shapes)
    wrong = dice.sample([x for x in there if x != right], len(there) - 1)
    absent = [x for x in pool if x not in there]
    options = dice.sample((right, *(wrong + dice.sample(absent, min(2, len(absent))))[:2]), 3)
    slots = dict(zip(LETTERS, options, strict=True))
    key = "choice shape" if by_kind else "choice colour"
    text = phrase(key, dice, phrasing).format(kind=s.kind, colour=s.colour, **slots)
    bag = tuple(letter for letter, x in slots.items() if x in there)
    return Question("choice", text, LETTERS[options.index(right)], LETTERS, bag)


_ASK: dict[str, Callable[[Scene, Dice, Phrasing], Question | None]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "where": _where,
    "relation": _relation,
    "yesno": _yesno,
    "size": _size,
    "choice": _choice,
}


def _different(values: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _absent(scene: Scene) -> list[str]:
    return [c for c in COLOURS if all(s.colour != c for s in scene.shapes)]


def _alone_in_colour(scene: Scene, dice: Dice) -> Shape | None:
    colours = [s.colour for s in scene.shapes]
    alone = [s for s in scene.shapes if colours.count(s.colour) == 1]
    return dice.pick(alone) if alone else None
