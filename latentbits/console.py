"""What the commands share: lines for the terminal, and refusals."""

import difflib
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

console = Console(highlight=False)


def say(text: str) -> None:
    """Print a line as it is: no markup, and no wrapping of paths."""
    console.print(text, soft_wrap=True, markup=False)


class UsageError(ValueError):
    """A command line that cannot be obeyed."""


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
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device: expected one that PyTorch has here, got {device!r} ({reason})") from error
    if ":" in device and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"--device: several processes take a GPU each; expected cuda, got {device}")


def check_output(path: Path | None, overwrite: bool) -> None:
    """Refuse an output that is there already, unless asked, or that cannot be a file."""
    if path is not None and path.is_dir():
        raise UsageError(f"--out: {path} is a folder; name a file in it")
    if path is not None and path.exists() and not overwrite:
        raise UsageError(f"--out: {path} exists; add --overwrite to replace it, or name another file")
