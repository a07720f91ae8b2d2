"""A torch network as encoders give it to the core: uint8 batches in, float32 out, with copies running beside the arithmetic.

In: a function from a uint8 tensor [B, H, W, 3] on the device to a tensor [B, tokens, channels]. Out: a `Network`, whose call starts a batch
and returns a function that waits for its result. On a GPU the batch goes over from pinned memory, the result comes back in its own dtype (bf16
as bit patterns) on a second stream, and the next batch computes meanwhile; on a CPU everything happens in the call. Who has more to do on the
device takes the result there (`resident`) and brings home what is left of it (`to_host`).
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
        return self.to_host(self.started(pictures))

    def resident(self, pictures: np.ndarray) -> Callable[[], Any]:
        """As a call, but the result stays on the device, and nobody waits for it: work on it queues up behind."""
        result = self.started(pictures)
        return lambda: result

    def started(self, pictures: np.ndarray) -> Any:
        """The result [B, tokens, channels] on the device, which may still be computing it."""
        torch = self.torch
        batch = torch.from_numpy(np.ascontiguousarray(pictures))
        with torch.inference_mode():
            return self.forward(batch if self.copies is None else batch.pin_memory().to(self.machine.device, non_blocking=True))

    def to_host(self, result: Any) -> Pending:
        """A copy that begins when the result is there. Waiting gives numpy: bf16 as bit patterns in uint16 from a GPU, other short floats
        as float32, everything else as it is."""
        torch = self.torch
        with torch.inference_mode():
            if self.copies is None:
                here = result.float() if result.dtype in (torch.bfloat16, torch.float16) else result
                return lambda: np.asarray(here.numpy())
            host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            self.copies.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.copies):
                host.copy_(result, non_blocking=True)
                result.record_stream(self.copies)  # its memory is not reused before the copy is done
                done = self.copies.record_event()

        def wait() -> np.ndarray:
            done.synchronize()
            if host.dtype == torch.bfloat16:
                return np.asarray(host.view(torch.uint16).numpy())
            return np.asarray((host.float() if host.dtype == torch.float16 else host).numpy())

        return wait
