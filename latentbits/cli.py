"""The command ``latentbits``; training is in :mod:`latentbits.train_cli`, codes in :mod:`latentbits.codes_cli`."""

import contextlib
import io
import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro
from rich.console import Console

from . import __version__, data, distributed, inventory
from .codes_cli import decode_run, encode_run, inpaint_run, score_run, warn_if_unfinished, write_pictures
from .completion import options_of, options_of_section, script
from .config import Config
from .console import (
    OPTIONAL,
    DataPlace,
    Device,
    RunFolder,
    UsageError,
    Weights,
    check_device,
    check_new_folder,
    check_numbers,
    check_output,
    check_writable,
    console,
    lookup,
    parse,
    say,
    warn,
)
from .evaluate import Counts, check_counts, evaluate, exact_log_partition
from .figures import Evaluation
from .files import FileError, Sittings, fingerprint, write_atomically
from .model import WGAN, LatentModel
from .nets import note_on_precision, works_in_bfloat16
from .progress import Display, printable
from .rbm import RBM
from .recipes import RECIPES
from .records import evaluation_record, keep_evaluation, last_evaluation, which_images
from .runs import Run, data_of, epoch_of, load, pretrained_names, pretrained_path
from .session import TrainingError
from .sharing import export
from .splits import DataError, cache_dir, some_of
from .train_cli import NOT_OPTIONS, STOPPED, TrainOptions, print_recipes, run_train

FRAMES = 50

MOST_ELEMENTS = 2**29
"""Of the largest tensor of samples: 2 GiB of float32, of which a few are made."""


def evaluate_run(
    run: RunFolder,
    split: Literal["test", "valid", "train"] = "test",
    images: Annotated[int | None, OPTIONAL] = None,
    samples: int = Counts().samples,
    chains: int = Counts().chains,
    temperatures: int = Counts().temperatures,
    schedule: Literal["adaptive", "linear"] = "adaptive",
    raise_images: int = Counts().raise_images,
    raise_resampled: int = Counts().raise_resampled,
    raise_temperatures: int = Counts().raise_temperatures,
    refine_steps: int = Counts().refine_steps,
    weights: Weights = "model",
    seed: int = 0,
    device: Device = "cpu",
    data_dir: DataPlace = None,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE"), OPTIONAL] = None,
    overwrite: bool = False,
) -> None:
    """Estimate a run's log-likelihood from both sides, with error bars.

    Writes RUN/evaluation.json, adds a line to RUN/evaluations.jsonl, and prints a table.

    Args:
        run: The run folder.
        split: Images to evaluate on.
        images: Number of images, evenly spaced over the split; all if not given.
        samples: K, posterior samples for each image.
        chains: AIS chains; 0 for none, where log Z is exact.
        temperatures: AIS temperatures.
        schedule: Temperatures placed by an independent pilot run, or equally spaced.
        raise_images: Number of these to run RAISE on, evenly spaced; 0 for none.
        raise_resampled: Posterior samples with a RAISE chain of their own, for each image.
        raise_temperatures: RAISE temperatures; 0 for no RAISE.
        refine_steps: Gradient steps on each image's posterior before its K samples are drawn: a tighter bound where the
            ESS is near 1, as of colour images. A step costs as much as three to four samples.
        weights: model (validation's choice), a stage's name for those at its end, or joint-EPOCH for kept ones.
        seed: Seed of this evaluation.
        device: Where to evaluate, such as cpu or cuda.
        data_dir: Folder with the data set's published files, or folder or archive of your own images.
        out: Another file to write the result to.
        overwrite: Replace that file if it exists.
    """
    counts = Counts(samples, chains, temperatures, raise_images, raise_resampled, raise_temperatures, refine_steps)
    check_options(counts, images)
    check_numbers({}, seed)
    folder = Run.open(run)
    check_output(out, overwrite)
    check_writable(folder.path, "run")
    check_device(device)
    with distributed.processes(device):
        is_first = distributed.world().is_first
        model = load_to_evaluate(run, weights).to(device)
        if refine_steps and isinstance(model, RBM):
            raise UsageError(
                f"--refine-steps: expected 0 for an RBM over the data, got {refine_steps}; it has no encoder"
            )
        if chains == 0 and exact_log_partition(model if isinstance(model, RBM) else model.prior) is None:
            raise UsageError("--chains: expected at least 1 where the RBM is too large to sum log Z, got 0")
        splits = data_of(folder, data_dir)
        x = some_of(getattr(splits, split), images)
        precision = folder.config.model.precision
        rounded = works_in_bfloat16(precision, torch.device(device))  # so that no estimate mixes two arithmetics
        unfinished = place_of_unfinished(folder, weights, split, images, counts, schedule, seed, rounded)
        sittings = Sittings(unfinished / "sittings.safetensors" if is_first else None)
        with Display(quiet=not is_first) as display:
            if splits.of_published(split):
                display.note(splits.summary())
            if note := note_on_precision(precision, torch.device(device)):
                display.note(note)
            generator = torch.Generator(device).manual_seed(seed)
            report = sittings.along(display.share)
            evaluation = evaluate(model, x, split, counts, schedule, generator, report, unfinished)
        distributed.wait()  # for what others still write there, before it is taken away
        record = evaluation_record(folder, weights, evaluation, seed, splits, sittings.seconds(), device)
    if is_first:
        replaced = (folder.path / "evaluation.json").is_file()
        keep_evaluation(folder, record, out)  # before anything is said: a closed pipe must not cost the result
        clear_unfinished(unfinished)
        print_evaluation(evaluation)
        say_where(folder, out, replaced)


def place_of_unfinished(folder: Run, *options: object) -> Path:
    """Where the evaluation with such options writes down how far it is, apart from others of the same run.

    Raises:
        RunError: If it is a link.
    """
    place = folder.inner("unfinished-evaluation").name
    return folder.inner(f"{place}/{fingerprint(*options)}")


def clear_unfinished(place: Path) -> None:
    """Remove what an evaluation that is done has written down, and the folder about it unless it holds others'."""
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):
        place.parent.rmdir()


def say_where(folder: Run, out: Path | None, replaced: bool) -> None:
    """Say where an evaluation's record was written, and where one that it replaced stays."""
    say(f"written: {folder.path / 'evaluation.json'}" + (f", {out}" if out else ""))
    if replaced:
        say(f"the evaluation before it stays in {folder.path / 'evaluations.jsonl'}; page and model card show the last")


def print_evaluation(evaluation: Evaluation) -> None:
    """Show an evaluation as a table, none of whose figures is cut, however narrow the terminal is."""
    from .report import evaluation_table

    table = evaluation_table(evaluation)
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    (console if needed <= console.width else Console(width=needed, highlight=False)).print(table)


def load_to_evaluate(run: Path, weights: str) -> LatentModel | RBM:
    """A run's model, if it has a likelihood."""
    model = load(run, weights)
    warn_if_unfinished(Run(run))
    if isinstance(model, WGAN):
        raise UsageError(f"{run}: a GAN has no likelihood to evaluate; `latentbits sample {run}` draws from it")
    return model


def check_options(counts: Counts, images: int | None) -> None:
    """Refuse an evaluation whose counts are out of range."""
    try:
        check_counts(counts, 1 if images is None else images)
    except ValueError as error:
        raise UsageError("\n".join(f"--{line.replace('_', '-')}" for line in str(error).splitlines())) from error


def describe_settings(settings: Mapping[str, int]) -> str:
    """The settings of a curve as options."""
    names = ("images", "samples", "chains", "temperatures", "seed")
    return " ".join(f"--{name} {settings[name]}" for name in names)


def curve_run(
    run: RunFolder,
    split: Literal["test", "valid", "train"] = "valid",
    images: Annotated[int | None, OPTIONAL] = None,
    samples: int = Counts().samples,
    chains: int = Counts().chains,
    temperatures: int = 5000,
    seed: int = 0,
    device: Device = "cpu",
    data_dir: DataPlace = None,
    overwrite: bool = False,
) -> None:
    """Evaluate the weights that a run kept along the way: the likelihood against epochs and time.

    Writes RUN/curve-SPLIT.jsonl with a line for each of the weights that --validation.keep left; `latentbits report`
    draws them. Weights that have a line with the same settings are not evaluated again.

    Args:
        run: The run folder.
        split: Images to evaluate on.
        images: Number of images, evenly spaced over the split; all if not given.
        samples: K, posterior samples for each image.
        chains: AIS chains.
        temperatures: AIS temperatures, placed by an independent pilot run.
        seed: Seed of each evaluation, so that they share their random numbers.
        device: Where to evaluate, such as cpu or cuda.
        data_dir: Folder with the data set's published files, or folder or archive of your own images.
        overwrite: Replace evaluations that were made with other settings.
    """
    counts = Counts(samples, chains, temperatures, raise_images=0)
    check_options(counts, images)
    check_numbers({"chains": (chains, 1)}, seed)
    folder = Run.open(run)
    check_writable(folder.path, "run")
    check_device(device)
    if not folder.kept():
        raise UsageError(f"{folder.path}: keeps no weights along the way; train with --validation.keep EPOCHS")
    with distributed.processes(device):
        is_first = distributed.world().is_first
        seconds_at = {row["epoch"]: row["seconds"] for row in folder.metrics() if row["stage"] == "joint"}
        splits = data_of(folder, data_dir)
        x = some_of(getattr(splits, split), images)
        described = which_images(len(x), splits, split)
        settings = {"images": len(x), **counts._asdict(), "seed": seed}
        done = evaluated_before(folder, split, settings, described, overwrite)
        last = distributed.of_first(max(map(epoch_of, folder.kept())))  # a run in training keeps more
        for name in folder.kept():
            if name in done or epoch_of(name) > last:
                continue
            started, generator = time.monotonic(), torch.Generator(device).manual_seed(seed)
            with Display(quiet=not is_first) as display:
                model = load_to_evaluate(run, name).to(device)
                evaluation = evaluate(model, x, split, counts, generator=generator, report=display.share)
            seconds = time.monotonic() - started
            epoch = epoch_of(name)
            record = evaluation_record(folder, name, evaluation, seed, splits, seconds, device)
            done[name] = {"epoch": epoch, "seconds": seconds_at.get(epoch), "settings": settings, **record}
            if is_first:
                folder.write_curve(split, list(done.values()))
                say(f"{name}: {evaluation.likelihood.nll:.3f}")
    if is_first:
        say(f"written: {folder.curve_path(split)}")


def evaluated_before(
    folder: Run, split: str, settings: dict[str, int], described: str, overwrite: bool
) -> dict[str, dict[str, Any]]:
    """The lines of a run's curve with these settings and images, by the weights' names; others only to overwrite."""
    before = folder.curve(split)
    done = {
        row["weights"]["file"]: row
        for row in before
        if {"refine_steps": 0, **row["settings"]} == settings and row["images"] == described
    }
    if len(done) < len(before) and not overwrite:
        raise UsageError(
            f"{folder.curve_path(split)}: has evaluations with other settings "
            f"({describe_settings(before[0]['settings'])}, {before[0]['images']}); give the same, or "
            "--overwrite to replace them"
        )
    return done


def sample_run(
    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN]"), OPTIONAL] = None,
    pretrained: Annotated[str | None, tyro.conf.arg(metavar="MODEL"), OPTIONAL] = None,
    count: int = 100,
    gibbs_steps: int = 1000,
    temperatures: int = 1,
    seed: int = 0,
    weights: Weights = "model",
    grid: bool = True,
    gif: bool = False,
    frames: int = FRAMES,
    out: Annotated[Path | None, tyro.conf.arg(metavar="PLACE"), OPTIONAL] = None,
    overwrite: bool = False,
) -> None:
    """Draw images: Gibbs chains from random bits, then the decoder's mean.

    A model without an RBM has no chains: its latents are drawn exactly, and the chains' settings do not matter.
    With --gif the chains' whole walk is drawn, from random bits on.

    Args:
        run: The run folder.
        pretrained: A model that comes with the package, instead of a run.
        count: Number of images.
        gibbs_steps: Length of the chains.
        temperatures: Number of temperatures for parallel tempering, from the base to the RBM; 1 for plain chains.
        seed: Seed of the chains.
        weights: model (validation's choice), a stage's name for those at its end, or joint-EPOCH for kept ones.
        grid: All in one PNG, in rows of ten; or, with --no-grid, a new folder with a PNG of each.
        gif: Draw the walk as an animated GIF.
        frames: Number of frames in the GIF, equally spaced over the steps.
        out: The picture or folder to write; if not given RUN/samples.png, RUN/samples.gif or, with --no-grid,
            RUN/samples; of a pretrained model MODEL-samples.png and so on, in the current folder.
        overwrite: Replace the picture if it exists.
    """
    from . import report

    if (run is None) == (pretrained is None):
        raise UsageError(f"sample: expected RUN or --pretrained MODEL, got {'neither' if run is None else 'both'}")
    if pretrained is not None:
        lookup(pretrained, dict.fromkeys(pretrained_names()), "--pretrained")
    folder = Run.open(run) if run is not None else Run.open(pretrained_path(str(pretrained)))
    if gif and not grid:
        raise UsageError("--gif: is a walk of the grid; leave out --no-grid")
    name = "samples.gif" if gif else "samples.png" if grid else "samples"
    path = out or (folder.path / name if run is not None else Path(f"{pretrained}-{name}"))
    check_output(path, overwrite, ".gif" if gif else ".png") if grid else check_new_folder(path)
    counted = {"count": (count, 1), "gibbs-steps": (gibbs_steps, 0), "temperatures": (temperatures, 1)}
    check_numbers({**counted, "frames": (frames, 2)}, seed)
    model, form = load(folder.path, weights), data.form_of(folder.config.data)
    generator = torch.Generator().manual_seed(seed)
    warn_if_unfinished(folder)
    prior = model if isinstance(model, RBM) else model.prior
    if gif:
        check_walk(model, gibbs_steps, temperatures, frames)
    elif frames != FRAMES:
        warn("--frames: has no effect without --gif")
    check_memory(count, form.dimensions * (frames if gif else 1), max(prior.visible, prior.hidden) * temperatures)
    if gif:
        assert not isinstance(model, WGAN)
        report.save_gif(list(report.walk(model, count, gibbs_steps, frames, generator)), form, path)
    else:
        images = report.draw(model, count, gibbs_steps, generator, temperatures)
        if not grid:
            write_pictures(path, ((f"{i:06}", image) for i, image in enumerate(images)), form)
            return
        report.save_png(report.grid(images, form), path)
    say(f"written: {path}")


def check_walk(model: LatentModel | WGAN | RBM, gibbs_steps: int, temperatures: int, frames: int) -> None:
    """Refuse a GIF of chains that the model does not have, or that have fewer steps than the GIF frames."""
    if not isinstance(model if isinstance(model, RBM) else model.prior, RBM):
        raise UsageError("--gif: is the walk of an RBM's chains, and this model has no RBM; leave it out")
    if temperatures > 1:
        raise UsageError("--gif: is the walk of plain chains; leave out --temperatures")
    if frames > gibbs_steps + 1:
        raise UsageError(f"--frames: expected at most --gibbs-steps + 1 = {gibbs_steps + 1}, got {frames}")


def check_memory(count: int, pixels: int, units: int) -> None:
    """Refuse more samples than memory is likely to hold, each of so many numbers in pixels and in a layer's units."""
    most = MOST_ELEMENTS // max(pixels, units)
    if count > most:
        raise UsageError(f"--count: expected up to {most:,} of this model at once, got {count:,}")


def report_run(
    run: RunFolder,
    others: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN ...]"), OPTIONAL] = (),
    gibbs_steps: int = 1000,
    diagnostics_seconds: float = 20.0,
    temperatures: Annotated[int | None, OPTIONAL] = None,
    data_dir: DataPlace = None,
) -> None:
    """Show a run: a page to read in a browser, and pictures.

    The page, RUN/report/report.html, is one file that needs no network: settings, learning curves, samples,
    reconstructions, histogram of the encoder's output, diagnostics of the RBM's samplers, the last evaluation, and the
    command that repeats the run. With other runs, their settings, evaluations, curves and samples are compared in it.
    What has the same name in RUN/report is replaced.

    Args:
        run: The run folder.
        others: More run folders to compare it with.
        gibbs_steps: Length of the chains behind the samples.
        diagnostics_seconds: About how many seconds the diagnostics of the RBM may take; 0 for none.
        temperatures: Number of temperatures for the parallel tempering that draws the samples, and whose swaps the
            diagnostics count; as in training if not given, 1 for none.
        data_dir: Folder with the data set's published files, or folder or archive of your own images.
    """
    from .facts import evaluated_on
    from .page import examine, page, trained_temperatures
    from .report import exhibits, samples_beside, write_comparison, write_figures

    least = {"gibbs-steps": (gibbs_steps, 0), "temperatures": (1 if temperatures is None else temperatures, 1)}
    check_numbers(least)
    if not 0 <= diagnostics_seconds < math.inf:
        raise UsageError(f"--diagnostics-seconds: expected 0 or more, got {diagnostics_seconds}")
    runs = [Run.open(path) for path in (run, *others)]
    folder, out = runs[0], runs[0].inner("report")
    if folder.config.model.network == "given":
        raise UsageError(f"{folder.path}: expected a run of a recipe, got one with a model that was given in Python")
    check_writable(folder.path, "run")
    records = [last_evaluation(each) for each in runs]
    splits = data_of(folder, data_dir)
    asked = [trained_temperatures(each.config) if temperatures is None else temperatures for each in runs]
    with Display() as display:
        shown = exhibits(folder, splits, gibbs_steps, asked[0], display.share)
        samples, beside = shown.sheets.get("samples"), {}
        if samples is not None:
            beside = samples_beside(samples, runs, splits.form, gibbs_steps, asked, display.share)
        diagnosis = examine(shown.model, splits, diagnostics_seconds, asked[0], display.share)
    paths = write_figures(folder, splits.form, shown, out)
    paths += write_comparison(runs, beside, splits.form, out)
    paths.append(out / "report.html")
    html = page(runs, records, splits, shown, diagnosis, beside, data_dir or folder.data_dir)
    write_atomically(paths[-1], html.encode())
    for each, record in zip(runs, records, strict=True):
        if record is not None:
            say(f"{each.path}, last evaluated on {evaluated_on(record)}")
            print_evaluation(record.evaluation)
            say(f"made by: {record.about['command']}")
        elif each.config.model.network != "dcgan":  # a GAN has no likelihood
            say(f"{each.path}: not evaluated yet; latentbits evaluate does it")
    for path in paths:
        say(f"written: {path}")


def export_run(
    run: RunFolder,
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")],
    weights: Weights = "model",
    licence: Annotated[str, tyro.conf.arg(metavar="LICENCE"), OPTIONAL] = "",
    rounded: bool = False,
) -> None:
    """Write a trained model as a folder to give away: configuration, weights, evaluation, model card.

    `latentbits` and latentbits.load take such a folder where they take a run.

    Args:
        run: The run folder.
        folder: The new folder.
        weights: model (validation's choice), a stage's name for those at its end, or joint-EPOCH for kept ones.
        licence: Of the weights, for the model card, such as apache-2.0.
        rounded: Round matrices to bfloat16, for half the size; the evaluation, of the unrounded ones, is left out.
    """
    written = export(run, folder, weights, licence, rounded)
    warn_if_unfinished(Run(run))
    say(f"written: {written}")


def print_data(data_dir: DataPlace = None) -> None:
    """List the data sets: what is present, and where the rest would come from.

    Args:
        data_dir: Folder with published files, or folder or archive of your own images; the cache if not given.
    """
    if data_dir is not None and not data_dir.exists():
        raise UsageError(f"--data-dir: expected a folder or an archive, found nothing at {data_dir}; correct the path")
    say("digits: 1,197 / 300 / 300 images of 8x8, binarized at half of their 16 levels")
    say(f"  present: comes with scikit-learn; {inventory.digits_size()}")
    for each in inventory.published(data_dir):
        say("\n".join(each.lines()))
    say(f"images: your own PNG and JPEG files\n  {inventory.own_pictures(data_dir)}")
    say(f"cache: {cache_dir()} (LATENTBITS_CACHE)")


def print_completion(shell: tyro.conf.Positional[Literal["bash", "zsh"]]) -> None:
    """Print a script by which the shell completes this command's words at Tab.

    In ~/.bashrc: eval "$(latentbits completion bash)"

    Args:
        shell: Your shell.
    """
    commands = {"train": options_of_section(Config, NOT_OPTIONS) | options_of(TrainOptions)}
    for name, command in COMMANDS.items():
        if command.function is not None:
            commands[name] = options_of(command.function)
    commands["sample"]["--pretrained"] = pretrained_names()
    models = dict.fromkeys(("encode", "decode", "score", "inpaint"), pretrained_names())
    first_words = {"train": list(RECIPES), "completion": ["bash", "zsh"], **models}
    print(script(commands, first_words, {"train my-images": ["--data", "--size"]}, shell), end="")


class Command(NamedTuple):
    """A command.

    Attributes:
        summary: In a few words.
        function: Its arguments are the command's, its docstring their help; None for train, whose options are the
            recipe's.
        examples: Of its use, without "latentbits".
    """

    summary: str
    function: Callable[..., None] | None
    examples: tuple[str, ...]


COMMANDS = {
    "train": Command("train a recipe through its stages, resumably", None, ()),
    "evaluate": Command(
        "log-likelihood from both sides, with error bars",
        evaluate_run,
        ("evaluate runs/digits", "evaluate runs/mnist-mlp --split valid --samples 5000 --images 1000"),
    ),
    "curve": Command(
        "the likelihood of the weights kept along the way",
        curve_run,
        ("curve runs/mnist-mlp-best", "curve runs/mnist-mlp-best --split valid --images 2000"),
    ),
    "sample": Command(
        "draw images from a run: a PNG grid, or the chains' walk as a GIF",
        sample_run,
        ("sample runs/digits", "sample --pretrained mnist-mlp-best --gif", "sample runs/digits --temperatures 10"),
    ),
    "encode": Command(
        "binary codes of images",
        encode_run,
        ("encode mnist-mlp-best PICTURES", "encode runs/digits --split valid --out valid.npz"),
    ),
    "decode": Command("images from codes", decode_run, ("decode mnist-mlp-best codes.npz --out decoded",)),
    "score": Command(
        "each image's log-likelihood", score_run, ("score mnist-mlp-best PICTURES --invert", "score runs/digits")
    ),
    "inpaint": Command(
        "keep a part of each image and draw the rest",
        inpaint_run,
        ("inpaint mnist-mlp-best PICTURES --keep left", "inpaint runs/digits"),
    ),
    "report": Command(
        "a page for a run, or several compared, and pictures",
        report_run,
        ("report runs/digits", "report runs/a runs/b"),
    ),
    "export": Command(
        "a trained model as a folder to give away", export_run, ("export runs/digits shared/digits --licence cc0-1.0",)
    ),
    "recipes": Command("list what can be trained", print_recipes, ("recipes",)),
    "data": Command("list data sets and what is present", print_data, ("data", "data --data-dir DIR")),
    "completion": Command("words by Tab, for bash or zsh", print_completion, ("completion bash", "completion zsh")),
}


def run_command(name: str, args: Sequence[str]) -> int:
    """Run a command, or print its help with examples at the end."""
    command: Command = lookup(name, COMMANDS, "command")
    if command.function is None:
        return run_train(args)
    try:
        parse(command.function, args, f"latentbits {name}")
    except SystemExit:
        if {"-h", "--help"} & set(args):
            say("\n".join(["examples:", *(f"  latentbits {example}" for example in command.examples)]))
        raise
    return 0


def print_help() -> None:
    """Say what the commands are."""
    say("latentbits: generative models with binary latent variables and a Boltzmann machine prior\n")
    say("usage: latentbits COMMAND [--help] …\n")
    for name, command in COMMANDS.items():
        say(f"  {name:12s}{command.summary}")
    say("\n  latentbits train digits\n  latentbits evaluate runs/digits\n  latentbits sample runs/digits")


def refuse(reasons: str) -> int:
    """Print a line for each reason, and return the status of what cannot be done."""
    for line in reasons.splitlines():
        Console(stderr=True, highlight=False).print(f"error: {printable(line)}", soft_wrap=True, markup=False)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did its work, 2 if it was asked something it cannot do, 130 if it was stopped."""
    args = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no ± shows a question mark
    if argv is None:
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # and no line of code
    if not args or args[0] in ("-h", "--help"):
        print_help()
        return 0 if args else 2
    if args[0] == "--version":
        say(f"latentbits {__version__}")
        return 0
    try:
        return run_command(args[0], args[1:])
    except (UsageError, FileError, DataError, TrainingError, OSError) as error:
        return refuse(str(error))
    except (MemoryError, RuntimeError) as error:
        others = ("illegal memory", "shared memory")  # of which memory is not too small
        if not isinstance(error, MemoryError) and ("memory" not in str(error) or any(w in str(error) for w in others)):
            raise
        reason = " ".join(str(error).split())[:200] or "none is left"
        return refuse(f"out of memory ({reason}); ask for fewer or smaller images, samples, chains or batches at once")
    except KeyboardInterrupt:
        return STOPPED
