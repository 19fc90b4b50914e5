"""What the commands share: lines for the terminal, refusals, and how their words are read and called."""

import contextlib
import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from .config import MOST
from .progress import printable
from .splits import DataError

MOST_SEED = 2**63 - 1

console = Console(highlight=False)

# Words and values of options as the help calls them; types alone would be called STR, PATH and so on.
OPTIONAL = tyro.conf.arg(help_behavior_hint="(optional)")
RunFolder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
RunName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
Pictures = Annotated[
    tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[PICTURES]", help_behavior_hint="(optional)")
]
DataPlace = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(optional)")]
NewFile = Annotated[Path, tyro.conf.arg(metavar="FILE")]
Weights = Annotated[str, tyro.conf.arg(metavar="WEIGHTS")]
Device = Annotated[str, tyro.conf.arg(metavar="DEVICE")]


def say(text: str) -> None:
    """Print a line as it is: no markup, and no wrapping of paths."""
    console.print(printable(text), soft_wrap=True, markup=False)


def warn(text: str) -> None:
    """Print a warning, on the error stream."""
    Console(stderr=True, highlight=False).print(f"warning: {printable(text)}", soft_wrap=True, markup=False)


class UsageError(ValueError):
    """A command line that cannot be obeyed."""


@contextlib.contextmanager
def naming(argument: str) -> Iterator[None]:
    """Let what is wrong with data say by which argument they were named."""
    try:
        yield
    except DataError as error:
        raise UsageError(f"{argument}: {error}") from error


def lookup(name: str, table: dict[str, Any], kind: str) -> Any:
    """The entry of a table, or an error with the nearest names."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(f"{kind}: expected one of {', '.join(table)}, got {name!r}{hint}")


def parse(target: Callable[..., Any], args: Sequence[str], prog: str, description: str | None = None) -> Any:
    """Call a function, or make an object of a class, with what a command line says; status 2 if it cannot be read."""
    return tyro.cli(
        target,
        args=list(args),
        prog=prog,
        description=description,
        config=(tyro.conf.DisallowNone,),  # what is not given is None; the word None is no value
        registry=_number_words(),
    )


def _number_words() -> ConstructorRegistry:
    """Numbers read by a rule of their own, whose refusal says what was expected."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type in (int, int | None):
            return _number(int, "a whole number", "INT")
        return _number(float, "a number", "FLOAT") if info.type in (float, float | None) else None

    return registry


def _number(kind: Callable[[str], float], what: str, word: str) -> PrimitiveConstructorSpec[Any]:
    def read(words: list[str]) -> float:
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"expected {what}, got {words[0]!r}") from None

    def is_number(value: Any) -> bool:
        return value is None or isinstance(value, int | float)

    return PrimitiveConstructorSpec(1, word, read, is_number, lambda value: [str(value)])


def check_device(device: str) -> None:
    """Refuse a device that PyTorch does not have here; of several processes each asks for its own GPU alone."""
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
    try:
        float(torch.ones(1, device=own).sum())
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device: expected one that PyTorch has here, got {device!r} ({reason})") from error
    if ":" in device and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"--device: several processes take a GPU each; expected cuda, got {device}")


def check_numbers(least: dict[str, tuple[int, int]], seed: int = 0) -> None:
    """Refuse options that are out of range: by name, what came and the least that is accepted."""
    problems = [
        f"--{name}: expected {f'at least {bound}' if value < bound else f'up to {MOST:,}'}, got {value}"
        for name, (value, bound) in least.items()
        if not bound <= value <= MOST
    ]
    if not 0 <= seed <= MOST_SEED:
        problems.append(f"--seed: expected between 0 and {MOST_SEED}, got {seed}")
    if problems:
        raise UsageError("\n".join(problems))


def check_output(path: Path | None, overwrite: bool, ending: str = "") -> None:
    """Refuse an output that is there already unless asked, that cannot be a file, or has the wrong ending."""
    if path is None:
        return
    if ending and path.suffix.lower() not in ("", ending):
        raise UsageError(f"--out: expected a name that ends in {ending}, which is what is written, got {path}")
    if path.is_dir():
        raise UsageError(f"--out: {path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise UsageError(f"--out: {path} exists; add --overwrite to replace it, or name another file")
    check_writable(path.parent, "--out")


def check_new_folder(path: Path) -> None:
    """Refuse an output folder that holds something, or that cannot be made."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out: expected a new or an empty folder, got the file {path}; name another place")
    if path.exists() and any(path.iterdir()):
        raise UsageError(f"--out: expected a new or an empty folder, got {path}, which is not empty; name another")
    check_writable(path, "--out")


def check_writable(folder: Path, what: str) -> None:
    """Refuse a folder in which nothing can be written, before anything is computed for it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{what}: {folder} cannot be a folder, because {there} is a file; name another place")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UsageError(f"{what}: {there} cannot be written; correct its permissions, or name another place")
