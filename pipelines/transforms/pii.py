"""Personal data out of text: e-mail addresses and public IP addresses become examples that belong to nobody.

datatrove's PIIFormatter, as FineWeb used it, with one difference: its replacements go round in a circle over all documents a process
happens to read; here the circle begins anew with every record, so the same record always gives the same text. Private addresses (10.…,
192.168.…) say nothing about a person and stay, unless `only_public_ips: false`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pipelines.extra import need
from pipelines.format.record import Record
from pipelines.stage import Transform


class Pii(Transform):
    """`email_replacement` and `ip_replacement` are used in turn; null takes datatrove's own."""

    remove_emails: bool = True
    remove_ips: bool = True
    only_public_ips: bool = True
    email_replacement: tuple[str, ...] | None = None
    ip_replacement: tuple[str, ...] | None = None

    def apply(self, record: Record) -> Iterable[Record]:
        step = _step(self)
        step.emails_replacer._replace_i = step.ip_replacer._replace_i = 0
        segments = tuple(replace(s, text=step.format(s.text)) if s.text else s for s in record.segments)
        yield record if segments == record.segments else replace(record, segments=segments)


@lru_cache(maxsize=8)
def _step(config: Pii) -> Any:
    given = {"email_replacement": config.email_replacement, "ip_replacement": config.ip_replacement}
    return need("datatrove.pipeline.formatters", "pii").PIIFormatter(
        remove_emails=config.remove_emails,
        remove_ips=config.remove_ips,
        only_remove_public_ips=config.only_public_ips,
        **{k: v for k, v in given.items() if v is not None},
    )
