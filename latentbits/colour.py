"""Data sets of colour images, as bytes.

``cifar10``: 50,000 training images of 32x32 in five batches, of which the last 5,000 are for validation, and up to
10,000 test images. The batches are found in a folder, in the binary layout (a record is a byte for the label and 3,072
for red, green and blue planes), plain or xz-compressed, or in the published archive, which is downloaded if need be.
The archive is checked by its published SHA-256 and read as a stream; unpacked xz files are kept in the user's cache.
In memory the images take 184 MB.

``imagenet64``: 1,281,167 training images of 64x64 in ten batches, of which the last 10,000 are for validation, and
the 50,000 published validation images for test (Chrabaszcz et al. 2017; bits/dim are not those of the older ImageNet64
of van den Oord et al. 2016, which was scaled down otherwise). The batches are the published ``.npz`` files,
which need an account and are not downloaded; their pickled form is refused, because loading it could run code. Images
are read by 4 MB into one array; in memory they take 16.4 GB.
"""

import contextlib
import hashlib
import io
import lzma
import tarfile
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np

from .splits import (
    DataError,
    Form,
    Splits,
    cache_dir,
    download,
    make_splits,
    plain_or_packed,
    read_cached,
    read_file,
    write_cached,
)

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR10_BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CIFAR10_FORM = Form(3, 32, 32, 256)
_RECORD, _BATCH = 3073, 10_000
_VALIDATION = 5000

IMAGENET64_URL = "https://image-net.org/download-images"
IMAGENET64_BATCHES = (*(f"train_data_batch_{i}.npz" for i in range(1, 11)), "val_data.npz")
IMAGENET64_FORM = Form(3, 64, 64, 256)
_IMAGENET64_VALIDATION = 10_000
_MOST_ROWS, _AT_ONCE = 200_000, 1 << 22


def cifar10(data_dir: Path | None) -> Splits:
    """CIFAR-10 from a folder, or downloaded.

    Raises:
        DataError: If a batch is missing, truncated, corrupted or of another layout.
    """
    *train, test = [_images(name, content) for name, content in _batches(data_dir)]
    together = np.concatenate(train)
    parts = [together[:-_VALIDATION], together[-_VALIDATION:], test]
    return make_splits("cifar10", parts, CIFAR10_FORM)


def _batches(data_dir: Path | None) -> Iterator[tuple[str, bytes]]:
    """Name and content of each batch, the test batch last."""
    folder = cache_dir() if data_dir is None else data_dir
    files = {name: plain_or_packed(folder / name, ".xz") for name in CIFAR10_BATCHES}
    if all(files.values()):
        yield from ((str(path), _unpacked(path)) for path in files.values() if path is not None)
        return
    archive = folder / CIFAR10_ARCHIVE
    if not archive.is_file():
        if data_dir is not None:
            missing = ", ".join(name for name, path in files.items() if path is None)
            raise DataError(
                f"{data_dir}: expected {missing}, plain or .xz, or {CIFAR10_ARCHIVE}, and found neither; correct "
                f"--data-dir, or leave it out to download {CIFAR10_URL}"
            )
        archive = download(CIFAR10_ARCHIVE, CIFAR10_URL, CIFAR10_SHA256)
    yield from _from_archive(archive)


def cifar10_files(folder: Path) -> dict[str, Path | None]:
    """Where each batch lies in a folder: plain, xz-compressed or in the published archive."""
    archive = folder / CIFAR10_ARCHIVE
    published = archive if archive.is_file() else None
    return {name: plain_or_packed(folder / name, ".xz") or published for name in CIFAR10_BATCHES}


def _unpacked(path: Path) -> bytes:
    """A batch's records, from the file or from the unpacked copy of a file with the same content."""
    content = read_file(path, 2 * _BATCH * _RECORD)
    if path.suffix != ".xz":
        return content
    kept = cache_dir() / f"{path.stem}.{hashlib.sha256(content).hexdigest()[:32]}.npy"
    records = read_cached(kept)
    if records is not None:
        return records.tobytes()
    try:
        with lzma.open(path) as stream:
            unpacked = stream.read(_BATCH * _RECORD + 1)  # no more, whatever the file claims
    except (EOFError, OSError, lzma.LZMAError, MemoryError) as error:
        raise DataError(
            f"{path}: expected a whole xz file, found a truncated or corrupted one ({error}); fetch it again"
        ) from error
    if len(unpacked) <= _BATCH * _RECORD:
        write_cached(kept, np.frombuffer(unpacked, np.uint8))
    return unpacked


def _images(name: str, content: bytes) -> np.ndarray:
    """Images (N, 3072) of a batch, channel by channel."""
    rows, rest = divmod(len(content), _RECORD)
    if rest or not 1 <= rows <= _BATCH or (rows != _BATCH and "test_batch" not in name):
        expected = f"up to {_BATCH:,}" if "test_batch" in name else f"{_BATCH:,}"
        raise DataError(
            f"{name}: expected {expected} records of {_RECORD:,} bytes, found {len(content):,} bytes; fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(rows, _RECORD)
    if records[:, 0].max() > 9:
        where = int(records[:, 0].argmax())
        raise DataError(
            f"{name}: expected a label from 0 to 9 before each image, found {records[where, 0]} in record {where + 1}; "
            "it is not in CIFAR-10's binary layout"
        )
    return records[:, 1:].copy()


def _from_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """The batches in the published archive, which is read and not extracted."""
    found: dict[str, bytes] = {}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != CIFAR10_SHA256:
        raise DataError(f"{path}: expected SHA-256 {CIFAR10_SHA256}, found {digest}; fetch it again from {CIFAR10_URL}")
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = Path(member.name).name
                stream = archive.extractfile(member) if name in CIFAR10_BATCHES and member.isreg() else None
                if stream is not None:
                    found[name] = stream.read(_BATCH * _RECORD + 1)
    except Exception as error:  # tarfile and what unpacks for it raise many kinds
        raise DataError(
            f"{path}: expected the published archive, found a damaged one ({error}); fetch it again"
        ) from error
    missing = [name for name in CIFAR10_BATCHES if name not in found]
    if missing:
        raise DataError(f"{path}: expected the published archive with {', '.join(missing)}, which are not in it")
    for name in CIFAR10_BATCHES:
        yield f"{path}:{name}", found[name]


def imagenet64(folder: Path) -> Splits:
    """Downsampled ImageNet from a folder with its published batches.

    Raises:
        DataError: If a batch is missing, damaged, pickled or of another form.
    """
    files = [folder / name for name in IMAGENET64_BATCHES]
    for path in files:
        if not path.is_file() and path.with_suffix("").is_file():
            raise DataError(
                f"{path.with_suffix('')}: expected {path.name}, found the pickled batch, which could run code when "
                f"it is loaded; fetch the npz files from {IMAGENET64_URL}"
            )
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise DataError(
            f"{folder}: expected {', '.join(missing)}, and did not find them; fetch them from {IMAGENET64_URL} and "
            "name their folder with --data-dir"
        )
    rows = [_npz_rows(path) for path in files]
    train = np.empty((sum(rows[:-1]), IMAGENET64_FORM.dimensions), np.uint8)
    test = np.empty((rows[-1], IMAGENET64_FORM.dimensions), np.uint8)
    parts = [*np.split(train, np.cumsum(rows[:-2])), test]
    for path, part in zip(files, parts, strict=True):
        with _npz_data(path) as stream:
            _npz_header(path, stream)
            left = part.reshape(-1)
            while left.size and (found := stream.readinto(left[:_AT_ONCE].data)):
                left = left[found:]
            if left.size or stream.read(1):  # the end is where the checksum is compared
                raise DataError(f"{path}: expected {part.size:,} bytes of images, found more or fewer; fetch it again")
    held_out = _IMAGENET64_VALIDATION
    if len(train) <= held_out:
        raise DataError(f"{folder}: expected more than {held_out:,} training images, found {len(train):,}")
    return make_splits("imagenet64", [train[:-held_out], train[-held_out:], test], IMAGENET64_FORM)


@contextlib.contextmanager
def _npz_data(path: Path) -> Iterator[io.RawIOBase]:
    """The stream of an npz file's entry ``data``, which begins with a header."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("data.npy") as file:
            yield cast(io.RawIOBase, file)
    except DataError:
        raise
    except Exception as error:  # zipfile and what unpacks for it raise many kinds
        raise DataError(
            f"{path}: expected a published npz batch, found a damaged or other file ({error}); fetch it again"
        ) from error


def _npz_rows(path: Path) -> int:
    with _npz_data(path) as stream:
        return _npz_header(path, stream)


def _npz_header(path: Path, stream: io.RawIOBase) -> int:
    """Number of images in the entry, whose header is read and checked."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (ValueError, tokenize.TokenError, MemoryError, RecursionError) as error:
        raise DataError(f"{path}: expected an array in npy format as its entry data ({error})") from error
    D = IMAGENET64_FORM.dimensions
    is_table = len(shape) == 2 and type(shape[0]) is int and 1 <= shape[0] <= _MOST_ROWS and shape[1] == D
    if fortran or dtype != np.uint8 or not is_table:
        raise DataError(
            f"{path}: expected up to {_MOST_ROWS:,} rows of {D:,} uint8 as its entry data, found {shape} of {dtype}"
        )
    return int(shape[0])
