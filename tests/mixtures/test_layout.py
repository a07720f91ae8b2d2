"""Layouts against arrays written out by hand: what each kind of data looks like to the model."""

import numpy as np
import pytest

from mixtures.layout import layout
from mixtures.span import SourceRules, Span, Specials
from pipelines.format.errors import InputError
from pipelines.format.record import Record, Segment

B, E, I, J, P = SPECIALS = Specials(bos=100, eos=101, boi=102, eoi=103, pad=104)  # B…E is a document, I…J an image
PLAIN = SourceRules()


def record(data, *segments):
    return Record("0" * 32, "s", "o", data, tuple(segments), "g")


def text(n, role="target", atom=-1, turn=-1, name=None):
    return Segment("tokens", role, atom, turn, member=name, tokens=n)


def image(n, role="target", atom=0):
    return Segment("latents", role, atom, -1, tokens=n)


def span(first, count, start, stop, loss, caption=-1, image_first=False):
    return Span(0, 0, 0, 0, first, count, caption, start, stop, image_first, tuple(bool(x) for x in loss), 0)


def rows(positions):
    """A layout as one string a position: structure id, t<segment>:<offset> or v<segment>:<offset>."""
    names = {B: "B", E: "E", I: "I", J: "J"}
    parts = zip(positions.kind, positions.token, positions.segment, positions.offset, strict=True)
    return " ".join(names[t] if k == 2 else f"{'tv'[k]}{s}:{o}" for k, t, s, o in parts)


def targets(positions):
    return positions.is_target.astype(int).tolist()


def test_a_whole_text_stands_between_bos_and_eos_and_predicts_all_but_bos():
    out = layout(span(0, 1, 0, 3, [1]), record("text", text(3)), PLAIN, SPECIALS)
    assert rows(out) == "B t0:0 t0:1 t0:2 E"
    assert targets(out) == [0, 1, 1, 1, 1]
    assert out.position.tolist() == [0, 1, 2, 3, 4]
    assert out.payload == 3 and len(out.image_loss) == 0


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [(0, 2, "B t0:0 t0:1"), (2, 4, "t0:2 t0:3"), (4, 5, "t0:4 E")],
)
def test_a_continued_text_has_no_bos_and_an_unfinished_one_no_eos(start, stop, expected):
    out = layout(span(0, 1, start, stop, [1]), record("text", text(5)), PLAIN, SPECIALS)
    assert rows(out) == expected
    assert out.payload == stop - start
    assert out.position[0] == 0


def test_the_pieces_of_a_cut_text_hold_each_payload_token_once():
    pieces = [layout(span(0, 1, a, b, [1]), record("text", text(7)), PLAIN, SPECIALS) for a, b in ((0, 3), (3, 4), (4, 7))]
    offsets = np.concatenate([p.offset[p.kind == 0] for p in pieces])
    assert offsets.tolist() == list(range(7))


def test_text_of_several_segments_takes_loss_only_where_its_bit_is_set():
    out = layout(span(0, 2, 0, 3, [0, 1]), record("text", text(2, "context"), text(1)), PLAIN, SPECIALS)
    assert rows(out) == "B t0:0 t0:1 t1:0 E"
    assert targets(out) == [0, 0, 0, 1, 1]


PAIR = record("image-text", image(2), text(3, atom=1, name="original"), text(1, atom=2, name="recaption"))


def test_a_pair_with_the_image_first_keeps_the_image_clean_and_learns_the_caption():
    out = layout(span(0, 2, 0, 5, [0, 1], caption=1, image_first=True), PAIR, PLAIN, SPECIALS)
    assert rows(out) == "B I v0:0 v0:1 J t1:0 t1:1 t1:2 E"
    assert targets(out) == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert out.image.tolist() == [-1, -1, 0, 0, -1, -1, -1, -1, -1]
    assert (out.image_loss.tolist(), out.image_hidden.tolist(), out.image_segment.tolist()) == ([False], [False], [0])
    assert out.condition.tolist() == [0] * 9  # nothing after it is generated as an image


def test_a_pair_with_the_text_first_noises_the_image_and_names_the_caption_as_its_condition():
    out = layout(span(0, 2, 0, 5, [1, 1], caption=1, image_first=False), PAIR, PLAIN, SPECIALS)
    assert rows(out) == "B t1:0 t1:1 t1:2 I v0:0 v0:1 J E"
    assert targets(out) == [0, 1, 1, 1, 1, 0, 0, 0, 1]  # BOI and EOS since the image has loss, never EOI
    assert out.condition.tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert out.image_loss.tolist() == [True]


def test_a_pair_shows_exactly_the_chosen_caption():
    out = layout(span(0, 2, 0, 3, [0, 1], caption=2, image_first=True), PAIR, PLAIN, SPECIALS)
    assert rows(out) == "B I v0:0 v0:1 J t2:0 E"


def test_with_both_the_first_image_is_trained_and_boi_is_learned_from_bos():
    out = layout(span(0, 2, 0, 5, [1, 1], caption=1, image_first=True), PAIR, SourceRules(both=True), SPECIALS)
    assert out.image_loss.tolist() == [True]
    assert targets(out)[:5] == [0, 1, 0, 0, 0]


CLIP = record("video", *(image(2, atom=i) for i in range(3)))


def test_video_frames_are_each_noised_and_follow_one_another():
    out = layout(span(0, 3, 0, 6, [1, 1, 1]), CLIP, PLAIN, SPECIALS)
    assert rows(out) == "B I v0:0 v0:1 J I v1:0 v1:1 J I v2:0 v2:1 J E"
    assert out.image_segment.tolist() == [0, 1, 2] and out.image_loss.all() and not out.image_hidden.any()
    assert targets(out) == [0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert out.image[out.kind == 1].tolist() == [0, 0, 1, 1, 2, 2]
    assert not out.condition.any()


def test_a_later_part_of_a_clip_has_no_bos_and_an_earlier_one_no_eos():
    assert rows(layout(span(0, 2, 0, 4, [1, 1]), CLIP, PLAIN, SPECIALS)) == "B I v0:0 v0:1 J I v1:0 v1:1 J"
    assert rows(layout(span(2, 1, 0, 2, [1]), CLIP, PLAIN, SPECIALS)) == "I v2:0 v2:1 J E"


def test_clean_copy_shows_each_frame_noised_for_itself_then_clean_at_the_same_positions():
    out = layout(span(0, 2, 0, 4, [1, 1]), CLIP, SourceRules(history="clean_copy"), SPECIALS)
    frame = "I v{0}:0 v{0}:1 J"
    assert rows(out) == " ".join(["B", *(frame.format(i) for i in (0, 0, 1, 1))])
    assert out.image_loss.tolist() == [True, False, True, False]
    assert out.image_hidden.tolist() == [True, False, True, False]
    assert out.position.tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8]
    assert targets(out) == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert out.condition.tolist() == [0, 0, 0, 0, 0, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0]
    assert out.payload == 4  # the copies are structure


def test_clean_copy_ends_with_an_eos_that_is_learned():
    out = layout(span(2, 1, 0, 2, [1]), CLIP, SourceRules(history="clean_copy"), SPECIALS)
    assert rows(out) == "I v2:0 v2:1 J I v2:0 v2:1 J E"
    assert targets(out) == [1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert out.position.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]


def test_an_action_and_its_context_frames_condition_the_target_frame():
    r = record("action-video", image(1, "context"), image(1, "context"), text(2, "context", 0), image(1))
    out = layout(span(0, 1, 0, 5, [0, 0, 0, 1]), r, PLAIN, SPECIALS)
    assert rows(out) == "B I v0:0 J I v1:0 J t2:0 t2:1 I v3:0 J E"
    assert out.condition.tolist() == [0, 3, 3, 3, 3, 3, 3, 2, 2, 0, 0, 0, 0]
    assert targets(out) == [0] * 9 + [1, 0, 0, 1]
    assert out.image_loss.tolist() == [False, False, True]


QA = [text(2, "context", 0, 0), text(1, "target", 0, 0), text(1, "context", 0, 1), text(2, "target", 0, 1)]
VQA = record("vqa", image(2, "context"), *QA)


def test_chained_turns_are_one_document_with_one_eos():
    out = layout(span(0, 1, 0, 8, [0, 0, 1, 0, 1]), VQA, PLAIN, SPECIALS)
    assert rows(out) == "B I v0:0 v0:1 J t1:0 t1:1 t2:0 t3:0 t4:0 t4:1 E"
    assert targets(out) == [0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1]
    assert set(out.turn.tolist()) == {-1}
    assert out.position.tolist() == list(range(12))


def test_isolated_turns_restart_after_the_image_and_end_each_with_an_eos():
    out = layout(span(0, 1, 0, 8, [0, 0, 1, 0, 1]), VQA, SourceRules(turns="isolated"), SPECIALS)
    assert rows(out) == "B I v0:0 v0:1 J t1:0 t1:1 t2:0 E t3:0 t4:0 t4:1 E"
    assert targets(out) == [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 1]
    assert out.turn.tolist() == [-1] * 5 + [0] * 4 + [1] * 4
    assert out.position.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8]
    assert out.payload == 8


def test_the_first_token_of_an_isolated_turn_is_never_a_target_even_when_questions_take_loss():
    isolated = layout(span(0, 1, 0, 8, [0, 1, 1, 1, 1]), VQA, SourceRules(turns="isolated", loss="text"), SPECIALS)
    assert targets(isolated)[5:] == [0, 1, 1, 1, 0, 1, 1, 1]
    chained = layout(span(0, 1, 0, 8, [0, 1, 1, 1, 1]), VQA, SourceRules(loss="text"), SPECIALS)
    assert targets(chained)[5:] == [1, 1, 1, 1, 1, 1, 1]


def test_a_question_without_turns_is_laid_out_alike_whether_isolated_or_not():
    r = record("vqa", image(2, "context"), text(2, "context", 0), text(1, "target", 0))
    a, b = (layout(span(0, 1, 0, 5, [0, 0, 1]), r, SourceRules(turns=t), SPECIALS) for t in ("chained", "isolated"))
    assert rows(a) == rows(b) == "B I v0:0 v0:1 J t1:0 t1:1 t2:0 E"
    assert targets(a) == targets(b) == [0, 0, 0, 0, 0, 0, 0, 1, 1]


def test_layouts_are_shared_between_equal_shapes_and_cannot_be_written():
    a, b = (layout(span(0, 3, 0, 6, [1, 1, 1]), CLIP, PLAIN, SPECIALS) for _ in range(2))
    assert a is b
    with pytest.raises(ValueError):
        a.kind[0] = 1


def test_specials_come_from_the_card():
    mapped = {"bos": 1, "eos": 2, "boi": 3, "eoi": 4, "pad": 0}
    assert Specials.of({"text": {"vocab": 50, "specials": mapped}}) == (1, 2, 3, 4, 0)


def test_an_encoding_without_a_tokenizer_is_refused():
    with pytest.raises(InputError, match="no tokenizer"):
        Specials.of({"image": {"encoder": "pixels"}})
