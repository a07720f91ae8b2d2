"""Pages judged by their address alone: block-listed domains and URLs, and words in the URL that say enough.

datatrove's URLFilter with the lists it ships (adult and malware domains from the University of Toulouse's list, as FineWeb used them), or
with lists of your own only. The list of public suffixes is the one inside tldextract, never fetched, so that a run tomorrow cuts domains as
today's does. The lists take
0.5 GB in every worker (measured).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from pipelines.extra import need
from pipelines.format.record import Record
from pipelines.stage import Filter


class UrlFilter(Filter):
    """Reasons: `domain`, `subdomain`, `url`, `hard_blacklisted`, `soft_blacklisted` (at least `soft_word_threshold` of the soft words),
    `blacklisted_subword`, and `no_url` for a record without one (`missing: keep` lets it pass)."""

    soft_word_threshold: int = 2
    extra_domains: tuple[str, ...] = ()
    extra_urls: tuple[str, ...] = ()
    banned_words: tuple[str, ...] = ()
    banned_subwords: tuple[str, ...] = ()
    soft_banned_words: tuple[str, ...] = ()
    use_integrated_lists: bool = True
    missing: Literal["drop", "keep"] = "drop"

    def reason(self, record: Record) -> str | None:
        if not record.url:
            return "url_filter.no_url" if self.missing == "drop" else None
        document = need("datatrove.data", "url_filter").Document(text="", id="", metadata={"url": record.url})
        found = _step(self).filter(document)
        return None if found is True else f"url_filter.{found[1]}"


@lru_cache(maxsize=4)
def _step(config: UrlFilter) -> Any:
    """datatrove's filter, with its lists loaded once per process."""
    step = need("datatrove.pipeline.filters", "url_filter").URLFilter(**config.model_dump(exclude={"missing"}))
    step.tldextractor = need("tldextract", "url_filter").TLDExtract(suffix_list_urls=(), cache_dir=None)
    return step
