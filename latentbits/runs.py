"""The run folder: configuration, checkpoints, metrics and weights, all written atomically.

| file | holds |
| --- | --- |
| ``config.json`` | the :class:`~latentbits.config.Config`, written once |
| ``checkpoint.safetensors`` | everything that resuming needs, as of one step |
| ``checkpoint-previous.safetensors`` | the one before, should that be damaged |
| ``metrics.jsonl`` | a line for each epoch |
| ``autoencoder.safetensors``, ``rbm.safetensors``, … | the weights at each stage's end |
| ``model.safetensors`` | the weights that validation chose |
| ``joint-EPOCH.safetensors`` | weights kept along the way, with ``--validation.keep`` |
| ``curve-SPLIT.jsonl`` | evaluations of those |
| ``evaluation.json``, ``evaluations.jsonl`` | the last evaluation, and a line for each |
| ``report`` | a page and pictures, made by ``latentbits report`` |
| ``data.json`` | the folder or archive of the data, where training was told one |
| ``tensorboard`` | the metrics as events, with ``--tensorboard`` |
| ``unfinished-evaluation`` | what interrupted evaluations go on from, a folder each; gone when they are done |

No file is a pickle; see :mod:`latentbits.files`.
"""

import fcntl
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from . import data
from .config import Config
from .files import (
    DamagedError,
    FileError,
    append_line,
    load_state,
    read_bytes,
    read_sealed,
    read_text,
    refusal,
    save_state,
    sealed,
    write_atomically,
    write_json,
)
from .model import Model, build
from .splits import Splits

PRETRAINED_FOLDER = Path(__file__).parent / "pretrained"

STAGES = ("autoencoder", "rbm", "warm_start", "joint", "adversarial")
FINISHED = "finished"

FOLDER_FORMAT = 2
"""Of a run folder, in ``config.json``, which in the first format did not say it. Older ones are read."""


class RunError(FileError):
    """A run folder that cannot be used as asked; the message says what to do."""


def _is_left(path: Path) -> bool:
    """Whether a file is the lock, or what training had half written when it was killed."""
    parts = (".config.json.*.part", ".data.json.*.part", ".metrics.jsonl.*.part", ".*.safetensors.*.part")
    return path.name == ".lock" or any(path.match(part) for part in parts)


def epoch_of(name: str) -> int:
    """After which epoch of stage 3 weights of such a name were kept."""
    return int(name.removeprefix("joint-"))


class Run:
    """A run folder.

    Arguments:
        path: The folder.

    Attributes:
        interrupted: Whether training, in this process, was stopped by a signal before its minutes were over.
    """

    def __init__(self, path: Path | str) -> None:
        self.path, self.interrupted = Path(path), False

    @classmethod
    def create(cls, path: Path | str, config: Config) -> "Run":
        """Make a new run folder.

        Raises:
            RunError: If the folder holds a run already.
        """
        run = cls(path)
        other = run.path.exists() and (not run.path.is_dir() or any(not _is_left(path) for path in run.path.iterdir()))
        run._refuse_another()  # after the look at the folder, in which another process may have begun one since
        if other:
            raise RunError(f"{run.path}: expected a new or an empty folder, found something else; name another")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{run.path}: cannot be made ({error.strerror}); name another folder with --run") from error
        with run.lock():
            run._refuse_another()  # which a process that came at the same time may have made
            run.write_config(config)
        return run

    def _refuse_another(self) -> None:
        if self.exists():
            raise RunError(
                f"{self.path}: holds a run already, and nothing is overwritten; go on with --resume (in Python "
                "resume=True), or name another folder with --run (run=)"
            )

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Open an existing run folder.

        Raises:
            RunError: If there is no run in it.
        """
        run = cls(path)
        if not run.exists():
            raise RunError(
                f"{run.path}: expected a run folder with config.json, found none; correct the path, or train one first"
            )
        return run

    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.path / "config.json").is_file()

    def write_config(self, config: Config) -> None:
        """Write ``config.json``: the folder's format, and the configuration."""
        write_json(self.path / "config.json", {"format": FOLDER_FORMAT, **config.model_dump(mode="json")})

    @property
    def config(self) -> Config:
        """The run's configuration.

        Raises:
            RunError: If the folder is damaged, or of a newer format.
        """
        return read_config(self.path / "config.json")

    def remember_data_dir(self, data_dir: Path) -> None:
        """Write down where the data are, for those who look for them later."""
        write_json(self.path / "data.json", {"data_dir": str(data_dir.absolute())})

    @property
    def data_dir(self) -> Path | None:
        """Where training found the data, if it was told a place that is still there."""
        path = self.path / "data.json"
        try:
            place = Path(json.loads(read_text(path))["data_dir"]) if path.is_file() else None
            return place if place is not None and place.exists() else None
        except (FileError, OSError, ValueError, KeyError, TypeError, RecursionError):
            return None  # it can be named again

    @property
    def data_checksum(self) -> str | None:
        """SHA-256 of the data that training is of, by its checkpoint; None without one that is whole."""
        try:
            return str(load_state(self.checkpoint)["origin"]["data"]) if self.checkpoint.is_file() else None
        except (FileError, KeyError, TypeError):
            return None

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def _previous(self) -> Path:
        return self.path / "checkpoint-previous.safetensors"

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from.

        Raises:
            RunError: If there is none, but weights, which a start from the first step would replace.
        """
        if self.checkpoint.is_file() or self._previous.is_file():
            return True
        if weights := sorted(path.name for path in self.path.glob("*.safetensors")):
            raise RunError(
                f"{self.path}: expected checkpoint.safetensors to go on from, found only {', '.join(weights)}; start a "
                "new run, with --weights if it is to begin with these"
            )
        return False

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, and keep the one before it."""
        save_state(self.checkpoint, state, self._previous)

    def repair_checkpoint(self) -> str | None:
        """Put the checkpoint before a missing or damaged one in its place; says so, or None if all is well.

        Raises:
            FileError: If that is damaged too, or there is none.
        """
        try:
            load_state(self.checkpoint)
            return None
        except FileError as error:
            if self.checkpoint.is_file() and not isinstance(error, DamagedError):  # of another format
                raise
            try:
                load_state(self._previous)
            except FileError as other:
                raise RunError(f"{error}; nor is there a whole one before it ({other}); start a new run") from error
            if self.checkpoint.is_file():
                self.checkpoint.replace(self.path / "checkpoint-damaged.safetensors")
            self._previous.replace(self.checkpoint)
            return f"{error}. Going on from the checkpoint before it; a damaged one is kept as checkpoint-damaged"

    @property
    def stage(self) -> str:
        """The stage that the checkpoint is in, or "finished"; empty without a checkpoint."""
        return str(load_state(self.checkpoint)["stage"]) if self.checkpoint.is_file() else ""

    @property
    def finished(self) -> bool:
        """Whether the run came to the end of its stages."""
        return self.stage == FINISHED

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in this folder.

        Raises:
            RunError: If one does already.
        """
        try:
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise RunError(f"{self.path}/.lock: cannot be written ({refusal(error)}); make it writable") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.path}: another process is training here; wait for it or stop it") from error
            except OSError as error:
                raise RunError(
                    f"{self.path}: cannot be locked ({refusal(error)}); name a folder on another file system"
                ) from error
            for path in self.path.glob(".*.part"):
                if _is_left(path):
                    path.unlink(missing_ok=True)
            yield
        finally:
            os.close(lock)

    def save_weights(
        self, name: str, module: torch.nn.Module, origin: Mapping[str, str] | None = None, rounded: bool = False
    ) -> None:
        """Write a module's weights as ``name.safetensors``, and in its header where they come from.

        If ``rounded``, matrices are written in bfloat16, and the rest, which is small, as it is.
        """
        # copies, for the format has no tensors that share memory, as tied weights do
        tensors = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in module.state_dict().items()
        }
        if rounded:
            halves = {key: value.bfloat16() for key, value in tensors.items() if value.dim() > 1}
            tensors |= halves
        write_atomically(self.path / f"{name}.safetensors", sealed(tensors, origin or {}))

    def weights_origin(self, name: str) -> dict[str, str]:
        """What the header of ``name.safetensors`` says: stage, step and validation NLL.

        Raises:
            RunError: If the file is damaged.
        """
        path = self.path / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                return {name: value for name, value in (file.metadata() or {}).items() if name != "checksum"}
        except SafetensorError as error:
            raise RunError(f"{path}: is damaged ({error}); fetch or train it again") from error

    def load_weights(self, name: str, module: torch.nn.Module) -> None:
        """Read a module's weights from ``name.safetensors``.

        Raises:
            RunError: If the file is missing, damaged, or does not fit the module.
        """
        read_weights(self.path / f"{name}.safetensors", module)

    def inner(self, name: str) -> Path:
        """A folder in the run folder.

        Raises:
            RunError: If it is a link, by which what is written would leave the run folder.
        """
        path = self.path / name
        if path.is_symlink():
            raise RunError(f"{path}: expected a folder, found a link; remove it")
        return path

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``; a checkpoint that counts it must not outlive it."""
        append_line(self.path / "metrics.jsonl", row)

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of ``metrics.jsonl``, oldest first; a crash can leave a part of one at the end.

        Raises:
            RunError: If another line is damaged.
        """
        path = self.path / "metrics.jsonl"
        text = read_text(path) if path.is_file() else ""
        return _rows(path, text[: text.rfind("\n") + 1], _check_metrics)

    def kept(self) -> list[str]:
        """Names of the weights that were kept along the way, oldest first."""
        names = (path.stem for path in self.path.glob("joint-*.safetensors"))
        return sorted(filter(re.compile(r"joint-\d+").fullmatch, names), key=epoch_of)

    def curve_path(self, split: str) -> Path:
        """Where the evaluations of the kept weights stand."""
        return self.path / f"curve-{split}.jsonl"

    def curve(self, split: str) -> list[dict[str, Any]]:
        """The evaluations of the kept weights on a split, by epoch.

        Raises:
            RunError: If a line is damaged.
        """
        path = self.curve_path(split)
        rows = _rows(path, read_text(path), _check_curve) if path.is_file() else []
        return sorted(rows, key=lambda row: int(row["epoch"]))

    def write_curve(self, split: str, rows: list[dict[str, Any]]) -> None:
        """Write the evaluations of the kept weights."""
        write_atomically(self.curve_path(split), "".join(json.dumps(row) + "\n" for row in rows).encode())

    def truncate_metrics(self, rows: int) -> int:
        """Keep the first ``rows`` lines: those after a checkpoint are made again by resuming from it.

        Returns:
            How many there are now; fewer, if lines were lost.
        """
        path = self.path / "metrics.jsonl"
        lines = read_bytes(path).split(b"\n")[:-1][:rows] if path.is_file() else []
        write_atomically(path, b"".join(line + b"\n" for line in lines))
        return len(lines)


def _rows(path: Path, text: str, check: Callable[[Any], object]) -> list[dict[str, Any]]:
    """The lines of a file of JSON objects, each of which a check accesses as its readers will."""
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            row = json.loads(line)
            check(row)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(
                f"{path}: line {number} is damaged; restore the file from a copy, or remove the line"
            ) from error
        rows.append(row)
    return rows


def _check_metrics(row: Any) -> None:
    words = ("stage", "weights", "sha256", "nll_by_scale")
    for name, value in row.items():
        if name not in words and value is not None:
            float(value)
    row["stage"].lower()
    if "step" in row:
        int(row["epoch"]), float(row["seconds"])
    if row["stage"] == "conversion":
        float(row["scale"]), row["nll_by_scale"].items()
    if row["stage"] == "start":
        row["weights"].lower(), row["sha256"].lower()


def _check_curve(row: Any) -> None:
    likelihood = row["evaluation"]["likelihood"]
    float(likelihood["nll"]), int(likelihood["samples"]), int(row["epoch"]), float(row["seconds"] or 0)
    row["images"].lower(), row["weights"]["file"].lower(), row["settings"].keys()


def read_config(path: Path) -> Config:
    """The configuration in a file as ``config.json`` of a run is; what it leaves out has its default.

    Raises:
        RunError: If the file is damaged, or of a newer format.
    """
    try:
        values = json.loads(read_text(path))
        number = values.pop("format", 1) if isinstance(values, dict) else 1
        if not isinstance(number, int) or number > FOLDER_FORMAT:
            raise RunError(
                f"{path}: expected a folder of format {FOLDER_FORMAT} or before, found {number!r}; use the version "
                "of latentbits that wrote it"
            )
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))} {each['msg']}".strip() for each in error.errors()]
        reason = "; ".join(problems[:3])
        raise RunError(f"{path}: not a configuration that this version can read ({reason})") from error
    except FileError as error:
        raise RunError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not a configuration that this version can read ({error})") from error


def read_weights(path: Path, module: torch.nn.Module) -> None:
    """Read a module's weights from a safetensors file.

    Raises:
        RunError: If the file is missing, damaged, or does not fit the module.
    """
    if path.is_dir():
        raise RunError(f"{path}: expected a file of weights, found a folder; name {path}/model.safetensors, say")
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.safetensors"))) or "none"
        reason = "the run has not got that far, or the name is wrong"
        raise RunError(f"{path}: not found; {reason} (weights there: {there})")
    check_fit(path, module)
    tensors, _ = read_sealed(path)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: does not hold the weights of this run's model ({reason})") from error
    for name, tensor in module.state_dict().items():
        if not tensor.isfinite().all():
            raise RunError(f"{path}: expected finite weights, found others in {name}")


def check_fit(path: Path, module: torch.nn.Module) -> None:
    """Compare the sizes in the header of a file of weights with a module's, before any memory is taken.

    Raises:
        RunError: If they differ, naming the first weights that do.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: expected a whole safetensors file, found a damaged one ({error})") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name in sorted(wanted.keys() | found.keys()):
        if name.endswith("base_bias") or wanted.get(name) == found.get(name):  # a base may not be fitted yet
            continue
        raise RunError(
            f"{path}: does not hold the weights of this run's model (expected {name} of shape "
            f"{wanted.get(name, 'none')}, found {found.get(name, 'none')})"
        )


def load(path: Path | str, weights: str = "model", model: Model | None = None) -> Model:
    """A trained model from a run folder, in evaluation mode.

    Arguments:
        path: The run folder.
        weights: "model" for the weights that validation chose, a stage's name for those at its end, or such as
            "joint-0010" for those that were kept after an epoch.
        model: The model to read them into, for a run with a model of one's own.

    Raises:
        RunError: If there is no run, it has not come so far, or the weights are not such a model's.
    """
    run = Run.open(path)
    config, file = run.config, run.path / f"{weights}.safetensors"
    try:
        if model is None:
            if file.is_file():
                with torch.device("meta"):
                    check_fit(file, build(config.model, data.form_of(config.data)))
            model = build(config.model, data.form_of(config.data))
    except (ValueError, RuntimeError) as error:
        if isinstance(error, FileError):
            raise
        reason = " ".join(str(error).split())
        raise RunError(f"{run.path}/config.json: no model can be made of it ({reason})") from error
    run.load_weights(weights, model)
    return model.eval()


def data_of(run: Run, data_dir: Path | None = None) -> Splits:
    """The data of a run, from a folder or archive, or else from where training found them.

    Others than those of training are taken with a warning.

    Raises:
        DataError: If there are none.
    """
    data.check_place(run.config.data, data_dir)
    place, trained_on = data_dir or run.data_dir, run.data_checksum
    splits = data.load(run.config.data, place)
    if trained_on not in (None, splits.checksum):
        warnings.warn(
            f"{place or 'the data'}: other data than {run.path} was trained on, by their checksums", stacklevel=2
        )
    return splits


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


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its folder's, or the whole path where two have the same."""
    names = [run.path.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run.path) for run, name in zip(runs, names, strict=True)]
