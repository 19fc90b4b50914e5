"""The paper's Tables 1 to 3 beside what was measured here, from the JSON files in ``results/``.

``python benchmarks/tables.py`` writes ``results/table1.json`` to ``table3.json`` and prints the tables as Markdown for
``docs/results.md``, where a test looks for them.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from latentbits.files import write_json

RESULTS = Path(__file__).parents[1] / "results"


class Row(NamedTuple):
    """A model of a table.

    Attributes:
        model: What it is.
        published: Test NLL as published; None if it is not.
        source: Where.
        run: Beginning of the names of its results here, RUN-test.json, RUN-valid.json and RUN-train.json; or none.
        published_raise: The same by RAISE, if that is published.
    """

    model: str
    published: float | None
    source: str = ""
    run: str = ""
    published_raise: float | None = None


PAPER = "the paper"
TABLES = {
    "table1": (
        Row("DBN", 84.55, "Salakhutdinov & Murray 2008"),
        Row("AR-SBN/SBN (RWS)", 84.18, "Bornschein & Bengio 2014"),
        Row("IWAE, two layers", 85.32, "Burda et al. 2015"),
        Row("VIMCO, `mnist-mlp-best`", 83.69, PAPER, "mnist-mlp-best", 83.77),
        Row("VIMCO, half an hour, `mnist-mlp`", None, "", "mnist-mlp-30-minutes"),
        Row("contrastive RWS, `mnist-mlp-crws`", 84.33, PAPER, "mnist-mlp-crws"),
        Row("VIMCO without pretraining", 121.65, PAPER, "mnist-mlp-no-pretrain"),
        Row("factorized prior", None, "", "mnist-mlp-bernoulli-prior"),
        Row("IWAE, one layer, same sizes", None, "", "mnist-mlp-iwae"),
        Row("RBM, 784x500, CD-25, `mnist-rbm`", 86.34, "Salakhutdinov & Murray 2008", "mnist-rbm"),
    ),
    "table2": (
        Row("DRAW", 80.97, "Gregor et al. 2015"),
        Row("IAF VAE", 79.88, "Kingma et al. 2016"),
        Row("PixelRNN", 79.20, "van den Oord et al. 2016"),
        Row("VLAE", 79.03, "Chen et al. 2016"),
        Row("Gated PixelVAE", 78.96, "Gulrajani et al. 2016"),
        Row("ResNet, VIMCO, `mnist-resnet`", 79.58, PAPER, "mnist-resnet", 79.64),
    ),
    "table3": (
        Row("ResNet VAE with IAF", 3.11, "Kingma et al. 2016"),
        Row("DenseNet VLAE", 2.95, "Chen et al. 2016"),
        Row("PixelCNN++", 2.92, "Salimans et al. 2017"),
        Row("IWAE", 4.54, PAPER, "cifar10-small-iwae"),
        Row("binary latents, VIMCO", 4.84, PAPER, "cifar10-small"),
    ),
}
IN_BITS = ("table3",)


def measured(run: str, split: str) -> dict[str, Any] | None:
    """What is quoted of a run's result on a split, or None."""
    path = RESULTS / f"{run}-{split}.json"
    if not run or not path.is_file():
        return None
    record = json.loads(path.read_text())
    likelihood = record["evaluation"]["likelihood"]
    names = ("nll", "standard_error_monte_carlo", "standard_error_images", "bits_per_dimension", "samples")
    quoted = {name: likelihood.get(name) for name in names}
    quoted |= {"images": record["images"], "file": f"results/{path.name}"}
    if raised := record["evaluation"].get("likelihood_raise"):
        quoted |= {
            "raise_nll": raised["nll"],
            "raise_images": raised["images"],
            "raise_minus": raised["difference"],
            "raise_minus_standard_error": raised.get("difference_standard_error"),
        }
    return quoted


def table(name: str) -> list[dict[str, Any]]:
    """The rows that have a figure, published or measured."""
    rows = []
    for row in TABLES[name]:
        found = {split: measured(row.run, split) for split in ("test", "valid", "train")}
        if row.published is not None or any(found.values()):
            rows.append({**row._asdict(), **found})
    return rows


def cell(found: dict[str, Any] | None, in_bits: bool) -> str:
    """A measured figure with its Monte-Carlo error, K and images."""
    if found is None:
        return ""
    error = found["standard_error_monte_carlo"] or 0.0
    figure = f"{found['bits_per_dimension']:.3f}" if in_bits else f"{found['nll']:.3f} ± {error:.3f}"
    notes = [f"K = {found['samples']:,}"] if found["samples"] else []
    notes += [] if found["images"].startswith("all") else [found["images"]]
    return f"[{figure}](../{found['file']})" + (f" ({', '.join(notes)})" if notes else "")


def markdown(name: str) -> str:
    """A table in Markdown."""
    in_bits = name in IN_BITS
    lines = ["| model | published | test | RAISE − AIS | valid | train |", "| --- | --- | --- | --- | --- | --- |"]
    for row in table(name):
        published = "" if row["published"] is None else f"{row['published']:.2f}"
        published += f" (RAISE {row['published_raise']:.2f})" if row["published_raise"] else ""
        published += f", {row['source']}" if row["source"] else ""
        test = row["test"] or {}
        error = test.get("raise_minus_standard_error") or 0.0
        raised = f"{test['raise_minus']:+.3f} ± {error:.3f}" if "raise_minus" in test else ""
        figures = [cell(row[split], in_bits) for split in ("test", "valid", "train")]
        lines.append("| " + " | ".join([row["model"], published, figures[0], raised, *figures[1:]]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    for title in TABLES:
        write_json(RESULTS / f"{title}.json", table(title))
        print(f"{title}\n\n{markdown(title)}\n")
