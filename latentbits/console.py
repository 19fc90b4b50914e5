"""What the commands share: lines for the terminal, and refusals."""

import contextlib
import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .config import MOST
from .progress import printable
from .splits import DataError

MOST_SEED = 2**63 - 1

console = Console(highlight=False)


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


def check_device(device: str) -> None:
    """Refuse a device that PyTorch does not have here."""
    try:
        float(torch.ones(1, device=device).sum())
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device: expected one that PyTorch has here, got {device!r} ({reason})") from error
    if ":" in device and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"--device: several processes take a GPU each; expected cuda, got {device}")


def check_numbers(least: dict[str, tuple[int, int]], seed: int = 0) -> None:
    """Refuse options that are out of range: by name, what came and the least that is accepted."""
    problems = [
        f"--{name}: expected at least {bound}, got {value}" if value < bound else f"--{name}: expected up to {MOST:,}"
        for name, (value, bound) in least.items()
        if not bound <= value <= MOST
    ]
    if not 0 <= seed <= MOST_SEED:
        problems.append(f"--seed: expected between 0 and {MOST_SEED}, got {seed}")
    if problems:
        raise UsageError("\n".join(problems))


def check_output(path: Path | None, overwrite: bool) -> None:
    """Refuse an output that is there already, unless asked, or that cannot be a file."""
    if path is None:
        return
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
