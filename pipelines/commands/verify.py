"""Check an artifact against its card: hashes, counts, lineage. Exit 4 names every file that differs.

pipelines verify PATH            sizes, counts, the conservation law, commit records: seconds
pipelines verify PATH --deep     every byte of every file, every record
pipelines verify PLAN --deep     also what stands both in training and in the held-out split: by id, group, payload, url, text, near picture
pipelines verify PATH --audit 0.1%   latents and ids of a sample (a share, or a count) made again from the dataset they were encoded from
"""

from __future__ import annotations

import argparse
from typing import Any

from pipelines import plugins
from pipelines.format import storage
from pipelines.format.errors import HeadwaterError, InputError
from pipelines.format.manifest import CARDS, read_card
from pipelines.summary import lineage
from pipelines.terminal import say, table


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--deep", action="store_true", help="read every byte")
    parser.add_argument("--check", action="append", default=[], metavar="NAME", help="a further check of an installed package")
    parser.add_argument("--audit", metavar="AMOUNT", help="encode a sample again and compare: 0.1%%, a share such as 0.001, or a count")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the audit's sample (default: 0)")
    parser.add_argument("--parent", metavar="PATH", help="where the curated dataset lies, for an audit after it was moved")


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
    found: dict[str, Any] = {}  # where a check leaves figures that are no problems
    for check in checks:
        try:
            problems += check(card["path"], {"deep": args.deep, "facts": found})
        except (KeyError, TypeError, ValueError) as error:  # a card whose form is broken breaks whoever reads it
            problems.append({"file": card["card_file"], "what": f"cannot be read as a card: {type(error).__name__}: {error}"})
        except HeadwaterError as error:
            problems.append({"file": error.where or card["card_file"], "what": error.what})
    facts: dict[str, Any] = {"kind": card["kind"], "path": args.path, "deep": args.deep, "lineage": lineage(args.path, card), **found}
    if args.audit is not None:
        audit = plugins.find(plugins.AUDITS, card["kind"])
        if problems:
            facts["audit"] = {"note": "not done: what is told above comes first"}
        else:  # what hinders an audit is an error of its own: nothing is known to be wrong with the dataset
            facts["audit"] = audit(card["path"], {"amount": args.audit, "seed": args.seed, "parent": args.parent})
            problems += facts["audit"].pop("problems")
    return {"ok": not problems, "problems": problems, **facts}


def status(answer: dict[str, Any]) -> int:
    return 0 if answer["ok"] else 4


def show(answer: dict[str, Any]) -> None:
    for problem in answer["problems"]:
        say(f"{problem['file']}: {problem['what']}")
    for parent in answer.get("lineage", []):
        if parent["found"] != "yes":
            say(f"note: parent {parent['path']} {'is no longer there' if parent['found'] == 'missing' else 'has changed since'}")
    if answer.get("leaks"):
        _show_leaks(answer["leaks"])
    if answer.get("audit"):
        _show_audit(answer["audit"])
    if answer["ok"]:
        say(f"{answer['path']}: ok" + ("" if answer["deep"] else " (sizes and counts; --deep reads every byte)"))


# What a meeting of training and held-out records means, and when it means nothing.
_WAYS = {
    "id": "one record in two datasets",
    "group": "one image, video, scene or page",
    "sha256": "equal payloads: an exact copy",
    "url": "one address; another picture or text may stand there by now",
    "text": "one text that takes loss, letter for letter; licences and templates repeat",
    "phash": "pictures alike; series of one template (plain charts, title cards) are too",
}


def _show_leaks(leaks: dict[str, Any]) -> None:
    """Training against held-out records: the ways in which they are the same, then pairs to look at."""
    said = f"{leaks['train']:,} training records against {leaks['held_out']:,} held-out ones"
    met = {way: found for way, found in leaks["ways"].items() if found["records"]}
    if not met:
        say(f"leaks: none among {said} (by {', '.join(leaks['ways'])})")
        return
    rows = [[way, w["records"], w["new"], w["held_out"], _WAYS.get(way, "")] for way, w in leaks["ways"].items()]
    table(f"leaks: {said}", ["same", "in training", "not found above", "held-out ones met", "what that is"], rows)
    rows = [[way, b["train"], b["held_out"], b["records"]] for way, found in met.items() for b in found["between"]]
    table("between sources", ["same", "training", "held out", "records"], rows)
    rows = [[way, e["train"], e["held_out"]] for way, found in met.items() for e in found["examples"][:2]]
    table("examples (pipelines inspect DATASET --id ID)", ["same", "training record", "held-out record"], rows)


def _show_audit(audit: dict[str, Any]) -> None:
    """One line for each kind that was looked at."""
    for kind in ("images", "texts"):
        if found := audit.get(kind):
            cosine = f", worst cosine {found['worst_cosine']:.6f}" if "worst_cosine" in found else ""
            equal = f": {found['equal']:,} equal to the byte{cosine}" if found["checked"] else ""
            say(f"audit: {found['checked']:,} of {found['of']:,} {kind}{equal}")
            if "note" in found:
                say(f"note: {found['note']}")
    if "note" in audit:
        say(f"audit {audit['note']}")
