"""The command ``latentbits train``: recipe, overrides, one's own pictures, resuming."""

import dataclasses
import os
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import tyro
from pydantic import BaseModel, ValidationError
from rich.padding import Padding

from . import distributed, folders
from .config import Config, DataConfig, different, settings, without_effect
from .console import OPTIONAL, DataPlace, Device, UsageError, check_device, console, lookup, naming, parse, say, warn
from .recipes import RECIPES, Recipe, my_images
from .runs import Run, read_config
from .train import describe_difference, train


def print_recipes() -> None:
    """List the recipes: what each trains, its source and its measured cost."""
    for name, recipe in RECIPES.items():
        console.print(f"[bold]{name}[/bold]  {recipe.cost}")
        console.print(Padding(f"{recipe.summary} ({recipe.source})", (0, 0, 0, 4)))


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Where and how long to train.

    Attributes:
        run: Run folder; runs/RECIPE if not given.
        resume: Go on from the run folder's checkpoint.
        max_minutes: Stop after so many minutes, wherever training is; --resume goes on. Schedules are not shortened.
        data_dir: Folder with the data set's published files, or folder or archive of your own images.
        device: Where to train, such as cpu or cuda.
        tensorboard: Write the metrics to RUN/tensorboard as well, for TensorBoard.
    """

    run: Annotated[Path | None, tyro.conf.arg(metavar="RUN"), OPTIONAL] = None
    resume: bool = False
    max_minutes: Annotated[float | None, OPTIONAL] = None
    data_dir: DataPlace = None
    device: Device = "cpu"
    tensorboard: bool = False


STOPPED = 130
"""The status of what was stopped by a signal, as shells have it for Ctrl-C: what follows it by && does not begin."""

FEW = 1000
"""Pictures below which a model is not likely to know much of any others."""

NOT_OPTIONS = ("recipe", "sampler", "image", "levels")
"""The command names the recipe, and the others are for Python."""


def _parser_class(section: BaseModel, extra: Sequence[Any] = ()) -> type:
    """A dataclass with a configuration's fields and defaults but without its checks.

    The parser fills it, and one validation afterwards names every problem in every section at once.
    """
    fields: list[Any] = []
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if name in NOT_OPTIONS:
            continue
        if isinstance(value, BaseModel):
            inner = _parser_class(value)
            fields.append((name, inner, dataclasses.field(default=inner())))
        else:
            words = tyro.conf.arg(
                help=info.description or "",
                metavar="FILE" if info.annotation is str else None,
                help_behavior_hint="(optional)" if value in ("", ()) else None,
            )
            kind = Annotated[info.annotation, words]  # type: ignore[name-defined]
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
        print_usage()
        raise SystemExit(0 if args else 2)
    base, found = named(args[0]), None
    args = in_long_form(args) if args[0] == "my-images" else args
    if {"-h", "--help"} & set(args):
        if args[0] == "my-images":
            say(OF_PICTURES)
    elif started := to_resume(args, base):
        base = started  # the options of the first start need not be given again
    elif args[0] == "my-images":
        found, base = look_at_pictures(args)
    config, options = parse_options(args, base)
    if found is not None:
        say(f"{options.data_dir}: {chosen(found, config)}")
        if found.files < FEW:
            warn(
                f"{found.files:,} pictures are few: the model will know these better than any others. From about "
                f"{FEW:,} on it has a chance to learn what they have in common"
            )
    return config, options


def named(recipe: str) -> Config:
    """The configuration of a recipe's name, or in a file such as a run's ``config.json``.

    Raises:
        UsageError: If there is none; for a run's folder it says how to go on with the run.
    """
    path, run = Path(recipe), Run(recipe)
    if path.suffix == ".json" and path.is_file():
        return read_config(path)
    if recipe not in RECIPES and run.exists():
        raise UsageError(f"recipe: {recipe} is the folder of a run; to go on with it: {to_go_on(run)}")
    if path.suffix.lower() == ".json":
        found = "one of another ending" if path.is_file() else "nothing there"
        raise UsageError(f"recipe: expected a recipe's name or a .json file that is there, found {found}: {recipe}")
    return cast(Recipe, lookup(recipe, RECIPES, "recipe")).make()


def to_go_on(run: Run) -> str:
    """The command that resumes a run: by its recipe, or by its file where no recipe has that name."""
    recipe, path = run.config.recipe, shlex.quote(str(run.path))
    if "given" in settings(run.config).values():
        return f"latentbits.train(…, {str(run.path)!r}, resume=True) in Python, with the parts that it was given"
    return f"latentbits train {recipe if recipe in RECIPES else f'{path}/config.json'} --run {path} --resume"


OF_PICTURES = """latentbits train my-images --data PICTURES [--size PIXELS] …

--data (or --data-dir) names a folder, .tar or .zip of pictures; --size (or --data.size) is what they are scaled to.
Networks and epochs are chosen by looking at the pictures; the defaults below may differ.
"""


def print_usage() -> None:
    """Say how a recipe is trained, and which there are."""
    say("usage: latentbits train RECIPE [--section.option VALUE …] [--run DIR] [--resume]")
    say("RECIPE is one of those below, or a file such as a run's config.json\n")
    say("  latentbits train digits --run runs/first\n  latentbits train mnist-mlp --max-minutes 30\n")
    print_recipes()
    say("\nOptions of a recipe: latentbits train RECIPE --help")


def parse_options(args: Sequence[str], base: Config) -> tuple[Config, TrainOptions]:
    """A configuration with the options that are given, validated, and where and how long to train.

    Raises:
        UsageError: If a value is out of range; each problem has a line.
    """
    options = [("options", tyro.conf.OmitArgPrefixes[TrainOptions], dataclasses.field(default=TrainOptions()))]
    parsed: Any = parse(_parser_class(base, options), args[1:], f"latentbits train {args[0]}", "")
    values = dataclasses.asdict(parsed)
    del values["options"]
    try:
        config = base.vary(**values)
    except ValidationError as error:
        raise UsageError("\n".join(describe(problem) for problem in error.errors())) from error
    idle = without_effect(config)
    for name in different(config, base):
        if name in idle:
            warn(f"--{name.replace('_', '-')}: has no effect with {idle[name]}")
    return config, parsed.options


def last_value(args: Sequence[str], option: str) -> str | None:
    """What follows an option, or stands behind its equals sign, the last time that it is given."""
    words = [part for word in args for part in (word.split("=", 1) if word.startswith(f"{option}=") else [word])]
    return next((value for word, value in reversed(list(pairwise(words))) if word == option), None)


def default_folder(recipe: str) -> Path:
    """The folder of a run that is not named.

    Raises:
        UsageError: If the name of the recipe, which a file may give, leads to another place than runs.
    """
    if recipe in ("", ".", "..") or Path(recipe).name != recipe:
        raise UsageError(f"--run: got none, and no folder can be named after the recipe {recipe!r}; add --run FOLDER")
    return Path("runs") / recipe


def to_resume(args: Sequence[str], base: Config) -> Config | None:
    """The configuration of the run that is to be gone on with, if that is asked for and the run is there.

    Raises:
        UsageError: If it is a run of another recipe, or of another configuration than that of the file that is named.
    """
    recipe = base.recipe
    run = Run(last_value(args, "--run") or default_folder(recipe))
    if "--resume" not in args or not run.exists():
        return None
    started = run.config
    if started.recipe != recipe:
        raise UsageError(
            f"{run.path}: holds a run of {started.recipe}, and {recipe} was asked for; to go on with it: "
            f"{to_go_on(run)}"
        )
    if args[0] not in RECIPES and base != started:
        difference = describe_difference(started, base)
        raise UsageError(
            f"{run.path}: was started with another configuration than {args[0]} ({difference}); to go on with it: "
            f"{to_go_on(run)}"
        )
    return started


def chosen(found: folders.Description, config: Config) -> str:
    """What was found and what is taken for it, in a line."""
    made = f", made {config.data.kind}" if config.data.kind != found.kind else ""
    epochs = " + ".join(str(stage.epochs) for stage in (config.autoencoder, config.rbm, config.joint))
    latents = f"{config.model.latent} {'normal latents' if config.model.prior == 'normal' else 'bits'}"
    return (
        f"{found.files:,} pictures, {found.kind} by the first {found.looked_at:,}{made}. Chosen: {config.data.size}x"
        f"{config.data.size} pixels (--size), {config.model.network} networks, {latents}, {epochs} "
        "epochs of stages 1 to 3. Every choice is an option (--help)"
    )


def in_long_form(args: Sequence[str]) -> list[str]:
    """Options with ``--data images:PLACE`` and ``--size N`` as ``--data-dir PLACE`` and ``--data.size N``."""
    long = {"--data": "--data-dir", "--size": "--data.size"}

    def place(word: str) -> str:
        return os.path.expanduser(word.removeprefix("images:"))

    words = []
    for word in args:
        name, sign, value = word.partition("=") if word.startswith("--") else (word, "", "")
        name = name.replace("_", "-") if name.startswith("--") else name
        name = long.get(name, name)
        words.append(f"{name}={place(value)}" if sign else place(name))
    return words


def look_at_pictures(args: Sequence[str]) -> tuple[folders.Description, Config]:
    """What is at the place that the options name, and the recipe for it.

    Raises:
        UsageError: If they name none, or pictures of a size or kind that there is not.
    """
    place, size = last_value(args, "--data-dir"), last_value(args, "--data.size") or str(DataConfig().size)
    if not place or place.startswith("--"):
        raise UsageError("--data: expected a folder, .tar or .zip of pictures, got none; add --data PICTURES")
    kind = last_value(args, "--data.kind")
    try:
        asked = DataConfig.model_validate({"name": "images", "size": size} | ({"kind": kind} if kind else {}))
    except ValidationError as error:
        raise UsageError(
            "\n".join(f"--data.{describe(problem).removeprefix('--')}" for problem in error.errors())
        ) from error
    with naming("--data"):
        found = folders.describe(Path(place))
    return found, my_images(cast(Any, kind or found.kind), asked.size, found.files)


def describe(problem: Any) -> str:
    """Lines for a problem, or several, that validation found: the option, what is wrong, what came."""
    messages = problem["msg"].removeprefix("Value error, ").splitlines()
    return "\n".join(_line(problem, message) for message in messages)


def _line(problem: Any, message: str) -> str:
    option = ".".join(str(part) for part in problem["loc"])
    name, colon, rest = message.partition(": ")
    if colon and (inner := f"{option}.{name}".lstrip(".")) in settings(Config()):  # a check of several names the one
        option, message = inner, rest
    option = option.replace("_", "-")
    came = "" if isinstance(problem["input"], dict) else f", got {problem['input']}"
    return f"--{option}: {message}{came}" if option else message


def run_train(args: Sequence[str]) -> int:
    """Train a recipe through its stages, resumably; 0 at its end or that of its minutes, 130 if stopped before."""
    config, options = parse_train(args)
    folder = options.run or default_folder(config.recipe)
    if options.max_minutes is not None and not options.max_minutes > 0:
        raise UsageError(f"--max-minutes: expected a positive number, got {options.max_minutes}")
    check_device(options.device)
    with distributed.processes(options.device):
        is_first = distributed.world().is_first
        run = train(
            config, folder, options.resume, options.max_minutes, options.data_dir, options.device,
            tensorboard=options.tensorboard,
        )  # fmt: skip
    status = STOPPED if run.interrupted else 0
    if not is_first:
        return status
    place = f" --data-dir {shlex.quote(str(options.data_dir))}" if options.data_dir else ""
    path = shlex.quote(str(run.path))
    if run.finished:
        command = f"sample {path}" if config.model.network == "dcgan" else f"evaluate {path}{place}"
        say(f"finished: {run.path}\nnext: latentbits {command}")
    else:
        say(f"stopped: {run.path}\nnext: {to_go_on(run)}{place}")
    return status
