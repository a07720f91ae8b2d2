"""`pipelines run generate -c FILE`: prompts through a finished run, and what came out as files people and programs read.

In: a Generate. Out: the path of its folder (see files.py), its card written last. The same run, prompts and recipe give the same bytes on
one kind of machine; a folder that is finished is left as it is. No torch before `plan` or `run` is called.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.format import storage
from pipelines.format.document import fingerprint, sha256_hex
from pipelines.format.errors import InputError
from pipelines.format.estimate import Estimate
from pipelines.format.manifest import card, parent, publish_card, read_card, refuse_other_recipe
from trainer.generate.recipe import PLACES, Generate, named_files

VERSION = 1  # raise it when the same prompts and recipe come to something else


class Stage:
    """The `generate` stage."""

    config = Generate
    summary = "text and images from a finished run, for prompts of a file or held-out records"

    def plan(self, config: Generate) -> Estimate:
        """Prompts, what may be made of them, and the memory of the cache; no weight is read."""
        from mixtures.plan import Plan
        from pipelines.format.manifest import parent_path
        from trainer.generate.asked import asked
        from trainer.generate.prompt import PAINT, needed
        from trainer.stream import Reader

        run = _run_of(config)
        plan = Plan.open(parent_path(run, run["parents"][0]))
        found = asked(config, Reader(plan), looks=False)
        words = _Words(plan)
        texts = [[len(p) for p in a.resolved(words.ids).prompt.pieces if isinstance(p, np.ndarray) and p.ndim == 1] for a in found]
        longest = max((needed(a.prompt, t, run["shape"]["patches"]) for a, t in zip(found, texts, strict=True)), default=0)
        painted = sum(sum(p is PAINT for p in a.prompt.pieces) + a.prompt.images for a in found)
        facts: dict[str, Any] = {"prompts": len(found), "images at most": painted, "text ids at most": sum(a.prompt.tokens for a in found)}
        facts |= {"positions at most": longest, "at a time": min(config.batch, len(found)), "output": config.output}
        return Estimate(f"generate {config.name or ''} from {config.run}".replace("  ", " "), facts)

    def run(self, config: Generate, job: Any) -> str:
        """Generate, or find it done; the folder."""
        root, run = storage.absolute(config.output), _run_of(config)
        mark = _mark(config, run)
        refuse_other_recipe(root, "manifest.json", mark)
        if storage.exists(storage.join(root, "manifest.json")):
            return root
        made, files = _make(config, root, job)
        counts = {"text": sum(len(x) for g in made for x in g.ids), "visual": sum(len(x) for g in made for x in g.images)}
        facts: dict[str, Any] = {"records": len(made), "files": files, "bytes": sum(f["bytes"] for f in files)}
        facts |= {"tokens": {**counts, "all": sum(counts.values())}, "recipe_fingerprint": mark}
        above = [parent(config.run, root, run["fingerprint"])]
        name = config.name or root.rpartition("/")[2]
        identity = fingerprint([mark, *(f["sha256"] for f in files)])
        whole = card("generated", name, identity, config.recipe(), parents=above, stages={"generate": VERSION}, **facts)
        publish_card(root, "manifest.json", whole, mark)
        storage.sweep(root)
        return root


STAGE = Stage()


def _run_of(config: Generate) -> dict[str, Any]:
    run = read_card(config.run)
    if run["kind"] != "run":
        raise InputError("this is not a run", where=config.run, found=run["kind"], allowed="a folder with run.json")
    return run


def _mark(config: Generate, run: dict[str, Any]) -> str:
    said = {k: v for k, v in config.recipe().items() if k not in PLACES}
    asked = None if config.prompts is None else [sha256_hex(storage.read(f)) for f in (config.prompts, *named_files(config.prompts))]
    return fingerprint({"stage": "generate", "version": VERSION, "run": run["fingerprint"], "recipe": said, "prompts": asked})


def _make(config: Generate, root: str, job: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """(outputs, entries of their files)."""
    import torch

    from trainer.evaluate._subject import Subject
    from trainer.generate.asked import asked
    from trainer.generate.files import write
    from trainer.generate.generator import Generator
    from trainer.parallel import device_of

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = device_of(config.device)
    precision = ("bf16" if device == "cuda" else "fp32") if config.precision == "auto" else config.precision
    subject = Subject.load(config.run, device, config.weights == "ema", precision)
    if subject.reader.sides is not None:
        raise InputError("this run has two encoders, and what `generate` writes is shown by one", where=config.run, allowed="a run of one encoder",
                         next="the evaluation `samples` paints held-out captions of such a run")  # fmt: skip
    words = _Words(subject.plan)
    found = [a.resolved(words.ids) for a in asked(config, subject.reader)]
    generator = Generator.of(subject, config.sampling, batch=config.batch)
    try:
        made = generator.generate([a.prompt for a in found])
    except ValueError as e:
        raise InputError("a prompt cannot be read", where=config.prompts or config.source, found=str(e)) from e
    job.log("generated", outputs=len(made), passes=generator.passes)
    return made, write(config, root, _shown_by(subject.plan), words.text, found, made)


def _shown_by(plan: Any) -> Any:
    """The dataset whose card says which encoder made the plan's latents; the first where none has any."""
    return next((d for d in plan.datasets if "image" in (d.encoding or {})), plan.datasets[0])


class _Words:
    """Text of ids and ids of text, by the tokenizer of a source; datasets of one plan share an encoding, so any that carries one serves."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        places = [storage.join(d.path, "tokenizer.json") for d in plan.datasets]
        self.place = next((p for p in places if storage.exists(p)), None)
        self.tokenizer: Any = None

    def _opened(self) -> Any:
        if self.tokenizer is None:
            from trainer.evaluate._tokenizers import tokenizer_at

            if self.place is None:
                raise InputError("no dataset of the plan carries a tokenizer.json", where=self.plan.path, next='give text as {"ids": […]}')
            self.tokenizer = tokenizer_at(self.place)
        return self.tokenizer

    def ids(self, text: str, source: str) -> list[int]:
        """Ids without structure tokens."""
        return list(self._opened().encode(text, add_special_tokens=False).ids)

    def text(self, ids: Any, source: str) -> str | None:
        """The text of ids; None where there is no tokenizer."""
        return None if self.place is None else str(self._opened().decode([int(i) for i in ids], skip_special_tokens=False))
