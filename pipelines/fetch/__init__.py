"""The fetch room: the only code that opens a URL found in data.

URLs come from strangers, so this room assumes the worst of all of them: that a name resolves to our own network, that a redirect leads there, that a
body never ends, or comes one byte a second, or unpacks to a thousand times its size; and it assumes the best of their owners, who may say no.

    urls        text → scheme, host, port, path, or refused          addresses   which addresses are public
    resolve     host → vetted addresses                              connections sockets pinned to them, reused
    wire        HTTP/1.1 with a cap on everything                    exchange    one request and its answer
    robots      RFC 9309                                             opt_out     X-Robots-Tag, TDM-Reservation
    hosts       manners towards one host                             client      one URL → one outcome, with retries
    policy      the recipe's block `fetch:`                          fetcher     many URLs, in order, for synchronous callers
    packing     bodies packed unasked                                digests     the hashes that lists give
    download    a body of gigabytes into a file, resumed             scratch     where that file lies meanwhile
    kept        and where it stays, if it is to

    with Fetcher(Policy(contact="https://example.org/bot")) as fetcher:
        for ask, found in zip(asks, fetcher.ordered(asks)): …        found.status, .body, .detail, .evidence

Why asyncio over our own HTTP/1.1, not threads with http.client: a deadline that holds for every byte, a thousand waiting URLs at no cost, and no
more processor time (measured on loopback, 150 KB bodies, µs per request: this way 140, raw sockets in threads 85, http.client 140 to 220,
aiohttp 175; decoding such a photo takes 3,000 and more). docs/fetching.md says what is promised and how it is tested.
"""

from pipelines.fetch.client import Ask, Fetched
from pipelines.fetch.fetcher import Fetcher
from pipelines.fetch.policy import Policy

__all__ = ["Ask", "Fetched", "Fetcher", "Policy"]
