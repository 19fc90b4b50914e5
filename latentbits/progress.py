"""What a person sees while something runs: a bar with time left, and a line for each epoch."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

STAGE_TITLES = {
    "autoencoder": "stage 1, autoencoder",
    "rbm": "stage 2, prior",
    "warm_start": "stage 3, warm start",
    "joint": "stage 3, joint training",
    "adversarial": "generator and critic",
}
_SHOWN = {
    "distance": "distance by the critic {:.4f}",
    "reconstruction": "reconstruction {:.2f}",
    "reconstruction_hard_bits": "validation reconstruction {:.2f}",
    "bound": "L_K + log Z {:.2f}",
    "effective_sample_size": "ESS {:.1f}",
    "valid_nll": "valid NLL {:.2f}",
    "valid_bits_per_dimension": "{:.3f} bits/dim",
    "seconds": "{:.0f} s",
}
_EXPLAINED = {
    "distance": "distance by the critic is how far samples are from data, in the critic's eyes",
    "reconstruction": "reconstruction is the loss on a training image given its soft bits, in nats, lower is better",
    "reconstruction_hard_bits": "validation reconstruction is the same for validation images given their most probable "
    "bits",
    "bound": "L_K + log Z is the bound of training images before log Z is subtracted, higher is better, but not "
    "comparable between epochs, because log Z moves",
    "effective_sample_size": "ESS is the effective number of the K samples",
    "valid_nll": "valid NLL is -log p(x) of a validation image in nats, by a quick estimate, lower is better",
}
"""What figures of an epoch's line are; said once, before the first line that has them."""

SECONDS_LOOKED_BACK = 60
"""The time left is judged by the last epochs that took so long together: a machine may slow down."""


QUIET, LONGEST_QUIET = 10.0, 600.0
"""Seconds without a line, at least and at most, where there is no terminal for a bar."""


def duration(seconds: float | None) -> str:
    """A length of time in words."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def printable(text: str) -> str:
    """Text without what would command a terminal: such characters, of a file's name perhaps, as their escapes."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class DownloadBar:
    """A bar for one download, with the interface that pooch asks for."""

    total = 0

    def __init__(self, title: str) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), transient=True
        )
        self._task = self._bar.add_task(title, total=None)

    def __enter__(self) -> "DownloadBar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, count: int) -> None:
        """Count bytes that have come."""
        self._bar.update(self._task, total=self.total, advance=count)

    def reset(self) -> None:
        """Start again from nothing."""
        self._bar.reset(self._task, total=self.total)

    def close(self) -> None:
        """End the bar."""
        self._bar.stop()


class Display:
    """Progress on the terminal; where the output is no terminal, a line each tenth or each ten minutes.

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
        self._explained: set[str] = set()

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def phase(self, title: str, total: float, done: float = 0.0) -> None:
        """Begin a bar for a phase of ``total`` steps."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(title, total=total)
        self._bar.update(self._task, completed=done)
        self._title, self._total, self._done = title, total, done
        self._marks = deque([(time.monotonic(), self._done)])  # when so much was done
        self._told, self._due = time.monotonic(), self._done

    def advance(self, done: float) -> None:
        """Move the bar to ``done``; without a bar, print a line if it is time for one."""
        if self._task is None:
            return
        self._bar.update(self._task, completed=done)
        self._done = done
        silent = time.monotonic() - self._told
        due = (self._due < done and silent >= QUIET) or silent >= LONGEST_QUIET
        if due and done < self._total and not self.console.is_terminal:
            self.note(f"{self._title}: {done / self._total:.0%}, about {duration(self.seconds_left())} left")
            self._told_now()

    def _told_now(self) -> None:
        """The next line is due after some time and a tenth of the phase."""
        self._told, self._due = time.monotonic(), self._done + self._total / 10

    def seconds_left(self) -> float:
        """Of the phase, by what its last epochs took, or all of it if it has none; infinite at its start."""
        began, first = self._marks[0]
        done = self._done - first
        return (time.monotonic() - began) / done * (self._total - self._done) if done else math.inf

    def _mark(self) -> None:
        """Note an epoch's end, and forget what is not needed to look back."""
        now = time.monotonic()
        self._marks.append((now, self._done))
        while now - self._marks[1][0] >= SECONDS_LOOKED_BACK:
            self._marks.popleft()

    def share(self, title: str, share: float, so_far: str = "") -> None:
        """Show that a phase has come to a share of its work between 0 and 1, and what it has found so far."""
        if self._task is None or self._title != title:
            self.phase(title, 1.0, share)  # what was there already says nothing of the time that the rest takes
        assert self._task is not None
        self._bar.update(self._task, description=f"{title}: {so_far}" if so_far else title)
        self.advance(share)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print an epoch's line."""
        names = [name for name in _SHOWN if name in row]
        values = [_SHOWN[name].format(row[name]) for name in names]
        epochs = round(row["epoch"] * self._total / row["step"])
        self._mark()
        left = self.seconds_left()
        if not self.console.is_terminal and 60 < left < math.inf:  # a terminal has the bar
            values.append(f"about {duration(left)} left in this stage")
        title = STAGE_TITLES.get(row["stage"], row["stage"])
        if new := [name for name in names if name in _EXPLAINED and name not in self._explained]:
            self._explained.update(new)
            self.note(f"in the lines of {title}: {'; '.join(_EXPLAINED[name] for name in new)}")
        self.note(f"{title}, epoch {row['epoch']} of {epochs}: {', '.join(values)}")
        self._told_now()

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(printable(text), soft_wrap=True, markup=False)


def of_whole(tell: Callable[[float], None] | None, rows: slice, count: int) -> Callable[[float], None]:
    """Given what share of some of ``count`` rows is done, tells what share of all that makes, if it is wanted."""

    def told(share: float) -> None:
        if tell is not None:
            tell((rows.start + share * (rows.stop - rows.start)) / count)

    return told
