"""Documents as the web writes them, made from a seed: what the text comparisons feed to both sides.

Words follow Zipf's law over a made-up vocabulary led by the commonest English words; one word in fifty was never seen before (a name, a
number, an address), since real text never stops bringing new ones. Most documents are prose of a few hundred words in paragraphs; the rest
is what filters are for: menus, lists, repeated lines and phrases, placeholder text, code, pages of one line. Some are light edits of
others, for the search for near duplicates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

COMMON = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you
were her all she there would their we him been has when who will no more if out so said what up its about than into them
can only other time new some could these two may first then do any my now such like our over man me even most made after
also did many before must through years where much your way well down should because each just those people how too
little state good very make world still see own work long here get
"""  # the commonest English words, first to last
JUNK = (
    "Home",
    "- Read more...",
    "• Contact us",
    "We use cookies on this site.",
    "Enable JavaScript to go on.",
    "function x() { return 1; }",
    "Lorem ipsum dolor sit amet.",
)


def words(n: int, rng: np.random.Generator) -> list[str]:
    """n distinct words, the commonest real, the rest made of syllables."""
    onsets = [*"bcdfghklmnprstvw", "st", "tr", "ch", "pl"]
    syllables = np.array([a + b + c for a in onsets for b in ("a", "e", "i", "o", "u", "ea", "ou") for c in ("", "", "n", "r", "s", "l", "nd", "ck")])
    out = dict.fromkeys(COMMON.split())
    while len(out) < n:
        for row in syllables[rng.integers(0, len(syllables), (4096, 1 + min(3, int(np.log10(len(out)) - 1))))]:
            out.setdefault("".join(row))
    return list(out)[:n]


def documents(n: int, seed: int) -> Iterator[str]:
    """n documents."""
    rng = np.random.default_rng(seed)
    vocabulary = words(60_000, rng)
    weights = np.cumsum(1.0 / (np.arange(len(vocabulary)) + 2.7))
    last: list[str] = []
    for k in range(n):
        kind = rng.random()
        if last and kind < 0.08:  # an edit of the document before
            lines = list(last)
            lines[int(rng.integers(len(lines)))] = "An editor changed this line of it."
            yield "\n".join(lines)
            continue
        lines = [_paragraph(vocabulary, weights, rng, k) for _ in range(1 + int(rng.exponential(4)))]
        if kind < 0.2:
            lines += [JUNK[int(i)] for i in rng.integers(0, len(JUNK), 1 + int(rng.exponential(8)))]
        if 0.2 < kind < 0.27:
            lines += [lines[0]] * int(rng.integers(1, 6))
        if 0.27 < kind < 0.33:
            lines = [" ".join(line.split()[:3]) for line in lines for _ in range(4)]
        last = lines
        yield "\n".join(lines)


def _paragraph(vocabulary: list[str], weights: np.ndarray, rng: np.random.Generator, k: int) -> str:
    sentences = []
    for _ in range(1 + int(rng.exponential(4))):
        drawn = np.searchsorted(weights, rng.random(4 + int(rng.exponential(14))) * weights[-1])
        said = [vocabulary[i] for i in drawn]
        for at in np.flatnonzero(rng.random(len(said)) < 0.02):
            said[at] = f"{said[at].capitalize()}{k}" if rng.random() < 0.5 else str(int(rng.integers(10, 99_999)))
        if rng.random() < 0.3:
            said[len(said) // 2] += ","
        if rng.random() < 0.1:
            said[-1] = rng.choice(["don't", "(it's)", "e.g.", "“so”", "U.S.", "p.m."])
        sentences.append(" ".join(said).capitalize() + str(rng.choice([".", "!", "?", "..."], p=[0.85, 0.06, 0.06, 0.03])))
    return " ".join(sentences)


def write(folder: Path, n: int, files: int, seed: int = 0) -> list[str]:
    """The documents as JSON Lines in so many files, in order; returns them."""
    folder.mkdir(parents=True)
    texts = list(documents(n, seed))
    for f in range(files):
        some = texts[f * n // files : (f + 1) * n // files]
        (folder / f"{f:03d}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in some), encoding="utf-8")
    return texts
