"""Captions that say nothing of their picture are told from those that do, in linear time whatever they hold."""

import json
import os
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.filters.caption_rules import CaptionRules
from pipelines.format.record import Image, Record, Text

GOOD = [
    "A woman posing for the camera standing on skis.",
    "Firefox logo",
    "cat",
    "U.S. flag",
    "Screenshot of analytics.gsa.gov",
    "A screenshot of https://github.com/18F with two open windows",
    "THERE IS A MAN WALKING IN THE AIRPORT",
    "Butterfly on a Wheel - 11 x 17 Movie Poster - UK Style A",
    "Crater Lake, OR",
    "1980 Jeep CJ-7 for sale 101359225",
    "Rhein-Main-Donau-Kanal",
    "COVID-19",
    "Node.js",
    "a very very very tall building",
    "100000000 grains of sand",
    "State of the art.",
    "Fish & Chips &amp; peas",
    "Photo of a ship at sunset",
    "No parking sign",
    "山水双挖2017年",
    "บริษัทรถไฟ2560ปี",
    "भारत में एक मंदिर की तस्वीर",
    "Wie heißt die Straße mit dem grünen Haus?",
    "I❤️NY t-shirt",
    "I <3 cats >_> and dogs <_< a lot",
]
BAD = [
    ("IMG_0231", "file_name"),
    ("IMG 0231", "file_name"),
    ("DSC00012.JPG", "file_name"),
    ("ThirtyYearHistoryOfPostgresAndLucene (1).png", "file_name"),
    ("Screen Shot 2014-11-25 at 3.14.15 PM", "file_name"),
    ("P1010345", "file_name"),
    ("WhatsApp Image 2019-03-01 at 14.22.01", "file_name"),
    ("neil_patrick_harris_smiling", "file_name"),
    ("free-kindergarten-graphing-worksheet", "file_name"),
    ("51elGXK151L", "file_name"),
    ("https://example.org/a/b?c=d", "url"),
    ("www.example.org", "url"),
    ("tutorialblog.org", "url"),
    ("rodosreport.gr", "url"),
    ("Tote bag. http://www.example.com/2015/11/diy-canvas-tote-bag.html", "url"),
    ("image", "placeholder"),
    ("Image 12", "placeholder"),
    ("  (Untitled-1) ", "placeholder"),
    ("ＰＨＯＴＯ", "placeholder"),
    ("N/A", "placeholder"),
    ("0.32893747091293335", "no_letters"),
    ("***", "no_letters"),
    ("¨", "no_letters"),
    ("\u0301 \u0301", "no_letters"),
    ("", "no_letters"),
    ("(12) 34-56-78 / 90 kg 99", "few_letters"),
    ("<b>Car</b> in the snow", "markup"),
    ("<__dj__image> A comfortable bed.", "markup"),
    ("<|image|> A comfortable bed.", "markup"),
    ("width-300px", "markup"),
    ("{{ product.title }} in red", "markup"),
    ("No image available, instead we used the logo", "boilerplate"),
    ("A red chair. Click to Enlarge!", "boilerplate"),
    ("noooooooo way", "repeated_characters"),
    ("sale ----------- now on", "repeated_characters"),
    ("shoes shoes shoes shoes", "repeated_words"),
    ("cheap watch cheap cheap watch cheap cheap", "repeated_words"),
    ("Screenshot of the", "cut_off"),
    ("A screenshot of the GOV.UK screen with", "cut_off"),
]


def pair(*texts, origin="o", url=None):
    return Record.make("t", origin, "image-text", [Image(b"", atom=0), *(Text(t, atom=i + 1) for i, t in enumerate(texts))], url=url)


@pytest.mark.parametrize("caption", GOOD)
def test_captions_that_say_something_stay(caption):
    assert CaptionRules().reason(pair(caption)) is None


@pytest.mark.parametrize(("caption", "rule"), BAD)
def test_captions_that_say_nothing_go_by_their_rule(caption, rule):
    assert CaptionRules().reason(pair(caption)) == f"caption_rules.{rule}"


@pytest.mark.parametrize(
    ("origin", "url", "caption", "goes"),
    [("a/flying-cow.jpg", None, "Flying-Cow", True), ("a/flying-cow.jpg", None, "flying cow", False),
     ("x.tar#7", "http://h/Flying%2DCow.png?w=3", "flyingcow", True),
     ("flying-cow.txt", None, "Flying-Cow", False), ("a/flying-cow.jpg#3", None, "flying-cow", True)],
)  # fmt: skip
def test_a_caption_that_is_its_file_name_goes_when_it_is_one_word(origin, url, caption, goes):
    assert CaptionRules().reason(pair(caption, origin=origin, url=url)) == ("caption_rules.same_as_file" if goes else None)
    assert CaptionRules(same_as_file_words=0).reason(pair(caption, origin=origin, url=url)) is None
    also = CaptionRules(same_as_file_words=2).reason(pair("flying cow", origin="flying-cow.jpg"))
    assert also == "caption_rules.same_as_file"


def test_every_caption_must_be_good_unless_any_is_enough():
    mixed = pair("A red chair", "image", "IMG_0001")
    assert CaptionRules().reason(mixed) == "caption_rules.placeholder"
    assert CaptionRules(require="any").reason(mixed) is None
    assert CaptionRules(require="any").reason(pair("image", "IMG_0001")) == "caption_rules.placeholder"
    assert CaptionRules().reason(pair()) is None


def test_pruning_takes_out_the_bad_captions_and_nothing_else():
    mixed = pair("image", "A red chair", "IMG_0001")
    kept = CaptionRules(require="any", prune=True).kept(mixed)
    assert kept.segments == (mixed.segments[0], mixed.segments[2]) and kept.id == mixed.id
    assert CaptionRules(require="any").kept(mixed) is mixed
    clean = pair("A red chair")
    assert CaptionRules(require="any", prune=True).kept(clean) is clean


def test_thresholds_and_lists_are_keys():
    def reason(text, **keys):
        return CaptionRules(**keys).reason(pair(text))

    assert reason("Bild", extra_placeholders=("bild",)) == "caption_rules.placeholder" and reason("image", placeholders=()) is None
    assert reason("Ein Haus, hier klicken", extra_boilerplate=("Hier Klicken",)) == "caption_rules.boilerplate"
    assert reason("click here", boilerplate=()) is None
    assert reason("ab 12", min_letters=0.5) is None and reason("ab 123", min_letters=0.5) == "caption_rules.few_letters"
    assert reason("aaab", max_character_run=3) is None and reason("aaaab", max_character_run=3) == "caption_rules.repeated_characters"
    assert reason("a b b", max_word_run=1) == "caption_rules.repeated_words"
    assert reason("a b a c", max_word_share=0.5) is None and reason("a b a a", max_word_share=0.5) == "caption_rules.repeated_words"
    assert reason("a chair and", cut_off=()) is None and reason("a chair under", cut_off=("under",)) == "caption_rules.cut_off"
    assert reason("4 bed house in Mossley...") is None and reason("4 bed house in Mossley…", ellipsis=True) == "caption_rules.cut_off"
    assert reason("IMG_0231", file_names=False) == "caption_rules.placeholder" and reason("<b>x</b> a chair", markup=False) is None


@settings(max_examples=1000, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_judged_and_twice_alike(text):
    rules = CaptionRules()
    assert rules.problem(text) == rules.problem(text) == CaptionRules().problem(text)
    if not any(c.isalpha() for c in unicodedata.normalize("NFKC", text)):  # "℡" has letters then
        assert rules.problem(text) is not None


HOSTILE = ["<" * 9, "<a", "a" * 5 + " ", "-", "ab_", "[[", "aaaaa1", "www.", "click ", "\u0300", "&#", "a. ", "> <b", "width=", "x-", "．"]


@pytest.mark.parametrize("unit", HOSTILE)
def test_no_caption_makes_a_rule_slow(unit):
    """A million characters, the most a source lets through; time grows with length alone, so ten times the text may not take a hundred times."""
    rules = CaptionRules(ellipsis=True)
    rules.problem("warm up")
    took = {}
    for n in (100_000, 1_000_000):
        text = unit * (n // len(unit))
        start = time.process_time()
        rules.problem(text)
        took[n] = time.process_time() - start
    assert took[1_000_000] < max(2.0, 30 * took[100_000])


DATA = os.environ.get("HEADWATER_DATA")
COUNTS = {
    "coco_captions": (400, {}),
    "us_gov_alt_18f": (234, {"boilerplate": 1, "cut_off": 2, "file_name": 4, "markup": 2}),
    "mdn_alt": (22, {"placeholder": 3}),
    "openstax_alt": (348, {}),
}


@pytest.mark.skipif(not DATA, reason="HEADWATER_DATA is not set")
@pytest.mark.parametrize("name", COUNTS)
def test_real_captions_are_judged_as_the_documentation_says(name):
    rows = [json.loads(line) for p in sorted(Path(f"{DATA}/image_text/{name}").rglob("pairs.jsonl")) for line in p.open()]
    texts = [t for row in rows for t in [*row.get("alts", []), *row.get("captions", []), *(row[k] for k in ("alt", "caption") if k in row)]]
    found = Counter(filter(None, (CaptionRules().problem(t) for t in texts)))
    assert (len(texts), dict(sorted(found.items()))) == COUNTS[name]
