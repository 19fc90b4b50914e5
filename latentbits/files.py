"""Files written whole or not at all, and nested state as safetensors.

No file is a pickle. Nested state (optimizers, counters) becomes flat named tensors beside a JSON skeleton
in the safetensors header.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = 2
SECONDS_BETWEEN_CHECKPOINTS = 60.0


def fingerprint(*values: Any) -> str:
    """16 hexadecimal digits that tensors and other values determine, and the version of what is written."""
    digest = hashlib.sha256(repr(FORMAT).encode())
    for value in values:
        if isinstance(value, Tensor):
            digest.update(repr(value.shape).encode())
            digest.update(value.detach().cpu().contiguous().numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


class FileError(ValueError):
    """A file that cannot be used as asked; the message says what to do."""


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
        FileError: If the file is missing, damaged, or of a newer format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if int(metadata.get("format", 0)) != FORMAT:
                raise FileError(
                    f"{path}: expected format {FORMAT}, found {metadata.get('format', 'none')}; use the version of "
                    "latentbits that wrote it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return unflatten(json.loads(metadata["skeleton"]), tensors)
    except FileNotFoundError as error:
        raise FileError(f"{path}: not found") from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: expected a whole safetensors file, found a damaged one ({error})") from error


class Unfinished:
    """A file in which a long computation is written down every minute, and at its end if it took that long.

    Arguments:
        path: The file, in a folder that is made if need be; None for none.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._began = self._written = time.monotonic()

    def read(self) -> Any:
        """What was written down, or None."""
        return load_state(self.path) if self.path is not None and self.path.is_file() else None

    def write(self, state: Callable[[], Mapping[str, Any]], finished: bool = False) -> None:
        """Write down the state if a minute has passed, since the last time or, if finished, since the beginning."""
        now = time.monotonic()
        if self.path is not None and now - (self._began if finished else self._written) > SECONDS_BETWEEN_CHECKPOINTS:
            save_state(self.path, state())
            self._written = now
