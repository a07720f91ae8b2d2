"""report.html: one file, no network, no script, readable in light and dark, on a phone and on paper.

In: `Evidence`. Out: the page as text. Sections come from the other files of this folder, one a figure, in reading order; each returns markup
or None when the ablation has nothing of its kind. The page allows itself no outside resource by its own policy.
"""

from __future__ import annotations

from typing import Annotated, Any

from pipelines.format.document import Document, PartOf, part_name
from trainer.report import accuracy, arms, caveats, differences, language, lineage, loss_curves, pictures, tokens, types
from trainer.report.evidence import Evidence
from trainer.report.markup import POLICY, Markup, joined, link, tag


class Asked(Document):
    """The part of an ablation document that only its report reads."""

    report: list[Annotated[Any, PartOf("trainer.report.figures")]] = []
    compare: list[Annotated[Any, PartOf("trainer.report.compare")]] = []


SECTIONS = (  # anchor, name in the navigation, what makes it
    ("accuracy", "accuracy", accuracy.section),
    ("caveats", "what this is and is not", caveats.section),
    ("differences", "differences", differences.section),
    ("types", "question types", types.section),
    ("arms", "arms", arms.section),
    ("tokens", "tokens", tokens.section),
    ("losses", "losses", loss_curves.section),
    ("language", "text and images", language.section),
    ("pictures", "pictures", pictures.section),
    ("lineage", "lineage", lineage.section),
)
STYLE = Markup("""
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#69727d;--line:#d9dee4;--soft:#f5f7f9;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--paper:#15181c;--faint:#8d96a1;--line:#333a43;--soft:#1d2127;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:.2em 0}
h2{font-size:1.2rem;margin:2.2em 0 .6em;padding-top:.6em;border-top:1px solid var(--line)}
p,li{max-width:75ch}
p,li,figcaption{overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:1em 0;font-size:.92rem}
a{color:inherit}
figure{margin:1em 0}
svg{display:block;height:auto;color:var(--ink)}
svg text{font-family:system-ui,"DejaVu Sans",sans-serif!important}
figcaption,.caption{color:var(--faint);font-size:.86rem;max-width:75ch;padding:.4em 0;margin:1em 0 0}
.scroll{overflow-x:auto;margin:.2em 0 .8em}
table{border-collapse:collapse;font-size:.88rem}
th,td{padding:.3em .7em;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;white-space:nowrap}
th.n,td.n{text-align:right;font-variant-numeric:tabular-nums}
thead th{font-weight:600;background:var(--soft);white-space:normal;vertical-align:bottom}
tbody th{font-weight:500;position:sticky;left:0;background:var(--paper)}
code{font-size:.88em;background:var(--soft);padding:.1em .3em;border-radius:3px}
.lead{font-size:1.05rem}
.weak{color:var(--faint)}
.bad{color:var(--bad);font-weight:600}
summary{cursor:pointer}
.pictures{display:flex;flex-wrap:wrap;gap:12px}.pictures figure{margin:0;width:100px}.pictures img{display:block;margin-bottom:3px;max-width:100%}
@media print{main{max-width:none;padding:0}.scroll{overflow:visible}table{font-size:.68rem}
th,td{white-space:normal;padding:.2em .35em}tbody th{overflow-wrap:anywhere;min-width:7em}
figure,tr{break-inside:avoid}h2,.caption{break-after:avoid}nav{display:none}}
""")


def render(evidence: Evidence) -> str:
    """The whole page."""
    made = [(anchor, name, section) for anchor, name, make in [*_asked(evidence), *SECTIONS] if (section := make(evidence)) is not None]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{evidence.name}: which data makes one model better at what"),
        tag("style", STYLE),
    )
    nav = tag("nav", *(link(anchor, name) for anchor, name, _ in made))
    body = tag("body", tag("main", *_opening(evidence), nav, *(section for _, _, section in made)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _asked(evidence: Evidence) -> list[tuple[str, str, Any]]:
    """The figures and questions that the document names, before what every report has."""
    parts = Asked.model_validate({k: evidence.card.get("recipe", {}).get(k) or [] for k in ("report", "compare")})
    return [(f"{part_name(p)}-{i}", part_name(p).replace("_", " "), p.section) for i, p in enumerate([*parts.report, *parts.compare])]


def _opening(evidence: Evidence) -> list[Markup]:
    print_ = str(evidence.card.get("fingerprint", ""))[:16]
    made = joined([" · fingerprint ", tag("code", print_)]) if print_ else None
    lead = tag("p", f"{len(evidence.arms)} arms × {evidence.seeds_said}, scale {evidence.scale:g}", made, class_="lead")
    return [tag("h1", evidence.name), lead]
