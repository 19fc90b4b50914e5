"""Files written whole or not at all, tensors under a checksum, and nested state as safetensors.

No file is a pickle. A safetensors file has its own SHA-256 in its header, computed with zeros in that place, so that
every byte of header and tensors is covered; files of before format 3 have none. Nested state (optimizers, counters)
becomes flat named tensors beside a JSON skeleton in the header.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = 3
OLDEST_STATE = 2
FIRST_WITH_CHECKSUM = 3
MOST_TEXT = 20_000_000
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


class DamagedError(FileError):
    """A file that was whole once, or never was one of ours."""


class WriteError(FileError, OSError):
    """A file that could not be written; what was there before is as it was."""


def refusal(error: OSError) -> str:
    """Why the system refuses to write."""
    return "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file where the system refuses a write."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({refusal(error)}), and is as it was before; make room or name "
            "another place, and try again (a training run: with --resume)"
        ) from error


def write_atomically(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write a file so that a reader or a crash sees the old content or the new, never a part.

    Arguments:
        path: The file, in a folder that is made if need be.
        content: What to write.
        previous: Where the old content is kept, if the file system has links.

    Raises:
        WriteError: If the system refuses; the old content stays.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)  # a leftover, or a link, which is not followed
            with open(scratch, "xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            if previous is not None and path.is_file():
                with contextlib.suppress(OSError):
                    previous.unlink(missing_ok=True)
                    previous.hardlink_to(path)
            scratch.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def append_line(path: Path, value: Any) -> None:
    """Add a value as a line of JSON to a file, on the disk before this returns; links are not followed.

    Raises:
        WriteError: If the system refuses; a part of the line may be left, which the next one does not go on with.
    """
    with writing(path), open(path, "ab+", opener=_open_no_link) as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - 1))
        torn = stream.read(1) not in (b"", b"\n")
        stream.write(b"\n" * torn + json.dumps(value).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes:
    """The content of a file of up to so many bytes.

    Raises:
        DamagedError: If it cannot be read, or has more.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(most + 1)
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: not found; correct the path") from error
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror}); correct its permissions") from error
    if len(content) > most:
        raise DamagedError(f"{path}: expected up to {most:,} bytes, found more; it is another file")
    return content


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        DamagedError: As :func:`read_bytes`, or if it is no text.
    """
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path}: expected text, found other bytes ({error}); it is damaged") from error


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


def _entry(digest: str) -> bytes:
    return f'"checksum":"{digest}"'.encode()


_BLANK = "0" * 64


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose header holds the checksum of the file."""
    content = _in_order(save(dict(tensors), metadata={"format": str(FORMAT), **metadata, "checksum": _BLANK}))
    return content.replace(_entry(_BLANK), _entry(hashlib.sha256(content).hexdigest()), 1)


def _in_order(content: bytes) -> bytes:
    """A safetensors file with the metadata in its header sorted: the order is otherwise another each time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def read_sealed(path: Path, oldest: int = 0) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, whose checksum is compared if it has one.

    A file that another process replaces meanwhile is read again.

    Raises:
        FileError: If the file is missing, or of a format before ``oldest`` or after this version's.
        DamagedError: If it is not whole or not as it was written.
    """
    while True:
        before = _version(path)
        try:
            return _read_sealed(path, oldest)
        except DamagedError:
            if _version(path) == before:
                raise


def _version(path: Path) -> tuple[int, int] | None:
    """What is another when a file has been replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read_sealed(path: Path, oldest: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            number, stated = int(metadata.get("format", 0)), metadata.get("checksum")
            if not oldest <= number <= FORMAT:
                raise FileError(
                    f"{path}: expected format {FORMAT}, found {metadata.get('format', 'none')}; use the version of "
                    "latentbits that wrote it"
                )
            if stated is None and number >= FIRST_WITH_CHECKSUM:
                raise DamagedError(f"{path}: expected a checksum in its header, found none; it was changed or damaged")
            if stated is not None:
                content = path.read_bytes().replace(_entry(stated), _entry(_BLANK), 1)
                if hashlib.sha256(content).hexdigest() != stated:
                    raise DamagedError(f"{path}: its checksum does not match its content; it is damaged")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise FileError(f"{path}: not found") from error
    except PermissionError as error:  # it may be whole
        raise FileError(f"{path}: cannot be read; correct its permissions") from error
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        # PyTorch's own error, where the file became shorter after its header was read, and no other of its many
        if isinstance(error, FileError) or (isinstance(error, RuntimeError) and "mapping size" not in str(error)):
            raise
        raise DamagedError(f"{path}: expected a whole safetensors file, found a damaged one ({error})") from error


def save_state(path: Path, state: Mapping[str, Any], previous: Path | None = None) -> None:
    """Write nested state to one safetensors file; what was there before is kept as ``previous``, if that is named."""
    tensors: dict[str, Tensor] = {}
    skeleton = flatten(state, "state", tensors)
    # storage shared between entries would be refused, and clones make every entry its own
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    write_atomically(path, sealed(tensors, {"skeleton": json.dumps(skeleton)}), previous)


def load_state(path: Path) -> Any:
    """Read nested state.

    Raises:
        FileError: If the file is missing or of another format.
        DamagedError: If it is damaged.
    """
    tensors, metadata = read_sealed(path, OLDEST_STATE)
    try:
        return unflatten(json.loads(metadata["skeleton"]), tensors)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path}: expected a state of ours, found another file ({error!r})") from error


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
        """What was written down, or None; what is damaged is computed again."""
        with contextlib.suppress(FileError):
            return None if self.path is None else load_state(self.path)
        return None

    def write(self, state: Callable[[], Mapping[str, Any]], finished: bool = False) -> None:
        """Write down the state if a minute has passed, since the last time or, if finished, since the beginning."""
        now = time.monotonic()
        if self.path is not None and now - (self._began if finished else self._written) > SECONDS_BETWEEN_CHECKPOINTS:
            save_state(self.path, state())
            self._written = now


class Sittings:
    """The wall time of a long computation over all its sittings, but for what each lost since its last minute.

    Arguments:
        path: The file in which it is written down every minute; None for none.
    """

    def __init__(self, path: Path | None) -> None:
        self._began, self._unfinished = time.monotonic(), Unfinished(path)
        saved = self._unfinished.read()
        self._before = saved["seconds"] if saved else 0.0

    def seconds(self) -> float:
        """So far."""
        return self._before + time.monotonic() - self._began

    def along(self, report: Callable[..., None]) -> Callable[..., None]:
        """The function that reports progress, and then writes the seconds down if a minute has passed."""

        def told(*progress: Any) -> None:
            report(*progress)
            self._unfinished.write(lambda: {"seconds": self.seconds()})

        return told
