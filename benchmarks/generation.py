"""Text with a cache of keys and values against reading the whole document again for every token, the same greedy tokens on both sides.

    python -m benchmarks.generation --json

`prompts` documents of `given` ids go on for `new` tokens, side by side, one thread. Rates are tokens a second of processor time. The model is the
family's 1m size with random weights: what is measured is work, and the ratio grows with the model and with the length.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.alternating import alternate, compared
from mixtures.span import Specials
from trainer.batch import collate
from trainer.generate.generator import Generator, Prompt, Sampling
from trainer.generate.prompt import words
from trainer.models.transfusion import Transfusion
from trainer.parallel import initialise
from trainer.run import Flow

VOCAB, CHANNELS, PATCHES = 4096, 192, 16
SPECIALS = Specials(*range(VOCAB - 5, VOCAB))


def model(size: str) -> Any:
    """A model of random weights that never says EOS."""
    with torch.device("meta"):
        made = Transfusion.model_validate({"size": size}).build(VOCAB, CHANNELS, PATCHES)
    made.to_empty(device="cpu")
    initialise(made, 0)
    with torch.no_grad():
        made.head[SPECIALS.eos].zero_()
    return made.eval()


@torch.inference_mode()
def again(net: Any, given: list[np.ndarray], new: int) -> list[list[int]]:
    """Greedy tokens, the whole documents read for each."""
    rows = [[SPECIALS.bos, *g.tolist()] for g in given]
    start = len(rows[0])
    for _ in range(new):
        length = len(rows[0])
        batch = collate([[words(r, 0).document] for r in rows], range(len(rows)), length, SPECIALS.pad, CHANNELS)
        at = torch.arange(1, len(rows) + 1) * length - 1
        logits = net(batch, torch.zeros(0, CHANNELS), torch.zeros(0), at=at).logits
        logits[:, list(SPECIALS)] = float("-inf")
        for row, i in zip(rows, logits.argmax(dim=1).tolist(), strict=True):
            row.append(i)
    return [r[start:] for r in rows]


def measure(size: str, prompts: int, given: int, new: int, runs: int) -> dict[str, Any]:
    """One row."""
    net, rng = model(size), np.random.default_rng(0)
    texts = [rng.integers(0, VOCAB - 5, given) for _ in range(prompts)]
    asked = [Prompt(str(i), (t,), tokens=new) for i, t in enumerate(texts)]
    cached = lambda _: [g.ids[0].tolist() for g in Generator(net, SPECIALS, Flow(), Sampling(temperature=0)).generate(asked)]
    assert cached(0) == again(net, texts, new), "both sides say the same"
    done = alternate(cached, lambda _: again(net, texts, new), runs, warm=False)
    name = f"generation {size}, {prompts} x {given} + {new}"
    return compared(name, prompts * new, "tokens / CPU s", 2.0, done, versions={"torch": torch.__version__})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure("1m", 4, 32, 64, asked.runs), measure("1m", 1, 512, 32, asked.runs), measure("1m", 4, 256, 64, asked.runs)]
    print(json.dumps(rows) if asked.json else "\n".join(f"{r['name']}: {r['ours']:,} against {r['peer']:,} {r['unit']}, x{r['ratio']}" for r in rows))
    return 0 if all(r["ok"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
