"""What a person sees while something runs: a bar with time left, and a line for each epoch."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

STAGE_TITLES = {
    "autoencoder": "stage 1, autoencoder",
    "rbm": "stage 2, prior",
    "joint": "stage 3, joint training",
}
_SHOWN = {
    "reconstruction": "reconstruction {:.2f}",
    "reconstruction_hard_bits": "valid, hard bits {:.2f}",
    "bound": "L_K + log Z {:.2f}",
    "effective_sample_size": "ESS {:.1f}",
    "valid_nll": "valid NLL {:.2f}",
    "seconds": "{:.0f} s",
}


class Display:
    """Progress on the terminal; plain lines where the output is no terminal.

    Arguments:
        quiet: Show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.stop()

    def stage(self, stage: str, total: int, done: int) -> None:
        """Begin a bar for a stage of ``total`` steps."""
        self.phase(STAGE_TITLES.get(stage, stage), total, done)

    def phase(self, title: str, total: float, done: int = 0) -> None:
        """Begin a bar for a phase."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(title, total=total, completed=done)
        self._title = title

    def advance(self, done: float, totals: Mapping[str, float] | None = None) -> None:
        """Move the bar to ``done``."""
        if self._task is not None:
            self._bar.update(self._task, completed=done)

    def share(self, title: str, share: float) -> None:
        """Show that a phase has come to a share of its work between 0 and 1."""
        if self._task is None or self._title != title:
            self.phase(title, 1.0)
        self.advance(share)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print an epoch's line."""
        values = [text.format(row[name]) for name, text in _SHOWN.items() if name in row]
        self.note(f"{STAGE_TITLES.get(row['stage'], row['stage'])}, epoch {row['epoch']}: {', '.join(values)}")

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True, markup=False)
