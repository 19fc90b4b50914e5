"""The run folder: configuration, checkpoints, metrics and weights, all written atomically.

| file | holds |
| --- | --- |
| ``config.json`` | the :class:`~latentbits.config.Config`, written once |
| ``checkpoint.safetensors`` | everything that resuming needs, as of one step |
| ``metrics.jsonl`` | a line for each epoch |
| ``autoencoder.safetensors``, ``rbm.safetensors``, ``joint.safetensors`` | the weights at each stage's end |
| ``model.safetensors`` | the weights that validation chose |
| ``evaluation.json``, ``evaluations.jsonl`` | the last evaluation, and a line for each |

No file is a pickle. Nested state (optimizers, counters) becomes flat named tensors beside a JSON skeleton
in the safetensors header.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .config import Config
from .data import SHAPES
from .model import LatentModel, build
from .rbm import RBM

FORMAT = 1
STAGES = ("autoencoder", "rbm", "joint")
FINISHED = "finished"


class RunError(ValueError):
    """A run folder that cannot be used as asked; the message says what to do."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader or a crash sees the old content or the new, never a part."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(scratch, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors in nested state into ``tensors`` and return a JSON skeleton that names them."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[key, flatten(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [flatten(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    return {"value": value}


def unflatten(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`flatten`; tuples come back as lists."""
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {key: unflatten(item, tensors) for key, item in content}
    if kind == "list":
        return [unflatten(item, tensors) for item in content]
    return content


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested state to one safetensors file."""
    tensors: dict[str, Tensor] = {}
    skeleton = flatten(state, "state", tensors)
    # storage shared between entries would be refused, and clones make every entry its own
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    write_atomically(path, save(tensors, metadata={"format": str(FORMAT), "skeleton": json.dumps(skeleton)}))


def load_state(path: Path) -> Any:
    """Read nested state.

    Raises:
        RunError: If the file is missing, damaged, or of a newer format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if int(metadata.get("format", 0)) != FORMAT:
                raise RunError(
                    f"{path}: expected format {FORMAT}, found {metadata.get('format', 'none')}; use the version of "
                    "latentbits that wrote it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return unflatten(json.loads(metadata["skeleton"]), tensors)
    except FileNotFoundError as error:
        raise RunError(f"{path}: not found") from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path}: expected a whole safetensors file, found a damaged one ({error})") from error


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
        path = self.path / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            module.load_state_dict(tensors)
        except FileNotFoundError as error:
            raise RunError(f"{path}: not found; the run has not come so far") from error
        except (SafetensorError, RuntimeError, OSError) as error:
            raise RunError(f"{path}: does not hold the weights of this run's model ({error})") from error

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        with open(self.path / "metrics.jsonl", "a") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())  # a checkpoint that counts this line must not outlive it

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of ``metrics.jsonl``, oldest first; a crash can leave a part of one at the end."""
        return [json.loads(line) for line in self._metrics_lines()]

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


def load(path: Path | str, weights: str = "model") -> LatentModel | RBM:
    """A trained model from a run folder, in evaluation mode.

    Arguments:
        path: The run folder.
        weights: "model" for the weights that validation chose, or a stage's name for those at its end.

    Raises:
        RunError: If there is no run, or it has not come so far.
    """
    run = Run.open(path)
    model = build(run.config.model, math.prod(SHAPES[run.config.data.name]))
    run.load_weights(weights, model)
    return model.eval()
