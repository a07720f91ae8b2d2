"""A torch network as encoders give it to the core: uint8 batches in, float32 out, with copies running beside the arithmetic.

In: a function from a uint8 tensor [B, H, W, 3] on the device to a tensor [B, tokens, channels]. Out: a `Network`, whose call starts a batch
and returns a function that waits for its result. On a GPU the batch goes over from pinned memory, the result comes back in its own dtype (bf16
as bit patterns) on a second stream, and the next batch computes meanwhile; on a CPU everything happens in the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from encode.encoder import Machine, Pending


class TorchNetwork:
    """`forward` runs under inference mode."""

    def __init__(self, forward: Callable[[Any], Any], machine: Machine) -> None:
        import torch

        self.torch, self.forward, self.machine = torch, forward, machine
        self.copies = torch.cuda.Stream() if machine.device == "cuda" else None

    def __call__(self, pictures: np.ndarray) -> Pending:
        torch = self.torch
        batch = torch.from_numpy(np.ascontiguousarray(pictures))
        with torch.inference_mode():
            if self.copies is None:
                out = self.forward(batch).float().numpy()
                return lambda: out
            result = self.forward(batch.pin_memory().to(self.machine.device, non_blocking=True))
            host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            self.copies.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.copies):
                host.copy_(result, non_blocking=True)
                result.record_stream(self.copies)  # its memory is not reused before the copy is done
                done = self.copies.record_event()

        def wait() -> np.ndarray:
            done.synchronize()
            return host.view(torch.uint16).numpy() if host.dtype == torch.bfloat16 else host.float().numpy()

        return wait
