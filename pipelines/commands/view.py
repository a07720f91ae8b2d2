"""Make a web page of an artifact: contact sheets, frames, latents, a plan's sequences, a run's curves. One file, no network, no script.

pipelines view PATH [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipelines import plugins
from pipelines.format import storage
from pipelines.format.manifest import read_card
from pipelines.terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--out", metavar="DIR", help="where the pages go (default: out/view/KIND-NAME-FINGERPRINT)")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    card = read_card(args.path)
    pages = plugins.find(plugins.VIEWS, card["kind"])
    # Beside the data, not in it: an artifact holds only what its card names.
    out = Path(args.out or f"out/view/{card['kind']}-{Path(card['name']).name}-{card['fingerprint'][:8]}")
    written = []
    for name, text in pages(card["path"]):
        assert Path(name).name == name, name
        written.append(storage.publish(str(out / name), text.encode()))
    storage.sweep(str(out))
    return {"kind": card["kind"], "path": args.path, "pages": [str(Path(w).resolve()) for w in written]}


def show(answer: dict[str, Any]) -> None:
    for path in answer["pages"]:
        say(path)
