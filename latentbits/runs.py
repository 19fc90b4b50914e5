"""The run folder: configuration, checkpoints, metrics and weights, all written atomically.

| file | holds |
| --- | --- |
| ``config.json`` | the :class:`~latentbits.config.Config`, written once |
| ``checkpoint.safetensors`` | everything that resuming needs, as of one step |
| ``metrics.jsonl`` | a line for each epoch |
| ``autoencoder.safetensors``, ``rbm.safetensors``, … | the weights at each stage's end |
| ``model.safetensors`` | the weights that validation chose |
| ``joint-EPOCH.safetensors`` | weights kept along the way, with ``--validation.keep`` |
| ``curve-SPLIT.jsonl`` | evaluations of those |
| ``evaluation.json``, ``evaluations.jsonl`` | the last evaluation, and a line for each |
| ``report`` | a page and pictures, made by ``latentbits report`` |
| ``tensorboard`` | the metrics as events, with ``--tensorboard`` |
| ``unfinished-evaluation`` | what an interrupted evaluation goes on from; gone when it is done |

No file is a pickle; see :mod:`latentbits.files`.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .config import Config
from .data import form_of
from .files import FORMAT, FileError, load_state, write_atomically
from .model import Model, build

PRETRAINED_FOLDER = Path(__file__).parent / "pretrained"

STAGES = ("autoencoder", "rbm", "warm_start", "joint", "adversarial")
FINISHED = "finished"


class RunError(FileError):
    """A run folder that cannot be used as asked; the message says what to do."""


class Run:
    """A run folder.

    Arguments:
        path: The folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path | str, config: Config) -> "Run":
        """Make a new run folder.

        Raises:
            RunError: If the folder holds a run already.
        """
        run = cls(path)
        if run.exists():
            raise RunError(
                f"{run.path}: holds a run already, and nothing is overwritten; go on with --resume, or name "
                "another folder with --run"
            )
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise RunError(f"{run.path}: expected a new or an empty folder, found something else; name another")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            write_atomically(run.path / "config.json", (config.model_dump_json(indent=2) + "\n").encode())
        except OSError as error:
            raise RunError(f"{run.path}: cannot be written ({error})") from error
        return run

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Open an existing run folder.

        Raises:
            RunError: If there is no run in it.
        """
        run = cls(path)
        if not run.exists():
            raise RunError(f"{run.path}: expected a run folder with config.json, found none; train one first")
        return run

    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.path / "config.json").is_file()

    @property
    def config(self) -> Config:
        """The run's configuration."""
        path = self.path / "config.json"
        try:
            return Config.model_validate_json(path.read_text())
        except (ValidationError, UnicodeDecodeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"{path}: not a configuration that this version can read ({reason})") from error

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run came to the end of its stages."""
        return self.checkpoint.is_file() and load_state(self.checkpoint)["stage"] == FINISHED

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in this folder.

        Raises:
            RunError: If one does already.
        """
        with open(self.path / ".lock", "w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(f"{self.path}: another process is training here; wait for it or stop it") from error
            yield

    def save_weights(self, name: str, module: torch.nn.Module, origin: Mapping[str, str] | None = None) -> None:
        """Write a module's weights as ``name.safetensors``, and in its header where they come from."""
        tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
        metadata = {"format": str(FORMAT), **(origin or {})}
        write_atomically(self.path / f"{name}.safetensors", save(tensors, metadata=metadata))

    def weights_origin(self, name: str) -> dict[str, str]:
        """What the header of ``name.safetensors`` says: stage, step and validation NLL."""
        with safe_open(self.path / f"{name}.safetensors", framework="pt") as file:
            return dict(file.metadata() or {})

    def load_weights(self, name: str, module: torch.nn.Module) -> None:
        """Read a module's weights from ``name.safetensors``.

        Raises:
            RunError: If the file is missing, damaged, or does not fit the module.
        """
        read_weights(self.path / f"{name}.safetensors", module)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        with open(self.path / "metrics.jsonl", "a") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())  # a checkpoint that counts this line must not outlive it

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of ``metrics.jsonl``, oldest first; a crash can leave a part of one at the end."""
        return [json.loads(line) for line in self._metrics_lines()]

    def kept(self) -> list[str]:
        """Names of the weights that were kept along the way, oldest first."""
        return sorted(path.stem for path in self.path.glob("joint-*.safetensors"))

    def curve_path(self, split: str) -> Path:
        """Where the evaluations of the kept weights stand."""
        return self.path / f"curve-{split}.jsonl"

    def curve(self, split: str) -> list[dict[str, Any]]:
        """The evaluations of the kept weights on a split, by epoch."""
        path = self.curve_path(split)
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return sorted(rows, key=lambda row: int(row["epoch"]))

    def write_curve(self, split: str, rows: list[dict[str, Any]]) -> None:
        """Write the evaluations of the kept weights."""
        write_atomically(self.curve_path(split), "".join(json.dumps(row) + "\n" for row in rows).encode())

    def _metrics_lines(self) -> list[str]:
        path = self.path / "metrics.jsonl"
        text = path.read_text() if path.is_file() else ""
        return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def truncate_metrics(self, rows: int) -> None:
        """Keep the first ``rows`` lines: those after a checkpoint are made again by resuming from it.

        Raises:
            RunError: If there are fewer.
        """
        lines = self._metrics_lines()
        if len(lines) < rows:
            raise RunError(f"{self.path}/metrics.jsonl: expected at least {rows} lines, found {len(lines)}")
        write_atomically(self.path / "metrics.jsonl", "".join(lines[:rows]).encode())


def read_weights(path: Path, module: torch.nn.Module) -> None:
    """Read a module's weights from a safetensors file.

    Raises:
        RunError: If the file is missing, damaged, or does not fit the module.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        module.load_state_dict(tensors)
    except FileNotFoundError as error:
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.safetensors"))) or "none"
        raise RunError(f"{path}: not found; the run has not come so far (weights there: {there})") from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise RunError(f"{path}: does not hold the weights of this run's model ({error})") from error


def load(path: Path | str, weights: str = "model") -> Model:
    """A trained model from a run folder, in evaluation mode.

    Arguments:
        path: The run folder.
        weights: "model" for the weights that validation chose, a stage's name for those at its end, or such as
            "joint-0010" for those that were kept after an epoch.

    Raises:
        RunError: If there is no run, or it has not come so far.
    """
    run = Run.open(path)
    model = build(run.config.model, form_of(run.config.data))
    run.load_weights(weights, model)
    return model.eval()


def pretrained_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in PRETRAINED_FOLDER.glob("*/config.json"))


def pretrained_path(name: str) -> Path:
    """The folder of a model that comes with the package.

    Raises:
        RunError: If there is none of this name.
    """
    if name not in (names := pretrained_names()):
        raise RunError(f"pretrained: expected one of {', '.join(names)}, got {name!r}")
    return PRETRAINED_FOLDER / name


def load_pretrained(name: str) -> Model:
    """A trained model that comes with the package, in evaluation mode; no training and no network.

    Arguments:
        name: One of ``latentbits.pretrained_names()``; its folder holds configuration, weights and evaluation.

    Raises:
        RunError: If there is none of this name.
    """
    return load(pretrained_path(name))
