"""What one can score on the little world without looking: counted, not estimated.

    python -m pipelines.world.census [scenes]        prints the tables that docs/world.md quotes

For each type of question: how often it is asked, its answers, the best constant answer (per type), and the bag of attributes (knows what is in
the picture, guesses evenly among the answers that this leaves). For casts: how many there are, and how often a scene's cast is met again.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipelines.world.questions import TYPES, Question, ask
from pipelines.world.scene import Scene, make_scene

SCENES = 20_000  # standard error of a share of 50 % over 14,000 questions: 0.4 points


@dataclass
class Tally:
    """The answers of one type of question; `bag` sums the chances of a bag of attributes."""

    answers: Counter[str] = field(default_factory=Counter)
    bag: float = 0.0

    def add(self, question: Question) -> None:
        """Count one question."""
        self.answers[question.answer] += 1
        self.bag += 1 / len(question.bag) if question.bag else 1.0

    @property
    def n(self) -> int:
        """Questions counted."""
        return self.answers.total()

    @property
    def constant(self) -> float:
        """Accuracy of always giving the most frequent answer."""
        return max(self.answers.values()) / self.n


def tally(scenes: Iterable[Scene], questions: int = 5) -> dict[str, Tally]:
    """A tally a type over the questions that the vqa records of these scenes ask."""
    out: dict[str, Tally] = defaultdict(Tally)
    for scene in scenes:
        for q in ask(scene, scene.dice("questions"), questions):
            out[q.type].add(q)
    return out


def question_table(scenes: int, seed: int = 0) -> Iterator[str]:
    """Rows of a Markdown table: shares in per cent, answers by frequency."""
    counted = tally(make_scene(seed, n) for n in range(scenes))
    yield "| type | per record | best constant | bag of attributes | answers |"
    yield "|---|---|---|---|---|"
    for type in TYPES:
        t = counted[type]
        answers = ", ".join(f"{a} {_percent(n / t.n)}" for a, n in sorted(t.answers.items(), key=lambda x: (-x[1], x[0])))
        yield f"| {type} | {t.n / scenes:.2f} | {_percent(t.constant)} | {_percent(t.bag / t.n)} | {answers} |"


def cast_table(scenes: int, seed: int = 0) -> Iterator[str]:
    """Rows of a Markdown table: by number of shapes, the share of scenes, the casts met and the largest one's share of all scenes."""
    groups: dict[int, Counter[str]] = defaultdict(Counter)
    for number in range(scenes):
        scene = make_scene(seed, number)
        groups[len(scene.shapes)][scene.group] += 1
    yield "| shapes | scenes | casts met | largest cast |"
    yield "|---|---|---|---|"
    for n in sorted(groups):
        yield f"| {n} | {_percent(groups[n].total() / scenes)} | {len(groups[n])} | {max(groups[n].values()) / scenes:.2%} |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    for table in (question_table, cast_table):
        print("\n".join(table(int(sys.argv[1]) if sys.argv[1:] else SCENES)), end="\n\n")
