"""The command ``latentbits``: train, evaluate, sample, report, recipes, data."""

import dataclasses
import difflib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table

from .config import Config
from .data import MNIST_FILES, DataError, cache_dir, find
from .progress import Display
from .recipes import RECIPES
from .runs import Run, RunError, write_atomically, write_json

console = Console(highlight=False)


class UsageError(ValueError):
    """A command line that cannot be obeyed."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Where and how long to train.

    Attributes:
        run: Run folder; runs/RECIPE if not given.
        resume: Go on from the run folder's checkpoint.
        max_minutes: Stop, resumable, after so long; no schedule depends on it.
        data_dir: Folder with the data set's published files.
    """

    run: Path | None = None
    resume: bool = False
    max_minutes: float | None = None
    data_dir: Path | None = None


def _parser_class(section: BaseModel, extra: Sequence[Any] = ()) -> type:
    """A dataclass with a configuration's fields and defaults but without its checks.

    The parser fills it, and one validation afterwards names every problem in every section at once.
    """
    fields: list[Any] = []
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            inner = _parser_class(value)
            fields.append((name, inner, dataclasses.field(default=inner())))
        else:
            kind = Annotated[info.annotation, tyro.conf.arg(help=info.description or "")]  # type: ignore[name-defined]
            fields.append((name, kind, dataclasses.field(default=value)))
    return dataclasses.make_dataclass(
        type(section).__name__, [*fields, *extra], frozen=True, namespace={"__doc__": type(section).__doc__}
    )


def parse_train(args: Sequence[str]) -> tuple[Config, TrainOptions]:
    """Recipe, overrides and options of ``latentbits train``.

    Raises:
        UsageError: If the recipe is unknown or a value is out of range; each problem has a line.
    """
    if not args or args[0] in ("-h", "--help"):
        console.print("usage: latentbits train RECIPE [--section.option VALUE …] [--run DIR] [--resume]\n")
        console.print("  latentbits train digits --run runs/first\n  latentbits train mnist-mlp --max-minutes 30\n")
        print_recipes()
        console.print("\nOptions of a recipe: latentbits train RECIPE --help")
        raise SystemExit(0 if args else 2)
    recipe = lookup(args[0], RECIPES, "recipe").make()
    options = [("options", tyro.conf.OmitArgPrefixes[TrainOptions], dataclasses.field(default=TrainOptions()))]
    parsed: Any = tyro.cli(
        _parser_class(recipe, options),
        args=list(args[1:]),
        prog=f"latentbits train {args[0]}",
        description="",
    )
    values = dataclasses.asdict(parsed)
    del values["options"]
    try:
        return Config.model_validate(values), parsed.options
    except ValidationError as error:
        lines = [
            f"--{'.'.join(str(part) for part in problem['loc']).replace('_', '-')}: {problem['msg']}"
            + ("" if isinstance(problem["input"], dict) else f", got {problem['input']}")
            for problem in error.errors()
        ]
        raise UsageError("\n".join(lines)) from error


def lookup(name: str, table: dict[str, Any], kind: str) -> Any:
    """The entry of a table, or an error with the nearest names."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(f"{kind}: expected one of {', '.join(table)}, got {name!r}{hint}")


def train_command(args: Sequence[str]) -> int:
    """Train a recipe through its stages, resumably."""
    config, options = parse_train(args)
    from .train import finished, train

    folder = options.run or Path("runs") / config.recipe
    if options.resume and Run(folder).exists() and config == RECIPES[config.recipe].make():
        config = Run(folder).config  # overrides of the first start need not be given again
    if options.max_minutes is not None and options.max_minutes <= 0:
        raise UsageError(f"--max-minutes: expected a positive number, got {options.max_minutes}")
    run = train(config, folder, options.resume, options.max_minutes, options.data_dir)
    if finished(run):
        console.print(f"finished: {run.path}\nnext: latentbits evaluate {run.path}")
    else:
        console.print(f"stopped: {run.path}\nnext: latentbits train {config.recipe} --run {run.path} --resume")
    return 0


def evaluate_run(
    run: tyro.conf.Positional[Path],
    split: Literal["test", "valid", "train"] = "test",
    images: int | None = None,
    samples: int = 500,
    chains: int = 1000,
    temperatures: int = 10_000,
    schedule: Literal["adaptive", "linear"] = "adaptive",
    raise_images: int = 200,
    raise_resampled: int = 4,
    raise_temperatures: int = 2000,
    weights: str = "model",
    seed: int = 0,
    data_dir: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Estimate a run's log-likelihood from both sides, with error bars.

    Writes RUN/evaluation.json, adds a line to RUN/evaluations.jsonl, and prints a table.

    Args:
        run: The run folder.
        split: Images to evaluate on.
        images: First images of the split; all if not given.
        samples: K, posterior samples for each image.
        chains: AIS chains; 0 for none, where log Z is exact.
        temperatures: AIS temperatures.
        schedule: Temperatures placed by an independent pilot run, or equally spaced.
        raise_images: First images of the split to run RAISE on; 0 for none.
        raise_resampled: Posterior samples with a RAISE chain of their own, for each image.
        raise_temperatures: RAISE temperatures.
        weights: model (validation's choice), or autoencoder, rbm, joint for those at a stage's end.
        seed: Seed of this evaluation.
        data_dir: Folder with the data set's published files.
        out: Another file to write the result to.
        overwrite: Replace that file if it exists.
    """
    import torch

    from . import data
    from .evaluate import Counts, evaluate
    from .report import evaluation_table
    from .runs import load

    folder = Run.open(run)
    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"--out: {out} exists; add --overwrite to replace it")
    model = load(run, weights)
    splits = data.load(folder.config.data.name, data_dir)
    x = getattr(splits, split)[:images]
    counts = Counts(samples, chains, temperatures, raise_images, raise_resampled, raise_temperatures)
    started = time.monotonic()
    with Display() as display:
        generator = torch.Generator().manual_seed(seed)
        evaluation = evaluate(model, x, split, counts, schedule, generator, display.share)
    record = {
        "evaluation": evaluation.model_dump(exclude_none=True),
        "recipe": folder.config.recipe,
        "config": folder.config.model_dump(),
        "weights": weights,
        "images": f"first {len(x):,} of {len(getattr(splits, split)):,}" if images else f"all {len(x):,}",
        "training_seconds": (folder.metrics() or [{}])[-1].get("seconds"),
        "wall_seconds": round(time.monotonic() - started, 1),
        "seed": seed,
        "data_checksum": splits.checksum,
        **provenance(),
    }
    write_json(folder.path / "evaluation.json", record)
    with open(folder.path / "evaluations.jsonl", "a") as stream:
        stream.write(json.dumps(record) + "\n")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, record)
    console.print(evaluation_table(evaluation))
    console.print(f"written: {folder.path / 'evaluation.json'}" + (f", {out}" if out else ""))


def provenance() -> dict[str, Any]:
    """Where a result comes from: command, commit, versions, machine and time."""
    import torch

    from . import __version__

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no", "."):
        commit += "-modified"
    return {
        "command": shlex.join(["latentbits", *sys.argv[1:]]),
        "commit": commit or None,
        "versions": {
            "latentbits": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def sample_run(
    run: tyro.conf.Positional[Path],
    count: int = 100,
    gibbs_steps: int = 1000,
    seed: int = 0,
    weights: str = "model",
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Draw images: Gibbs chains from random bits, then the decoder's mean, as a PNG grid.

    Args:
        run: The run folder.
        count: Number of images.
        gibbs_steps: Length of the chains.
        seed: Seed of the chains.
        weights: model (validation's choice), or autoencoder, rbm, joint for those at a stage's end.
        out: The picture; RUN/samples.png if not given.
        overwrite: Replace the picture if it exists.
    """
    import io

    import torch

    from .data import SHAPES
    from .report import draw, grid, zoom_for
    from .runs import load

    folder = Run.open(run)
    path = out or folder.path / "samples.png"
    if path.exists() and not overwrite:
        raise UsageError(f"--out: {path} exists; add --overwrite to replace it, or name another file")
    if count < 1 or gibbs_steps < 0:
        raise UsageError(f"--count and --gibbs-steps: expected at least 1 and 0, got {count} and {gibbs_steps}")
    images = draw(load(run, weights), count, gibbs_steps, torch.Generator().manual_seed(seed))
    shape = SHAPES[folder.config.data.name]
    content = io.BytesIO()
    grid(images, shape, zoom=zoom_for(shape)).save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
    console.print(f"written: {path}")


def report_run(run: tyro.conf.Positional[Path], gibbs_steps: int = 1000, data_dir: Path | None = None) -> None:
    """Draw a run: learning curves, samples, reconstructions, histogram of the encoder's output.

    The pictures in RUN/report are drawn anew each time.

    Args:
        run: The run folder.
        gibbs_steps: Length of the chains behind the samples.
        data_dir: Folder with the data set's published files.
    """
    from . import data
    from .evaluate import Evaluation
    from .report import evaluation_table, write_pictures

    folder = Run.open(run)
    splits = data.load(folder.config.data.name, data_dir)
    paths = write_pictures(folder, splits, folder.path / "report", gibbs_steps)
    if (folder.path / "evaluation.json").is_file():
        record = json.loads((folder.path / "evaluation.json").read_text())
        console.print(evaluation_table(Evaluation.model_validate(record["evaluation"])))
    for path in paths:
        console.print(f"written: {path}")


def print_recipes() -> None:
    """List the recipes: what each trains, its source and its measured cost."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("recipe", "trains", "source", "measured cost"):
        table.add_column(name, no_wrap=name == "recipe")
    for name, recipe in RECIPES.items():
        table.add_row(name, recipe.summary, recipe.source, recipe.cost)
    console.print(table)


def print_data(data_dir: Path | None = None) -> None:
    """List the data sets: what is present, and where the rest would come from.

    Args:
        data_dir: Folder with published files.
    """
    console.print("digits: 1,797 images of 8x8, binarized at half of their 16 levels; comes with scikit-learn")
    console.print("binarized-mnist: statically binarized MNIST, 50,000 / 10,000 / 10,000 images of 28x28")
    for file in MNIST_FILES.values():
        path = find(file, data_dir)
        console.print(
            f"  {file.name}, {file.size / 1e6:.0f} MB: {f'in {path}' if path else f'absent; from {file.url}'}",
            soft_wrap=True,
        )
    console.print(f"cache: {cache_dir()} (LATENTBITS_CACHE)", soft_wrap=True)


def _tyro(function: Callable[..., None], name: str) -> Callable[[Sequence[str]], int]:
    def command(args: Sequence[str]) -> int:
        tyro.cli(function, args=list(args), prog=f"latentbits {name}")
        return 0

    return command


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "train": ("train a recipe through its stages, resumably", train_command),
    "evaluate": ("log-likelihood from both sides, with error bars", _tyro(evaluate_run, "evaluate")),
    "sample": ("draw images from a run as a PNG grid", _tyro(sample_run, "sample")),
    "report": ("draw a run: curves, samples, reconstructions", _tyro(report_run, "report")),
    "recipes": ("list what can be trained", _tyro(print_recipes, "recipes")),
    "data": ("list data sets and what is present", _tyro(print_data, "data")),
}


def print_help() -> None:
    """Say what the commands are."""
    console.print("latentbits: generative models with binary latent variables and a Boltzmann machine prior\n")
    console.print("usage: latentbits COMMAND [--help] …\n")
    for name, (summary, _) in COMMANDS.items():
        console.print(f"  {name:10s}{summary}")
    console.print("\n  latentbits train digits\n  latentbits evaluate runs/digits\n  latentbits sample runs/digits")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did its work, 2 if it was asked something it cannot do."""
    args = sys.argv[1:] if argv is None else list(argv)
    if not args or args[0] in ("-h", "--help"):
        print_help()
        return 0 if args else 2
    if args[0] == "--version":
        from . import __version__

        console.print(f"latentbits {__version__}")
        return 0
    from .train import TrainingError

    try:
        _, command = lookup(args[0], COMMANDS, "command")
        return int(command(args[1:]))
    except (UsageError, RunError, DataError, TrainingError) as error:
        for line in str(error).splitlines():
            Console(stderr=True, highlight=False).print(f"error: {line}", soft_wrap=True, markup=False)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
