"""`pipelines run scaling`: a table of runs → laws and a page; what the table lacks is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.format.document import load, parse
from pipelines.format.errors import ConflictError, InputError, RecipeError
from pipelines.format.manifest import read_card
from trainer.scaling.parametric import Law
from trainer.scaling.stage import STAGE, Scaling, pages
from trainer.scaling.table import Columns, grouped, read

TRUE = Law(E=1.7, A=400.0, alpha=0.34, B=410.0, beta=0.28)


class Job:
    def log(self, event: str, **fields: Any) -> None:
        pass


def table(folder: Path, name: str = "runs.csv") -> str:
    """Five budgets of seven sizes, in millions and billions under their own names."""
    rows = [(c, TRUE.optimum(c)[0] * k) for c in (6e18, 6e19, 3e20, 1e21) for k in np.geomspace(1 / 4, 4, 7)]
    c, n = np.array(rows).T
    d, random = c / 6 / n, np.random.default_rng(0)
    loss = TRUE.loss(n, d) * np.exp(random.normal(0, 0.001, len(n)))
    columns = {"params": n, "tokens seen": d, "compute": c * random.uniform(0.98, 1.02, len(n)), "val": loss}
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.table(columns), path)
    else:
        path.write_text("\n".join([",".join(columns), *(",".join(map(repr, map(float, r))) for r in zip(*columns.values(), strict=True))]))
    return str(path)


COLUMNS = {"n": "params", "d": "tokens seen", "losses": {"language": "val"}}


def config(folder: Path, **changes: Any) -> Scaling:
    said = {"runs": str(folder / "runs.csv"), "columns": COLUMNS, "draws": 40, "output": str(folder / "out"), **changes}
    return parse(Scaling, said)


def test_a_table_of_runs_gives_laws_a_page_and_a_card_that_vouches_for_both(tmp_path):
    table(tmp_path)
    made = STAGE.run(config(tmp_path, columns={**COLUMNS, "budget": "compute"}), Job())
    said = json.loads((tmp_path / "out/scaling.json").read_text())
    (law,) = said["laws"]
    assert law["a"]["value"] == pytest.approx(TRUE.a, abs=0.02) and law["parametric"]["alpha"]["value"] == pytest.approx(0.34, abs=0.05)
    assert len(law["budgets"]) == 4 and said["left_out"] == 0
    ((name, page),) = pages(made)
    assert name == "report.html" and "<svg" in page and "N_opt" in page and "<script" not in page
    card = read_card(made)
    assert card["kind"] == "scaling" and {f["path"] for f in card["files"]} == {"scaling.json", "report.html"} and card["records"] == 28


def test_the_same_again_is_the_same_and_other_settings_are_refused(tmp_path):
    table(tmp_path)
    STAGE.run(config(tmp_path), Job())
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    STAGE.run(config(tmp_path), Job())
    STAGE.run(config(tmp_path, output=str(tmp_path / "again")), Job())
    for name in ("scaling.json", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == first[name] == (tmp_path / "again" / name).read_bytes()
    with pytest.raises(ConflictError):
        STAGE.run(config(tmp_path, key=1), Job())


def test_csv_and_parquet_give_the_same_runs(tmp_path):
    columns = parse(Columns, COLUMNS)
    assert read(table(tmp_path), columns).runs == read(table(tmp_path, "runs.parquet"), columns).runs


def test_without_budgets_there_are_no_curves_and_the_parametric_law_stands_alone(tmp_path):
    table(tmp_path)
    STAGE.run(config(tmp_path), Job())
    (law,) = json.loads((tmp_path / "out/scaling.json").read_text())["laws"]
    assert "a" not in law and law["missing"] == {} and law["parametric"]["E"]["value"] == pytest.approx(1.7, abs=0.1)
    assert "<svg" not in (tmp_path / "out/report.html").read_text()


def test_rows_that_hold_no_numbers_are_left_out_and_counted(tmp_path):
    path = Path(table(tmp_path))
    path.write_text(path.read_text() + "\n,1e9,1e18,3.0\n1e9,1e9,1e18,diverged\n1e9,1e9,1e18,-1")
    found = read(str(path), parse(Columns, COLUMNS))
    assert (found.rows, found.left_out, len(found.runs)) == (31, 3, 28)
    STAGE.run(config(tmp_path, highest_left_out=2), Job())
    assert json.loads((tmp_path / "out/scaling.json").read_text())["left_out"] == 5


def test_other_tokens_beside_a_losss_own_give_their_worth(tmp_path):
    random = np.random.default_rng(0)
    n, text, image = (np.exp(random.uniform(np.log(low), np.log(high), 40)) for low, high in ((1e7, 1e9), (1e9, 1e11), (1e9, 1e11)))
    law = Law(E=1.7, A=400.0, alpha=0.34, B=410.0, beta=0.28, worth=0.2)
    columns = {"n": n, "d": text + image, "text": text, "loss": law.loss(n, text, image)}
    pq.write_table(pa.table(columns), tmp_path / "runs.parquet")
    said = {"n": "n", "d": "d", "losses": {"language": "loss"}, "own": {"language": "text"}}
    STAGE.run(config(tmp_path, runs=str(tmp_path / "runs.parquet"), columns=said), Job())
    (found,) = json.loads((tmp_path / "out/scaling.json").read_text())["laws"]
    assert found["own_and_other"]["worth"]["value"] == pytest.approx(0.2, rel=1e-3)


def test_mixtures_give_a_law_and_the_next_one(tmp_path):
    random = np.random.default_rng(0)
    x = random.dirichlet([1, 1, 1], 24)
    pq.write_table(pa.table({"web": x[:, 0], "code": x[:, 1], "books": x[:, 2], "loss": 2 + (x @ [1, 0.4, 0.1]) ** -0.3}), tmp_path / "runs.parquet")
    said = {"sources": {k: k for k in ("web", "code", "books")}, "losses": {"loss": "loss"}}
    STAGE.run(config(tmp_path, runs=str(tmp_path / "runs.parquet"), columns=said, bounds={"web": [0, "40%"]}), Job())
    law, proposed = json.loads((tmp_path / "out/scaling.json").read_text())["mixtures"]
    assert law["worth"]["web"] == 1.0 and law["rank"] > 0.98
    assert proposed["next"]["web"] == pytest.approx(0.4, abs=1e-3) and proposed["next"]["code"] == pytest.approx(0.6, abs=1e-2)


def ablation(folder: Path) -> str:
    """A finished ablation of 16 arms of three sizes, as its cards and evaluations stand on disk."""
    random = np.random.default_rng(0)
    law = Law(E=1.7, A=40.0, alpha=0.34, B=41.0, beta=0.28, worth=0.3)
    arms = {}
    for i in range(16):
        n, total, share = int(10 ** random.uniform(4, 6)), 10 ** random.uniform(5, 7), random.uniform(0.1, 0.9)
        text, visual = int(total * share), int(total * (1 - share))
        place = folder / f"arms/a{i}/seed-0"
        place.mkdir(parents=True)
        tokens = {"text": {"all": text, "text": text}, "photos": {"all": visual, "text": 0}}
        run = {"format": "headwater/1", "kind": "run", "parameters": {"active_text": n}, "flops": 1e9,
               "sources": {s: {"tokens": t} for s, t in tokens.items()}, "tokens": {"all": text + visual, "text": text}}  # fmt: skip
        (place / "run.json").write_text(json.dumps(run))
        rows = [{"metric": "text_perplexity", "split": "held_out", "value": float(np.exp(law.loss(n, text, visual)))},
                {"metric": "flow_loss", "split": "held_out", "value": 0.4 + float(visual) ** -0.2}]  # fmt: skip
        (place / "eval.json").write_text(json.dumps({"rows": rows if i < 15 else []}))
        arms[f"a{i}"] = {"plan": "plans/p", "repeats": 1.0, "runs": {"0": f"arms/a{i}/seed-0"}}
    card = {"format": "headwater/1", "kind": "ablation", "fingerprint": "f" * 64, "recipe": {}, "arms": arms}
    (folder / "ablation.json").write_text(json.dumps(card))
    return str(folder)


def test_any_ablation_gives_the_law_of_own_and_other_tokens_and_of_its_mixtures(tmp_path):
    STAGE.run(config(tmp_path, runs=ablation(tmp_path / "done"), columns={}), Job())
    said = json.loads((tmp_path / "out/scaling.json").read_text())
    assert (said["runs"], said["left_out"]) == (16, 1)
    language = next(law for law in said["laws"] if law["modality"] == "language")
    assert language["own_and_other"]["worth"]["value"] == pytest.approx(0.3, rel=0.01)
    flow = next(law for law in said["mixtures"] if law.get("loss") == "vision")
    assert flow["worth"]["photos"] == 1.0 and flow["error"] < flow["null"]


def test_runs_without_losses_are_refused_with_what_to_ask_for(tmp_path):
    done = Path(ablation(tmp_path / "done"))
    for place in done.glob("arms/*/*/eval.json"):
        place.unlink()
    with pytest.raises(InputError, match="no run of this ablation has a held-out loss"):
        STAGE.run(config(tmp_path, runs=str(done), columns={}), Job())


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"n": "params"}, "`n` with `d` or `flops`"),
        ({**COLUMNS, "losses": {}}, "no loss to fit"),
        ({**COLUMNS, "own": {"vision": "x"}}, "no loss 'vision'"),
    ],
)
def test_columns_that_say_too_little_are_refused(tmp_path, columns, said):
    with pytest.raises(RecipeError, match=said):
        config(tmp_path, columns=columns)


def test_a_column_that_is_not_there_and_a_file_that_is_no_table_are_named(tmp_path):
    path = table(tmp_path)
    with pytest.raises(InputError, match="no such column") as caught:
        read(path, parse(Columns, {**COLUMNS, "n": "size"}))
    assert "params" in str(caught.value)
    (tmp_path / "runs.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="no table that can be read"):
        read(str(tmp_path / "runs.parquet"), parse(Columns, COLUMNS))
    with pytest.raises(InputError, match="no table here"):
        read(str(tmp_path / "missing.csv"), parse(Columns, COLUMNS))
    (tmp_path / "words.csv").write_text("params,tokens seen,val\na,b,c\n")
    with pytest.raises(InputError, match="no row of this table"):
        read(str(tmp_path / "words.csv"), parse(Columns, COLUMNS))


def test_flops_near_one_another_are_one_budget():
    assert len(np.unique(grouped([1e18, 1.1e18, 1.14e18, 1.2e18, 5e18, 4.9e18]))) == 3
    assert grouped([2e18, 1e18]) == pytest.approx([2e18, 1e18])


def test_the_document_reads_from_yaml(tmp_path):
    table(tmp_path)
    (tmp_path / "fit.yaml").write_text("runs: runs.csv\ncolumns: {n: params, d: tokens seen, losses: {language: val}}\noutput: out\n")
    assert load(Scaling, str(tmp_path / "fit.yaml")).name == "fit"
