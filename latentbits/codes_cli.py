"""Commands on images of one's own: encode, decode, score, inpaint."""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from . import data
from .codes import Codes, load_codes, read_images, save_codes
from .console import (
    OPTIONAL,
    DataPlace,
    NewFile,
    Pictures,
    RunName,
    UsageError,
    Weights,
    check_new_folder,
    check_numbers,
    check_output,
    lookup,
    naming,
    say,
    warn,
)
from .evaluate import log_partition
from .files import FileError, fingerprint, write_atomically
from .folders import in_bytes, opened
from .model import GaussianModel, LatentModel, Scores
from .progress import Display
from .refine import refine
from .runs import FINISHED, Run, data_of, load, pretrained_names, pretrained_path
from .splits import Form

IMAGES_CODED_AT_ONCE, IMAGES_SCORED_AT_ONCE = 500, 20

FEWEST_EFFECTIVE = 2.0
"""Effective sample size below which a score rests on a sample or two, and its error cannot be trusted."""


def find_run(name: str) -> Run:
    """A run folder, or the folder of a model that comes with the package."""
    if not Path(name).exists() and name in pretrained_names():
        return Run.open(pretrained_path(name))
    if not Path(name).exists() and "/" not in name:
        lookup(name, dict.fromkeys(pretrained_names()), "RUN: neither a folder here nor a model of the package")
    return Run.open(name)


def latent_model(run: Run, weights: str) -> LatentModel:
    """A run's model, if it has latents."""
    model = load(run.path, weights)
    if not isinstance(model, LatentModel):
        raise UsageError(f"{run.path}: expected a model with an encoder and a decoder, found a {type(model).__name__}")
    warn_if_unfinished(run)
    return model


def warn_if_unfinished(run: Run) -> None:
    """Say so if a run's training is not at its end."""
    try:
        stage = run.stage
    except FileError as error:  # the weights may be whole
        warn(f"{error}; so it is unknown whether the run finished. To repair it: latentbits train … --resume")
        return
    if run.checkpoint.is_file() and stage != FINISHED:
        warn(f"{run.path} is not finished (in the stage {stage}); its weights are the best or the last so far")


def chosen_images(run: Run, images: Path | None, split: str, data_dir: Path | None, invert: bool) -> tuple[Codes, Form]:
    """The pictures at a place, or a split of the run's data; and their form."""
    form = data.form_of(run.config.data)
    if images is not None:
        for option, given in (("--data-dir", data_dir is not None), ("--split", split != "test")):
            if given:
                warn(f"{option}: has no effect where pictures are named")
        with naming("PICTURES"):
            return read_images(images, form, invert), form
    x = getattr(data_of(run, data_dir), split)
    return Codes(form.levels - 1 - x if invert else x, [f"{split}-{i:06}" for i in range(len(x))]), form


def encode_run(
    run: RunName,
    images: Pictures = None,
    out: NewFile = Path("codes.npz"),
    split: Literal["test", "valid", "train"] = "test",
    invert: bool = False,
    weights: Weights = "model",
    data_dir: DataPlace = None,
    overwrite: bool = False,
) -> None:
    """Write the codes of images: the most probable bits under the encoder, eight in a byte, and the images' names.

    Args:
        run: A run folder, or the name of a model that comes with the package.
        images: Folder, .tar or .zip of pictures; if not given a split of the run's own data.
        out: The npz file to write: names, bits and their count, and a fingerprint of the weights that made them.
        split: Of the run's data, if no images are named.
        invert: Exchange light and dark, as for ink on paper under a model of light strokes.
        weights: model (validation's choice), a stage's name for those at its end, or joint-EPOCH for kept ones.
        data_dir: Folder with the data set's published files, or folder or archive of your own images.
        overwrite: Replace the file if it exists.
    """
    check_output(out, overwrite)
    folder = find_run(run)
    model = latent_model(folder, weights)
    found, _ = chosen_images(folder, images, split, data_dir, invert)
    z = torch.cat([model.encode(part.float()) for part in found.z.split(IMAGES_CODED_AT_ONCE)])
    binary = not isinstance(model, GaussianModel)
    save_codes(out, Codes(z, found.names, fingerprint(*model.state_dict().values())), binary)
    say(f"written: {out}, {len(z):,} codes of {z.shape[1]} {'bits' if binary else 'numbers'}")


def decode_run(
    run: RunName,
    codes: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CODES")],
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("decoded"),
    weights: Weights = "model",
) -> None:
    """Write the images that codes stand for, the decoder's means, as PNG files.

    Args:
        run: A run folder, or the name of a model that comes with the package.
        codes: An npz file that `latentbits encode` wrote.
        out: A new or empty folder.
        weights: model (validation's choice), a stage's name for those at its end, or joint-EPOCH for kept ones.
    """
    folder = find_run(run)
    check_new_folder(out)
    model, form = latent_model(folder, weights), data.form_of(folder.config.data)
    found = load_codes(codes)
    if found.z.shape[1] != model.prior.visible:
        raise UsageError(f"CODES: expected {model.prior.visible} latents per code, got {found.z.shape[1]} in {codes}")
    if not isinstance(model, GaussianModel) and not ((found.z == 0) | (found.z == 1)).all():
        raise UsageError(f"codes: expected bits for this model, got the continuous latents of another in {codes}")
    if found.made_by not in ("", fingerprint(*model.state_dict().values())):
        warn(f"{codes}: was made by other weights than these of {folder.path}; what it decodes to may mean nothing")
    images = (image for part in found.z.split(IMAGES_CODED_AT_ONCE) for image in model.decode(part))
    names = (f"{i:06}-" + re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).stem)[:100] for i, name in enumerate(found.names))
    write_pictures(out, zip(names, images, strict=True), form)


def write_pictures(folder: Path, images: Iterable[tuple[str, Tensor]], form: Form) -> None:
    """Write images (D,) as PNG files under their names into a folder, and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for name, image in images:
            content = io.BytesIO()
            picture(image, form).save(content, "PNG")
            written.append(folder / f"{name}.png")
            write_atomically(written[-1], content.getvalue())
    except BaseException:  # a part would look like the whole, and stand in the way of another try
        for path in written:
            path.unlink(missing_ok=True)
        raise
    say(f"written: {folder}, {len(written):,} pictures")


def picture(image: Tensor, form: Form) -> Image.Image:
    """An image (D,) with values from 0 to levels - 1; white is the highest."""
    pixels = (image.reshape(form.image) * (255 / (form.levels - 1))).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())


def score_run(
    run: RunName,
    images: Pictures = None,
    out: NewFile = Path("scores.csv"),
    split: Literal["test", "valid", "train"] = "test",
    samples: int = 200,
    chains: int = 1000,
    temperatures: int = 5000,
    refine_steps: int = 0,
    invert: bool = False,
    weights: Weights = "model",
    seed: int = 0,
    data_dir: DataPlace = None,
    overwrite: bool = False,
) -> None:
    """Write each image's log-likelihood with its standard error, the least likely first: for ranking, or outliers.

    Time grows with the number of images and of samples: seconds for multi-layer perceptrons, minutes for residual ones.

    Args:
        run: A run folder, or the name of a model that comes with the package.
        images: Folder, .tar or .zip of pictures; if not given a split of the run's own data.
        out: The CSV file to write.
        split: Of the run's data, if no images are named.
        samples: K, posterior samples for each image; 2 or more.
        chains: AIS chains for log Z, whose error is common to all images.
        temperatures: AIS temperatures.
        refine_steps: Gradient steps on each image's posterior before its samples, for colour images; see `evaluate`.
        invert: Exchange light and dark, as for ink on paper under a model of light strokes.
        weights: model (validation's choice), a stage's name for those at its end, or joint-EPOCH for kept ones.
        seed: Seed of the samples and the chains.
        data_dir: Folder with the data set's published files, or folder or archive of your own images.
        overwrite: Replace the file if it exists.
    """
    counted = {"samples": (samples, 2), "chains": (chains, 2), "temperatures": (temperatures, 1)}
    check_numbers({**counted, "refine-steps": (refine_steps, 0)}, seed)
    check_output(out, overwrite)
    folder = find_run(run)
    model = latent_model(folder, weights)
    found, form = chosen_images(folder, images, split, data_dir, invert)
    generator = torch.Generator().manual_seed(seed)
    with Display() as display:
        log_z = log_partition(
            model.prior, chains, temperatures, generator, lambda share, _: display.share("log Z by AIS", share)
        )
        scores = score_with_progress(model, found.z, samples, log_z.value, refine_steps, generator, display)
    if float(scores.effective_sample_size.median()) < FEWEST_EFFECTIVE:
        warn(
            "for half of the images one or two samples carry the whole weight (column effective_sample_size): their "
            "bounds may lie far below their log-likelihoods. More --samples, --refine-steps or a better model can help"
        )
    write_atomically(out, table_of_scores(scores, found.names, form).encode(errors="surrogateescape"))
    for i in scores.log_prob.argsort()[:5].tolist():
        say(f"least likely: {found.names[i]}, {scores.log_prob[i]:.2f} ± {scores.standard_error[i]:.2f} nats")
    common = "exact" if log_z.method == "exact" else f"± {log_z.standard_error or float('nan'):.3f}, common to all"
    say(f"written: {out}, {len(found.names):,} images, K = {samples:,}, log Z {common}")


def score_with_progress(
    model: LatentModel,
    x: Tensor,
    samples: int,
    log_z: float,
    refine_steps: int,
    generator: torch.Generator,
    display: Display,
) -> Scores:
    """Scores of images x (N, D), a few at a time, so that one sees how far it is."""
    parts = x.split(IMAGES_SCORED_AT_ONCE)
    scores: list[Scores] = []
    display.note(f"scoring {len(x):,} images with K = {samples:,} samples each")
    display.phase("scoring", len(parts))
    for part in parts:
        parameters = refine(model, part, refine_steps, generator)  # by no steps they are the encoder's
        scores.append(model.score(part.float(), samples, log_z, generator, parameters))
        display.advance(len(scores))
        if len(scores) == 1 and (left := display.seconds_left()) > 60:
            display.note(f"about {left / 60:.0f} minutes; fewer --samples take less")
    return Scores(*(torch.cat(values) for values in zip(*scores, strict=True)))


def table_of_scores(scores: Scores, names: list[str], form: Form) -> str:
    """Scores as CSV, the least likely first; a name need not be UTF-8."""
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerow(["name", "log_likelihood_nats", "standard_error", "bits_per_dimension", "effective_sample_size"])
    for i in scores.log_prob.argsort().tolist():
        value, error, size = (float(values[i]) for values in scores)
        bits = form.bits_per_dimension(-value)
        writer.writerow([names[i], f"{value:.4f}", f"{error:.4f}", f"{bits:.5f}", f"{size:.1f}"])
    return content.getvalue()


def inpaint_run(
    run: RunName,
    images: Pictures = None,
    keep: Literal["left", "right", "top", "bottom"] = "left",
    mask: Annotated[Path | None, tyro.conf.arg(metavar="PICTURE"), OPTIONAL] = None,
    out: NewFile = Path("inpainted.png"),
    count: int = 10,
    draws: int = 4,
    steps: int = 100,
    samples: int = 20,
    means: Annotated[
        tyro.conf.DisallowNone[bool | None],
        tyro.conf.arg(help_behavior_hint="(default: --means for images of 256 levels, --no-means for bits)"),
    ] = None,
    split: Literal["test", "valid", "train"] = "test",
    invert: bool = False,
    weights: Weights = "model",
    seed: int = 0,
    data_dir: DataPlace = None,
    overwrite: bool = False,
) -> None:
    """Keep a part of each image and draw the rest from the model: a PNG with the image, its part, and several draws.

    Args:
        run: A run folder, or the name of a model that comes with the package.
        images: Folder, .tar or .zip of pictures; if not given a split of the run's own data.
        keep: The half that is kept.
        mask: Instead of a half, a picture of the images' size: what is light in it is kept.
        out: The picture to write.
        count: Number of images, evenly spaced.
        draws: For each image.
        steps: Gibbs steps over latents and pixels.
        samples: Latents that compete at each step, 2 or more.
        means: Show the mean of what is drawn in the last step, which is smooth, instead of a draw.
        split: Of the run's data, if no images are named.
        invert: Exchange light and dark, as for ink on paper under a model of light strokes.
        weights: model (validation's choice), a stage's name for those at its end, or joint-EPOCH for kept ones.
        seed: Seed of the draws.
        data_dir: Folder with the data set's published files, or folder or archive of your own images.
        overwrite: Replace the picture if it exists.
    """
    from .report import grid, save_png

    check_numbers({"count": (count, 1), "draws": (draws, 1), "steps": (steps, 1), "samples": (samples, 2)}, seed)
    check_output(out, overwrite, ".png")
    folder = find_run(run)
    model = latent_model(folder, weights)
    found, form = chosen_images(folder, images, split, data_dir, invert)
    some = torch.linspace(0, len(found.z) - 1, min(count, len(found.z))).round().long()
    x, known = found.z[some].float(), kept_pixels(form, keep, mask)
    hidden = torch.where(known, x, (form.levels - 1) / 2)
    generator = torch.Generator().manual_seed(seed)
    smooth = form.levels > 2 if means is None else means
    with Display() as display:
        display.note(f"{draws * len(x):,} draws of {steps:,} steps, each begun at a nearby sample of the model")
        display.phase("inpainting", steps, 0)
        begin = x.repeat(draws, 1)
        drawn = model.inpaint(begin, known, steps, samples, generator, smooth, display.advance).view(draws, *x.shape)
    save_png(grid(torch.cat([x, hidden, *drawn]), form, columns=len(x)), out)
    say(f"written: {out}; rows: images, what was kept, {draws} draws")


def kept_pixels(form: Form, keep: str, mask: Path | None) -> Tensor:
    """Which pixels are kept, bool (D,): a half, or what is light in a picture of the images' size."""
    channels, height, width = form.image
    if mask is not None and keep != "left":
        warn("--keep: has no effect with --mask")
    if mask is None:
        row, column = torch.arange(height)[:, None], torch.arange(width)
        halves = {
            "left": column < width // 2, "right": column >= width // 2,
            "top": row < height // 2, "bottom": row >= height // 2,
        }  # fmt: skip
        return halves[keep].expand(channels, height, width).reshape(-1)
    try:
        with opened(mask) as picture:
            if picture.size != (width, height):
                raise UsageError(f"--mask: expected {width}x{height} pixels, got {picture.width}x{picture.height}")
            light = torch.from_numpy(np.asarray(in_bytes(picture)) >= 128)
    except Exception as error:  # a decoder may raise anything
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"--mask: expected a PNG or JPEG picture, got {mask} ({error})") from error
    return light.expand(channels, height, width).reshape(-1)
