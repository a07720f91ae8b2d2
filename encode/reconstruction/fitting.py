"""One fit of a decoder: frozen latents in, pixels out, nearer at every step.

    numbers of a batch ─▶ pixels, latents ─▶ + noise ─▶ (- mean, / deviation) ─▶ decoder ─▶ L1 + LPIPS + adaptive critic ─▶ AdamW ─▶ moving average

Everything a step does follows from (recipe, seed, step): which frames, how much noise, the learning rate. So a fit that was killed and goes on from
a checkpoint gives the numbers of one that was not, bit for bit on a CPU with the same number of threads; GPU kernels may differ in their last bits.
Latents are normalised per channel inside, which conditions the first layer for any encoder; when the decoder is written, that is folded into its
weights, so what is published takes latents as they are.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encode.encoder import Machine
from encode.reconstruction import critic, perceptual
from encode.reconstruction.frames import Frames
from encode.reconstruction.recipe import FitDecoder
from encode.reconstruction.vit import Shape, VitDecoder
from encode.stats import Moments
from pipelines.format import chance
from pipelines.format.errors import HeadwaterError

BETAS = (0.9, 0.95)
MEASURED = 1024  # frames whose latents say mean and deviation
COLUMNS = ("step", "l1", "lpips", "fooling", "weight", "critic", "rate")


class Diverged(HeadwaterError):
    """A loss that is not a number. Exit 1: neither the input nor the budget is at fault for certain."""

    exit = 1


class Fit:
    """The state of a fit and its steps. `mean` and `std` are what pixels are normalised by, as the encoder's image processor does."""

    def __init__(self, config: FitDecoder, frames: Frames, train: np.ndarray, shape: Shape, numbers: tuple[Any, Any], machine: Machine) -> None:
        self.config, self.frames, self.train, self.machine = config, frames, train, machine
        self.steps, self.device = config.total(frames.grid.tokens), machine.device
        model = VitDecoder(shape)
        model.start(chance.draw(0, config.seed, "decoder") >> 1)
        self.model = model.to(self.device).requires_grad_(True)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, betas=BETAS, weight_decay=0.0, fused=True)
        self.mean, self.std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in numbers)
        self.centre, self.deviation = self._latent_numbers()
        self.lpips = perceptual.load(config.perceptual.features, config.perceptual.linear).to(self.device) if config.perceptual else None
        self.critic, self.critic_optimizer = None, None
        if config.adversarial is not None:
            self.critic = critic.build(config.adversarial, machine, chance.draw(0, config.seed, "critic") >> 1)
            learning = [p for p in self.critic.parameters() if p.requires_grad]
            self.critic_optimizer = torch.optim.AdamW(learning, lr=config.adversarial.lr, betas=BETAS, weight_decay=0.0, fused=True)
        self.done = 0
        self.sums = torch.zeros(len(COLUMNS) - 2, device=self.device)
        self.counted = 0
        self.history: list[list[float]] = []

    def _latent_numbers(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel, of the first frames that will be trained on. The same latents give the same numbers."""
        chosen = self.numbers(0, MEASURED)
        moments = Moments.of(self.frames.latents(np.sort(chosen))).by_channel()
        deviation = np.maximum(np.sqrt(moments.variance), 1e-6)
        self.loudness = float(np.sqrt(moments.variance.mean()))
        return tuple(torch.tensor(v, dtype=torch.float32, device=self.device) for v in (moments.mean, deviation))  # type: ignore[return-value]

    def numbers(self, step: int, size: int | None = None) -> np.ndarray:
        """The frames of a step: every frame once, in a drawn order, before any comes again."""
        size, n = min(size, len(self.train)) if size else self.config.batch, len(self.train)
        first = step * size
        out: list[int] = []
        while len(out) < size:
            epoch, at = divmod(first + len(out), n)
            order = self._order(epoch)
            out += order[at : at + size - len(out)].tolist()
        return self.train[np.asarray(out)]

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_ordered", (-1, None))[0] != epoch:
            self._ordered = epoch, chance.order(np.arange(len(self.train), dtype=np.uint64), self.config.seed, "fit order", epoch)
        return self._ordered[1]

    def noised(self, latents: Tensor, step: int) -> Tensor:
        """Latents with noise of deviation U(0, tau) times their own, another for each image."""
        if not self.config.noise:
            return latents
        g = torch.Generator(self.device).manual_seed(chance.draw(step, self.config.seed, "fit noise") >> 1)
        sigma = torch.rand((len(latents), 1, 1), generator=g, device=self.device) * (self.config.noise * self.loudness)
        return latents + sigma * torch.randn(latents.shape, generator=g, device=self.device)

    def rebuilt(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] on the scale 0 to 1, unclipped."""
        with torch.autocast(self.machine.device, torch.bfloat16, enabled=self.machine.dtype == "bf16"):
            pixels = self.model((latents - self.centre) / self.deviation)
        return pixels.float() * self.std + self.mean

    def step(self, pictures: np.ndarray, latents: np.ndarray) -> None:
        """One optimiser step on these pixels and latents."""
        config, n = self.config, self.done
        real = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).float() / 255
        rebuilt = self.rebuilt(self.noised(torch.from_numpy(latents).to(self.device), n))
        l1 = (rebuilt - real).abs().mean()
        zero = torch.zeros((), device=self.device)
        far = self.lpips(rebuilt, real).mean() if self.lpips is not None else zero
        near = l1 + (config.perceptual.weight * far if config.perceptual else zero)
        loss, fooling, weight = near, zero, zero
        asked = config.adversarial
        if self.critic is not None and asked is not None and n >= asked.start * self.steps:
            self.critic.eval().requires_grad_(False)
            fooling = -self.critic(rebuilt).mean()
            weight = critic.adaptive(near, fooling, self.model.pixels.weight)
            loss = near + asked.weight * weight * fooling
        loss.backward()
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self._advance(self.optimizer, config.lr)
        judged = self._criticise(real, rebuilt.detach()) if asked is not None and n >= asked.learn * self.steps else zero
        decay = config.decay(n, self.steps)
        ours, theirs = ([p.detach() for p in m.parameters()] for m in (self.average, self.model))
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        self.sums += torch.stack([l1.detach(), far.detach(), fooling.detach(), weight, judged.detach()])
        self.counted, self.done = self.counted + 1, n + 1
        if self.done % max(1, self.steps // 500) == 0 or self.done == self.steps:
            self._note()

    def _advance(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr * self.config.rate(self.done, self.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _criticise(self, real: Tensor, rebuilt: Tensor) -> Tensor:
        """One step of the critic, on pictures as they would be stored. It sees the reconstructions that the decoder's step was made from."""
        assert self.critic is not None and self.critic_optimizer is not None and self.config.adversarial is not None
        self.critic.train().requires_grad_(True)
        loss = critic.hinge(self.critic(real), self.critic(critic.eight_bits(rebuilt)))
        loss.backward()
        self._advance(self.critic_optimizer, self.config.adversarial.lr)
        return loss

    def _note(self) -> None:
        """A row of the history: means since the row before."""
        means = (self.sums / self.counted).tolist()
        if not np.isfinite(means).all():
            where = f"step {self.done} of {self.steps}"
            raise Diverged("the loss is no longer a number", where=where, found=means[:3], next="lower lr, or set clip: 1.0")
        self.history.append([float(self.done), *means, self.config.lr * self.config.rate(self.done - 1, self.steps)])
        self.sums.zero_()
        self.counted = 0

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        out = {f"model.{k}": v for k, v in self.model.state_dict().items()} | {f"average.{k}": v for k, v in self.average.state_dict().items()}
        out |= moments_of(self.optimizer, "adam")
        if self.critic is not None and self.critic_optimizer is not None:
            out |= {f"critic.{k}": v for k, v in self.critic.state_dict().items()} | moments_of(self.critic_optimizer, "critic_adam")
        history = torch.tensor(self.history, dtype=torch.float64).reshape(-1, len(COLUMNS))
        return out | {"history": history, "sums": self.sums.clone(), "counted": torch.tensor(self.counted)}

    def resume(self, step: int, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        fill_moments(self.optimizer, state, "adam")
        if self.critic is not None and self.critic_optimizer is not None:
            self.critic.load_state_dict(part("critic."))
            fill_moments(self.critic_optimizer, state, "critic_adam")
        self.history = state["history"].tolist()
        self.sums, self.counted, self.done = state["sums"].to(self.device), int(state["counted"]), step

    def finished(self) -> VitDecoder:
        """The moving average on the CPU, with the normalisation of latents folded into its first layer."""
        out = copy.deepcopy(self.average).to("cpu")
        centre, deviation = self.centre.cpu().double(), self.deviation.cpu().double()
        with torch.no_grad():
            weight = out.embed.weight.double() / deviation
            out.embed.bias.copy_((out.embed.bias.double() - weight @ centre).float())
            out.embed.weight.copy_(weight.float())
        return out.eval()


def moments_of(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """AdamW's running moments by the number of the parameter."""
    held = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{k}": v for i, entry in held.items() for k, v in entry.items()}


def fill_moments(optimizer: torch.optim.Optimizer, state: dict[str, Tensor], prefix: str) -> None:
    """Put them back."""
    whole: dict[str, Any] = optimizer.state_dict()
    whole["state"] = {}
    for name, value in state.items():
        if name.startswith(f"{prefix}."):
            _, i, key = name.split(".")
            whole["state"].setdefault(int(i), {})[key] = value
    optimizer.load_state_dict(whole)
