"""A network through torch.compile: the same layers as fewer, fused kernels.

In: a function of one float tensor and whether to compile it. Out: a function of the same kind. The first batch of a shape waits for the compiler
(tens of seconds for a large tower); later ones take less time, and their last bits differ from those of the plain network, so that what was
compiled, and by which version, is part of an encoder's fingerprint. Kernels are chosen by rule and never by timing them, or two workers could
choose differently and disagree in the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from encode.encoder import Machine

Compile = Literal["auto", "on", "off"]
OPTIONS = {"deterministic": True}


def compiles(choice: Compile, machine: Machine) -> bool:
    """`auto` compiles on a GPU: on a CPU the compiler costs half a minute and gains a tenth."""
    return choice == "on" or (choice == "auto" and machine.device == "cuda")


def compiler() -> str:
    """What stands in a fingerprint."""
    import torch

    return f"inductor {torch.__version__.partition('+')[0]}"


def compiled(forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One graph for each shape: batches are padded to one, so there is one."""
    import torch

    made: Callable[[Any], Any] = torch.compile(forward, dynamic=False, options=dict(OPTIONS))
    return made
