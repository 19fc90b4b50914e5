"""A model as a folder to give away: ``config.json``, ``model.safetensors``, a model card, its evaluation.

What :func:`export` writes, :func:`latentbits.load` reads; nothing in the folder is run. A hub's copy of such a folder
is :class:`latentbits.hub.HubModel`'s work.
"""

import json
from pathlib import Path

from . import __version__
from .config import Config
from .data import form_of
from .facts import describe_model
from .files import write_atomically, write_json
from .records import (
    EVALUATION_HEAD,
    Record,
    evaluation_captions,
    evaluation_rows,
    last_evaluation,
    of_other_data,
    of_other_weights,
)
from .runs import Run, RunError, load

CARD = "README.md"
FILES = ("config.json", "model.safetensors", "evaluation.json", CARD)


def export(
    run: Path | str, folder: Path | str, weights: str = "model", licence: str = "", rounded: bool = False
) -> Path:
    """Write a trained model as a folder of its own, with a model card.

    Arguments:
        run: The run folder.
        folder: The new folder; empty or not there.
        weights: Which of the run's weights.
        licence: Of the weights, such as "apache-2.0"; the card does not name one if empty.
        rounded: Write matrices in bfloat16, for half the size. The evaluation, which is of the unrounded weights, stays
            behind.

    Returns:
        The folder.

    Raises:
        RunError: If there is no such model, or the folder holds something.
    """
    source, target = Run.open(run), Run(folder)
    check_empty(target.path)
    config, model = source.config, load(source.path, weights)
    origin = {name: value for name, value in source.weights_origin(weights).items() if name != "format"}
    record = None if rounded and "rounded" not in origin else evaluation_of(source, weights)
    if rounded:
        origin["rounded"] = "bfloat16"
    size = sum(parameter.numel() for parameter in model.parameters())
    card = model_card(config, size, record, licence, "rounded" in origin)
    try:
        target.write_config(config)
        target.save_weights("model", model, origin, rounded)
        if record is not None:
            record.about["weights"]["file"] = "model"
            write_json(target.path / "evaluation.json", record.about)
        write_atomically(target.path / CARD, card.encode())
    except BaseException:  # a part would stand in the way of another try
        for name in FILES:
            (target.path / name).unlink(missing_ok=True)
        raise
    return target.path


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        RunError: If it does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(
            f"{folder}: expected a new or an empty folder, found something else; nothing is overwritten, name another"
        )


def evaluation_of(run: Run, weights: str) -> Record | None:
    """The run's last evaluation, if it is of these weights."""
    record = last_evaluation(run)
    return None if record is None or of_other_weights(run, record, weights) else record


def model_card(config: Config, parameters: int, record: Record | None, licence: str = "", rounded: bool = False) -> str:
    """A model card in Markdown, with the header that hubs read.

    Arguments:
        config: Of the run.
        parameters: How many the model has.
        record: Its evaluation, or None.
        licence: Of the weights.
        rounded: Whether its matrices were rounded to bfloat16.
    """
    form = form_of(config.data)
    draw = {"none": "lb.sample_prior(model, 64, 1000)  # 1,000 Gibbs steps", "dcgan": "model.sample(64)"}.get(
        config.model.network, "model.sample(64, gibbs_steps=1000)"
    )
    objective = f"objective {config.joint.objective}, " if config.joint.epochs else ""
    header = {
        "library_name": "latentbits",
        "tags": ["latentbits", "binary latent variables", "restricted Boltzmann machine"],
        **({"license": licence} if licence else {}),
    }
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in header.items()),  # JSON is YAML
        "---",
        "",
        f"# {config.recipe}",
        "",
        f"A generative model of images of {form.channels} x {form.height} x {form.width} and {form.levels} levels, "
        f"trained on `{config.data.name}` with latentbits {__version__}. {describe_model(config, form)} "
        f"{parameters:,} parameters{', matrices rounded to bfloat16' if rounded else ''}.",
        "",
        "```python",
        "import latentbits as lb",
        "",
        'model = lb.load("FOLDER")  # this folder',
        f"images = {draw}",
        "```",
        "",
        "## Evaluation",
        "",
        *(["Not evaluated."] if record is None else evaluation_lines(record)),
        "",
        "## Training",
        "",
        f"Recipe `{config.recipe}`, {objective}seed {config.seed}; every setting is in `config.json`.",
        "",
    ]
    return "\n".join(lines)


def evaluation_lines(record: Record) -> list[str]:
    """The evaluation as a table in Markdown, and how it was made."""
    evaluation, about = record
    lines = [
        f"Negative log-likelihood of the {evaluation.split} split ({about['images']}), in nats per image:",
        "",
        *(["**These are other data than those that it was trained on.**", ""] if of_other_data(record) else []),
        f"| {' | '.join(EVALUATION_HEAD)} |",
        f"|{' --- |' * len(EVALUATION_HEAD)}",
        *(f"| {' | '.join(row)} |" for row in evaluation_rows(evaluation)),
    ]
    for caption in evaluation_captions(evaluation):
        lines += ["", caption]
    return [*lines, "", f"Command: `{about['command']}`"]
