"""A run's page: one HTML file with what its folder knows and what its weights show.

The file needs nothing else: styles, script, pictures and values stand in it, and its content security policy
forbids it the network. What it says is put together here; how it looks is in ``templates``.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from .charts import Chart, Interval, Intervals, Series, Table, histogram, settled_limits
from .config import Config
from .diagnostics import CHAINS, AnnealingDiagnosis, ChainDiagnosis, Diagnosis, TemperingDiagnosis, diagnose
from .evaluate import Report
from .facts import (
    commands,
    comparison_table,
    configuration,
    differences,
    evaluated_on,
    facts,
    highlights,
    not_comparable,
    standing,
)
from .figures import NLL, Evaluation
from .fused import bernoulli
from .model import GaussianModel, LatentModel, Model
from .progress import STAGE_TITLES
from .rbm import RBM
from .recipes import RECIPES
from .records import EVALUATION_HEAD, Record, evaluation_captions, evaluation_rows
from .report import Exhibits, grid, present
from .runs import STAGES, Run, labels
from .splits import Form, Splits

SEED = 0
MEASURES = {
    "reconstruction": ("training, soft bits", "nats"),
    "reconstruction_hard_bits": ("validation, hard bits", "nats"),
    "valid_nll": ("validation NLL", "nats"),
    "valid_bits_per_dimension": ("Validation NLL", "bits/dim"),
    "log_partition_error": ("Standard error of validation's log Z", "nats"),
    "bound": ("L_K + log Z in training", "nats"),
    "decoder_loss": ("Decoder's loss", "nats"),
    "free_energy_gap": ("Free energy, data minus chains", "nats"),
    "effective_sample_size": ("Effective sample size of the K weights", ""),
    "distance": ("distance by the critic", ""),
}
"""What the columns of ``metrics.jsonl`` are: words and unit."""

FIRST = ("valid_nll", "reconstruction", "reconstruction_hard_bits", "distance")
"""Of these a stage's large chart is made, of the others small ones."""


class Picture(NamedTuple):
    """A picture with its words."""

    title: str
    alt: str
    uri: str
    width: int
    height: int
    ink: bool


def _clock(seconds: float) -> tuple[str, float]:
    """Title of a time axis, and seconds in its unit, for so many seconds in all."""
    return next((f"{name} of training", each) for name, each in _UNITS if seconds >= 2 * each or each == 1)


_UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))


def measured(rows: Sequence[Mapping[str, Any]], stage: str, name: str, title: str, clock: tuple[str, float]) -> Series:
    """A column of a stage's metrics against epochs and time."""
    found = [row for row in rows if row["stage"] == stage and row.get(name) is not None]
    axis, unit = clock
    x = {"epoch": [float(row["epoch"]) for row in found], axis: [row["seconds"] / unit for row in found]}
    return Series(title, x, [float(row[name]) for row in found])


def stage_charts(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Chart]]:
    """The charts of each stage that has come to the end of an epoch: what it is judged by, then the other measures."""
    charts: dict[str, list[Chart]] = {}
    rows = [row for row in rows if "epoch" in row]
    for stage in STAGES:
        of_stage = [row for row in rows if row["stage"] == stage]
        if not of_stage:
            continue
        clock = _clock(rows[-1]["seconds"])
        names = [name for name in dict.fromkeys(name for row in of_stage for name in row) if name not in _PLACES]
        titles = {name: _measure(name)[0] if name.startswith("reconstruction") else "" for name in names}
        series = {name: measured(of_stage, stage, name, titles[name], clock) for name in names}
        first = [series[name] for name in FIRST if name in series and series[name].y]
        large = [Chart(_judged_by(stage), _unit(stage), first, limits=settled_limits(first))] if first else []
        small = [
            Chart(*_measure(name), [each], small=True)
            for name, each in series.items()
            if name not in FIRST and len(set(each.y)) > 1  # what never changes needs no picture
        ]
        charts[STAGE_TITLES[stage]] = [*large, *small]
    return charts


def _measure(name: str) -> tuple[str, str]:
    return MEASURES.get(name, (name, ""))


_PLACES = ("stage", "epoch", "step", "seconds")


def _judged_by(stage: str) -> str:
    return {"autoencoder": "Reconstruction", "adversarial": "Distance by the critic"}.get(stage, "Validation NLL")


def _unit(stage: str) -> str:
    return "" if stage == "adversarial" else "nats per image"


def picture(title: str, alt: str, images: Tensor, form: Form) -> Picture:
    """Images (N, D) in rows of ten, as a data URI."""
    sheet, content = grid(images, form), io.BytesIO()
    sheet.quantize(16).save(content, "PNG", optimize=True) if form.channels == 1 else sheet.save(content, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    return Picture(title, alt, uri, sheet.width, sheet.height, form.ink)


def pictures(shown: Exhibits, form: Form) -> list[Picture]:
    """What there is of samples, samples over their nearest training images, and reconstructions."""
    images = {name: sheet[:100] for name, sheet in shown.sheets.items()}
    counts = (present(images[name]) if name in images else 0 for name in _SHEETS)
    samples, pairs, test, pretrained = counts
    said = {
        "samples": (
            "Samples",
            f"{_counted(samples, 'sample')} of the model, {form.height} by {form.width} pixels each, in rows of ten.",
        ),
        "samples-over-nearest-training-images": (
            "Samples over their nearest training images",
            f"{_counted(pairs // 2, 'sample')} in rows of ten; below each one the training image that is nearest.",
        ),
        "reconstructions": (
            "Test images over their reconstructions",
            f"{_counted(test // 2, 'test image')} in rows of ten; below each one what the decoder makes of its "
            "most probable latents.",
        ),
        "reconstructions-pretrained": (
            "The same after stage 1",
            f"{_counted(pretrained // 2, 'test image')} in rows of ten, over what the autoencoder that training "
            "began with makes of them.",
        ),
    }
    return [picture(*said[name], each, form) for name, each in images.items()]


_SHEETS = ("samples", "samples-over-nearest-training-images", "reconstructions", "reconstructions-pretrained")


def pictures_beside(beside: dict[str, Tensor], form: Form) -> list[Picture]:
    """The samples of several runs."""
    return [
        picture(f"Samples of {name}", f"{_counted(len(images), 'sample')} in rows of ten.", images, form)
        for name, images in beside.items()
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def latents_chart(shown: Exhibits) -> Chart | None:
    """Histograms of the encoder's output after stage 1 and finally, as far as there are any."""
    titles = {"pretrained": "after stage 1, scaled", "final": "final"}
    values = {title: shown.outputs[name] for name, title in titles.items() if name in shown.outputs}
    if not values:
        return None
    if isinstance(shown.model, GaussianModel):
        return Chart("Means of the latents on validation images", "share", histogram(values, "mean"), "bars")
    note = "A bit is sure where its log-odds are far from 0."
    series = histogram(values, "log-odds")
    return Chart("Log-odds of the bits on validation images", "share", series, "bars", note=note)


# ----------------------------------------------------------------------------- diagnostics of the prior


def prior_of(model: Model | None) -> RBM | None:
    """The RBM of a model, if it has one."""
    if isinstance(model, RBM):
        return model
    return model.prior if isinstance(model, LatentModel) and isinstance(model.prior, RBM) else None


def trained_temperatures(config: Config) -> int:
    """Temperatures of the persistent chains in the stages that a configuration trains; 1 without tempering."""
    stages = (config.rbm, config.warm_start, config.joint)
    return max((stage.temperatures for stage in stages if stage.epochs), default=1)


def examine(model: Model | None, splits: Splits, seconds: float, temperatures: int, report: Report) -> Diagnosis | None:
    """Diagnose a model's RBM in so many seconds; None without an RBM or seconds.

    Arguments:
        model: The model; half of the Gibbs chains start where its posterior, or the data, are.
        splits: The data.
        seconds: What it may cost.
        temperatures: Of parallel tempering; below 2 for none.
        report: Told now and then how far a phase has come.
    """
    rbm = prior_of(model)
    if rbm is None or not seconds:
        return None
    generator, x = torch.Generator().manual_seed(SEED), splits.valid[:CHAINS].float()
    with torch.no_grad():
        z = bernoulli(model.encoder(x), generator) if isinstance(model, LatentModel) else x
    return diagnose(rbm, z, seconds, temperatures, generator, report)


def diagnosis_charts(found: Diagnosis) -> list[Chart]:
    """Gibbs chains, annealing, and tempering where it was asked for."""
    charts = [*chain_charts(found.chains), *annealing_charts(found.annealing)]
    return charts if found.tempering is None else [*charts, swaps_chart(found.tempering)]


def chain_charts(found: ChainDiagnosis) -> list[Chart]:
    """Free energies and autocorrelations along Gibbs chains."""
    energy, projection = found
    steps = energy.from_random.shape[1]
    places = np.unique(np.geomspace(1, steps, 120).astype(int))
    step = {"Gibbs steps": places.astype(float).tolist()}
    energies = [
        Series(name, step, trace.mean(0)[places - 1].tolist())
        for name, trace in (("from random bits", energy.from_random), ("from bits of data", energy.from_data))
    ]
    lags = min(len(energy.rho), max(20, 2 * energy.time.window, 2 * projection.time.window))
    lag = {"lag in steps": [float(lag) for lag in range(lags)]}
    rho = [
        Series(name, lag, trace.rho[:lags].tolist())
        for name, trace in (("free energy", energy), ("projection", projection))
    ]
    return [
        Chart(
            "Free energy along Gibbs chains", "nats", energies, marks=[(steps / 2, "second half")], logarithmic=True,
            note="Where the two kinds of starts have met, the chains have forgotten them.",
        ),
        Chart(
            "Autocorrelation along Gibbs chains", "", rho, limits=(min(0.0, *(min(each.y) for each in rho)), 1.0),
            note="Over the second half of all chains, about their common mean; of the free energy, and of the state's "
            "projection on the leading left singular vector of W, which sees modes of equal free energy.",
        ),
    ]  # fmt: skip


def annealing_charts(found: AnnealingDiagnosis) -> list[Chart]:
    """The weights and the schedule of AIS."""
    estimate, betas = found
    share = {"share of the transitions": np.linspace(0, 1, 101).tolist()}
    schedule = np.interp(share["share of the transitions"], np.linspace(0, 1, len(betas)), betas.numpy())
    weights = histogram({"": estimate.log_weights.numpy()}, "log-weight, nats", 30, 1.0)
    return [
        Chart(
            "Log-weights of AIS chains", "share", weights, "bars", marks=[(estimate.log_z, "log Z")],
            note="Few chains far to the right would mean that log Z rests on them.",
        ),
        Chart(
            "Temperature schedule of AIS", "inverse temperature", [Series("", share, list(schedule))],
            limits=(0.0, 1.0), note="Placed by a pilot run; flat where log-weights vary most.",
        ),
    ]  # fmt: skip


def swaps_chart(found: TemperingDiagnosis) -> Chart:
    """Shares of the swaps that parallel tempering accepts."""
    middle = ((found.betas[1:] + found.betas[:-1]) / 2).tolist()
    accepted = (1 - found.swaps.rejection).tolist()
    series = Series("", {"inverse temperature, between neighbours": middle}, accepted)
    return Chart("Swaps of parallel tempering", "share accepted", [series], limits=(0.0, 1.0))


def diagnosis_table(found: Diagnosis) -> Table:
    """The figures of a diagnosis, with what they were measured on."""
    (energy, projection), estimate, tempering = found.chains, found.annealing.estimate, found.tempering
    n, steps = energy.from_random.shape
    rows = [
        [
            "integrated autocorrelation time of the free energy",
            f"{energy.time} steps",
            f"2 × {n} chains, {steps:,} steps, their second half",
        ],
        [
            "mean free energy, from random bits minus from bits of data",
            f"{energy.difference:+.3f} ± {energy.difference_error:.3f} nats",
            "the same",
        ],
        ["integrated autocorrelation time of the projection", f"{projection.time} steps", "the same"],
        [
            "mean projection, from random bits minus from bits of data",
            f"{projection.difference:+.3f} ± {projection.difference_error:.3f}",
            "the same",
        ],
        [
            "effective sample size of AIS",
            f"{estimate.ess:.0f} of {len(estimate.log_weights)}",
            f"{len(estimate.log_weights)} chains, {len(found.annealing.betas) - 1:,} temperatures",
        ],
        ["log Z, not the quoted one", f"{estimate.log_z:.2f} ± {estimate.standard_error:.2f} nats", "the same"],
    ]
    if tempering is not None:
        counted = f"{len(tempering.betas)} temperatures, {tempering.chains} chains, {tempering.rounds} rounds"
        rows += [
            ["swaps accepted", f"{100 * float((1 - tempering.swaps.rejection).mean()):.0f} %", counted],
            ["refused shares summed over pairs", f"{tempering.barrier:.2f}", "the same"],
        ]
    return Table(["", "found", "on"], rows)


# ----------------------------------------------------------------------------- evaluation and comparison


def evaluation_intervals(evaluation: Evaluation) -> Intervals:
    """Estimates on one scale; RAISE stands where the difference on the images that it shares with the first puts it."""

    def row(name: str, likelihood: NLL) -> Interval:
        return Interval(name, likelihood.nll, likelihood.standard_error_monte_carlo, likelihood.standard_error_images)

    first = evaluation.likelihood
    method = "exact log Z" if evaluation.log_partition.method == "exact" else "AIS"
    refined = "refined, " if evaluation.refine_steps else ""
    bound = f"{refined}K = {first.samples:,}, " if first.samples else ""
    rows = [row(f"{bound}{method}", first)]
    if fewer := evaluation.likelihood_fewer_samples:
        rows.append(row(f"{refined}K = {fewer.samples:,}, {method}", fewer))
    if raised := evaluation.likelihood_raise:
        place = first.nll + raised.difference
        rows.append(Interval(f"{bound}RAISE", place, raised.difference_standard_error, None))
    return Intervals(f"Negative log-likelihood, {evaluation.split} split", "nats", rows)


def joined_charts(runs: Sequence[Run]) -> list[Chart]:
    """What stages are judged by, and the evaluations of kept weights, of all runs together; a run has one colour."""
    metrics = [[row for row in run.metrics() if "epoch" in row] for run in runs]
    clock = _clock(max((rows[-1]["seconds"] for rows in metrics if rows), default=0.0))
    charts = []
    for stage in STAGES:
        name = {"autoencoder": "reconstruction_hard_bits", "adversarial": "distance"}.get(stage, "valid_nll")
        series = [
            measured(rows, stage, name, label, clock)._replace(color=color)
            for color, (rows, label) in enumerate(zip(metrics, labels(runs), strict=True))
        ]
        if series := [each for each in series if each.y]:
            title = f"{_judged_by(stage)}, {STAGE_TITLES[stage]}"
            charts.append(Chart(title, _unit(stage), series, limits=settled_limits(series)))
    for split in ("train", "valid", "test"):
        series = [
            _curve(label, run.curve(split), clock, color)
            for color, (run, label) in enumerate(zip(runs, labels(runs), strict=True))
        ]
        if series := [each for each in series if each.y]:
            note = f"Kept weights, evaluated on the {split} split."
            charts.append(Chart(f"NLL of the {split} split", "nats", series, note=note))
    return charts


def _curve(label: str, rows: Sequence[Mapping[str, Any]], clock: tuple[str, float], color: int) -> Series:
    likelihoods = [row["evaluation"]["likelihood"] for row in rows]
    axis, unit = clock
    seconds = [np.nan if row["seconds"] is None else row["seconds"] for row in rows]
    x = {"epoch": [float(row["epoch"]) for row in rows], axis: [each / unit for each in seconds]}
    used = ", ".join(sorted({f"K = {each['samples']:,}, {each['images']:,} images" for each in likelihoods}))
    return Series(f"{label} ({used})", x, [each["nll"] for each in likelihoods], color)


def environment() -> Environment:
    """Templates with every text escaped; a missing value is an error."""
    found = Environment(
        loader=PackageLoader(__package__, "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False}
    return found


def page(
    runs: Sequence[Run],
    records: Sequence[Record | None],
    splits: Splits,
    shown: Exhibits,
    diagnosis: Diagnosis | None,
    beside: dict[str, Tensor],
    data_dir: Path | None = None,
) -> str:
    """The page of the first of some runs, which it compares with the others.

    Arguments:
        runs: Run folders.
        records: The last evaluation of each, or None.
        splits: The first run's data.
        shown: What its weights show.
        diagnosis: Of its RBM, or None.
        beside: Samples (N, D) of each run, by its label; empty if there are none to compare.
        data_dir: Where the data were found, for the command that repeats the run.
    """
    run, record, stands = runs[0], records[0], standing(runs[0])
    return environment().get_template("page.html").render(
        name=labels(runs)[0],
        config=run.config,
        others=labels(runs)[1:],
        recipe=RECIPES.get(run.config.recipe),
        highlights=highlights(run, splits.form, stands, record),
        facts=facts(run, splits, stands, shown.model, record),
        record=record,
        evaluation_table=Table([*EVALUATION_HEAD], evaluation_rows(record.evaluation)) if record else None,
        captions=evaluation_captions(record.evaluation) if record else [],
        evaluated_on=evaluated_on(record) if record else "",
        intervals=evaluation_intervals(record.evaluation) if record else None,
        is_gan=run.config.model.network == "dcgan",
        has_rbm=run.config.model.prior == "rbm",
        has_weights=shown.model is not None,
        pictures=pictures(shown, splits.form),
        latents=latents_chart(shown),
        stages=stage_charts(run.metrics()),
        diagnosis=diagnosis,
        diagnosis_charts=diagnosis_charts(diagnosis) if diagnosis else [],
        diagnosis_table=diagnosis_table(diagnosis) if diagnosis else None,
        comparison=comparison_table(runs, records, splits.form.levels) if len(runs) > 1 else None,
        warnings=not_comparable(runs, records),
        beside=pictures_beside(beside, splits.form),
        differences=differences(runs) if len(runs) > 1 else None,
        joined=joined_charts(runs) if len(runs) > 1 else [],
        groups=configuration(run.config, sum(len(part) for part in (splits.train, splits.valid, splits.test))),
        commands=commands(run, record, data_dir, stands),
        seed=SEED,
    )  # fmt: skip
