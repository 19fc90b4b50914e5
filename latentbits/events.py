"""The scalars of ``metrics.jsonl`` as TensorBoard's events, beside it in ``tensorboard``.

The metrics are what is kept; events are made from them anew whenever training starts or goes on, so that what was
written after the last checkpoint does not stand there twice.
"""

import contextlib
import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

from .runs import Run, RunError

_PREFIX = "events.out.tfevents."


def check_tensorboard() -> None:
    """Refuse to begin without the package that writes events.

    Raises:
        RunError: If it is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise RunError(
            "--tensorboard: needs the package tensorboard, which is not installed; pip install "
            "tensorboard, or leave the option out"
        )


class Events:
    """Writes a run's metrics as events, tagged ``stage/name``, at their step of the stage and their time of training.

    Arguments:
        run: The run folder, whose metrics so far are written at once in the place of earlier events.
    """

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

        folder = run.inner("tensorboard")
        for path in folder.glob(f"{_PREFIX}*"):
            path.unlink()
        self._writer = SummaryWriter(str(folder))
        self._full = False
        self._began = (run.path / "config.json").stat().st_mtime
        for row in run.metrics():
            self._add(row)
        self._writer.flush()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a line of the metrics; without room for it training goes on without events."""
        if self._full:
            return
        try:
            self._add(row)
            self._writer.flush()
        except OSError as error:
            self._full = True
            warnings.warn(f"{self._writer.log_dir}: no more events are written there ({error})", stacklevel=2)

    def _add(self, row: Mapping[str, Any]) -> None:
        time = self._began + row["seconds"] if "seconds" in row else None
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{row['stage']}/{name}", value, row.get("step", 0), time)

    def close(self) -> None:
        """End the file."""
        with contextlib.suppress(OSError):
            self._writer.close()
