"""What is to be said of a run: how far it has come, what it is, its settings, how to repeat it, how runs differ."""

import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import __version__
from .charts import Table, error, number
from .config import Config, different, settings, without_effect
from .figures import NLL, doubts
from .files import FileError, load_state
from .model import Model
from .progress import STAGE_TITLES, duration
from .recipes import RECIPES, beginning, beginnings, command_for
from .records import Record, of_other_data, of_other_weights
from .runs import FINISHED, STAGES, Run, labels
from .splits import Form, Splits

IN_BITS = "NLL, bits/dim"


class Standing(NamedTuple):
    """How far a run has come.

    Attributes:
        words: Finished, or in which stage and epoch.
        seconds: Of training so far, all stages; None before the first epoch's end.
        origin: What its checkpoint says of configuration, data and rounding; empty without one.
    """

    words: str
    seconds: float | None
    origin: Mapping[str, str]


def whole_checkpoint(run: Run) -> Mapping[str, Any] | None:
    """What the checkpoint holds; None where there is none, or a damaged one."""
    try:
        return load_state(run.checkpoint) if run.checkpoint.is_file() else None
    except FileError:
        return None


def standing(run: Run) -> Standing:
    """How far a run has come, by its checkpoint, or by its metrics where there is none."""
    rows = [row for row in run.metrics() if "epoch" in row]
    seconds, last = (rows[-1]["seconds"], rows[-1]) if rows else (None, None)
    state = whole_checkpoint(run)
    if state is not None:
        stage, origin = state["stage"], state["origin"]
        seconds = max(state["seconds"], seconds or 0.0) or None
        if stage == FINISHED:
            return Standing("finished", seconds, origin)
    else:
        stage, origin = last["stage"] if last else None, {}
    if stage is None:
        return Standing("just begun: no epoch is over", seconds, origin)
    config = run.config
    left = (each for each in STAGES[STAGES.index(stage) :] if getattr(config, each).epochs)
    stage = next(left, stage)  # a checkpoint may stand before a stage that is not trained
    epochs = getattr(config, stage).epochs
    epoch = last["epoch"] if last and last["stage"] == stage else 0
    words = f"{STAGE_TITLES[stage]}: epoch {epoch} of {epochs}"
    return Standing(words, seconds, origin)


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value != "" else "none"


def describe_model(config: Config, form: Form) -> str:
    """Networks, latents and prior in a sentence."""
    model, pixels = config.model, " × ".join(str(side) for side in form.image)
    if model.network == "none":
        return f"An RBM over the pixels: {form.dimensions} visible and {model.hidden} hidden bits."
    if model.network == "dcgan":
        return f"A Wasserstein GAN: {model.latent} normal latents, maps {_value(model.maps)}."
    widths = (
        f"layers {_value(model.layers)}" if model.network == "mlp" else f"residual blocks of {_value(model.maps)} maps"
    )
    latents = f"{model.latent} {'normal latents' if model.prior == 'normal' else 'bits'}"
    prior = {
        "rbm": f"an RBM with {model.hidden} hidden bits",
        "bernoulli": "independent bits",
        "normal": "a standard normal",
    }[model.prior]
    decoder = "its mirror for a decoder"
    if model.network == "resnet" and (model.encoder_maps or model.encoder_repeats):
        widths = f"residual blocks of {_value(model.encoder_maps or model.maps)} maps"
        decoder = f"a decoder of such blocks of {_value(model.maps)} maps in reverse"
    return f"Encoder of {widths} from {pixels} pixels to {latents}, {decoder}, {prior} for a prior."


def describe_stages(config: Config) -> str:
    """Epochs of the stages that are trained, and their objectives."""
    stages = [f"autoencoder {config.autoencoder.epochs}"] if config.autoencoder.epochs else []
    if config.rbm.epochs:
        stages.append(f"prior {config.rbm.cd_epochs} by CD and {config.rbm.pcd_epochs} by persistent CD")
    for name, stage in (("warm start", config.warm_start), ("joint", config.joint)):
        if stage.epochs:
            stages.append(f"{name} {stage.epochs} by {stage.objective} with K = {stage.samples}")
    if config.adversarial.epochs:
        stages.append(f"generator and critic {config.adversarial.epochs}")
    return f"Epochs: {'; '.join(stages)}." if stages else "None."


def facts(run: Run, splits: Splits, stands: Standing, model: Model | None, record: Record | None) -> list[list[str]]:
    """What the run is, where it stands, what it was made from: terms and what is said of them."""
    config, form = run.config, splits.form
    recipe = RECIPES.get(config.recipe)
    about = f"{config.recipe} ({recipe.source})" if recipe else f"{config.recipe}, which is no recipe's name"
    found = [["recipe", about], ["model", describe_model(config, form)], ["stages", describe_stages(config)]]
    if model is not None:
        found.append(["parameters", f"{sum(p.numel() for p in model.parameters()):,}"])
    found += [["data", splits.summary()], ["data's SHA-256", splits.checksum]]
    sources = {"the checkpoint": stands.origin.get("data"), "the evaluation": record and record.about["data_checksum"]}
    found += [
        ["other data", f"{name} is of data with SHA-256 {checksum}"]
        for name, checksum in sources.items()
        if checksum not in (None, splits.checksum)
    ]
    for row in run.metrics():
        if row["stage"] == "start":
            found.append(["began with", f"{row['weights']}, SHA-256 {row['sha256']}"])
        if row["stage"] == "conversion":
            tried = ", ".join(f"{scale}: {nll}" for scale, nll in row["nll_by_scale"].items())
            found.append(["posterior's scale", f"{row['scale']:g}" + (f"; NLL by scale {tried}" if tried else "")])
    found.append(["trained with", stands.origin.get("rounding", "unknown: the folder has no checkpoint")])
    if record is not None:
        found.append(["evaluated with", ", ".join(f"{name} {v}" for name, v in record.about["versions"].items())])
    versions = f"latentbits {__version__}, torch {torch.__version__}, python {platform.python_version()}"
    return [*found, ["page made with", versions]]


def evaluated_on(record: Record) -> str:
    """Of which images and weights an evaluation is, in words."""
    weights = record.about["weights"]
    stage, step = weights.get("stage"), weights.get("step")
    made = f" of {STAGE_TITLES.get(str(stage), stage)}" if stage else ""
    return f"{record.about['images']} images, with weights {weights['file']}{made}{f', step {step}' if step else ''}"


class Group(NamedTuple):
    """A section of the configuration: name, whether its stage is trained, rows of setting, value and recipe's value."""

    name: str
    used: bool
    rows: list[list[str]]


def configuration(config: Config, images: int) -> list[Group]:
    """The settings by section; a row's third cell says what the recipe has where it differs, and else nothing.

    Settings of other data than the configuration's are left out.

    Arguments:
        config: The configuration.
        images: How many the data have, on which the recipe for one's own pictures depends.
    """
    before = beginning(config, images)
    recipes, changed, idle = settings(before), different(config, before), without_effect(config)
    groups: dict[str, list[list[str]]] = {}
    for name, value in settings(config).items():
        section, _, setting = name.rpartition(".")
        if section == "data" and name in idle:
            continue
        groups.setdefault(section.replace("_", "-") or "run", []).append(
            [setting.replace("_", "-"), _value(value), _value(recipes[name]) if name in changed else ""]
        )
    return [
        Group(name, getattr(getattr(config, name.replace("-", "_"), None), "epochs", 1) > 0, rows)
        for name, rows in groups.items()
    ]


def commands(run: Run, record: Record | None, data_dir: Path | None, stands: Standing) -> list[list[str]]:
    """What repeats the run, in as many processes, and its evaluation: titles and command lines."""
    options = ["--run", f"{run.path}-again", *(["--data-dir", str(data_dir)] if data_dir else [])]
    if beginnings(run.config):
        title, words = "Train it again", list(command_for(run.config, *options))
    else:
        words = ["latentbits", "train", str(run.path / "config.json"), *options]
        title = "Train it again; no recipe has its name"
    processes = re.search(r"(\d+) processes", stands.origin.get("rounding", ""))
    if processes and int(processes[1]) > 1:  # whose random streams are other ones than one process has
        words = ["torchrun", "--standalone", "--nproc-per-node", processes[1], "-m", "--", *words]
    return [[title, shlex.join(words)], *([["Its evaluation was", record.about["command"]]] if record else [])]


def highlights(run: Run, form: Form, stands: Standing, record: Record | None) -> list[list[str]]:
    """The few figures that stand first: what, value and what it is of."""
    found = []
    quick = [row["valid_nll"] for row in run.metrics() if row.get("valid_nll") is not None]
    if record is not None:
        likelihood = record.evaluation.likelihood
        of = f"{record.evaluation.split}, {likelihood.images:,} images" + (
            f", K = {likelihood.samples:,}" if likelihood.samples else ""
        )
        of += ", posteriors refined" if record.evaluation.refine_steps else ""
        of += ", of other data than it was trained on" if of_other_data(record) else ""
        other = of_other_weights(run, record)
        of += f", of other weights than the run's own now: {other}" if other else ""
        of += ", doubtful (see below)" if doubts(record.evaluation) else ""
        value, over = f"{likelihood.nll:,.2f} nats", error(likelihood.standard_error_images)
        if form.levels > 2:
            value, over = f"{bits_per_dimension(likelihood)} bits/dim", f"{over} nats"
            of += f"; {likelihood.nll:,.2f} nats"
        found.append(["negative log-likelihood", value, f"{of}; ± {over} over images"])
    elif quick:
        found.append(["best validation NLL", f"{min(quick):,.2f} nats", "quick estimate in training"])
    model = run.config.model
    if model.network == "none":
        latents = ["layers", f"{form.dimensions} × {model.hidden}", "bits of the RBM"]
    elif model.prior == "rbm":
        latents = ["latents", f"{model.latent} × {model.hidden}", "bits in the RBM's layers"]
    else:
        latents = ["latents", str(model.latent), "independent bits" if model.prior == "bernoulli" else "normal"]
    stage, _, progress = stands.words.partition(": ")
    return [
        *found,
        ["training time", duration(stands.seconds), "all stages so far"],
        ["state", progress or stage, stage if progress else ""],
        latents,
    ]


def bits_per_dimension(likelihood: NLL) -> str:
    """A figure in bits/dim, with its standard error over images."""
    nats = likelihood.standard_error_images
    over = "?" if nats is None else f"{nats * likelihood.bits_per_dimension / likelihood.nll:.3f}"
    return f"{likelihood.bits_per_dimension:.3f} ± {over}"


def comparison_table(runs: Sequence[Run], records: Sequence[Record | None], levels: int) -> Table:
    """A column for each run: how far it is, what it cost, how good it is, for images of so many levels."""
    columns = [_compared(run, record) for run, record in zip(runs, records, strict=True)]
    names = [name for name in columns[0] if levels > 2 or name != IN_BITS]
    return Table(["", *labels(runs)], [[name, *(column[name] for column in columns)] for name in names])


def _compared(run: Run, record: Record | None) -> dict[str, str]:
    stands, evaluation = standing(run), record and record.evaluation
    likelihood, raised = evaluation and evaluation.likelihood, evaluation and evaluation.likelihood_raise
    quick = [row["valid_nll"] for row in run.metrics() if row.get("valid_nll") is not None]
    return {
        "recipe": run.config.recipe,
        "state": stands.words,
        "time": duration(stands.seconds),
        "best validation NLL": number(min(quick, default=None)),
        "evaluated on": f"{likelihood.images:,} images, {evaluation.split}" if evaluation and likelihood else "–",
        "of weights": (of_other_weights(run, record) or "the run's own") if record else "–",
        "K": f"{likelihood.samples:,}" if likelihood and likelihood.samples else "–",
        IN_BITS: bits_per_dimension(likelihood) if likelihood else "–",
        "NLL, nats": f"{likelihood.nll:.3f}" if likelihood else "–",
        "± MC": error(likelihood.standard_error_monte_carlo) if likelihood else "–",
        "± images": error(likelihood.standard_error_images) if likelihood else "–",
        "RAISE minus NLL": f"{raised.difference:+.3f} ± {error(raised.difference_standard_error)}" if raised else "–",
    }


def not_comparable(runs: Sequence[Run], records: Sequence[Record | None]) -> list[str]:
    """Why the runs' likelihoods cannot be compared: other data, another split, other images, another K."""
    found = [record for record in records if record is not None]
    data = [run.config.data.model_dump() for run in runs]
    checksums = {record.about["data_checksum"] for record in found}
    images = sorted({f"{record.about['images']}, {record.evaluation.split}" for record in found})
    reasons = []
    if any(other != data[0] for other in data) or len(checksums) > 1:
        reasons.append("The runs are of different data: their likelihoods say nothing about which is better.")
    if len(images) > 1:
        reasons.append(f"The evaluations are of different images: {'; '.join(images)}.")
    if len({record.evaluation.likelihood.samples for record in found}) > 1:
        reasons.append("The bounds are of different K: a larger K gives a smaller figure for the same model.")
    pairs = zip(runs, records, strict=True)
    if any(record is not None and of_other_weights(run, record) for run, record in pairs):
        reasons.append("An evaluation is of other weights than its run's own now: evaluate again.")
    if len({record.evaluation.refine_steps for record in found}) > 1:
        reasons.append("The posteriors were refined by different numbers of steps: more give a smaller figure.")
    return reasons


def differences(runs: Sequence[Run]) -> Table:
    """The settings in which runs differ, a column for each run."""
    values = [settings(run.config) for run in runs]
    names = [name for name, value in values[0].items() if any(other[name] != value for other in values)]
    rows = [[name.replace("_", "-"), *(_value(each[name]) for each in values)] for name in names]
    return Table(["setting", *labels(runs)], rows)
