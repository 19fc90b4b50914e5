"""Pictures and tables from run folders: learning curves, samples, reconstructions, the encoder's output.

The only module that imports a plotting library.
"""

import io
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table
from torch import Tensor

from .charts import Series, settled_limits
from .data import form_of
from .evaluate import IMAGES_AT_ONCE, Report
from .figures import Evaluation
from .files import FileError, write_atomically
from .gibbs import gibbs, random_bits
from .model import WGAN, GaussianModel, LatentModel, Model
from .progress import STAGE_TITLES
from .rbm import RBM
from .records import EVALUATION_HEAD, evaluation_captions, evaluation_rows
from .runs import Run, labels, load
from .splits import Form, Splits, some_of
from .tempering import sample_prior

matplotlib.use("Agg")

IMAGES_TO_ENCODE = 2000
INK, ACCENT, SECOND = "#22303c", "#1f6fb2", "#c8553d"

SHEET = 0.75
"""Tone of the sheet between pictures that are no ink, from black to white."""


def grid(images: Tensor, form: Form, columns: int = 10, zoom: int | None = None) -> Image.Image:
    """Images (N, D), with values from 0 to levels - 1, as one picture of ``columns`` columns.

    Ink is drawn on white, anything else on grey, from which both its light and its dark edges stand out. An image of
    NaN is a missing one: its place stays empty. Without a zoom ten columns are about 600 pixels wide.
    """
    channels, height, width = form.image
    zoom = zoom or max(1, round(60 / (width + 2)))
    rows = -(-len(images) // columns)
    sheet_tone = 1.0 if form.ink else SHEET
    tiles = torch.full((rows * columns, channels, height + 2, width + 2), sheet_tone)
    values = images.reshape(-1, *form.image).float().cpu() / (form.levels - 1)
    tiles[: len(images), :, 1:-1, 1:-1] = 1 - values if form.ink else values
    sheet = tiles.view(rows, columns, channels, height + 2, width + 2).permute(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * (height + 2), columns * (width + 2), channels).squeeze(-1)
    picture = Image.fromarray((sheet.nan_to_num(sheet_tone).clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def save_png(drawn: Figure | Image.Image, path: Path) -> None:
    """Write a figure or a picture as PNG."""
    content = io.BytesIO()
    if isinstance(drawn, Figure):
        drawn.savefig(content, format="png")
    else:
        drawn.save(content, "PNG")
    write_atomically(path, content.getvalue())


def save_pngs(drawn: Mapping[str, Figure | Image.Image], folder: Path) -> list[Path]:
    """Write figures and pictures into a folder, each under its name; their paths."""
    for name, each in drawn.items():
        save_png(each, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in drawn]


def evaluation_table(evaluation: Evaluation) -> Table:
    """An evaluation as a table for the terminal."""
    table = Table(title=f"negative log-likelihood, {evaluation.split} split", title_justify="left")
    for name in EVALUATION_HEAD:
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for row in evaluation_rows(evaluation):
        table.add_row(*row)
    table.caption = "\n".join(evaluation_captions(evaluation))
    table.caption_justify = "left"
    return table


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.ticklabel_format(useOffset=False)  # "+1.8817e4" would stand in the drawing
    return figure, axes


def _series(rows: Sequence[dict[str, Any]], stage: str, name: str) -> tuple[list[int], list[float]]:
    found = [(row["epoch"], row[name]) for row in rows if row["stage"] == stage and name in row]
    return [epoch for epoch, _ in found], [value for _, value in found]


def learning_curves(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """A figure for each stage that has been trained, from the rows of ``metrics.jsonl``."""
    figures = {}
    if _series(rows, "autoencoder", "reconstruction")[0]:
        figure, axes = _axes(STAGE_TITLES["autoencoder"], "epoch", "nats per image")
        axes.plot(*_series(rows, "autoencoder", "reconstruction"), color=ACCENT, label="training, soft bits")
        axes.plot(
            *_series(rows, "autoencoder", "reconstruction_hard_bits"),
            color=SECOND,
            label="validation, hard bits",
        )
        axes.legend(frameon=False)
        figures["curve-autoencoder"] = figure
    if _series(rows, "adversarial", "distance")[0]:
        figure, axes = _axes(STAGE_TITLES["adversarial"], "epoch of the critic", "distance by the critic")
        axes.plot(*_series(rows, "adversarial", "distance"), color=ACCENT)
        figures["curve-adversarial"] = figure
    for stage in ("rbm", "warm_start", "joint"):
        epochs, nll = _series(rows, stage, "valid_nll")
        if epochs:
            figure, axes = _axes(STAGE_TITLES[stage], "epoch", "validation NLL, nats")
            axes.plot(epochs, nll, color=ACCENT, marker="o", markersize=3)
            best = min(range(len(nll)), key=nll.__getitem__)
            axes.annotate(
                f"{nll[best]:.2f}",
                (epochs[best], nll[best]),
                textcoords="offset points",
                xytext=(0, 8),
                ha="right" if 2 * best > len(nll) else "left",
                color=INK,
            )
            axes.set_ylim(settled_limits([Series("", {}, nll)]))
            figures[f"curve-{stage}"] = figure
    return figures


COLORS = (ACCENT, SECOND, "#3d8b5f", "#8a5fb0", "#b58b2a", "#5b6b77")


def comparison(runs: Sequence[Run], split: str) -> dict[str, Figure]:
    """NLL of several runs against epochs of stage 3 and against wall time; none without evaluations of kept weights.

    The runs' :meth:`~latentbits.Run.curve` has the points; time is that of training, with all stages.
    """
    curves = [(label, rows) for run, label in zip(runs, labels(runs), strict=True) if (rows := run.curve(split))]
    figures = {}
    for x, title, scale in (("epoch", "epochs of stage 3", 1.0), ("seconds", "hours of training", 1 / 3600)):
        if not curves:
            break
        figure, axes = _axes(f"{split} NLL", title, "nats")
        for color, (label, rows) in zip(itertools.cycle(COLORS), curves, strict=False):
            points = [(row[x] * scale, row["evaluation"]["likelihood"]["nll"]) for row in rows if row[x] is not None]
            settings = sorted({f"K = {r['evaluation']['likelihood']['samples']:,}, {r['images']}" for r in rows})
            name = f"{label} ({'; '.join(settings)})"
            axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=name)
        axes.legend(frameon=False, fontsize=7)
        figures[f"{split}-nll-against-{'epochs' if x == 'epoch' else 'hours'}"] = figure
    return figures


def validation_by_time(runs: Sequence[Run], form: Form) -> Figure | None:
    """Validation during training of several runs against wall time, in nats or, of 256 levels, in bits/dim.

    Runs of the other kind than the form's are left out. Time is that of the run itself: what a run began with from
    another's weights is not in it. None where no run has been validated.
    """
    in_bits = form.levels > 2
    runs = [run for run in runs if (form_of(run.config.data).levels > 2) == in_bits]
    validated = [
        [row for row in run.metrics() if row["stage"] in ("warm_start", "joint") and "valid_nll" in row] for run in runs
    ]
    longest = max((row["seconds"] for rows in validated for row in rows), default=0.0)
    unit, each = ("hours", 3600) if longest >= 3600 else ("minutes", 60)
    figure, axes = _axes("validation NLL during training", f"{unit} of training", "bits/dim" if in_bits else "nats")
    drawn: list[float] = []
    for color, run, rows, label in zip(itertools.cycle(COLORS), runs, validated, labels(runs), strict=False):
        if rows:
            own = form_of(run.config.data)
            nll = [own.bits_per_dimension(row["valid_nll"]) if in_bits else row["valid_nll"] for row in rows]
            counts = run.config.validation
            name = f"{label} (K = {counts.samples:,}, {counts.images:,} images)"
            axes.plot([row["seconds"] / each for row in rows], nll, color=color, marker="o", markersize=3, label=name)
            drawn += nll
    if not drawn:
        return None
    axes.set_ylim(settled_limits([Series("", {}, drawn)]))
    axes.legend(frameon=False, fontsize=7)
    return figure


def write_comparison(runs: Sequence[Run], beside: dict[str, Tensor], form: Form, folder: Path) -> list[Path]:
    """Draw the runs' validation, evaluations of kept weights, and samples beside each other; the pictures' paths."""
    figures = {"samples-side-by-side": side_by_side(beside, form)} if beside else {}
    if len(runs) > 1 and (validation := validation_by_time(runs, form)):
        figures["validation-against-time"] = validation
    for split in ("train", "valid", "test"):
        figures |= comparison(runs, split)
    return save_pngs(figures, folder)


def encoder_output(model: LatentModel, x: Tensor) -> np.ndarray:
    """The encoder's output on data x (N, D), flat: the bits' log-odds, or the means of continuous latents."""
    encoder = model.encode if isinstance(model, GaussianModel) else model.encoder
    with torch.no_grad():
        return torch.cat([encoder(part.float()) for part in x.split(IMAGES_AT_ONCE)]).flatten().cpu().numpy()


def encoder_histogram(logits: np.ndarray, title: str) -> Figure:
    """Histogram of the bits' log-odds (n,), as in the paper's Figure 5."""
    figure, axes = _axes(title, "log-odds", "share")
    edge = float(np.quantile(np.abs(logits), 0.995))
    axes.hist(
        logits, bins=np.linspace(-edge, edge, 81).tolist(), weights=np.full(logits.size, 1 / logits.size), color=ACCENT
    )
    return figure


def over(above: Tensor, below: Tensor) -> Tensor:
    """Images (N, D) in rows of ten, each over another's, the last row filled up with missing ones, NaN: (2 N', D)."""
    empty = -len(above) % 10
    above, below = (
        F.pad(images, (0, 0, 0, empty), value=torch.nan).view(-1, 10, images.shape[1]) for images in (above, below)
    )
    return torch.stack([above, below], 1).reshape(-1, above.shape[2])


def present(images: Tensor) -> int:
    """How many of the images (N, D) are not missing."""
    return int((~images.isnan().any(1)).sum())


def reconstructions(model: LatentModel, x: Tensor) -> Tensor:
    """Data x (N, D) in rows of ten, each over its reconstruction from the most probable bits: (2 N, D)."""
    return over(x.float(), model.decode(model.encode(x)))


def nearest(images: Tensor, x: Tensor) -> Tensor:
    """The nearest of the data x (N', D) to each image (N, D), by squared distance, with shape (N, D)."""
    least, found = torch.full((len(images),), torch.inf), torch.empty_like(images)
    for part in x.split(IMAGES_AT_ONCE):
        distance, index = torch.cdist(images, part.float()).min(1)
        closer = distance < least
        least, found[closer] = torch.where(closer, distance, least), part.float()[index[closer]]
    return found


def decoded(model: LatentModel | RBM, z: Tensor) -> Tensor:
    """Means of the pixels (N, D) given bits z (N, M); of an RBM over them, given its hidden units' means."""
    if isinstance(model, LatentModel):
        return model.decode(z)
    with torch.no_grad():
        return torch.sigmoid(model.visible_logits(torch.sigmoid(model.hidden_logits(z))))


def walk(
    model: LatentModel | RBM, count: int, gibbs_steps: int, frames: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Chains of the prior from random bits on: means of the pixels (count, D), so many times, the steps shared out."""
    prior = model if isinstance(model, RBM) else model.prior
    z = random_bits(count, prior, generator)
    for frame in range(frames):
        done, until = (gibbs_steps * max(0, number) // (frames - 1) for number in (frame - 1, frame))
        z = gibbs(prior, z, until - done, generator)
        yield decoded(model, z)


def save_gif(images: Sequence[Tensor], form: Form, path: Path) -> None:
    """Write grids of images, each (N, D), as an animated GIF that repeats, and rests on the last."""
    sheets, content = [grid(frame, form) for frame in images], io.BytesIO()
    times = [100] * (len(sheets) - 1) + [2000]  # in milliseconds
    sheets[0].save(content, "GIF", save_all=True, append_images=sheets[1:], duration=times, loop=0)
    write_atomically(path, content.getvalue())


def draw(model: Model, count: int, gibbs_steps: int, generator: torch.Generator, temperatures: int = 1) -> Tensor:
    """Means of the pixels (count, D) given bits from chains of the prior; see :meth:`LatentModel.sample`."""
    if isinstance(model, WGAN):
        return model.sample(count, generator)
    if isinstance(model, LatentModel):
        return model.sample(count, gibbs_steps, generator, temperatures)
    return decoded(model, sample_prior(model, count, gibbs_steps, generator, temperatures))


def samples_beside(
    samples: Tensor, runs: Sequence[Run], form: Form, gibbs_steps: int, temperatures: Sequence[int], report: Report
) -> dict[str, Tensor]:
    """As many samples of other runs as there are of a first one, each by its label, the first one's before them.

    Runs without weights, or of images of another form, are left out; with a warning those whose weights cannot be
    read into what their configuration describes, such as a model of one's own.

    Arguments:
        samples: The first run's, with shape (N, D).
        runs: All runs.
        form: Of the first run's images.
        gibbs_steps: Length of the chains.
        temperatures: Of parallel tempering, for each run; 1 for plain chains.
        report: Told how far it has come.
    """
    (first, *names), found = labels(runs), {}
    for number, (name, run) in enumerate(zip(names, runs[1:], strict=True), start=1):
        report("samples of the other runs", (number - 1) / len(names), "")
        if not (run.path / "model.safetensors").is_file() or form_of(run.config.data) != form:
            continue
        try:
            model = load(run.path)
        except FileError as error:
            warnings.warn(f"{run.path}: its samples are left out ({error})", stacklevel=2)
            continue
        generator = torch.Generator().manual_seed(0)
        found[name] = draw(model, len(samples), gibbs_steps, generator, temperatures[number])
    return {first: samples, **found} if found else {}


def side_by_side(sheets: dict[str, Tensor], form: Form) -> Figure:
    """Images (N, D) of several models in rows of ten, each model's under its name."""
    drawn = {name: grid(images, form) for name, images in sheets.items()}
    width = max(picture.width for picture in drawn.values())
    height = max(picture.height for picture in drawn.values())
    figure = Figure(figsize=(4 * len(drawn), 4 * height / width + 0.4), dpi=150, layout="constrained")
    for axes, (name, picture) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, loc="left", fontsize=10, color=INK)
        axes.axis("off")
    return figure


class Exhibits(NamedTuple):
    """What a run's weights show, as far as it has come.

    Attributes:
        model: The weights that validation chose, or None.
        sheets: Images (N, D) in rows of ten, by the name of their picture; missing ones are NaN.
        outputs: What the encoder gives on validation images, flat, by "final" and "pretrained" (after stage 1).
    """

    model: Model | None
    sheets: dict[str, Tensor]
    outputs: dict[str, np.ndarray]


def exhibits(run: Run, splits: Splits, gibbs_steps: int, temperatures: int, report: Report) -> Exhibits:
    """Draw samples, find their nearest training images, reconstruct test images, encode validation images.

    Arguments:
        run: The run folder.
        splits: The data.
        gibbs_steps: Length of the chains behind the samples.
        temperatures: Of parallel tempering that draws them; 1 for plain chains.
        report: Told how far it has come.
    """
    if not (run.path / "model.safetensors").is_file():
        return Exhibits(None, {}, {})
    model, sheets, outputs = load(run.path), {}, {}
    report("samples", 0.0, "")
    sheets["samples"] = draw(model, 100, gibbs_steps, torch.Generator().manual_seed(0), temperatures)
    report("nearest training images", 0.0, "")
    sheets["samples-over-nearest-training-images"] = over(sheets["samples"], nearest(sheets["samples"], splits.train))
    report("reconstructions", 0.0, "")
    if isinstance(model, LatentModel):
        some = some_of(splits.test, 50)
        sheets["reconstructions"] = reconstructions(model, some)
        outputs["final"] = encoder_output(model, splits.valid[:IMAGES_TO_ENCODE])
        if (run.path / "autoencoder.safetensors").is_file():
            pretrained = load(run.path, "autoencoder")
            assert isinstance(pretrained, LatentModel)
            sheets["reconstructions-pretrained"] = reconstructions(pretrained, some)
            outputs["pretrained"] = encoder_output(pretrained, splits.valid[:IMAGES_TO_ENCODE])
    return Exhibits(model, sheets, outputs)


def write_figures(run: Run, form: Form, shown: Exhibits, folder: Path) -> list[Path]:
    """Draw everything there is to see of a run into a folder; the paths of the pictures."""
    drawn: dict[str, Figure | Image.Image] = {**learning_curves(run.metrics())}
    if not isinstance(shown.model, GaussianModel):
        for name, title in (("final", "final"), ("pretrained", "after stage 1, scaled")):
            if name in shown.outputs:
                file = "encoder-output" + ("-pretrained" if name == "pretrained" else "")
                drawn[file] = encoder_histogram(shown.outputs[name], f"encoder's output, {title}")
    drawn |= {name: grid(images, form) for name, images in shown.sheets.items()}
    return save_pngs(drawn, folder)
