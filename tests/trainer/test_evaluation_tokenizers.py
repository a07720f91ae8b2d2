"""Evaluations read text as it was encoded, and count the bytes behind every id that there is."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from encode.encoders.text_tokens import JsonTokenizer
from trainer.evaluate._tokenizers import ByteCounter, tokenizer_at
from trainer.generate.stage import _Words

TEXTS = ["hi <tool_call> there", "so <|end|> it ends", "naïve <é> <|end|>", ""]


@pytest.fixture
def path(tmp_path) -> str:
    """Byte-level, with a special token, and with two that were added and are not special: ids after the vocabulary's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end|>", special=True)])
    made.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("<é>", special=False)])
    made.enable_truncation(4)
    made.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def test_a_text_from_outside_has_the_ids_that_it_has_where_it_is_encoded(path, tmp_path):
    with open(path, "rb") as f:
        stored = JsonTokenizer(f.read(), {}, path).encode(TEXTS)
    read = tokenizer_at(path)
    assert [read.encode(t, add_special_tokens=False).ids for t in TEXTS] == [ids.tolist() for ids in stored]
    asked = type("Plan", (), {"datasets": [type("D", (), {"path": str(tmp_path)})], "path": "x"})
    assert [_Words(asked).ids(t, "") for t in TEXTS] == [ids.tolist() for ids in stored]
    assert read.token_to_id("<|end|>") not in stored[1] and read.token_to_id("<tool_call>") in stored[0]


def test_bytes_are_counted_behind_tokens_that_were_added_to_a_vocabulary(path):
    read = tokenizer_at(path)
    counter = ByteCounter(read)
    assert counter.table is not None
    for text in TEXTS:
        assert counter.count(read.encode(text, add_special_tokens=False).ids) == len(text.encode())
    assert counter.count([read.token_to_id("<|end|>"), read.token_to_id("<é>")]) == len("<|end|><é>".encode())
