"""Filters that ask a model, a list or another library: datatrove's answers, with what they noted kept."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("datatrove")

from datatrove.data import Document

from pipelines.classifier import classifier
from pipelines.filters.datatrove_filter import DatatroveFilter
from pipelines.filters.language import Language
from pipelines.filters.line_ratios import LineRatios
from pipelines.filters.quality import Quality
from pipelines.filters.url_filter import UrlFilter
from pipelines.format.document import sha256_hex
from pipelines.format.errors import InputError
from pipelines.transforms.pii import Pii
from tests.pipelines.real_text import generated
from tests.pipelines.test_text_filters import record, theirs

SENTENCES = {"en": ["the river runs to the sea", "a house on the hill", "they walked home"], "de": ["der Fluss fließt ins Meer", "ein Haus am Berg"]}
TEXTS = ["the river runs\nto the hill", "ein Haus und der Fluss", "the Haus on der river", "zzz qqq", "they walked"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny language model, trained in a process whose memory starts as zeros: fastText reads some that it never set, and may start from a NaN."""
    folder = tmp_path_factory.mktemp("model")
    rows = [f"__label__{language} {s}" for language, some in SENTENCES.items() for s in some] * 20
    (folder / "train.txt").write_text("\n".join(rows) + "\n")
    code = "import sys, fasttext as f; f.train_supervised(sys.argv[1], dim=4, epoch=10, thread=1, verbose=0).save_model(sys.argv[2])"
    names = [str(folder / "train.txt"), str(folder / "lid.bin")]
    zeroed = {**os.environ, "MALLOC_PERTURB_": "255"}  # glibc fills new memory with the complement
    subprocess.run([sys.executable, "-c", code, *names], env=zeroed, check=True, capture_output=True)
    return names[1]


@pytest.mark.parametrize("languages", [None, ("en",), ("de", "en")])
@pytest.mark.parametrize("threshold", [0.55, 0.8])
def test_language_is_datatroves(model, languages, threshold):
    from datatrove.pipeline.filters import LanguageFilter
    from fasttext.FastText import _FastText

    step = LanguageFilter(list(languages) if languages else None, threshold)
    step.model._model = _FastText(model)
    ours = Language(model=model, languages=languages, threshold=threshold)
    for text in TEXTS:
        document = Document(text=text, id="0")
        kept = bool(step.filter(document))
        r = record(text)
        assert (ours.reason(r) is None) == kept, text
        if kept:
            noted = ours.kept(r)
            assert noted.fields["language"] == document.metadata["language"]
            assert noted.scores["language"] == document.metadata["language_score"]


@pytest.mark.parametrize("rule", ["keep", "remove"])
@pytest.mark.parametrize("labels", [("en",), ("en", "de")])
def test_quality_is_datatroves(model, rule, labels):
    from datatrove.pipeline.filters import FastTextClassifierFilter

    scores = [classifier(model, None).scores(text, " ") for text in TEXTS]
    options = {rule: {label: sorted(s[label] for s in scores)[3 if label == "en" else 4] for label in labels}}
    theirs_ = FastTextClassifierFilter(model, **{f"{k}_labels": list(v.items()) for k, v in options.items()}, newline_replacement=" ")
    ours = Quality(model=model, **options)
    said = []
    for text in TEXTS:
        r = record(text)
        said.append(ours.reason(r))
        assert said[-1] == (None if theirs_.filter(Document(text=text, id="0")) else "quality")
        assert said[-1] or set(ours.kept(r).scores) == {f"quality.{label}" for label in next(iter(options.values()))}
    assert (
        Quality(model=model, keep={"en": 0.0}).reason(record("x")) is None and Quality(model=model, keep={"en": 1.1}).reason(record("x")) == "quality"
    )


def test_a_model_is_pinned_by_its_hash_and_a_missing_one_is_told(model, tmp_path):
    with open(model, "rb") as f:
        digest = sha256_hex(f.read())
    assert Language(model=model, sha256=digest, threshold=0).reason(record("the river")) is None
    for bad, what in (({"sha256": "0" * 64}, "pins"), ({"model": str(tmp_path / "no.bin")}, "no model here")):
        with pytest.raises(InputError, match=what):
            Language(**{"model": model, **bad}).reason(record("x"))
    (tmp_path / "not.bin").write_bytes(b"not a model" * 100)
    with pytest.raises(InputError, match="no fastText model"):
        Language(model=str(tmp_path / "not.bin")).reason(record("x"))
    with pytest.raises(InputError, match="no such label"):
        Quality(model=model, keep={"xx": 0.5}).reason(record("x"))
    with pytest.raises(ValueError, match="either"):
        Quality(model=model)


def test_urls_are_judged_as_by_datatrove():
    from datatrove.pipeline.filters import URLFilter

    options = {
        "use_integrated_lists": False,
        "extra_domains": ("bad.com", "sub.mixed.org"),
        "extra_urls": ("http://fine.net/one",),
        "banned_words": ("casino",),
        "banned_subwords": ("xxxx",),
        "soft_banned_words": ("bet", "win", "free"),
    }
    ours, step = UrlFilter(**options), URLFilter(**options)
    urls = ["http://bad.com/a", "https://www.bad.com", "http://sub.mixed.org/", "http://mixed.org/", "http://fine.net/one", "http://fine.net/two"]
    urls += ["http://a.org/casino/x", "http://a.org/casinos", "http://a.org/win-free", "http://a.org/win", "http://a.org/yxxxxy", "http://b.co.uk/x"]
    seen = set()
    for url in urls:
        found = step.filter(Document(text="", id="0", metadata={"url": url}))
        seen.add(found if found is True else found[1])
        assert ours.reason(record("t", url=url)) == (None if found is True else f"url_filter.{found[1]}"), url
    assert seen == {True, "domain", "subdomain", "url", "hard_blacklisted", "soft_blacklisted", "blacklisted_subword"}
    assert ours.reason(record("t")) == "url_filter.no_url" and UrlFilter(**options, missing="keep").reason(record("t")) is None


def test_any_datatrove_filter_is_named_as_it_is():
    from datatrove.pipeline.filters import C4ParagraphFilter, C4QualityFilter, RegexFilter

    pairs = [
        (DatatroveFilter(name="C4ParagraphFilter"), C4ParagraphFilter()),
        (DatatroveFilter(name="RegexFilter", options={"regex_exp": "river"}), RegexFilter("river")),
        (DatatroveFilter(name="C4QualityFilter", options={"min_num_sentences": 1}), C4QualityFilter(min_num_sentences=1)),
    ]
    for ours, step in pairs:
        for text in [*generated(8, 25), "The river runs to the sea. It is long."]:
            r = record(text)
            reason, left = theirs(step, text)
            said = ours.reason(r)
            assert (said is None) == (reason is None)
            if said is None:
                assert ours.kept(r).segments[0].text == left
            else:
                assert said.startswith(f"datatrove_filter.{ours.name}")
    assert pairs[0][0].reason(record("short")) == "datatrove_filter.C4ParagraphFilter.3_paragraphs"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"name": "os.system"}, "no such filter"),
        ({"name": "LambdaFilter"}, "no such filter"),
        ({"name": "SamplerFilter", "options": {"rate": 0.5}}, "no such filter"),
        ({"name": "RegexFilter", "options": {"exclusion_writer": "x"}}, "no such option"),
    ],
)
def test_code_is_never_named_by_a_recipe(options, what):
    with pytest.raises(InputError, match=what):
        DatatroveFilter(**options).reason(record("x"))


def test_personal_data_is_replaced_and_the_circle_begins_anew_with_each_record():
    from datatrove.pipeline.formatters import PIIFormatter

    text = "Mail ann@here.org or bob@there.net, c@d.com; hosts 8.8.8.8 and 10.0.0.1."
    once = PIIFormatter().format(text)
    assert once != text and "10.0.0.1" in once and "8.8.8.8" not in once
    for _ in range(2):
        (out,) = Pii().apply(record(text))
        assert out.segments[0].text == once
    (own,) = Pii(email_replacement=("x@y.z",), only_public_ips=False, remove_ips=False).apply(record(text))
    assert own.segments[0].text == "Mail x@y.z or x@y.z, x@y.z; hosts 8.8.8.8 and 10.0.0.1."
    clean = record("nobody here")
    assert next(iter(Pii().apply(clean))) is clean


CASES = [
    ({"max_short": 0.5, "short_length": 5}, "ab\ncd\na long line", "a long line\nab"),
    ({"min_ended": 0.5}, "no end\nnone\nyes.", "yes.\nno"),
    ({"max_bullets": 0.5}, "- a\n• b\nc", "- a\nb"),
    ({"max_ellipses": 0.4}, "more...\nb", "a\nb\nmore…"),
    ({"max_capitals": 0.4}, "BUY NOW\nok", "BUY\nok\nfine"),
    ({"max_capitals": 0.4}, "КУПИ 2 ШТУКИ!\nok", "│ HOME │ 会社紹介 │ FAQ\nサイズは A4 です"),  # letters without case are no capitals
    ({"max_digits": 0.3}, "12 34 ab", "1 bcd ef"),
    ({"min_letters": 0.7}, "a - 1", "abc d 1"),
    ({"max_repeated": 0.3}, "menu\nmenu\nab", "menu\nother line\nab"),
]


@pytest.mark.parametrize(("limit", "bad", "good"), CASES)
def test_each_ratio_has_its_own_limit(limit, bad, good):
    (name, *_) = limit
    assert LineRatios(**limit).reason(record(bad)) == f"line_ratios.{name}"
    assert LineRatios(**limit).reason(record(good)) is None


def test_ratios_without_a_limit_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        LineRatios(short_length=10)


def test_missing_packages_name_the_line_that_installs_them(monkeypatch):
    import sys

    from pipelines.extra import need

    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(InputError, match=r"headwater\[text\]"):
        need("xxhash", "minhash")


def test_filters_are_keys_of_a_recipe(tmp_path, model):
    from pipelines.curate import Curate
    from pipelines.engine import open_job
    from pipelines.format.dataset import Dataset
    from tests.pipelines.test_across import recipe

    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    filters = [{"language": {"model": model, "languages": ["en"], "threshold": 0.55}}, {"line_ratios": {"max_digits": "10%"}}]
    r = recipe(source, tmp_path / "d", across=[], filters=filters, transforms=["pii"])
    with open_job("local") as job:
        Curate("text").run(r, job)
    ds = Dataset.open(str(tmp_path / "d"))
    assert ds.card["filtered"]["language"] >= 1
    assert all(x.fields["language"] == "en" and x.scores["language"] > 0.55 for x in ds.records(0))
