"""Generation with a cache against the plain loop that reads everything again for every token and step, and what it promises of chance and company."""

from __future__ import annotations

from itertools import pairwise

import hand
import numpy as np
import pytest
import torch
from test_attention import model
from test_cached import SHAPES

from mixtures.span import Specials
from trainer.batch import IGNORED, LATENT, STRUCTURE, TEXT, Batch, Document
from trainer.generate.draws import chosen, noise, times, uniform
from trainer.generate.generator import PAINT, Generated, Generator, Prompt, Sampling
from trainer.normalise import Normaliser
from trainer.run import Flow
from trainer.sampling import sample

SPECIALS = Specials(hand.BOS, hand.EOS, hand.BOI, hand.EOI, hand.PAD)
DROPS = Flow(predict="v", cfg_drop={"caption": 0.1, "action": 0.1, "context": 0.1})
RNG = np.random.default_rng(0)


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def latents(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((hand.PATCHES, hand.WIDTH)).astype(np.float32)


PROMPTS = [
    Prompt("continue", (ids(1, 2, 3),), tokens=12),
    Prompt("caption", (latents(1),), tokens=5),
    Prompt("picture", (ids(4, 5), PAINT)),
    Prompt("picture and more", (ids(4, 5), PAINT), tokens=6, images=1),
    Prompt("answer", (latents(2), ids(7, 8, 9)), tokens=4),
    Prompt("frames", (latents(3), PAINT, PAINT), images_as="frame"),
    Prompt("frames after copies", (latents(3), latents(4), PAINT, PAINT), images_as="frame", history="clean_copy"),
    Prompt("a clip from nothing", (PAINT, PAINT), images_as="frame", history="clean_copy"),
    Prompt("action", (latents(5), latents(6), ids(10, 11, 12), PAINT), text_as="action"),
    Prompt("interleaved", (ids(2), latents(7), ids(3), PAINT, ids(4, 4), PAINT), tokens=10, images=2),
    Prompt("nothing given", (), tokens=8, images=2),
]  # fmt: skip


class Plain:
    """The plain loop: no cache, a whole document for every question, conditions hidden by the mask."""

    def __init__(self, net, flow: Flow, how: Sampling) -> None:
        self.net, self.flow, self.how = net, flow, how
        self.rows: list[tuple] = []  # (token, kind, position, condition, image)
        self.images: list[tuple[torch.Tensor, float, bool]] = []

    def put(self, token: int, kind: int, position: int, condition: int, image: int = -1) -> None:
        self.rows.append((token, kind, position, condition, image))

    def put_image(self, z, t: float, position: int, condition: int, hidden: bool = False) -> None:
        self.put(hand.BOI, STRUCTURE, position, condition)
        for k in range(hand.PATCHES):
            self.put(hand.PAD, LATENT, position + 1 + k, condition, len(self.images))
        self.put(hand.EOI, STRUCTURE, position + 1 + hand.PATCHES, condition)
        self.images.append((torch.as_tensor(z), t, hidden))

    def batch(self) -> Batch:
        token, kind, position, condition, image = (np.array(x) for x in zip(*self.rows, strict=True))
        flags = np.array([i[2] for i in self.images], bool)
        d = Document(
            tokens=token.astype(np.int32), kind=kind.astype(np.uint8), turn=np.full(len(token), -1, np.int16), position=position.astype(np.int32),
            condition=condition.astype(np.uint8), text_target=np.full(len(token), IGNORED, np.int32), image=image.astype(np.int16),
            image_loss=flags, image_hidden=flags, image_segment=np.arange(len(flags), dtype=np.int16),
            latents=np.zeros((len(flags) * hand.PATCHES, hand.WIDTH), np.float32),
        )  # fmt: skip
        return hand.batch([[d]], len(token))

    @torch.no_grad()
    def ask(self, drop: bool = False):
        batch = self.batch()
        z = torch.cat([i[0] for i in self.images]) if self.images else torch.zeros(0, hand.WIDTH)
        dropped = torch.isin(batch.condition, torch.tensor(sorted(self.how.dropped(self.flow)), dtype=torch.uint8)) if drop else None
        return self.net(batch, z, torch.tensor([i[1] for i in self.images]), dropped, torch.tensor([len(self.rows) - 1]))

    def velocity(self, z, t: float, drop: bool):
        self.images[-1] = (z, t, self.images[-1][2])
        said = self.ask(drop).flow[-hand.PATCHES :]
        return said if self.flow.predict == "v" else (said - z) / (1 - t)

    def paint(self, start, place: int, clean_copy: bool):
        """Denoise the image whose BOI is to stand at `place`; the document afterwards holds it clean."""
        self.put_image(start, 0.0, place, 0, hidden=clean_copy)
        z, at, g = torch.from_numpy(start), times(self.how, self.flow, hand.PATCHES, hand.WIDTH), self.how.weight(self.flow)
        field = lambda z, t: self.velocity(z, t, False) if g == 1 else self.velocity(z, t, True) * (1 - g) + g * self.velocity(z, t, False)
        for now, then in pairwise(at):
            v = field(z, now)
            if self.how.sampler == "heun" and then < 1:
                v = (v + field(z + (then - now) * v, then)) / 2
            z = z + (then - now) * v
        self.images[-1] = (z, 1.0, clean_copy)
        if clean_copy:  # the noised copy stays, as in training; nobody may see it
            self.images[-1] = (torch.full_like(z, 9.0), 0.5, True)
            self.put_image(z, 1.0, place, 3)
        return z.numpy()

    def generate(self, prompt: Prompt) -> tuple[list[np.ndarray], str]:
        seed, place, out, copied = self.how.seed, 1, [], prompt.history == "clean_copy"
        text = {"caption": 1, "action": 2}[prompt.text_as]
        begins = lambda place: noise(prompt.id, prompt.sample, place, seed, (hand.PATCHES, hand.WIDTH))
        self.put(hand.BOS, STRUCTURE, 0, 0)
        for piece in prompt.pieces:
            if piece is PAINT:
                out.append(self.paint(begins(place), place, copied))
                place += hand.PATCHES + 2
            elif piece.ndim == 2:
                frame = prompt.images_as == "frame"
                if frame and copied:
                    self.put_image(np.full_like(piece, 7.0), 0.3, place, 0, hidden=True)
                self.put_image(piece, 1.0, place, 0 if frame and not copied else 3)
                place += len(piece) + 2
            else:
                for i in piece:
                    self.put(int(i), TEXT, place, text)
                    place += 1
        run, left = [], prompt.images
        for _ in range(prompt.tokens):
            allowed = torch.ones(1, hand.VOCAB, dtype=torch.bool)
            allowed[:, [hand.BOS, hand.EOI, hand.PAD]] = False
            allowed[:, hand.BOI] = left > 0
            (i,) = chosen(self.ask().logits, allowed, [uniform(prompt.id, prompt.sample, place, seed)], self.how)
            if i in (hand.EOS, hand.BOI):
                out += [np.array(run, np.int32)] if run else []
                run = []
            if i == hand.EOS:
                return out, "eos"
            if i == hand.BOI:
                out.append(self.paint(begins(place), place, copied))
                place, left = place + hand.PATCHES + 2, left - 1
            else:
                run.append(int(i))
                self.put(int(i), TEXT, place, text)
                place += 1
        return out + ([np.array(run, np.int32)] if run else []), "tokens" if prompt.tokens else "pieces"


def talkative(**changes):
    """A model that says BOI and EOS now and then."""
    net = model(**changes)
    with torch.no_grad():
        head = net.embed if net.head is None else net.head
        head[hand.BOI] *= 2.0
        head[hand.EOS] *= 2.0
    return net


def same(found: Generated, pieces: list[np.ndarray], stop: str = "") -> bool:
    assert not stop or found.stop == stop
    assert [p.shape for p in found.pieces] == [p.shape for p in pieces]
    return all(np.array_equal(a, b) if a.ndim == 1 else np.allclose(a, b, atol=2e-4) for a, b in zip(found.pieces, pieces, strict=True))


WAYS = {
    "sampled": (DROPS, Sampling(steps=3)),
    "greedy, unguided": (DROPS, Sampling(steps=3, temperature=0, guidance=1)),
    "heun, x, nucleus": (DROPS.model_copy(update={"predict": "x"}), Sampling(steps=3, sampler="heun", top_p=0.9, top_k=20, guidance=1.5)),
    "captions alone fall": (DROPS.model_copy(update={"cfg_drop": {"caption": 0.1}}), Sampling(steps=2, temperature=0.7, shift=3.0)),
    "context alone falls": (DROPS, Sampling(steps=2, drop=["context"], guidance=2.0, seed=5)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_comes_through_the_cache_is_what_the_plain_loop_gives(way: str) -> None:
    flow, how = WAYS[way]
    net = talkative(output_skip=way == "sampled", kv_heads=2)
    found = Generator(net, SPECIALS, flow, how, batch=4).generate(PROMPTS)
    for prompt, made in zip(PROMPTS, found, strict=True):
        assert made.prompt is prompt and same(made, *Plain(net, flow, how).generate(prompt)), prompt.id
    if way == "sampled":
        assert any(len(m.images) > sum(p is PAINT for p in m.prompt.pieces) for m in found), "the model began no image by itself"
        assert any(m.stop == "eos" for m in found)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_company_and_batch_size_change_nothing(size: int) -> None:
    net, how = talkative(), Sampling(steps=3, seed=2)
    alone = [Generator(net, SPECIALS, DROPS, how).generate([p])[0] for p in PROMPTS]
    backwards = Generator(net, SPECIALS, DROPS, how, batch=size).generate(PROMPTS[::-1])[::-1]
    for a, b in zip(alone, backwards, strict=True):
        assert same(b, a.pieces, a.stop), a.prompt.id


@pytest.mark.parametrize("shape", ["experts", "mixture of transformers", "adaptive norms, places in a plane"])
def test_every_member_of_the_family_generates_as_it_would_without_a_cache(shape: str) -> None:
    net, how = talkative(**SHAPES[shape]), Sampling(steps=2)
    for prompt, made in zip(PROMPTS, Generator(net, SPECIALS, DROPS, how).generate(PROMPTS), strict=True):
        assert same(made, *Plain(net, DROPS, how).generate(prompt)), prompt.id


def test_a_picture_is_what_the_evaluation_s_sampler_paints() -> None:
    net = model()
    d = hand.document("b c c c I e", np.random.default_rng(3), condition=1)
    batch = hand.batch([[d]], len(d))
    for sampler in ("euler", "heun"):
        how = Sampling(steps=4, sampler=sampler, guidance=2.5)
        start = noise("x", 0, 4, 0, (hand.PATCHES, hand.WIDTH))
        expected = sample(net, batch, DROPS, torch.from_numpy(start), None, 4, 2.5, sampler)
        (found,) = Generator(net, SPECIALS, DROPS, how).generate([Prompt("x", (d.tokens[1:4], PAINT))])
        assert np.allclose(found.images[0], expected.numpy(), atol=1e-4)


def test_samples_and_seeds_differ_and_repeat() -> None:
    net = talkative()
    prompt = lambda k: Prompt("same", (ids(1, 2),), tokens=20, sample=k)
    say = lambda seed, k: Generator(net, SPECIALS, DROPS, Sampling(seed=seed)).generate([prompt(k)])[0].ids[0].tolist()
    assert say(0, 0) == say(0, 0)
    assert len({tuple(say(seed, k)) for seed in range(3) for k in range(3)}) == 9


def test_latents_go_in_and_come_out_in_the_units_of_stored_ones() -> None:
    net, (mean, variance) = model(), (RNG.standard_normal(hand.WIDTH), RNG.random(hand.WIDTH) + 0.5)
    normal, how = Normaliser(mean, variance), Sampling(steps=3)
    stored = normal.undo(latents(8))
    (bare,) = Generator(net, SPECIALS, DROPS, how).generate([Prompt("x", (latents(8), ids(1), PAINT))])
    (found,) = Generator(net, SPECIALS, DROPS, how, normal).generate([Prompt("x", (stored, ids(1), PAINT))])
    assert np.allclose(found.images[0], normal.undo(bare.images[0]), atol=1e-3)


def test_an_image_is_read_clean_by_the_text_after_it() -> None:
    net, how = model(), Sampling(steps=3, temperature=0)
    (made,) = Generator(net, SPECIALS, DROPS, how).generate([Prompt("x", (ids(1, 2), PAINT), tokens=6)])
    (given,) = Generator(net, SPECIALS, DROPS, how).generate([Prompt("y", (ids(1, 2), made.images[0]), tokens=6)])
    assert made.ids[0].tolist() == given.ids[0].tolist()


def test_a_context_without_conditions_costs_a_second_pass_only_where_it_differs() -> None:
    net, shapes = model(), []
    forward = net.forward
    net.forward = lambda batch, *a, **k: shapes.append(batch.shape[0]) or forward(batch, *a, **k)
    Generator(net, SPECIALS, DROPS, Sampling(steps=3)).generate([Prompt("x", (PAINT,))])
    assert shapes == [1] * 4
    shapes.clear()
    Generator(net, SPECIALS, DROPS, Sampling(steps=3)).generate([Prompt("x", (ids(1), PAINT))])
    assert shapes == [2] * 4


def test_a_thousand_draws_follow_the_model() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]]).repeat(4000, 1)
    u = [uniform(str(i), 0, 3, 0) for i in range(4000)]
    every = range(5)
    for how, kept in ((Sampling(), every), (Sampling(top_k=2), [1, 2]), (Sampling(top_p=0.7), [1, 2]), (Sampling(temperature=0.5), every)):
        found = np.bincount(chosen(logits, torch.ones_like(logits, dtype=torch.bool), u, how), minlength=5) / 4000
        p = torch.full((5,), float("-inf"))
        p[list(kept)] = logits[0, list(kept)] / how.temperature
        assert np.abs(found - p.softmax(0).numpy()).max() < 0.03, how
    forbidden = torch.tensor([[True, False, False, True, True]]).repeat(4000, 1)
    assert set(chosen(logits, forbidden, u, Sampling(top_p=0.99))) <= {0, 3, 4}
    assert set(chosen(logits, forbidden, u, Sampling(temperature=0))) == {4}
    assert chosen(logits[:2], torch.ones(2, 5, dtype=torch.bool), [0.0, 1 - 2**-53], Sampling()).tolist() == [0, 4]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [(("text",), "a string needs a tokenizer"), ((ids(1, 400),), "from 1 to 400, the model has 40"),
     ((np.zeros(3, np.float32),), r"float32 \[3\] is neither"), ((np.zeros((2, 9), np.float32),), "latents of width 9, the model's are 6 wide")],
)  # fmt: skip
def test_what_cannot_be_read_is_told(pieces, words) -> None:
    with pytest.raises(ValueError, match=words):
        Generator(model(), SPECIALS, DROPS).generate([Prompt("x", pieces, tokens=1)])


def test_a_long_rollout_makes_each_frame_from_the_last_few_and_its_action_alone() -> None:
    net, how = model(), Sampling(steps=2)
    maker, frames, actions = Generator(net, SPECIALS, DROPS, how), [latents(i) for i in range(2)], [ids(i, i + 1) for i in range(4)]
    asked = lambda n: Prompt("r", (*frames, *(x for a in actions[:n] for x in (a, PAINT))), text_as="action", window=2)
    short, plain, long = maker.generate([asked(2), PROMPTS[0], asked(4)])
    assert [len(x.images) for x in (short, long)] == [2, 4] and plain.ids and all(map(np.array_equal, short.images, long.images[:2]))
    past = list(frames)
    for k, action in enumerate(actions):
        (alone,) = maker.generate([Prompt(f"r/{k}", (*past[-2:], action, PAINT), text_as="action")])
        assert np.allclose(alone.images[0], long.images[k], atol=1e-4)
        past.append(alone.images[0])
    with pytest.raises(ValueError, match="a window is of at least 1 image"):
        maker.generate([Prompt("r", (ids(1), PAINT), tokens=3, window=1)])
