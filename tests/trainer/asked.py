"""Four tiny encoded datasets (questions, prose, clips, captioned pictures) and a plan that holds all of them out: what evaluations read.

An id is a byte, a picture is two latents whose value is its colour: so an oracle can be written by hand and every count be done in the head.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from mixtures import latent_stats
from mixtures.span import Row, SourceRules, Span, Specials
from pipelines.format import codec
from pipelines.format.dataset import Dataset
from pipelines.format.document import fingerprint
from pipelines.format.part import PartWriter
from pipelines.format.record import Record, Segment
from tests import toys
from trainer.evaluate._subject import Subject
from trainer.flow import Flow
from trainer.stream import Reader

SPECIALS = Specials(256, 257, 258, 259, 260)
COLOURS = ("red", "blue", "green", "grey")


@functools.cache
def tokenizer():
    """Byte-level, no merges: an id is a byte, so tests can count."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made


def ids(text: str, role: str, turn: int = -1, atom: int = -1) -> Segment:
    found = np.array(tokenizer().encode(text).ids, "<u2")
    return Segment("tokens", role, atom, turn, None, None, found.tobytes(), "uint16", (len(found),), len(found))


def image(colour: int, role: str = "context", atom: int = 0) -> Segment:
    x = np.full((2, 8), colour, np.float32)
    return Segment("latents", role, atom, payload=codec.encode_latents(x, "f32"), dtype="f32", shape=(2, 8), tokens=2)


def asked(i: int) -> Record:
    """A picture of one colour with an open question, and one with choices."""
    answer = COLOURS[i % 4]
    questions = [{"turn": 0, "question": "colour", "answers": [answer], "type": "colour", "bag": [answer, "pink"]}]
    questions.append({"turn": 1, "question": "which", "answers": [answer], "type": "which", "choices": list(COLOURS)})
    turns = [s for t, q in enumerate(("colour?", "which?")) for s in (ids(q, "context", t, 0), ids(f" {answer}", "target", t, 0))]
    return Record.make("toy", f"{i}.jpg", "vqa", [image(i % 4), *turns], fields={"questions": questions})


def prose(i: int) -> Record:
    return Record.make("toy", f"{i}.txt", "text", [ids(f"the {COLOURS[i % 4]} thing number {i}", "target")])


def clip(i: int) -> Record:
    return Record.make("toy", f"{i}.mp4", "video", [image(i % 4, "target", k) for k in range(3)])


def pair(i: int) -> Record:
    caption = dataclasses.replace(ids(f"a {COLOURS[i % 4]} thing", "target", -1, 1), member="original")
    return Record.make("toy", f"{i}.png", "image-text", [image(i % 4, "target", 0), caption])


class HeldOut:
    """A plan with a held-out split only: every record of four small datasets, one a row."""

    def __init__(self, root: str, n: int = 12) -> None:
        made = {"vqa": [asked(i) for i in range(n)], "text": [prose(i) for i in range(n)], "video": [clip(i) for i in range(n)]}
        made["image_text"] = [pair(i) for i in range(n)]
        self.sources, self.sequence_length, self.specials = list(made), 96, SPECIALS
        self.datasets, self.rows, self.records = [], [], []
        self.card: dict = {"encoding": {}}
        for d, (name, records) in enumerate(made.items()):
            path = f"{root}/{name}"
            with PartWriter(path, 0, fingerprint=fingerprint(name), encoded=True) as w:
                for r in records:
                    w.emit()
                    w.add(r)
                encoding: dict = {"text": {"tokenizer_sha256": "0" * 64, "vocab": 261, "specials": SPECIALS._asdict()}}
                if name != "text":
                    encoding["image"] = {"encoder": "toy", "fingerprint": "0" * 64, "tokens": 2, "width": 8, "codec": "f32"}
                    encoding["stats"], _ = latent_stats.publish(path, (n, np.full(8, 1.5), np.full(8, 1.25 * n)))
                toys.seal(path, name, records[0].data, [w.commit()], {}, encoding)
            tokenizer().save(f"{path}/tokenizer.json")
            self.datasets.append(Dataset.open(path))
            self.records.append(list(self.datasets[d].records(0)))
            for row, r in enumerate(records):
                stop = sum(s.tokens for s in r.segments)
                atoms = 1 if name == "vqa" else len(r.segments)
                loss = tuple(s.role == "target" for s in r.segments) if name != "image_text" else (False, True)
                self.rows.append(Span(d, d, 0, row, 0, atoms, 1 if name == "image_text" else -1, 0, stop, True, loss, 0))

    def rules(self, source: str) -> SourceRules:
        return SourceRules(turns="isolated" if source == "vqa" else "chained")

    def sequences(self, split: str = "train") -> int:
        return len(self.rows) if split == "heldout" else 0

    def row(self, i: int, split: str = "train") -> Row:
        return Row(i, 0, 0, self.rows[i].payload, 1.0, (self.rows[i],))

    def record(self, span: Span) -> Record:
        return self.records[span.dataset][span.row]

    def held_out(self, source: str) -> range:
        n = len(self.rows) // len(self.sources)
        first = self.sources.index(source) * n
        return range(first, first + n)

    def latent_stats(self):
        return 1, np.zeros(8), np.ones(8) - 1e-5


class Ran:
    flow = Flow()


def subject(plan: HeldOut, model) -> Subject:
    return Subject(model, Ran(), Reader(plan))
