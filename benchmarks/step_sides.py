"""The sides of the step benchmark: our loop's own step, the same stack in torch's layers, and lucidrains' transfusion-pytorch.

Each makes one optimizer step on the same documents: forward, both losses, backward, clip at 1, fused AdamW, f32. All have one width, depth, number
of heads and feed-forward parameters; nobody drops anything out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import packed, peers
from trainer.batch import IGNORED, LATENT, PADDING, STRUCTURE, Batch, Document
from trainer.models.attention import Marks, marks, visible
from trainer.models.blocks import TimeEmbedding


class Shape(NamedTuple):
    """What all sides have in common."""

    layers: int
    width: int
    heads: int
    ffn_width: int
    vocab: int
    channels: int
    patches: int
    sequence: int
    rows: int
    steps: int = 6  # of the run over a real plan


REAL = Shape(4, 256, 4, 1024, 4096, 64, 64, 512, 4, 24)
TOY = Shape(2, 32, 2, 64, 128, 8, 4, 64, 2, 4)


def text_rows(s: Shape) -> list[list[Document]]:
    """One text a row, as long as the row: nothing to pack, and nothing for a mask to hide but the future."""
    import numpy as np

    return [[packed.document(np.random.default_rng(i), 0, s.sequence - 2, s.patches, s.channels, s.vocab)] for i in range(s.rows)]


class Ours:
    """The trainer's loop, from a plan on: `step` is what it does with a batch that has been read (noise and counts included)."""

    def __init__(self, plan: str, s: Shape, output: Path, qk_norm: bool = True) -> None:
        from mixtures.plan import Plan
        from trainer import loop, step
        from trainer.parallel import World
        from trainer.run import Run

        self.run = Run.model_validate(document(plan, s, output, qk_norm))
        where = World(0, 1, torch.device("cpu"))
        self._step = step
        self._state, _ = loop.begin(self.run, self.run.output, "benchmark", Plan.open(plan), where, lambda *a, **k: None)

    @property
    def parameters(self) -> int:
        """Of the model."""
        return sum(p.numel() for p in self._state.model.parameters())

    def step(self, batch: Batch) -> float:
        """One optimizer step; its loss."""
        line, _ = self._step.advance(self._state, 0, self._step.prepare(self._state, batch), False)
        return float(line["loss"])


def document(plan: str, s: Shape, output: Path, qk_norm: bool = True) -> dict[str, Any]:
    """The run: the stack of `runs/tiny.yaml` (LayerNorm, squared ReLU, rotary positions) at this shape; normalised queries and keys by choice."""
    shape = {"layers": s.layers, "width": s.width, "heads": s.heads, "ffn": "shared", "ffn_width": s.ffn_width}
    shape |= {"norm": "layer", "activation": "relu2", "qk_norm": qk_norm}
    return {
        "plan": plan, "output": str(output), "model": {"transfusion": shape}, "batch": s.rows, "steps": s.steps, "device": "cpu", "threads": 1,
        "flow": {"predict": "v", "loss_space": "v"}, "optim": {"lr": 1e-4, "warmup": 0, "schedule": "constant"}, "guards": {"spike": "off"},
    }  # fmt: skip


class Plain(nn.Module):
    """nn.TransformerEncoderLayer (pre-norm, ReLU, no biases) over rows with their padding; heads only where there is a loss, as ours.

    Masked rows get the dense mask of our rules, made once a batch; rows of one text get torch's causal kernel.
    """

    def __init__(self, s: Shape, causal: bool) -> None:
        super().__init__()
        self.s, self.causal = s, causal
        self.embed = nn.Parameter(torch.randn(s.vocab, s.width) * 0.02)
        self.head = nn.Parameter(torch.randn(s.vocab, s.width) * s.width**-0.5)
        self.place = nn.Parameter(torch.randn(s.sequence, s.width) * 0.02)
        self.latent_in, self.latent_out = nn.Linear(s.channels, s.width), nn.Linear(s.width, s.channels)
        self.time = TimeEmbedding(s.width)
        layer = lambda: nn.TransformerEncoderLayer(s.width, s.heads, s.ffn_width, 0.0, batch_first=True, norm_first=True, bias=False)
        self.layers = nn.ModuleList(layer() for _ in range(s.layers))
        self.final = nn.LayerNorm(s.width, bias=False)
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(self, batch: Batch) -> float:
        """One optimizer step; its loss."""
        rows, length = batch.shape
        t = torch.rand(len(batch.image_loss))
        noise = torch.randn_like(batch.latents)
        at = t[batch.latent_image.long()].unsqueeze(1)
        z = (1 - at) * noise + at * batch.latents
        x = F.embedding(batch.tokens.clamp(max=self.s.vocab - 1).long(), self.embed) + self.place[:length]
        if len(z):
            seen = self.latent_in(z) + F.embedding(batch.latent_image.long(), self.time(t))
            x = x.reshape(rows * length, -1).index_add(0, batch.latent_slot, seen).view(rows, length, -1)
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else self._mask(batch)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=self.causal)
        x = x.reshape(rows * length, -1)
        target = batch.text_target.reshape(-1)
        wanted = torch.nonzero(target != IGNORED).squeeze(1)
        loss = F.cross_entropy(F.linear(self.final(x[wanted]), self.head), target[wanted].long())
        if len(z):
            loss = loss + 3 * F.mse_loss(self.latent_out(self.final(x[batch.latent_slot])), batch.latents - noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _mask(self, batch: Batch) -> Tensor:
        m = marks(batch, None)
        sees = visible(Marks(*(x[:, :, None] for x in m)), Marks(*(x[:, None, :] for x in m)))
        sees |= torch.eye(batch.shape[1], dtype=torch.bool)  # padding sees itself, or its softmax is NaN
        mask = torch.zeros(sees.shape).masked_fill_(~sees, float("-inf"))
        return mask.repeat_interleave(self.s.heads, dim=0)


class Peer:
    """transfusion-pytorch on the same documents, a row each, padded to the longest: it packs none.

    Its feed-forward (GEGLU, 3 x 2/3 of 4 x width) has our number of parameters; its U-Net skips stay on, for without them release 0.20.0 fails;
    nobody is unconditioned, so that no draw changes a batch; `strategy` is the fastest of its ways through a batch, tried before anything is timed.
    """

    def __init__(self, s: Shape) -> None:
        site = next((Path(peers.python_of("transfusion")).parent.parent / "lib").glob("python*/site-packages"))
        if str(site) not in sys.path:
            sys.path.append(str(site))  # behind our own: both sides use one torch
        import transfusion_pytorch

        torch.manual_seed(0)
        self.model = transfusion_pytorch.Transfusion(
            num_text_tokens=s.vocab, dim_latent=s.channels, modality_default_shape=(s.patches,), prob_uncond=0.0, flow_loss_weight=3.0,
            transformer={"dim": s.width, "depth": s.layers, "dim_head": s.width // s.heads, "heads": s.heads, "unet_skips": True,
                         "ff_expansion_factor": s.ffn_width / s.width},
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    @property
    def parameters(self) -> int:
        """Of the model."""
        return sum(p.numel() for p in self.model.parameters())

    def step(self, samples: list[list[Tensor]]) -> float:
        """One optimizer step; its loss."""
        loss = self.model(samples)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def samples(made: list[list[Document]]) -> list[list[Tensor]]:
    """Documents as the peer takes them: ids and latents in order, without BOS, EOS and the marks around images, which it adds itself."""
    out = []
    for d in (d for row in made for d in row):
        sample: list[Tensor] = []
        start = 0
        latents = torch.from_numpy(d.latents)
        while start < len(d.kind):
            stop = start + 1
            while stop < len(d.kind) and d.kind[stop] == d.kind[start] and d.image[stop] == d.image[start]:
                stop += 1
            if d.kind[start] == LATENT:
                sample.append(latents[: stop - start])
                latents = latents[stop - start :]
            elif d.kind[start] not in (STRUCTURE, PADDING):
                sample.append(torch.from_numpy(d.tokens[start:stop]).long())
            start = stop
        out.append(sample)
    return out
