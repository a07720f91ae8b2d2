"""Layouts of question sets: images in cells, in tars, by path and by URL, several to a question, and marks in the text."""

import base64
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.curate import VQA
from pipelines.engine import open_job
from pipelines.format.dataset import Dataset
from pipelines.format.document import parse
from pipelines.recipe import Recipe
from pipelines.sources.vqa_json import VqaJson
from pipelines.sources.vqa_table import VqaTable
from tests.fault_server import Answer, FaultServer
from tests.pipelines.test_sources_text import read
from tests.pipelines.test_sources_vqa import gpt, human, images
from tests.toys import jpeg

QUICK = {"backoff": 0.01, "attempts": 2, "deadline": 3, "grace": 0.3, "robots": False}


def table(root, *rows, name="t.jsonl"):
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), root / name, row_group_size=2)
    else:
        (root / name).write_text("".join(json.dumps(r) + "\n" for r in rows))


# ---- where images are -------------------------------------------------------------------------------------------------------------------


def cells(n, form):
    if form == "bytes":
        return jpeg(n)
    if form == "struct":
        return {"bytes": jpeg(n), "path": f"{n}.jpg"}
    if form == "base64":
        return base64.b64encode(jpeg(n)).decode()
    return {"data": "data:image/jpeg;base64," + base64.b64encode(jpeg(n)).decode(), "path": f"{n}.jpg"}[form]


@pytest.mark.parametrize(
    ("form", "name"), [("bytes", "t.parquet"), ("struct", "t.parquet"), ("base64", "t.jsonl"), ("data", "t.parquet"), ("path", "t.parquet")]
)
def test_questions_about_one_image_meet_in_one_record_wherever_the_image_is(tmp_path, form, name):
    images(tmp_path, *(["0.jpg", "1.jpg"] if form == "path" else []))
    rows = [{"image": cells(n, form), "question": f"q{i}?", "answer": f"a{i}"} for i, n in enumerate((0, 1, 0, 0, 1))]
    table(tmp_path, *rows, name=name)
    held = {"base64": "base64", "data": "base64", "path": "path"}.get(form, "bytes")
    records, rejects = read(VqaTable(path=str(tmp_path), table=name, images_are=held))
    assert [[q["question"] for q in r.fields["questions"]] for r in records] == [["q0?", "q2?", "q3?"], ["q1?", "q4?"]] and not rejects
    assert [r.segments[0].payload for r in records] == [jpeg(0), jpeg(1)]
    apart, _ = read(VqaTable(path=str(tmp_path), table=name, images_are=held, per="question"))
    assert [r.fields["questions"][0]["question"] for r in apart] == [f"q{i}?" for i in range(5)]
    assert len({r.id for r in apart}) == 5 and len({r.group for r in apart}) == 2


@pytest.mark.parametrize("per", ["image", "question"])
@pytest.mark.parametrize("held", ["path", "bytes"])
def test_a_shard_stores_the_image_of_many_questions_once(tmp_path, per, held):
    source = tmp_path / "in"
    source.mkdir()
    images(source, *(["0.jpg"] if held == "path" else []))
    rows = [{"image": cells(0, "path" if held == "path" else "struct"), "question": f"q{i}?", "answer": "x"} for i in range(20)]
    table(source, *rows, name="t.parquet")
    keys = {"path": str(source), "table": "t.parquet", "images_are": held, "per": per}
    recipe = parse(Recipe, {"name": "r", "output": str(tmp_path / "out"), "source": {"vqa_table": keys}})
    with open_job("local") as job:
        dataset = Dataset.open(VQA.run(recipe, job))
    (shard,) = dataset.shards
    assert (tmp_path / "out" / shard.data).read_bytes().count(jpeg(0)) == 1
    assert shard.records == (1 if per == "image" else 20)
    assert dataset.card["in"] == dataset.card["written"] == shard.records


def web(seen):
    kind, _, n = seen.path.strip("/").partition("/")
    return {"img": Answer(jpeg(int(n or 0)), headers={"Content-Type": "image/jpeg"}), "busy": Answer(b"busy", 503)}.get(kind)


@pytest.fixture
def server(monkeypatch):
    with FaultServer(web) as s:
        monkeypatch.setenv("HEADWATER_FETCH_PRIVATE", f"{s.address}:{s.port}")
        yield s


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_images_by_url_are_fetched_once_and_what_fails_in_passing_can_be_asked_for_again(tmp_path, server, name):
    paths = ["/img/0", "/busy/1", "/img/2", "/img/0", "/gone/3", "/busy/1"]
    table(tmp_path, *({"image": server.url(p), "question": f"q{i}?", "answer": "x"} for i, p in enumerate(paths)), name=name)
    source = VqaTable(path=str(tmp_path), table=name, images_are="url", fetch=QUICK)
    records, rejects = read(source)
    assert [(r.origin, r.url, len(r.fields["questions"])) for r in records] == [
        (f"{name}#0", server.url("/img/0"), 2),
        (f"{name}#2", server.url("/img/2"), 1),
    ]
    assert [(r.origin, r.reason) for r in rejects] == [(f"{name}#1", "fetch_transient"), (f"{name}#4", "fetch_permanent")]
    assert records[0].fields["fetch"]["sha256"] == records[0].group
    assert sum(n for (_, path), n in server.seen.items() if path == "/img/0") == 1
    (part,) = source.parts()
    again = list(source.read(source.again(part.spec, [f"{name}#1"]), "test"))
    assert [(r.origin, r.reason) for r in again] == [(f"{name}#1", "fetch_transient")]
    apart, rejects = read(VqaTable(path=str(tmp_path), table=name, images_are="url", per="question", fetch=QUICK))
    assert sorted(r.origin for r in apart) == [f"{name}#{i}" for i in (0, 2, 3)] and len(rejects) == 3


# ---- several images, and conversations in Parquet -----------------------------------------------------------------------------------------


def shown(record):
    """Pictures by number, texts as they are, in the order the model sees them."""
    numbers = {jpeg(n): n for n in range(6)}
    return [numbers[s.payload] if s.kind == "image" else s.text for s in record.segments]


def conversation(root, images_, *turns, **keys):
    row = {"image": images_, "conversations": [(human if i % 2 == 0 else gpt)(t) for i, t in enumerate(turns)]}
    good = {"image": "0.jpg", "conversations": [human("<image>\ngood?"), gpt("yes")]}
    (root / "c.json").write_text(json.dumps([row, good]))
    records, rejects = read(VqaJson(path=str(root), table="c.json", **keys))
    return records[0] if len(records) == 2 else rejects[0].reason


def test_several_images_stand_where_the_text_marks_them(tmp_path):
    images(tmp_path, *(f"{n}.jpg" for n in range(4)))
    two = ["0.jpg", "1.jpg"]
    record = conversation(tmp_path, two, "Is <image> larger than <image>?", "No.", "Why?", "Size.")
    assert shown(record) == ["Question: Is ", 0, " larger than ", 1, "? Answer:", " No.", "\nQuestion: Why? Answer:", " Size."]
    assert record.fields["questions"][0] == {"question": "Is  larger than ?", "answers": ["No."], "image_at": [3, 16], "turn": 0}
    assert [s.turn for s in record.segments] == [0] * 6 + [1] * 2
    later = conversation(tmp_path, ["0.jpg", "1.jpg", "2.jpg"], "<image>\n<image>\nAlike?", "Yes.", "And <image>", "No.")
    assert shown(later) == [0, 1, "Question: Alike? Answer:", " Yes.", "\nQuestion: And ", 2, " Answer:", " No."]
    assert [s.turn for s in later.segments if s.kind == "image"] == [-1, -1, 1]
    assert shown(conversation(tmp_path, "0.jpg", "What is this?\n<image>", "A cat."))[0] == 0  # one picture stands in front, as LLaVA moves it
    apart = conversation(tmp_path, two, "Is <image> larger than <image>?", "No.", "Why?", "Size.", independent=True)
    assert shown(apart)[:2] == [0, 1] and "dialogue" not in apart.fields
    assert shown(conversation(tmp_path, two, "No mark?", "x"))[:2] == [0, 1]
    assert shown(conversation(tmp_path, two, "<image 1> and <image 2>", "x"))[:4] == ["Question: ", 0, " and ", 1]


def test_marks_that_do_not_fit_the_images_are_refused(tmp_path):
    images(tmp_path, "0.jpg", "1.jpg")
    for given, *turns in (["0.jpg", "<image> <image>", "x"], [["0.jpg", "1.jpg"], "<image>", "x"], [["0.jpg", "1.jpg"], "<image 2> <image 1>", "x"],
                          ["0.jpg", "q", "see <image>"], [["0.jpg", "1.jpg"], "a", "b", "<image> <image>", ""]):  # fmt: skip
        assert conversation(tmp_path, given, *turns) == "image_marks", turns


def test_the_cauldron_and_chat_messages_are_read_from_parquet(tmp_path):
    both = [{"bytes": jpeg(0), "path": None}, {"bytes": jpeg(1), "path": None}]
    texts = [{"user": "Which?", "assistant": "Left.", "source": "x"}, {"user": "Sure?", "assistant": "Yes.", "source": "x"}]
    table(tmp_path, {"images": both, "texts": texts}, {"images": both[:1], "texts": texts[:1]}, name="c.parquet")
    (a, b), rejects = read(VqaJson(path=str(tmp_path), table="c.parquet", image="images", independent=True))
    assert shown(a) == [0, 1, "Question: Which? Answer:", " Left.", "Question: Sure? Answer:", " Yes."] and shown(b)[0] == 0 and not rejects
    part = lambda kind, text=None, index=None: {"type": kind, "text": text, "index": index}
    chat = [{"role": "user", "content": [part("text", "Is"), part("image", index=0), part("text", "like"), part("image", index=1)]},
            {"role": "assistant", "content": [part("text", "Yes.")]}]  # fmt: skip
    table(tmp_path, {"images": both, "messages": chat}, name="m.parquet")
    (m,), _ = read(VqaJson(path=str(tmp_path), table="m.parquet", image="images"))
    assert shown(m) == ["Question: Is\n", 0, "\nlike\n", 1, " Answer:", " Yes."]


def test_images_named_by_the_messages_themselves_are_found(tmp_path):
    images(tmp_path, "0.jpg", "1.jpg")
    content = [{"type": "image", "image": "0.jpg"}, {"type": "image_url", "image_url": {"url": "1.jpg"}}, {"type": "text", "text": "Alike?"}]
    table(
        tmp_path,
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}, {"role": "assistant", "content": "No."}]},
    )
    (record,), _ = read(VqaJson(path=str(tmp_path), table="t.jsonl"))
    assert shown(record) == [0, 1, "Question: Alike? Answer:", " No."] and record.fields["system"] == "Be brief."


def test_rows_without_an_image_are_counted_or_kept_as_text(tmp_path):
    images(tmp_path, "0.jpg")
    talk = [human("q?"), gpt("a")]
    more = [human("r?"), gpt("a")]
    table(tmp_path, {"conversations": talk}, {"image": "0.jpg", "conversations": talk}, {"image": None, "conversations": more})
    records, rejects = read(VqaJson(path=str(tmp_path), table="t.jsonl"))
    assert len(records) == 1 and [(r.origin, r.reason) for r in rejects] == [("t.jsonl#0", "no_image"), ("t.jsonl#2", "no_image")]
    kept, none = read(VqaJson(path=str(tmp_path), table="t.jsonl", without_image="keep"))
    assert [r.origin for r in kept] == ["t.jsonl#0", "0.jpg", "t.jsonl#2"] and not none and len({r.group for r in kept}) == 3
    assert all(s.kind == "text" for s in kept[0].segments)


def test_an_object_of_questions_by_id_is_a_table_of_them(tmp_path):
    images(tmp_path, "train/7/image.png", "train/9/image.png")
    rows = {"7": {"question": "q?", "choices": ["a", "b"], "answer": 1, "hint": "h", "image": "image.png"},
            "8": {"question": "x", "choices": ["a"], "answer": 0, "hint": "", "image": None},
            "9": {"question": "ä?", "choices": ["a", "b"], "answer": 0, "hint": "", "image": "image.png"}}  # fmt: skip
    (tmp_path / "problems.json").write_text(json.dumps(rows, ensure_ascii=False))
    source = VqaTable(
        path=str(tmp_path), table="problems.json", key="*", image="train/{key}/{image}", choices="choices", answer_is="index0", hint="hint"
    )
    records, (reject,) = read(source)
    assert [(r.origin, r.fields["questions"][0]["answers"]) for r in records] == [("train/7/image.png", ["b"]), ("train/9/image.png", ["a"])]
    assert records[1].fields["questions"][0]["question"] == "ä?" and (reject.origin, reject.reason) == ("problems.json#1", "no_image")


def test_tables_place_marked_pictures_and_several_columns_are_several_pictures(tmp_path):
    images(tmp_path, "0.jpg", "1.jpg")
    both = {"left": "0.jpg", "right": "1.jpg", "answer": "x"}
    alone = {**both, "right": None, "question": "<image>\nred?"}
    table(tmp_path, {**both, "question": "Is <image 1> or <image 2> red?"}, alone, {**both, "question": "a <image>"})
    records, (reject,) = read(VqaTable(path=str(tmp_path), table="t.jsonl", image=("left", "right"), per="question"))
    assert [shown(r)[:-1] for r in records] == [["Question: Is ", 0, " or ", 1, " red? Answer:"], [0, "Question: red? Answer:"]]
    assert reject.reason == "image_marks"


def test_images_in_plain_tars_are_found_as_if_they_lay_beside_them(tmp_path):
    (tmp_path / "coco").mkdir()
    held = {"coco/a.tar": {"train/0.jpg": jpeg(0), "../x.jpg": jpeg(3)}, "b.tar": {"coco/train/0.jpg": jpeg(4), "other/1.jpg": jpeg(1)}}
    for name, found in held.items():
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, data in found.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    talk = lambda i: [human(f"<image>\n{i}?"), gpt("a")]
    named = ("coco/train/0.jpg", "other/1.jpg", "coco/train/0.jpg", "x.jpg", "coco/train/9.jpg")
    table(tmp_path, *({"image": n, "conversations": talk(i)} for i, n in enumerate(named)))
    source = VqaJson(path=str(tmp_path), table="t.jsonl", archives="*.tar")
    records, rejects = read(source)
    assert [(r.origin, shown(r)[0]) for r in records] == [("coco/train/0.jpg", 4), ("other/1.jpg", 1), ("coco/train/0.jpg#2", 4)]
    assert [r.reason for r in rejects] == ["unreadable"] * 2
    (part,) = source.parts()
    assert [i[:2] for i in part.inputs] == [["coco/train/0.jpg", len(jpeg(4))], ["other/1.jpg", len(jpeg(1))]]
    cut = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(cut[: len(cut) // 2])
    assert {r.origin: shown(r)[0] for r in read(source)[0]}["coco/train/0.jpg"] in (0, 4)  # what lies before the cut is still there


def test_a_retry_takes_up_images_that_failed_in_passing_with_all_their_questions(tmp_path, monkeypatch):
    well = False

    def answer(seen):
        return Answer(jpeg(1), headers={"Content-Type": "image/jpeg"}) if well or "ok" in seen.path else Answer(b"busy", 503)

    with FaultServer(answer) as server:
        monkeypatch.setenv("HEADWATER_FETCH_PRIVATE", f"{server.address}:{server.port}")
        rows = [
            {"image": server.url(f"/{p}"), "question": q, "answer": a} for p, q, a in (("ok", "a?", "x"), ("later", "b?", "x"), ("later", "c?", ""))
        ]
        table(tmp_path, *rows)
        source = {"vqa_table": {"path": str(tmp_path), "table": "t.jsonl", "images_are": "url", "fetch": QUICK}}
        document = {"name": "r", "output": str(tmp_path / "out"), "engine": "local", "source": source}
        found = []
        for retry in (None, "transient"):
            with open_job("local") as job:
                card = Dataset.open(VQA.run(parse(Recipe, {**document, "retry": retry}), job)).card
            assert card["in"] == card["written"] + sum(card["rejected"].values())
            found.append((card["in"], card["written"], card["rejected"]))
            well = True
    assert found == [(2, 1, {"fetch_transient": 1}), (3, 2, {"empty": 1})]


def test_one_question_in_five_layouts_is_one_record(tmp_path):
    """The same two questions about the same picture, however they are kept, make the same segments and words."""
    images(tmp_path, "0.jpg")
    asked = [{"question": f"q{i}?", "answer": "yes", "o": ["yes", "no"]} for i in range(2)]
    table(tmp_path, *({**q, "image": "0.jpg"} for q in asked), name="a.jsonl")
    (tmp_path / "b.json").write_text(json.dumps({q["question"]: {**q, "image": "0.jpg"} for q in asked}))
    table(tmp_path, *({**q, "image": {"bytes": jpeg(0), "path": "x"}} for q in asked), name="c.parquet")
    table(tmp_path, *({**q, "image": cells(0, "data")} for q in asked), name="d.jsonl")
    keys = [{"table": "a.jsonl"}, {"table": "b.json", "key": "*"}, {"table": "c.parquet"}, {"table": "d.jsonl", "images_are": "base64"}]
    letters = [{**q, "answer": "A", "image": "0.jpg"} for q in asked]
    table(tmp_path, *letters, name="e.parquet")
    keys.append({"table": "e.parquet", "images_are": "path", "answer_is": "letter"})
    found = [read(VqaTable(path=str(tmp_path), choices="o", **k)) for k in keys]
    assert all(len(records) == 1 and not rejects for records, rejects in found)
    assert len({repr((r.segments, r.fields, r.group)) for (r,), _ in found}) == 1
