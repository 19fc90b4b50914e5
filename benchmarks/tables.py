"""The paper's Tables 1 to 3 beside what was measured here, from the JSON files in ``results/``.

``python benchmarks/tables.py`` writes ``results/table1.json`` to ``table3.json``, and ``results/hours.json`` with how
long training took to come below some likelihoods, and puts the tables into the pages of ``docs/`` that show them, in
place of their earlier state. A test looks for them there.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from latentbits.files import write_json

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[1] / "docs"


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
        Row("VIMCO from random weights, `mnist-mlp-no-pretrain`", 121.65, PAPER, "mnist-mlp-no-pretrain"),
        Row("independent bits, `mnist-mlp-bernoulli-prior`", None, "", "mnist-mlp-bernoulli-prior"),
        Row("IWAE, one layer, `mnist-mlp-iwae`", None, "", "mnist-mlp-iwae"),
        Row("RBM, 784x500 (CD-25; here, PCD-25), `mnist-rbm`", 86.34, "Salakhutdinov & Murray 2008", "mnist-rbm"),
    ),
    "table2": (
        Row("DRAW", 80.97, "Gregor et al. 2015"),
        Row("IAF VAE", 79.88, "Kingma et al. 2016"),
        Row("PixelRNN", 79.20, "van den Oord et al. 2016"),
        Row("VLAE", 79.03, "Chen et al. 2016"),
        Row("Gated PixelVAE", 78.96, "Gulrajani et al. 2016"),
        Row("ResNet (here a relaxed ELBO, then VIMCO), `mnist-resnet`", 79.58, PAPER, "mnist-resnet", 79.64),
        Row("the same, a larger K on fewer images", None, "", "mnist-resnet-100-images"),
    ),
    "table3": (
        Row("ResNet VAE with IAF", 3.11, "Kingma et al. 2016"),
        Row("DenseNet VLAE", 2.95, "Chen et al. 2016"),
        Row("PixelCNN++", 2.92, "Salimans et al. 2017"),
        Row("continuous latents, `cifar10-small-iwae`", 4.54, f"{PAPER}, IWAE", "cifar10-small-iwae"),
        Row("the same, a larger K on fewer images", None, "", "cifar10-small-iwae-100-images"),
        Row("the same, 1.6 hours, narrower encoder", None, "", "cifar10-small-iwae-narrow"),
        Row("binary latents, `cifar10-small`", 4.84, f"{PAPER}, VIMCO", "cifar10-small"),
        Row("the same, a larger K on fewer images", None, "", "cifar10-small-100-images"),
        Row("the same, 1.9 hours, narrower encoder", None, "", "cifar10-small-narrow"),
        Row("binary latents, 64x64 photographs, `natural64-small`", 4.92, f"{PAPER}, on ImageNet", "natural64-small"),
        Row("the same, a larger K on fewer images", None, "", "natural64-small-100-images"),
    ),
}
IN_BITS = ("table3",)


class Training(NamedTuple):
    """The runs in ``results/runs`` that a model's training consists of, each but the first from the weights before it.

    Attributes:
        runs: Their names.
        cores: On how many they ran.
        dimensions: D of the data.
    """

    runs: tuple[str, ...]
    cores: int = 1
    dimensions: int = 784


TRAININGS = {
    "mnist-mlp-best": Training(("mnist-mlp-best-pretraining", "mnist-mlp-best-begin", "mnist-mlp-best")),
    "mnist-mlp-crws": Training(("mnist-mlp-best-pretraining", "mnist-mlp-crws")),
    "mnist-mlp": Training(("mnist-mlp-30-minutes",), 2),
    "mnist-mlp-no-pretrain": Training(("mnist-mlp-no-pretrain",)),
    "mnist-mlp-bernoulli-prior": Training(("mnist-mlp-bernoulli-prior",)),
    "mnist-mlp-iwae": Training(("mnist-mlp-iwae",)),
}

COLOUR_TRAININGS = {
    "cifar10-small": Training(("cifar10-small",), 1, 3072),
    "cifar10-small-iwae": Training(("cifar10-small-iwae",), 1, 3072),
    "cifar10-small, narrower encoder": Training(("cifar10-small-narrow-begin", "cifar10-small-narrow"), 1, 3072),
    "cifar10-small-iwae, narrower encoder": Training(("cifar10-small-iwae-narrow",), 1, 3072),
    "cifar10-resnet, relaxed ELBO": Training(("cifar10-resnet-hour",), 1, 3072),
    "cifar10-resnet, VIMCO": Training(("cifar10-resnet-vimco-pretraining", "cifar10-resnet-vimco"), 2, 3072),
    "cifar10-small, beside it": Training(("cifar10-small-beside",), 2, 3072),
    "natural64-small": Training(("natural64-small",), 1, 12_288),
}
HOURS = (0.5, 1.0, 2.0, 4.0, 8.0)

RESNET_RUNS = {"mnist-resnet-begin": 1, "mnist-resnet-vimco": 1, "mnist-resnet-vimco-end": 2, "mnist-resnet": 1}
"""The runs that trained mnist-resnet, each but the first from the weights before it, and on how many cores."""

LEVELS = (90.0, 87.0, 85.0)
PUBLISHED = 83.69


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
            "raise_evenly_spaced": raised.get("evenly_spaced", False),
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
    """A measured figure with its error, K and images: in nats the Monte-Carlo error, in bits/dim that over images."""
    if found is None:
        return ""
    if in_bits:
        error = (found["standard_error_images"] or 0.0) * found["bits_per_dimension"] / found["nll"]
        figure = f"{found['bits_per_dimension']:.3f} ± {error:.3f}"
    else:
        figure = f"{found['nll']:.3f} ± {found['standard_error_monte_carlo'] or 0.0:.3f}"
    notes = [f"K = {found['samples']:,}"] if found["samples"] else []
    notes += [] if found["images"].startswith("all") else [found["images"]]
    return f"[{figure}](../{found['file']})" + (f" ({', '.join(notes)})" if notes else "")


def markdown(name: str) -> str:
    """A table in Markdown."""
    in_bits = name in IN_BITS
    unit = "bits/dim" if in_bits else "nats"
    heads = [f"published, {unit}", f"test, {unit}", "RAISE − AIS, nats"]
    lines = [f"| {' | '.join(['model', *heads, 'valid', 'train'])} |", "| --- | --- | --- | --- | --- | --- |"]
    for row in table(name):
        published = "" if row["published"] is None else f"{row['published']:.2f}"
        published += f" (RAISE {row['published_raise']:.2f})" if row["published_raise"] else ""
        published += f", {row['source']}" if row["source"] else ""
        test = row["test"] or {}
        error = test.get("raise_minus_standard_error") or 0.0
        raised = f"{test['raise_minus']:+.3f} ± {error:.3f}" if "raise_minus" in test else ""
        if raised and f"{test['raise_images']:,}" not in test["images"].split():  # such as "all 10,000"
            raised += f" ({'' if test['raise_evenly_spaced'] else 'first '}{test['raise_images']:,} images)"
        figures = [cell(row[split], in_bits) for split in ("test", "valid", "train")]
        lines.append("| " + " | ".join([row["model"], published, figures[0], raised, *figures[1:]]) + " |")
    return "\n".join(lines)


class Timeline(NamedTuple):
    """A training's quick validations.

    Attributes:
        points: Seconds since the beginning of the first run, and nats.
        last: Seconds at which the last run began.
        end: Seconds at which it ended.
    """

    points: list[tuple[float, float]]
    last: float
    end: float


def timeline(runs: tuple[str, ...]) -> Timeline | None:
    """What the runs of a training make when they are put one after the other; None if not all are there."""
    found = [metrics(run) for run in runs if (RESULTS / "runs" / run).is_dir()]
    if len(found) < len(runs):
        return None
    before = [sum(sitting[-1]["seconds"] for sitting in found[:i]) for i in range(len(found))]
    points = [
        (start + row["seconds"], row["valid_nll"])
        for start, sitting in zip(before, found, strict=True)
        for row in sitting
        if row.get("valid_nll") is not None
    ]
    return Timeline(points, before[-1], before[-1] + found[-1][-1]["seconds"])


def hours() -> list[dict[str, Any]]:
    """For each model the hours until quick validation was at each level or below, and kept weights below the paper."""
    rows = []
    for model, (runs, cores, _) in TRAININGS.items():
        if (time := timeline(runs)) is None:
            continue
        row: dict[str, Any] = {"model": model, "cores": cores, "hours": time.end / 3600}
        for level in LEVELS:
            row[f"valid {level:g}"] = next((seconds / 3600 for seconds, nll in time.points if nll <= level), None)
        row[f"test {PUBLISHED:g}"] = kept_below(runs[-1], time.last)
        rows.append(row)
    return rows


def bits_by_hours_markdown() -> str:
    """Quick validation of the colour models, in bits/dim, at the last epoch before each of some hours, in Markdown."""
    heads = ["model", "cores", *(f"{hour:g} h" for hour in HOURS), "at the end", "hours in all"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for model, (runs, cores, dimensions) in COLOUR_TRAININGS.items():
        if (time := timeline(runs)) is None:
            continue
        until = [hour if 3600 * hour <= time.end else 0.0 for hour in HOURS]  # none after its end
        reached = [[nll for seconds, nll in time.points if seconds <= 3600 * hour] for hour in (*until, math.inf)]
        bits = [f"{each[-1] / dimensions / math.log(2):.3f}" if each else "" for each in reached]
        recipe, comma, rest = model.partition(",")
        lines.append(f"| `{recipe}`{comma}{rest} | " + " | ".join([str(cores), *bits, f"{time.end / 3600:.2f}"]) + " |")
    return "\n".join(lines)


def metrics(run: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics that are of an epoch."""
    lines = (RESULTS / "runs" / run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "seconds" in row]


def kept_below(run: str, before: float) -> dict[str, Any] | None:
    """The first of a run's kept weights whose test NLL is at the published one or below: figure, K, hours."""
    path = RESULTS / "runs" / run / "curve-test.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else []:
        row = json.loads(line)
        found = row["evaluation"]["likelihood"]
        if found["nll"] <= PUBLISHED:
            kept = {name: found[name] for name in ("nll", "standard_error_monte_carlo", "samples", "images")}
            return {"hours": (before + row["seconds"]) / 3600, "file": f"results/runs/{run}/{path.name}", **kept}
    return None


def hours_markdown() -> str:
    """The table of hours in Markdown."""
    heads = [
        "model",
        "cores",
        *(f"h to {level:g} nats, valid" for level in LEVELS),
        f"h to {PUBLISHED:g} nats, test",
        "h in all",
    ]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for row in hours():
        cells = ["" if (at := row[f"valid {level:g}"]) is None else f"{at:.2f}" for level in LEVELS]
        kept = row[f"test {PUBLISHED:g}"]
        cells.append("" if kept is None else f"{kept['hours']:.2f} ([{kept['nll']:.2f}](../{kept['file']}))")
        lines.append("| " + " | ".join([f"`{row['model']}`", str(row["cores"]), *cells, f"{row['hours']:.2f}"]) + " |")
    return "\n".join(lines)


def resnet_markdown() -> str:
    """What each stage of mnist-resnet's training took and came to by quick validation, in Markdown."""
    lines = ["| run | stage | epochs | K | cores | core-hours so far | validation, nats |", "| --- " * 7 + "|"]
    before = 0.0
    for run, cores in RESNET_RUNS.items():
        config = json.loads((RESULTS / "runs" / run / "config.json").read_text())
        rows = metrics(run)
        for stage in dict.fromkeys(row["stage"] for row in rows):
            of_stage = [row for row in rows if row["stage"] == stage]
            found = [row["valid_nll"] for row in of_stage if row.get("valid_nll") is not None]
            settings = config[stage] if stage in ("warm_start", "joint") else {}
            first, last = settings.get("first_samples") or settings.get("samples", ""), settings.get("samples", "")
            K = f"{first} to {last}" if first != last else f"{last}"
            hours = (before + cores * of_stage[-1]["seconds"]) / 3600
            cells = [f"`{run}`", STAGE_NAMES[stage], str(len(of_stage)), K, str(cores), f"{hours:.2f}"]
            lines.append("| " + " | ".join([*cells, f"{min(found):.2f}" if found else ""]) + " |")
        before += cores * rows[-1]["seconds"]
    return "\n".join(lines)


def ablations_markdown(of: str, file: str = "ablations.json") -> str:
    """The ablations of "stage 3", "stages 1 and 2" or "random weights", best first, in Markdown."""

    def kind(name: str) -> str:
        return next((kind for kind in ("stages 1 and 2", "random weights") if kind in name), "stage 3")

    found = {name: line for name, line in json.loads((RESULTS / file).read_text()).items() if kind(name) == of}
    lines = ["| | valid, nats | train, nats | minutes | epochs |", "| --- | --- | --- | --- | --- |"]
    figures = {
        name: [line[split]["evaluation"]["likelihood"] for split in ("valid", "train")] for name, line in found.items()
    }
    for name, both in sorted(figures.items(), key=lambda item: item[1][0]["nll"]):
        cells = [f"{each['nll']:.2f} ± {each['standard_error_monte_carlo']:.2f}" for each in both]
        minutes, epochs = found[name]["training_seconds"] / 60, found[name]["epochs"]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {minutes:.1f} | {epochs} |")
    return "\n".join(lines)


STAGE_NAMES = {"autoencoder": "1", "rbm": "2", "warm_start": "3, warm start", "joint": "3", "adversarial": "WGAN"}


def network_costs() -> dict[str, Any]:
    """What ``networks.py`` measured of each recipe."""
    recipes: dict[str, Any] = json.loads((RESULTS / "networks.json").read_text())["recipes"]
    return recipes


def costs_markdown(recipes: dict[str, Any]) -> str:
    """What a step of each residual recipe costs, in Markdown."""
    lines = [
        "| recipe | parameters | stage | images | GFLOP | s | GFLOP/s | hours an epoch | hours in all |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in recipes.items():
        for stage, title in STAGE_NAMES.items():
            if row := result.get(stage):
                speed = row["gigaoperations"] / row["seconds"]
                hours = f"{row['hours_for_an_epoch']:.2f} | {row['hours_for_the_recipe']:.1f}"
                lines.append(
                    f"| `{name}` | {result['parameters']:,} | {title} | {row['images']} | "
                    f"{row['gigaoperations']:.0f} | {row['seconds']:.2f} | {speed:.0f} | {hours} |"
                )
    return "\n".join(lines)


def scoring_markdown() -> str:
    """Microseconds for a sample by the size of the largest tensor, median and fastest, in Markdown."""
    found = json.loads((RESULTS / "scoring.json").read_text())["microseconds_for_a_sample"]
    sizes = [f"2^{exponent}" for exponent in next(iter(found.values()))]
    lines = ["| µs for a sample, median (fastest) | " + " | ".join(sizes) + " |", "| --- " * (len(sizes) + 1) + "|"]
    for name, rows in found.items():
        cells = [f"{row['median']:.1f} ({row['fastest']:.1f})" for row in rows.values()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def overfitting_markdown(recipes: dict[str, Any]) -> str:
    """The loss of each residual recipe's networks while they learn 64 images by heart, in Markdown."""
    lines = [
        "| recipe | images of | nats before | halfway | at the end | of others, at the end | steps |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in recipes.items():
        if row := result.get("overfit"):
            marks = list(row["nats"].values())
            shown = (marks[0], marks[len(marks) // 2], marks[-1], list(row["nats_of_others"].values())[-1])
            figures = " | ".join(f"{nats:,.0f}" if nats > 100 else f"{nats:.3f}" for nats in shown)
            lines.append(f"| `{name}` | {row['data']} | {figures} | {row['steps']:,} |")
    return "\n".join(lines)


def pages() -> dict[str, list[str]]:
    """The tables in Markdown, by the page that shows them."""
    recipes = network_costs()
    ablations = [
        ablations_markdown("stage 3"),
        ablations_markdown("stages 1 and 2"),
        ablations_markdown("stage 3", "ablations-second-start.json"),
        ablations_markdown("random weights", "ablations-second-start.json"),
        ablations_markdown("stage 3", "ablations-mnist-resnet.json"),
        ablations_markdown("stages 1 and 2", "ablations-mnist-resnet.json"),
    ]
    return {
        "results.md": [markdown(name) for name in TABLES],
        "mnist.md": [hours_markdown(), resnet_markdown()],
        "colour.md": [bits_by_hours_markdown()],
        "ablations.md": ablations,
        "performance.md": [costs_markdown(recipes), overfitting_markdown(recipes), scoring_markdown()],
    }


def put_in(page: str, made: str) -> str:
    """The page with a table in place of its earlier state: of those with its head, the most like it by their rows."""

    def names(lines: list[str]) -> set[str]:
        return {line.split("|")[1] for line in lines[2:]}

    lines, new = page.split("\n"), made.split("\n")
    starts = [start for start, line in enumerate(lines) if line == new[0]]
    olds = [(start, list(itertools.takewhile(lambda line: line.startswith("|"), lines[start:]))) for start in starts]
    if not olds:
        raise ValueError(f"expected a table with the head {new[0]!r} in the page, found none")
    start, old = max(olds, key=lambda each: len(names(each[1]) & names(new)) / len(names(each[1]) | names(new)))
    return "\n".join([*lines[:start], *new, *lines[start + len(old) :]])


def main() -> None:
    """Write the JSON files, and the tables into their pages."""
    for title in TABLES:
        write_json(RESULTS / f"{title}.json", table(title))
    write_json(RESULTS / "hours.json", hours())
    for name, tables in pages().items():
        path = DOCS / name
        page = path.read_text()
        for made in tables:
            page = put_in(page, made)
        path.write_text(page)
        print(f"written: {path}")


if __name__ == "__main__":
    main()
