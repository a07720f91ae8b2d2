"""Conversations about pictures: what was asked and answered, in turn, and where in a question a picture stands.

What comes in: the turns of a row in any of four spellings ({from, value}; {role, content}; content as parts of text and images; {user, assistant}
pairs). What goes out: questions as `turns.py` knows them, with `image_at`, the places of the pictures that stand inside a question; and the images
that the messages themselves name. Whatever is not a conversation is a `Reject` with its reason, never another exception.

Pictures in front of the first question, and a single picture wherever it is marked, stand before all turns, as LLaVA's own training code
moves them. Of several pictures each stays where its mark is, once one of the first question's stands among its words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from pipelines.format.errors import Reject
from pipelines.pictures import sound
from pipelines.question_text import Limits

ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant", "model")
MARK = re.compile(r"<image(?: (\d{1,3}))?>", re.ASCII)
_VIDEO = "<video>"


@dataclass(slots=True)
class Said:
    """One message: who, and text with its marks; `named` are the images that its parts name themselves, in order of their marks."""

    who: str
    text: str
    named: list[Any] = field(default_factory=list)


def messages(turns: Any) -> list[Said]:
    """The messages of a conversation in any of its spellings."""
    if not isinstance(turns, list) or not turns:
        raise Reject("unreadable", "no list of turns")
    out: list[Said] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise Reject("unreadable", f"a turn of a conversation is a mapping, found {type(turn).__name__}")
        if "user" in turn and "assistant" in turn:  # The Cauldron
            out += [Said("user", sound(turn["user"])), Said("assistant", sound(turn["assistant"]))]
            continue
        who, said = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        out.append(_parts(str(who), said) if isinstance(said, list) else Said(str(who), sound(said)))
    return out


def _parts(who: str, parts: list[Any]) -> Said:
    """Content as a list of parts: {type: text, text}, {type: image, image | url | index}, {type: image_url, image_url: {url}}."""
    texts, named = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(sound(part))
        elif not isinstance(part, dict):
            raise Reject("unreadable", f"a part of a message is a mapping, found {type(part).__name__}")
        elif part.get("text") is not None:
            texts.append(sound(part["text"]))
        elif str(part.get("type")).startswith("image"):
            ref = next((part[k] for k in ("image", "image_url", "url", "path") if part.get(k) is not None), None)
            named.append(ref.get("url", ref) if isinstance(ref, dict) else ref)
            texts.append("<image>")
        else:
            raise Reject("unreadable", f"a part of a message that is no text and no image: {str(part.get('type'))[:40]}")
    return Said(who, "\n".join(texts), named)


def images_named(said: list[Said]) -> list[Any]:
    """The images that messages name themselves. Parts that only say that an image stands here leave the naming to the row's column."""
    return [ref for one in said for ref in one.named if ref is not None]


def exchanges(said: list[Said], images: int, limits: Limits, in_place: bool = True) -> tuple[list[dict[str, Any]], str]:
    """Questions with their answers, in order, and the words of system messages. A turn whose answer is empty is passed over; anything else out of
    order, and marks that do not fit the number of images, is a `Reject`."""
    pairs, system = _pairs(said)
    if len(pairs) > limits.max_turns:
        raise Reject("too_large", f"{len(pairs)} turns, allowed {limits.max_turns}")
    marked = [int(m[1] or 0) for asked, _ in pairs for m in MARK.finditer(asked)]
    _fit(marked, images)
    stay = in_place and images > 1 and bool(marked)
    out: list[dict[str, Any]] = []
    for i, (asked, answer) in enumerate(pairs):
        if MARK.search(answer):
            raise Reject("image_marks", "an image stands in an answer")
        lead = _without_leading(asked) if i == 0 else asked
        question, places = _placed(asked if MARK.search(lead) else lead, limits)
        answer = limits.tidy(answer)
        if not answer:
            if stay and places:
                raise Reject("image_marks", "an image stands in a question without an answer")
            continue
        if not question.strip() and not (stay and places):
            raise Reject("empty", "an answer without a question")
        out.append({"question": question, "answers": [answer], **({"image_at": places} if stay and places else {})})
    if not out:
        raise Reject("empty", "a conversation without an answer")
    return out, system


def marked(asked: str, images: int, limits: Limits, in_place: bool = True) -> tuple[str, list[int]]:
    """One question of a table without its marks, and the places of its pictures if they stand among its words; else they stand in front."""
    marks = [int(m[1] or 0) for m in MARK.finditer(asked)]
    _fit(marks, images)
    lead = _without_leading(asked)
    question, places = _placed(asked if MARK.search(lead) else lead, limits)
    if not question.strip():
        raise Reject("empty", "an answer without a question")
    return question, places if in_place and images > 1 else []


def _pairs(said: list[Said]) -> tuple[list[tuple[str, str]], str]:
    pairs: list[tuple[str, str]] = []
    system: list[str] = []
    asked: str | None = None
    for one in said:
        text = one.text.replace(_VIDEO, "").strip()
        if one.who in ASKS and asked is None:
            asked = text
        elif one.who in ANSWERS and asked is not None:
            pairs.append((asked, text))
            asked = None
        elif one.who == "system":
            system.append(text)
        else:
            raise Reject("unreadable", f"a conversation is question, answer, question, …; found {one.who[:40]!r} after turn {len(pairs)}")
    if not pairs:
        raise Reject("empty", "a conversation without an answer")
    return pairs, "\n".join(system)


def _fit(marks: list[int], images: int) -> None:
    """No mark at all leaves the pictures in front; else there is one for each picture, in order, numbered or not."""
    if not marks:
        return
    if len(marks) != images:
        raise Reject("image_marks", f"{len(marks)} `<image>` marks, {images} images")
    if any(n and n != i + 1 for i, n in enumerate(marks)):
        raise Reject("image_marks", "numbered `<image>` marks that are not in the order of the images")


def _without_leading(asked: str) -> str:
    """A question without the marks it begins with."""
    while m := MARK.match(asked.lstrip()):
        asked = asked.lstrip()[m.end() :]
    return asked


def _placed(asked: str, limits: Limits) -> tuple[str, list[int]]:
    """A question as bare words, and where in them its pictures stand."""
    text, places, last = "", list[int](), 0
    for m in MARK.finditer(asked):
        text += limits.plain(asked[last : m.start()])
        places.append(len(text))
        last = m.end()
    text += limits.plain(asked[last:])
    begin = 0 if places and not places[0] else len(text) - len(text.lstrip())  # white space between words and a picture stays
    end = len(text) if places and places[-1] == len(text) else len(text.rstrip())
    bare = limits.short(text[begin:end]) if end > begin else ""
    return bare, [min(max(0, at - begin), len(bare)) for at in places]
