"""robots.txt as RFC 9309 says it: groups by product token, the longest matching rule, `*` and `$`, percent-encoding made equal.

What comes in: the bytes of a robots.txt, then paths. What goes out: the rule that forbids a path, or None. Python's own `urllib.robotparser`
takes the first rule instead of the longest and knows no wildcards, so it both fetches what is forbidden and leaves out what is allowed.
Matching costs O(rule × path) at worst; no rule becomes a regular expression.

Beside the standard, a group's `Content-Signal:` and `Content-Usage:` lines are read (the drafts that name training as a use): `ai-train=no` or
`train-ai=n` for `/` forbids everything to us.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

MAX_BYTES = 512 << 10  # RFC 9309, 2.5: at least 500 KiB must be read; what follows is not
MAX_AGE = 86_400.0
MAX_KEPT = 20_000  # origins; most files are a few hundred bytes, the largest 512 KiB
_LINE = re.compile(r"\r\n|\r|\n")
_TOKEN = re.compile(r"[A-Za-z_-]+")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SIGNAL = re.compile(r"(?:^|[\s,;])(?:ai-train\s*=\s*no|train-ai\s*=\s*n)(?=$|[\s,;])")


@dataclass(frozen=True, slots=True)
class Rule:
    """One allow or disallow line. `pattern` is normalised, `text` is the line as evidence shows it."""

    allow: bool
    pattern: str
    text: str


@dataclass
class Rules:
    """What one robots.txt says to one agent."""

    rules: list[Rule] = field(default_factory=list)
    signal: str | None = None

    def forbidding(self, path: str) -> str | None:
        """The line that forbids this path (with its query), or None. The longest pattern rules; of equals, the one that allows."""
        path = normal(path)
        if path == "/robots.txt":
            return None
        best: Rule | None = None
        for rule in self.rules:
            longer = best is None or len(rule.pattern) > len(best.pattern)
            if (longer or (best is not None and len(rule.pattern) == len(best.pattern) and rule.allow)) and matches(rule.pattern, path):
                best = rule
        if best is not None and not best.allow:
            return best.text
        return self.signal


class Known:
    """The rules of origins asked before, for a day at most (RFC 9309, 2.4)."""

    def __init__(self) -> None:
        self._rules: dict[str, tuple[float, Rules]] = {}

    def get(self, origin: str) -> Rules | None:
        """What this origin said, if that is still to be believed."""
        until, rules = self._rules.get(origin, (0.0, None))
        return rules if time.monotonic() < until else None

    def keep(self, origin: str, rules: Rules) -> None:
        """Remember it."""
        if len(self._rules) >= MAX_KEPT:
            self._rules.clear()
        self._rules[origin] = (time.monotonic() + MAX_AGE, rules)


def parse(data: bytes, agent: str) -> Rules:
    """The rules for `agent`: of every group that names it, joined; else of those for `*`; else none."""
    mine, anyone = Rules(), Rules()
    named = False
    into: list[Rules] = []
    heading = False  # the line before was a User-agent line, so this one adds to its group
    for line in _LINE.split(data[:MAX_BYTES].decode("utf-8-sig", errors="replace")):
        key, colon, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key in ("user-agent", "useragent", "user agent"):
            into = into if heading else []
            heading = True
            token = _TOKEN.match(value)
            if value.startswith("*"):
                into.append(anyone)
            elif token and token[0].lower() == agent.lower():
                named = True
                into.append(mine)
            continue
        if key in ("allow", "disallow"):
            heading = False
            rule = Rule(key == "allow", normal(value), f"{key.capitalize()}: {value[:200]}")
            for rules in into if value else ():  # an empty Disallow forbids nothing
                rules.rules.append(rule)
        elif key in ("content-signal", "content-usage"):
            heading = False
            for rules in into if _refuses(value) else ():
                rules.signal = f"{key}: {value[:200]}"
    return mine if named else anyone


def _refuses(value: str) -> bool:
    """Whether a signal line forbids training for the whole site; one that begins with a path is about that path only, and `/` is the site."""
    text = value.lower()
    if text.startswith("/"):
        path, _, text = text.partition(" ")
        if path != "/":
            return False
    return bool(_SIGNAL.search(text))


def normal(path: str) -> str:
    """A path or pattern whose percent-encoding is the only possible one: unreserved bytes plain, all other encoded ones in upper case."""
    out, data, i = [], path.encode("utf-8", errors="replace"), 0
    while i < len(data):
        byte = data[i]
        if byte == 0x25:
            try:
                byte = int(data[i + 1 : i + 3].decode("ascii"), 16) if len(data) >= i + 3 else -1
            except ValueError:
                byte = -1
            if byte < 0:
                out.append("%")
                i += 1
                continue
            i += 3
            out.append(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}")
            continue
        i += 1
        out.append(chr(byte) if 0x20 < byte < 0x7F else f"%{byte:02X}")
    return "".join(out)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches the start of a path: `*` is any run of characters, a final `$` the end."""
    anchored = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not rest:
        return not anchored or at == len(path)
    for piece in rest[:-1]:
        at = path.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    last = rest[-1]
    if anchored:
        return len(path) - at >= len(last) and path.endswith(last)
    return path.find(last, at) >= 0
