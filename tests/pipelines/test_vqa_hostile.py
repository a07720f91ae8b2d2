"""Questions nobody checked: whatever a row holds, it ends once, as a record, or as a reject with a reason."""

import json
import tempfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.conversations import exchanges, images_named, messages
from pipelines.curate import VQA
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.format.errors import Reject
from pipelines.question_text import Columns, Limits
from pipelines.recipe import Recipe
from pipelines.transforms.template import Template
from tests.pipelines.test_sources_vqa import images

TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "<image>",
            "<image>\nwhat?",
            "a <image> b <image 2>",
            "&lt;&#55296;&#x110000;&bogus;",
            "\ud800",
            "['a', 'b']",
            "[" * 500,
            "A",
            "2",
            "<video>",
            " ",
        ]
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["text", "label", "answer", "url", "type", "A"]), inner, max_size=3)
    ),
    max_leaves=6,
)
WHO = st.one_of(st.sampled_from(["human", "gpt", "user", "assistant", "system"]), VALUES)
PARTS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "image", "image_url"])}, optional={"text": VALUES, "image": VALUES, "image_url": VALUES}
        ),
        VALUES,
    ),
    max_size=3,
)
SAID = st.one_of(TEXTS, PARTS, VALUES)
TURNS = st.one_of(
    st.fixed_dictionaries({"from": WHO, "value": SAID}), st.fixed_dictionaries({"role": WHO, "content": SAID}),
    st.fixed_dictionaries({"user": SAID, "assistant": SAID}), VALUES,
)  # fmt: skip
GOOD = st.lists(TEXTS, min_size=2, max_size=6).map(lambda said: [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(said)])
TALK = st.one_of(st.lists(TURNS, max_size=5), GOOD, VALUES)


def sound(text):
    return text.encode() is not None


@given(TALK, st.integers(0, 3), st.booleans(), st.booleans())
@settings(max_examples=300)
def test_a_conversation_is_questions_with_answers_or_a_reject_and_never_another_exception(talk, n, in_place, unescape):
    try:
        said = messages(talk)
        images_named(said)
        found, system = exchanges(said, n, Limits(max_turns=3, max_text=50, unescape=unescape), in_place)
    except Reject as reject:
        assert reject.reason in ("unreadable", "empty", "too_large", "image_marks")
        return
    assert 1 <= len(found) <= 3 and sound(system)
    placed = [at for q in found for at in q.get("image_at", [])]
    assert len(placed) <= n and (in_place or not placed)
    for q in found:
        assert sound(q["question"]) and len(q["question"]) <= 50 and q["answers"][0] == q["answers"][0].strip() != ""
        assert "<image>" not in q["question"] and sorted(q.get("image_at", [])) == q.get("image_at", [])
        assert all(0 <= at <= len(q["question"]) for at in q.get("image_at", []))


ROW = st.dictionaries(st.sampled_from(["question", "answer", "more", "options", "A", "B", "hint", "kind"]), VALUES, max_size=8)
KEYS = st.fixed_dictionaries({}, optional={"answers": st.just("more"), "answer_is": st.sampled_from(["text", "letter", "index0", "index1"]),
                                           "choices": st.sampled_from(["options", ("A", "B")]), "choice_list": st.just(("A", "2")),
                                           "hint": st.just("hint"), "type": st.sampled_from(["kind", "=x"])})  # fmt: skip


@given(ROW, KEYS)
@settings(max_examples=300)
def test_a_row_is_one_question_or_a_reject_and_never_another_exception(row, keys):
    try:
        q = Columns(**keys).read(row, Limits(max_text=50))
    except Reject as reject:
        assert reject.reason in ("unreadable", "empty", "too_large", "answer_not_in_choices")
        return
    assert sound(q["question"]) and q["answers"] and all(a and sound(a) for a in q["answers"])
    if "choices" in q:
        assert q["choices"][q["choice"]].casefold().split() == q["answers"][0].casefold().split()
    template = Template(choice="{letter}) {choice}", with_choices="{hint}{question} {choices}", answer_with_choices=" {letter}", shuffle=True)
    assert template.model_dump()


JSON = VALUES.filter(lambda v: "\\ud800" not in json.dumps(v))
ROWS = st.lists(
    st.fixed_dictionaries(
        {"image": st.one_of(st.sampled_from(["a.jpg", ["a.jpg", "b.jpg"], "bad.jpg", "../x", "gone.jpg", None]), JSON)},
        optional={"conversations": TALK, "id": JSON},
    ),
    max_size=6,
)


@given(ROWS)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_row_of_a_hostile_table_ends_once(tmp_path_factory, rows):
    root = tmp_path_factory.mktemp("in")
    images(root, "a.jpg", "b.jpg")
    (root / "bad.jpg").write_bytes(b"no picture")
    good = {"image": "a.jpg", "conversations": [{"from": "human", "value": "q?"}, {"from": "gpt", "value": "a"}]}
    (root / "c.json").write_text(json.dumps([*rows, good]))
    with tempfile.TemporaryDirectory() as out, open_job("local") as job:
        source = {"vqa_json": {"path": str(root), "table": "c.json"}}
        card = Dataset.open(VQA.run(parse(Recipe, {"name": "r", "output": out + "/d", "source": source, "error_budget": {"share": 1.0}}), job)).card
    assert card["in"] == len(rows) + 1 == card["written"] + sum(card["filtered"].values()) + sum(card["rejected"].values())
    assert not any(reason.startswith("error:") for reason in card["rejected"])
