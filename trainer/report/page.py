"""report.html: one file, no network, no script, readable in light and dark, on a phone and on paper.

In: `Evidence`. Out: the page as text. In reading order: the question with its answer in words (made from the comparisons' own rows), the figures and
comparisons that the document names, the tables that every report has, what differed between arms by machine, cost, lineage. Sections come from
the other files of this folder; each returns markup or None when the ablation has nothing of its kind. The page allows itself no outside
resource by its own policy.
"""

from __future__ import annotations

from typing import Annotated, Any

from pipelines.format.document import Document, PartOf, part_name
from trainer.report import accuracy, arms, beside, caveats, config_diff, cost, differences, language, lineage, loss_curves, pictures, results, tokens
from trainer.report import types as question_types
from trainer.report.evidence import Evidence
from trainer.report.markup import POLICY, Markup, joined, link, tag
from trainer.report.measures import measure
from trainer.report.published import experiment


class Asked(Document):
    """The part of an ablation document that only its report reads."""

    report: list[Annotated[Any, PartOf("trainer.report.figures")]] = []
    compare: list[Annotated[Any, PartOf("trainer.report.compare")]] = []


HEDGE = "“Better” and “worse” are differences whose Holm-corrected p is below 5 %; “not told apart” says only that this ablation could not tell."
ONE_SEED = "One seed: what is found is found of these runs; another start of the same arms may give another answer."
SECTIONS = (  # anchor, name in the navigation, what makes it
    ("accuracy", "accuracy", accuracy.section),
    ("differences", "differences", differences.section),
    ("caveats", "what this is and is not", caveats.section),
    ("arms", "arms", arms.section),
    ("results", "results", results.section),
    ("types", "question types", question_types.section),
    ("paper", "the paper", beside.section),
    ("tokens", "tokens", tokens.section),
    ("losses", "losses", loss_curves.section),
    ("language", "text and images", language.section),
    ("pictures", "pictures", pictures.section),
    ("samples", "samples", cost.samples),
    ("diff", "what differs", config_diff.section),
    ("cost", "cost", cost.section),
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
.question{font-size:1.2rem;font-weight:600}
.answer{padding-left:1.2em}.wrap{display:inline-block;white-space:normal;min-width:9em;max-width:16em}h3{font-size:1rem;margin:1.4em 0 .4em}
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
    made = sections(evidence)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{evidence.name}: {question(evidence) or 'which data makes one model better at what'}"),
        tag("style", STYLE),
    )
    nav = tag("nav", *(link(anchor, name) for anchor, name, _ in made))
    body = tag("body", tag("main", *opening(evidence), nav, *(section for _, _, section in made)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def sections(evidence: Evidence) -> list[tuple[str, str, Markup]]:
    """(anchor, name in the navigation, section): what the document asks for, then what every report has. The last evidence's are kept: the page and
    its Markdown are made one after the other, and drawing takes seconds."""
    if not _LAST or _LAST[0][0] is not evidence:
        _LAST[:] = [(evidence, _sections(evidence))]
    return _LAST[0][1]


_LAST: list[tuple[Evidence, list[tuple[str, str, Markup]]]] = []


def _sections(evidence: Evidence) -> list[tuple[str, str, Markup]]:
    figures, questions = _asked(evidence)
    own = {m for p in figures for m in getattr(p, "metrics", ())}
    made: list[tuple[str, str, Markup]] = []
    for i, part in enumerate([*figures, *questions]):
        if (section := part.section(evidence)) is not None:
            name = f"{part_name(part)}-{i}"
            said = measure(part.metric).name if isinstance(getattr(part, "metric", None), str) else ""
            made.append((name, f"{part_name(part).replace('_', ' ')}{': ' + said if said else ''}", tag("div", section, id=name)))
    for anchor, name, make in SECTIONS:
        # What a document asks itself is not asked again by default.
        if (anchor == "differences" and questions) or (anchor == "accuracy" and "vqa" in own):
            continue
        if (section := make(evidence)) is not None:
            made.append((anchor, name, section))
    return made


def _asked(evidence: Evidence) -> tuple[list[Any], list[Any]]:
    """The figures and the questions that the document names."""
    parts = Asked.model_validate({k: evidence.card.get("recipe", {}).get(k) or [] for k in ("report", "compare")})
    return parts.report, parts.compare


def question(evidence: Evidence) -> str | None:
    """The document's question."""
    asked = evidence.card.get("recipe", {}).get("question")
    return str(asked) if asked else None


def answers(evidence: Evidence) -> list[str]:
    """What the comparisons found, in sentences, in the order of the document."""
    return [said for part in _asked(evidence)[1] if hasattr(part, "answers") for said in part.answers(evidence)]


def opening(evidence: Evidence) -> list[Markup]:
    """The question, what stands against believing the rest, and the answer."""
    print_, asked, found = str(evidence.card.get("fingerprint", ""))[:16], question(evidence), answers(evidence)
    made = joined([" · fingerprint ", tag("code", print_)]) if print_ else None
    of = f"{experiment(evidence)} of the paper · " if experiment(evidence) else ""
    lead = tag("p", f"{of}{len(evidence.arms)} arms × {evidence.seeds_said}, scale {evidence.scale:g}", made, class_="lead")
    out = [tag("h1", evidence.name), lead, tag("p", asked, class_="question") if asked else None, config_diff.warning(evidence)]
    if found:
        hedge = HEDGE if len(evidence.seeds) > 1 else f"{HEDGE} {ONE_SEED}"
        out += [tag("ul", *(tag("li", s) for s in found), class_="answer"), tag("p", hedge, class_="caption")]
    return [m for m in out if m is not None]
