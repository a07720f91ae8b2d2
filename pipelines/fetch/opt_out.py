"""What an answer's header says about training on it: found before a byte of its body is asked for, and kept as evidence.

X-Robots-Tag fields hold directives, some for all agents and some behind an agent's name; `TDM-Reservation: 1` is the W3C community group's protocol
for text and data mining; `Content-Usage: train-ai=n` the IETF draft's. `unavailable_after: …` and its like carry a colon of their own and are
no agents, which the usual split at the first colon gets wrong.
"""

from __future__ import annotations

import re

from pipelines.fetch.policy import Policy
from pipelines.fetch.wire import Head

_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_AGENT = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*:")
_TRAIN = re.compile(r"(?:^|[\s,;])train-ai\s*=\s*n(?=$|[\s,;])", re.IGNORECASE)
_KEPT = ("x-robots-tag", "tdm-reservation", "tdm-policy", "content-usage")


def opt_out(head: Head, policy: Policy) -> str | None:
    """The field by which the owner says no, or None."""
    refused = {d.lower() for d in policy.opt_outs}
    for value in head.all("x-robots-tag"):
        found = sorted(_directives(value, policy.agent) & refused)
        if found:
            return f"x-robots-tag: {', '.join(found)}"
    if policy.tdm_reservation and any(v.strip() == "1" for v in head.all("tdm-reservation")):
        return f"tdm-reservation: 1{_policy(head)}"
    if "noai" in refused and any(_TRAIN.search(v) for v in head.all("content-usage")):
        return "content-usage: train-ai=n"
    return None


def evidence(head: Head) -> dict[str, str]:
    """What the header said about use, whatever it was; absent when it was silent."""
    return {name: ", ".join(head.all(name))[:500] for name in _KEPT if head.get(name) is not None}


def _directives(value: str, agent: str) -> set[str]:
    """The directives of one field that are meant for everybody or for `agent`."""
    found: set[str] = set()
    mine = True
    for item in value.split(","):
        match = _AGENT.match(item)
        if match and match[1].lower() not in _VALUED:
            mine = match[1].lower() == agent.lower()
            item = item[match.end() :]
        if mine:
            found.add(item.partition(":")[0].strip().lower())
    return found


def _policy(head: Head) -> str:
    where = head.get("tdm-policy")
    return f" (tdm-policy: {where[:200]})" if where else ""
