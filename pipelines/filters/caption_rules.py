"""Captions that say nothing of their picture: file names, URLs, markup, placeholders, web boilerplate, repeats, ends cut off.

The rules are about what alt text on the web really holds (docs/image_text.md has counts on real sets); each is a reason of its own, the first that
applies. A recipe gives phrases, never patterns, and the few patterns here have one bounded repeat each, so time grows with a caption's length and
no caption makes a rule slow. The lists are of English words: name others for other languages. Combining marks count as letters (Hindi, Thai), and
rules on single words ask for ASCII, since Chinese and Thai write whole sentences as one. Length is `caption_length`'s matter.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import ClassVar, Literal
from urllib.parse import unquote

from pydantic import Field

from pipelines.format.document import Percent
from pipelines.format.record import Record
from pipelines.stage import Filter

PLACEHOLDERS = (
    "alt, alt text, alternative text, avatar, background, background image, banner, blank, caption, cover, cover image, default, description, "
    "empty, enlarge, facebook, featured image, figure, graphic, header, header image, hero, icon, image, image description, images, img, "
    "instagram, learn more, loading, logo, main image, more, n a, nan, no alt, no alt text, no caption, no description, no image, no photo, "
    "no title, none, null, pic, picture, pictures, photo, photograph, photos, pin it, pixel, placeholder, placeholder image, preview, "
    "product image, profile picture, read more, screenshot, share, slide, slider, spacer, test, text, thumb, thumbnail, title, twitter, "
    "undefined, unknown, unnamed, untitled, view larger image, zoom"
)
BOILERPLATE = (
    "click for larger, click here, click image, click on image, click the image, click to enlarge, click to view, click to zoom, "
    "enable javascript, has an empty alt attribute, image coming soon, image may contain, image not available, image not found, "
    "image unavailable, lorem ipsum, may be an image of, no image available, no photo available, opens in a new window, "
    "photo coming soon, photo not available, picture not available, view larger image, you need javascript, your browser does not support"
)
_CAMERAS = (
    "cimg, dji, dsc, dscf, dscn, fullsizerender, gopr, hpim, imag, img, imgp, kimg, mvimg, p, pict, pxl, sam, scan, sdc, vid, wp, "
    "screenshot, screenshot at, screenshot at am, screenshot at pm, screen shot at, screen shot at am, screen shot at pm, "
    "whatsapp image at, whatsapp image at am, whatsapp image at pm"
)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".avif", ".heic", ".ico", ".psd")
_URLS = ("http://", "https://", "www.", "ftp://")
_DOMAINS: tuple[str, ...] = (".com", ".org", ".net", ".gov", ".edu", ".io", ".info")
_DOMAINS += (".au", ".br", ".ca", ".ch", ".de", ".es", ".eu", ".fr", ".gr", ".nl", ".pl", ".ru", ".uk")
_LETTERS, _DIGIT = re.compile(r"[^\W\d_]+"), re.compile(r"\d")
_TAG = re.compile(r"</?[_|]{0,2}[a-zA-Z][^<>]{0,200}>")  # and other tools' marks of where a picture stands: <__dj__image>, <|image|>
_ATTRIBUTE = re.compile(r"(?:(?:width|height) ?[-:=] ?\d{1,5}|(?:align|class|style|float|alt|src) ?=)", re.IGNORECASE)
_TEMPLATES = ("{{", "}}", "${", "<%", "[caption", "[/caption", "[[", "%20")
_ELLIPSES = ("...", "…")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_CAMERA_NAMES = frozenset(_listed(_CAMERAS))


class CaptionRules(Filter):
    """`placeholders`: captions that are nothing but one of these, numbers and marks aside; `boilerplate`: phrases that no caption may hold; each with
    an `extra_` list that adds to it. `min_letters`: share of letters among what is no space. `max_character_run`, `max_word_run`: the same, in a
    row; `max_word_share`: of one word, in captions of four words and more. `max_url_share`: of characters in URLs. `same_as_file_words`: a caption
    that is its file's name goes when it has so many words or fewer. `cut_off`: last words after which more was to come, [] for none; `ellipsis`:
    whether an ellipsis at the end counts as such. `require: any` keeps a record for one good caption, and `prune` takes its bad ones out."""

    version: ClassVar[int] = 2  # 2: marks such as <__dj__image> and <|image|>, and bare domains of more countries
    placeholders: tuple[str, ...] = _listed(PLACEHOLDERS)
    extra_placeholders: tuple[str, ...] = ()
    boilerplate: tuple[str, ...] = _listed(BOILERPLATE)
    extra_boilerplate: tuple[str, ...] = ()
    min_letters: Percent = 0.4
    max_character_run: int = Field(5, ge=1)
    max_word_run: int = Field(3, ge=1)
    max_word_share: Percent = 0.6
    max_url_share: Percent = 0.5
    same_as_file_words: int = Field(1, ge=0)
    file_names: bool = True
    markup: bool = True
    cut_off: tuple[str, ...] = ("the", "a", "an", "and", "or", "of", "with")
    ellipsis: bool = False
    require: Literal["every", "any"] = "every"
    prune: bool = False

    def reason(self, record: Record) -> str | None:
        file = _file_of(record)
        problems = [self.problem(s.text or "", file) for s in record.segments if s.kind == "text"]
        bad = [p for p in problems if p]
        if bad and (self.require == "every" or len(bad) == len(problems)):
            return f"caption_rules.{bad[0]}"
        return None

    def kept(self, record: Record) -> Record:
        """With `prune`, the record without its bad captions."""
        if not self.prune:
            return record
        file = _file_of(record)
        good = tuple(s for s in record.segments if s.kind != "text" or not self.problem(s.text or "", file))
        return record if len(good) == len(record.segments) else replace(record, segments=good)

    def problem(self, text: str, file: str = "") -> str | None:
        """The first rule that this caption breaks; `file` is its picture's file name, without the suffix."""
        text = text.strip() if text.isascii() else unicodedata.normalize("NFKC", text).strip()
        lower, words, plain = text.casefold(), text.split(), _letters_only(text)
        if self.file_names and _is_file_name(text, lower, words, plain):
            return "file_name"
        if file and len(words) <= self.same_as_file_words and _bare(text) == _bare(file):
            return "same_as_file"
        if self._is_url(lower, words):
            return "url"
        if not plain:
            return "no_letters"
        if plain in self._placeholders:
            return "placeholder"
        if len(plain) - plain.count(" ") < self.min_letters * sum(map(len, words)):
            return "few_letters"
        if self.markup and _has_markup(text):
            return "markup"
        if any(phrase in lower for phrase in self._boilerplate):
            return "boilerplate"
        if self._run.search(lower):
            return "repeated_characters"
        if self._repeats(lower.split()):
            return "repeated_words"
        return "cut_off" if self._is_cut_off(lower, words) else None

    @cached_property
    def _placeholders(self) -> frozenset[str]:
        return frozenset(_letters_only(p) for p in (*self.placeholders, *self.extra_placeholders))

    @cached_property
    def _boilerplate(self) -> tuple[str, ...]:
        return tuple(p.casefold() for p in (*self.boilerplate, *self.extra_boilerplate))

    @cached_property
    def _run(self) -> re.Pattern[str]:
        return re.compile(rf"([^\s\d])\1{{{self.max_character_run},}}")  # a number may be a round one

    def _is_url(self, lower: str, words: list[str]) -> bool:
        if len(words) == 1 and lower.isascii() and lower.partition("/")[0].endswith(_DOMAINS):
            return True
        inside = sum(len(w) for w in words if w.casefold().startswith(_URLS))
        return inside > self.max_url_share * sum(map(len, words))

    def _repeats(self, words: list[str]) -> bool:
        if any(sum(1 for _ in same) > self.max_word_run for _, same in groupby(words)):
            return True
        return len(words) >= 4 and max(Counter(words).values()) > self.max_word_share * len(words)

    def _is_cut_off(self, lower: str, words: list[str]) -> bool:
        return (self.ellipsis and lower.endswith(_ELLIPSES)) or (len(words) > 1 and words[-1] in self.cut_off)  # "Style A", "Portland, OR"


def _letters_only(text: str) -> str:
    """Lower case, anything but letters (with their marks) turned into single spaces."""
    lower = text.casefold()
    if lower.isascii() or max(lower) < "\u0300":  # no combining marks: the pattern's letters are all there are
        return " ".join(_LETTERS.findall(lower))
    words = "".join(c if c.isalpha() or unicodedata.category(c)[0] == "M" else " " for c in lower).split()
    return " ".join(w for w in words if any(map(str.isalpha, w)))  # a mark without its letter says nothing


def _bare(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def _is_file_name(text: str, lower: str, words: list[str], plain: str) -> bool:
    """Ends as picture files do; named by a camera or a screen shot; or one word of ASCII that a person would not write: golden_retriever,
    51elGXK151L, free-kindergarten-worksheet."""
    if lower.endswith(_SUFFIXES) or (plain in _CAMERA_NAMES and len(_DIGIT.findall(text)) >= 3):
        return True
    if len(words) != 1 or not text.isascii() or lower.startswith(_URLS):
        return False
    if "_" in text or (text.count("-") >= 3 and text == lower):
        return True
    return text.isalnum() and plain != "" and len(_DIGIT.findall(text)) >= 4


def _has_markup(text: str) -> bool:
    return _TAG.search(text) is not None or _ATTRIBUTE.match(text) is not None or any(t in text for t in _TEMPLATES)


def _file_of(record: Record) -> str:
    """The name of the picture's file, from its URL or its place in the source, where that ends as picture files do."""
    for place in (record.url or "", record.origin):
        name = unquote(place.partition("?")[0].partition("#")[0].rpartition("/")[2])
        if name.casefold().endswith(_SUFFIXES):
            return name.rpartition(".")[0]
    return ""
