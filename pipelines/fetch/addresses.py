"""Which addresses may be connected to: public unicast ones, and nothing else. Judged on the *resolved* address, never on what a URL spells.

What comes in: an address as the resolver gave it. What goes out: why it is refused, or None. The table is ours because the standard library's
`is_global` says yes to NAT64, 6to4, IPv4-compatible and site-local forms of private addresses, to 192.0.0.0/24 and to multicast (CPython 3.11).
IPv6 is an allow-list: 2000::/3, less what is set aside in it; forms that carry an IPv4 address inside are opened and judged by it, and those that
are out of use (6to4, Teredo, IPv4-compatible, ISATAP of private hosts) are refused whatever they carry. Sources: the IANA special-purpose
registries of IPv4 and IPv6 addresses (RFC 6890 and its updates), RFC 6052 (NAT64), RFC 4380 (Teredo), RFC 5214 (ISATAP).
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_V4 = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "carrier-grade NAT",
    "127.0.0.0/8": "loopback",
    "168.63.129.16/32": "a cloud's host agent",
    "169.254.0.0/16": "link-local, cloud metadata",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "protocol assignments",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "AS112 sink",
    "192.52.193.0/24": "multicast relay",
    "192.88.99.0/24": "6to4 relay",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "AS112 sink",
    "198.18.0.0/15": "benchmarking",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved, broadcast",
}
_V6 = {  # set aside inside 2000::/3
    "2001::/23": "protocol assignments, Teredo, benchmarking, ORCHID",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "2620:4f:8000::/48": "AS112 sink",
    "3ffe::/16": "6bone",
    "3fff::/20": "documentation",
}
_V6_NAMES = {  # outside 2000::/3: refused anyway; the name only explains
    "::/128": "unspecified",
    "::1/128": "loopback",
    "::/96": "IPv4-compatible",
    "::ffff:0:0:0/96": "IPv4-translated",
    "64:ff9b:1::/48": "local NAT64",
    "100::/64": "discard",
    "5f00::/16": "segment routing",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
}
_BLOCKED4 = [(IPv4Network(net), name) for net, name in _V4.items()]
_BLOCKED6 = [(IPv6Network(net), name) for net, name in _V6.items()]
_NAMED6 = [(IPv6Network(net), name) for net, name in _V6_NAMES.items()]
_UNICAST = IPv6Network("2000::/3")
_MAPPED, _NAT64 = IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96")


@lru_cache(maxsize=65_536)
def blocked(address: str) -> str | None:
    """Why this address may not be connected to, or None when it is public unicast. What is no plain address is refused."""
    try:
        ip = ip_address(address)
    except ValueError:
        return "not an address"
    return _blocked4(ip) if isinstance(ip, IPv4Address) else _blocked6(ip)


def _blocked4(ip: IPv4Address) -> str | None:
    return next((f"{name} ({net})" for net, name in _BLOCKED4 if ip in net), None)


def _blocked6(ip: IPv6Address) -> str | None:
    if ip.scope_id is not None:
        return "scoped to an interface"
    for net, name in ((_MAPPED, "IPv4-mapped"), (_NAT64, "NAT64")):
        if ip in net:
            inner = _inner(int(ip) & 0xFFFFFFFF)
            return inner and f"{name}: {inner}"
    if ip not in _UNICAST:
        return next((f"{name} ({net})" for net, name in _NAMED6 if ip in net), "not global unicast")
    found = next((f"{name} ({net})" for net, name in _BLOCKED6 if ip in net), None)
    if found is None and (int(ip) >> 32) & 0xFDFFFFFF == 0x5EFE:  # ISATAP: …:0:5efe:a.b.c.d, or …:200:5efe:a.b.c.d
        inner = _inner(int(ip) & 0xFFFFFFFF)
        return inner and f"ISATAP: {inner}"
    return found


def _inner(value: int) -> str | None:
    return _blocked4(IPv4Address(value))
