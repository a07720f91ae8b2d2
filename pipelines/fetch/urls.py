"""What a URL found in data means, or that it is refused. Text in; scheme, ASCII host, port and request path out.

Strict where leniency has cost others: only http and https, no user or password, no control characters or backslashes, no percent signs in a host,
and no IPv4 address in disguise (`127.1`, `0x7f000001`, `0177.0.0.1`, a number): what a resolver would make of those is judged again by
`addresses`, but no photograph lives there. Hosts are normalised by IDNA (nameprep, so a circled digit is a digit) before anything is compared.
`redact` is what every log, reject and card shows instead of a URL: no query, no fragment, no user, no shape of a known token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import quote, urljoin, urlsplit

from pipelines.format.errors import Reject

MAX_URL = 8_192
_PORTS = {"http": 80, "https": 443}
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# What may stand in a path or query as it is; % too, since what is encoded already must not be encoded twice.
_SAFE = "%/:=&?~+!$,;'@()*[]|-._"


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart. `host` is ASCII, lower case, without brackets or a final dot; `path` includes the query and is what is requested."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """For the Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """scheme://host:port: what a connection and a robots.txt belong to."""
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        """The whole URL, normalised."""
        return self.origin + self.path

    @property
    def address(self) -> str | None:
        """The host, if it is an address already."""
        return self.host if ":" in self.host or _is_v4(self.host) else None


def parse_url(text: str, base: Target | None = None) -> Target:
    """The target of a URL; with `base`, of a redirect's Location. Raises `Reject("not_allowed")`."""
    text = text.strip(" \t\r\n")
    if not text or len(text) > MAX_URL:
        raise _refused(text, f"{len(text)} characters" if text else "no URL")
    if _UNSAFE.search(text.replace(" ", "")):
        raise _refused(text, "control characters or a backslash")
    try:
        parts = urlsplit(urljoin(base.url, text) if base else text)
        port = parts.port
    except ValueError as error:
        raise _refused(text, str(error)) from None
    if parts.scheme not in _PORTS:
        raise _refused(text, f"scheme {parts.scheme[:20]!r}; allowed: http, https")
    if "@" in parts.netloc:
        raise _refused(text, "a user or password")
    if port == 0:
        raise _refused(text, "port 0")
    host = _host(parts.hostname or "", text)
    path = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], path)


def _host(host: str, text: str) -> str:
    if ":" in host:
        try:
            return str(IPv6Address(host.partition("%")[0])) if "%" not in host else _zone(text)
        except AddressValueError:
            raise _refused(text, "not an IPv6 address") from None
    try:
        # 253 is the longest name there is; the codec's cost grows with the square of the length, so it is asked about short ones only.
        ascii_host = host.encode("idna").decode().lower().removesuffix(".") if 0 < len(host) <= 253 else ""
    except UnicodeError:
        ascii_host = ""
    if not _HOST.fullmatch(ascii_host):
        raise _refused(text, "not a host name")
    if _NUMBER.fullmatch(ascii_host.rpartition(".")[2]) and not _is_v4(ascii_host):
        raise _refused(text, "an address in disguise")
    return ascii_host


def _zone(text: str) -> str:
    raise _refused(text, "an address scoped to an interface")


def _is_v4(host: str) -> bool:
    try:
        IPv4Address(host)  # four plain decimals without leading zeros
    except AddressValueError:
        return False
    return True


def _refused(text: str, why: str) -> Reject:
    return Reject("not_allowed", f"{why}: {redact(text[:200])}")


_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)(?:[^\s/?#@]*@)?([^\s?#\"'<>]*)(\?[^\s\"'<>]*)?(#[^\s\"'<>]*)?")
_TOKENS = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAIza[\w-]{30,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.?[\w-]*|\bglpat-[\w-]{15,}|\bya29\.[\w-]{20,}"
)
_PAIRS = re.compile(
    r"(?i)\b(authorization|proxy-authorization|cookie|set-cookie|x-api-key|api[_-]?key|access[_-]?token|auth[_-]?token|token|secret|password|passwd"
    r"|signature|sig|x-amz-[a-z-]+|x-goog-[a-z-]+|credential)(\s*[=:]\s*)(?:(?:bearer|basic)\s+)?[^\s&,;\"']+"
)


def redact(text: str) -> str:
    """The text with every URL in it cut to scheme, host and path, and what looks like a secret replaced by `…`."""
    text = _URL.sub(lambda m: m[1] + m[2] + ("?…" if m[3] else ""), text)
    return _PAIRS.sub(r"\1\2…", _TOKENS.sub("…", text))
