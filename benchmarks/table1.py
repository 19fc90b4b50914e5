"""Table 1 of the paper beside what was measured here, from the JSON files in ``results/``.

``python benchmarks/table1.py`` writes ``results/table1.json`` and prints the table as Markdown for ``docs/results.md``.
A row without a result of its own is left out until there is one.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from latentbits.files import write_json

RESULTS = Path("results")


class Row(NamedTuple):
    """A model of the table.

    Attributes:
        model: What it is.
        published: Test NLL, in nats, as published; None if it is not.
        source: Where.
        run: Beginning of the names of its results here, RUN-test.json, RUN-valid.json and RUN-train.json; or none.
    """

    model: str
    published: float | None
    source: str
    run: str = ""


PAPER = "paper, Table 1"
ROWS = (
    Row("DBN", 84.55, "Salakhutdinov & Murray 2008"),
    Row("AR-SBN/SBN (RWS)", 84.18, "Bornschein & Bengio 2014"),
    Row("IWAE, two layers", 85.32, "Burda et al. 2015"),
    Row("VIMCO", 83.69, PAPER, "mnist-mlp"),
    Row("VIMCO, 30 minutes", None, "", "mnist-mlp-30-minutes"),
    Row("VIMCO, the best recipe", None, "", "mnist-mlp-best"),
    Row("contrastive RWS", 84.33, PAPER, "mnist-mlp-crws"),
    Row("VIMCO without pretraining", 121.65, PAPER, "mnist-mlp-no-pretrain"),
    Row("factorized prior", None, "", "mnist-mlp-bernoulli-prior"),
    Row("IWAE, one layer, same sizes", None, "", "mnist-mlp-iwae"),
    Row("RBM, 784x500, CD-25", 86.34, "Salakhutdinov & Murray 2008", "mnist-rbm"),
)
RAISE_PUBLISHED = {"VIMCO": 83.77}


def measured(run: str, split: str) -> dict[str, Any] | None:
    """What is quoted of a run's result on a split, or None."""
    path = RESULTS / f"{run}-{split}.json"
    if not run or not path.is_file():
        return None
    record = json.loads(path.read_text())
    likelihood = record["evaluation"]["likelihood"]
    quoted = {
        "nll": likelihood["nll"],
        "standard_error_monte_carlo": likelihood.get("standard_error_monte_carlo"),
        "standard_error_images": likelihood.get("standard_error_images"),
        "samples": likelihood["samples"],
        "images": record["images"],
        "file": str(path),
    }
    if raised := record["evaluation"].get("likelihood_raise"):
        quoted |= {"raise_nll": raised["nll"], "raise_images": raised["images"], "raise_minus": raised["difference"]}
    return quoted


def table() -> list[dict[str, Any]]:
    """The rows that have a figure, published or measured."""
    rows = []
    for row in ROWS:
        found = {split: measured(row.run, split) for split in ("test", "valid", "train")}
        if row.published is not None or any(found.values()):
            rows.append({**row._asdict(), "published_raise": RAISE_PUBLISHED.get(row.model), **found})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""

    def cell(found: dict[str, Any] | None) -> str:
        if found is None:
            return ""
        counted = "" if found["images"].startswith("all") else f", {found['images']}"
        error = found["standard_error_monte_carlo"]
        return f"{found['nll']:.2f} ± {error:.2f} (K = {found['samples']:,}{counted})"

    lines = ["| model | published | test | RAISE - AIS | valid | train |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        published = "" if row["published"] is None else f"{row['published']:.2f} ({row['source']})"
        test = row["test"] or {}
        raised = f"{test['raise_minus']:+.3f}" if "raise_minus" in test else ""
        columns = (row["model"], published, cell(row["test"]), raised, cell(row["valid"]), cell(row["train"]))
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    write_json(RESULTS / "table1.json", table())
    print(markdown(table()))
