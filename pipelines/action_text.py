"""Actions as plain text, and back: a template with slots for numbers and for words.

    action: dx=+1.338, dy=-0.659, dyaw=+0.012, rel_t=+0.031          numbers: signed, three digits unless the slot says otherwise
    action: keys=w+space, dx=+4.0                                    words: pressed keys in a fixed order, a direction, free text

What comes in: values by name. What goes out: the text a model reads, and from a text the values again, up to the rounding that was printed. A
text that could not be read back the same (free text that looks like the template around it) is refused when it is written, not found out later.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.format.errors import Reject

TEMPLATE = "action: dx={dx}, dy={dy}, dyaw={dyaw}, rel_t={rel_t}"
NOTHING = "none"  # the word for no key, no button, no text
# What a hand does comes in this order whatever order a log lists it in; other keys follow by name.
ORDER = ("w", "a", "s", "d", "up", "left", "down", "right", "space", "shift", "ctrl", "alt")
_PREFIXES = ("key.keyboard.", "key.mouse.", "key.")  # how Minecraft names its keys
_SAME = {" ": "space", "+": "plus", ",": "comma", "left.shift": "shift", "left.control": "ctrl", "left.alt": "alt", "control": "ctrl", "": NOTHING}
_SLOT = re.compile(r"\{(\w+)(?::\.(\d)f)?\}")


@dataclass(frozen=True)
class ActionText:
    """A template such as `action: keys={keys}, steer={steer}, throttle={throttle:.2f}`; `words` names the slots that hold words."""

    template: str = TEMPLATE
    words: Collection[str] = ()

    @cached_property
    def slots(self) -> dict[str, int]:
        """Name → digits after the point, in the order of the text."""
        return {m[1]: int(m[2] or 3) for m in _SLOT.finditer(self.template)}

    def write(self, values: Mapping[str, float | str]) -> str:
        """The text. Never "-0.000": what rounds to zero is written with a plus, so that equal actions are equal texts. Raises `Reject` when words
        would not be read back as they are."""
        text = _SLOT.sub(lambda m: str(values[m[1]]) if m[1] in self.words else _signed(float(values[m[1]]), int(m[2] or 3)), self.template)
        if self.words:
            back = self.parse(text)
            wrong = [n for n in self.slots if n in self.words and (back is None or back[n] != values[n])]
            if wrong:
                raise Reject("ambiguous_action", f"{wrong[0]}={values[wrong[0]]!r} cannot be told from the template around it"[:300])
        return text

    def parse(self, text: str) -> dict[str, Any] | None:
        """The inverse, up to rounding; None for a text of another form."""
        match = self._pattern.fullmatch(text)
        return {name: match[name] if name in self.words else float(match[name]) for name in self.slots} if match else None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        out, at, seen = "", 0, set[str]()
        for m in _SLOT.finditer(self.template):
            digits = int(m[2] or 3)
            shape = ".*?" if m[1] in self.words else r"[+-]\d+" + (rf"\.\d{{{digits}}}" if digits else "")
            out += re.escape(self.template[at : m.start()]) + (f"(?P={m[1]})" if m[1] in seen else f"(?P<{m[1]}>{shape})")
            at = m.end()
            seen.add(m[1])
        return re.compile(out + re.escape(self.template[at:]), re.DOTALL)


def keys_text(names: Iterable[object]) -> str:
    """A set of keys or buttons in words: `w+space`, each once, in a fixed order; `none` for no key."""
    found = {_key(str(name)) for name in names} - {NOTHING}
    return "+".join(sorted(found, key=lambda k: (ORDER.index(k) if k in ORDER else len(ORDER), k))) or NOTHING


def pressed(text: str) -> tuple[str, ...]:
    """The keys of `keys_text`, in its order."""
    return () if text == NOTHING else tuple(text.split("+"))


def plain(text: str) -> str:
    """Free text as one line; `none` when there is nothing."""
    return " ".join(text.split()) or NOTHING


def _key(name: str) -> str:
    low = name if name.strip() == "" else name.strip().lower()
    for prefix in _PREFIXES:
        low = low.removeprefix(prefix)
    return _SAME.get(low, re.sub(r"[\s+,]+", "_", low))


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return "+" + text[1:] if float(text) == 0 else text
