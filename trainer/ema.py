"""A moving average of the weights: what samplers usually show, and often better than the last weights (Polyak averaging).

    average <- d average + (1 - d) weights, after each optimizer step;  d = min(decay, (1 + steps) / (10 + steps))

The ramp is TensorFlow's ExponentialMovingAverage with num_updates: a short run does not average its start. Kept in float32, and cut over ranks
as the parameters are: the sum is element by element, so it is the same under any sharding, and costs 4 bytes a parameter over all ranks.
Buffers are not averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.run import Ema as Config


class Ema:
    """The average of a model's parameters. `weights` are its tensors, by parameter name."""

    def __init__(self, config: Config, model: nn.Module) -> None:
        self.decay, self.model = config.decay, model
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    def decay_at(self, steps: int) -> float:
        """d after `steps` optimizer steps."""
        return min(self.decay, (1 + steps) / (10 + steps))

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights as they are after `steps` optimizer steps."""
        average = [_local(w) for w in self.weights.values()]
        torch._foreach_lerp_(average, [_local(p.detach()) for p in self.model.parameters()], 1 - self.decay_at(steps))

    @torch.no_grad()
    def restart(self) -> None:
        """Begin at the weights as they are now (those of `init`)."""
        for name, p in self.model.named_parameters():
            _local(self.weights[name]).copy_(_local(p.detach()))


def _local(t: Tensor) -> Tensor:
    return t.to_local() if isinstance(t, DTensor) else t
