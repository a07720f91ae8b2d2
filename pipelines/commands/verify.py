"""Check an artifact against its card: hashes, counts, lineage. Exit 4 names every file that differs.

pipelines verify PATH            sizes, counts, the conservation law, commit records: seconds
pipelines verify PATH --deep     every byte of every file, every record
"""

from __future__ import annotations

import argparse
from typing import Any

from pipelines import plugins
from pipelines.format import storage
from pipelines.format.errors import HeadwaterError, InputError
from pipelines.format.manifest import CARDS, read_card
from pipelines.summary import lineage
from pipelines.terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--deep", action="store_true", help="read every byte")
    parser.add_argument("--check", action="append", default=[], metavar="NAME", help="a further check of an installed package")


def answer(args: argparse.Namespace) -> dict[str, Any]:
    try:
        card = read_card(args.path)
    except InputError as error:
        # A card that is there and cannot be read is what verify is for; no card at all is a wrong path.
        file = next((f for f in CARDS if storage.exists(storage.join(args.path, f))), None)
        if file is None:
            raise
        return {"ok": False, "problems": [{"file": file, "what": str(error)}]}
    checks = [plugins.find(plugins.CHECKS, name) for name in (card["kind"], *args.check)]
    problems: list[dict[str, str]] = []
    for check in checks:
        try:
            problems += check(card["path"], {"deep": args.deep})
        except (KeyError, TypeError, ValueError) as error:  # a card whose form is broken breaks whoever reads it
            problems.append({"file": card["card_file"], "what": f"cannot be read as a card: {type(error).__name__}: {error}"})
        except HeadwaterError as error:
            problems.append({"file": error.where or card["card_file"], "what": error.what})
    facts = {"kind": card["kind"], "path": args.path, "deep": args.deep, "lineage": lineage(args.path, card)}
    return {"ok": not problems, "problems": problems, **facts}


def status(answer: dict[str, Any]) -> int:
    return 0 if answer["ok"] else 4


def show(answer: dict[str, Any]) -> None:
    for problem in answer["problems"]:
        say(f"{problem['file']}: {problem['what']}")
    for parent in answer.get("lineage", []):
        if parent["found"] != "yes":
            say(f"note: parent {parent['path']} {'is no longer there' if parent['found'] == 'missing' else 'has changed since'}")
    if answer["ok"]:
        say(f"{answer['path']}: ok" + ("" if answer["deep"] else " (sizes and counts; --deep reads every byte)"))
