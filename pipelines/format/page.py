"""Self-contained web pages: one place that writes HTML, so that nothing from data is ever taken for markup.

In: a title and blocks. Out: one HTML text with no script, no link to anywhere and a content policy that forbids both; pictures are data
URIs of JPEGs that we made ourselves. A plain `str` is always escaped; only `Html`, which the functions here return, is markup. Light
and dark follow the reader's system.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_STYLE = """
:root{color-scheme:light dark;--ink:#1d2330;--soft:#5c6675;--line:#d9dee6;--paper:#fbfbfa;--card:#fff;--mark:#2a6f97}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ec;--soft:#9aa3b0;--line:#343a45;--paper:#14171c;--card:#1b1f26;--mark:#7fb8da}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1180px;margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.6rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2rem 0 .6rem}h3{font-size:.95rem;margin:1.3rem 0 .4rem}
p{max-width:75ch}.soft{color:var(--soft)}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right}.wide{overflow-x:auto}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:.9rem}
.side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:0 2.5rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem;font-size:.85rem;overflow-wrap:anywhere}
.card img{max-width:100%;border-radius:3px}
.strip{display:flex;flex-wrap:wrap;gap:3px;margin-bottom:.4rem}.strip figure{margin:0}.strip figcaption{font-size:.7rem;color:var(--soft)}
.tag{display:inline-block;font-size:.7rem;border:1px solid var(--line);border-radius:3px;padding:0 .3rem;color:var(--soft)}
.target{color:var(--mark)}code{font-size:.85em}
.bar{display:inline-block;height:.7rem;background:var(--mark);border-radius:2px;vertical-align:middle}
"""


class Html(str):
    """Text that is markup. Everything else is escaped on its way in."""

    __slots__ = ()


def esc(x: Any) -> Html:
    """`x` as it may stand between tags or in a quoted attribute; markup passes."""
    return x if isinstance(x, Html) else Html(html.escape("" if x is None else str(x), quote=True))


def tag(name: str, *inside: Any, **attributes: Any) -> Html:
    """An element; `class_` is written `class`, `stroke_width` `stroke-width`. Attribute values and plain text are escaped."""
    given = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    words = "".join(f' {key}="{html.escape(str(value), quote=True)}"' for key, value in given)
    return Html(f"<{name}{words}>{''.join(map(esc, inside))}</{name}>")


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Blocks one after the other."""
    return Html(esc(between).join(map(esc, parts)))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Html:
    """A table; whole numbers get thin separators and stand right."""

    def cell(x: Any) -> Html:
        if isinstance(x, int) and not isinstance(x, bool):
            return tag("td", f"{x:,}".replace(",", "\u202f"), class_="n")
        return tag("td", f"{x:.4g}", class_="n") if isinstance(x, float) else tag("td", x)

    head = tag("tr", *(tag("th", c) for c in columns))
    return tag("div", tag("table", head, *(tag("tr", *map(cell, row)) for row in rows)), class_="wide")


def picture(made: bytes, alt: str = "", width: int | None = None) -> Html:
    """A JPEG or PNG of our own making as an inline image; never hand it bytes that came from data."""
    kind = "png" if made.startswith(b"\x89PNG") else "jpeg"
    source = f"data:image/{kind};base64," + base64.b64encode(made).decode()
    size = f' width="{int(width)}"' if width else ""
    return Html(f'<img src="{source}" alt="{html.escape(alt, quote=True)}"{size}>')


def bars(values: dict[str, int | float]) -> Html:
    """Quantities as horizontal bars, largest 100 %."""
    top = max(values.values(), default=0) or 1
    return table(["", "", ""], [[k, v, Html(f'<span class="bar" style="width:{200 * v / top:.0f}px"></span>')] for k, v in values.items()])


def page(title: str, *blocks: Any) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="referrer" content="no-referrer">'
        f"<title>{esc(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{esc(title)}</h1>\n{join(blocks, chr(10))}\n</body></html>\n"
    )
