"""Named data sets, checked and split; those in colour are in :mod:`latentbits.colour`.

``digits``: scikit-learn's 1,797 grey 8x8 digits with 17 levels, binarized by ``level >= 8``; a fixed
permutation gives 1,197 training, 300 validation and 300 test images.

``binarized-mnist``: statically binarized MNIST (Larochelle & Murray 2011), 50,000 / 10,000 / 10,000 images
of 28x28 bits, from the three published text files. They are found in a folder (plain or gzipped) or
downloaded, verified by their published SHA-256, and kept bit-packed in the user's cache, which is
``LATENTBITS_CACHE`` if that is set.
"""

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .colour import CIFAR10_FORM, IMAGENET64_FORM, cifar10, imagenet64
from .config import DataConfig
from .folders import images, natural64, square_form
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


class AmatFile(NamedTuple):
    """A published text file: one image a line, bits separated by blanks."""

    name: str
    rows: int
    sha256: str

    @property
    def size(self) -> int:
        return self.rows * 2 * _MNIST_DIMENSIONS

    @property
    def url(self) -> str:
        return f"http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/{self.name}"


_MNIST_DIMENSIONS = 784
MNIST_FILES = {
    "train": AmatFile(
        "binarized_mnist_train.amat",
        50_000,
        "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    ),
    "valid": AmatFile(
        "binarized_mnist_valid.amat",
        10_000,
        "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    ),
    "test": AmatFile(
        "binarized_mnist_test.amat",
        10_000,
        "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    ),
}
FORMS = {
    "digits": Form(1, 8, 8, ink=True),
    "binarized-mnist": Form(1, 28, 28, ink=True),
    "cifar10": CIFAR10_FORM,
    "imagenet64": IMAGENET64_FORM,
    "natural64": square_form(64),
}


def form_of(config: DataConfig) -> Form:
    """What the images of a data set look like."""
    if config.name == "given":
        channels, height, width = config.image
        return Form(channels, height, width, config.levels)
    return square_form(config.size, config.kind) if config.name == "images" else FORMS[config.name]


def check_place(config: DataConfig, data_dir: Path | str | None) -> None:
    """Refuse a folder that would not be looked into.

    Raises:
        DataError: If one is given for data that are in none.
    """
    if config.name == "digits" and data_dir is not None:
        raise DataError(
            f"--data-dir: digits come with scikit-learn and are in no folder, got {data_dir}; leave it out, or train "
            "my-images on pictures of your own"
        )


def load(config: DataConfig | str, data_dir: Path | str | None = None) -> Splits:
    """Load a data set.

    Arguments:
        config: Which; or its name, of :data:`FORMS`.
        data_dir: Folder to look in; without it, earlier downloads serve, and what is absent is downloaded. For one's
            own images, their folder or archive.

    Raises:
        DataError: If the data are missing, truncated, corrupted or of the wrong form.
    """
    path = None if data_dir is None else Path(data_dir)
    if not isinstance(config, str | DataConfig):
        raise DataError(f"data: expected a name or a DataConfig, as of config.data, got {type(config).__name__}")
    if isinstance(config, str):
        if config not in FORMS:
            raise DataError(f"data: expected one of {', '.join(FORMS)}, got {config!r}")
        config = DataConfig.model_validate({"name": config})
    check_place(config, data_dir)
    if config.name == "given":
        raise DataError("data.name=given: these data were given in Python; give them again, to latentbits.evaluate say")
    if config.name == "digits":
        return _digits()
    if config.name == "binarized-mnist":
        return _binarized_mnist(path)
    if config.name == "cifar10":
        return cifar10(path)
    if path is None:
        what = "your own pictures are" if config.name == "images" else f"{config.name} is"
        raise DataError(f"--data-dir: {what} not downloaded; name the folder or archive with --data-dir")
    if config.name == "imagenet64":
        return imagenet64(path)
    refuse = config.damaged == "refuse"
    try:
        return natural64(path, refuse) if config.name == "natural64" else images(path, form_of(config), refuse)
    except DataError as error:
        raise DataError(f"--data-dir: {error}") from error


def _digits() -> Splits:
    from sklearn.datasets import load_digits  # slow to import, and needed for this set only

    levels = load_digits().data
    bits = (levels >= 8).astype(np.uint8)[np.random.RandomState(0).permutation(len(levels))]
    return make_splits("digits", [bits[:1197], bits[1197:1497], bits[1497:]], FORMS["digits"])


def _binarized_mnist(data_dir: Path | None) -> Splits:
    parts = [_load_amat(_find_or_download(file, data_dir), file) for file in MNIST_FILES.values()]
    return make_splits("binarized-mnist", parts, FORMS["binarized-mnist"])


def find(file: AmatFile, data_dir: Path | None) -> Path | None:
    """Where a published file lies, plain or gzipped: in the folder given or among earlier downloads."""
    return plain_or_packed((cache_dir() if data_dir is None else data_dir) / file.name, ".gz")


def _find_or_download(file: AmatFile, data_dir: Path | None) -> Path:
    path = find(file, data_dir)
    if path is not None:
        return path
    if data_dir is not None:
        raise DataError(
            f"{data_dir / file.name}: expected this file, plain or .gz, and found neither; correct --data-dir, "
            f"or leave it out to download {file.url}"
        )
    return download(file.name, file.url, file.sha256)


def _load_amat(path: Path, file: AmatFile) -> np.ndarray:
    """Bits (rows, D), uint8, from the file or from the packed copy of a file with the same content."""
    content = read_file(path, file.size + 1)
    digest = hashlib.sha256(content).hexdigest()
    packed = cache_dir() / f"{file.name}.{digest[:32]}.npy"
    shape = (file.rows, _MNIST_DIMENSIONS // 8)
    rows = read_cached(packed)
    if rows is not None and rows.size == math.prod(shape):
        return np.unpackbits(rows.reshape(shape), axis=1)
    bits = parse_amat(_uncompressed(content, path, file), path, file)
    write_cached(packed, np.packbits(bits, axis=1))
    return bits


def _uncompressed(content: bytes, path: Path, file: AmatFile) -> bytes:
    if path.suffix != ".gz":
        return content
    try:
        with gzip.open(path) as stream:
            return stream.read(file.size + 1)  # no more, whatever the file claims
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path}: expected a whole gzip file, found a truncated or corrupted one ({error}); fetch it again"
        ) from error


def parse_amat(content: bytes, path: Path, file: AmatFile) -> np.ndarray:
    """Bits (rows, D), uint8, of a published text file.

    Raises:
        DataError: If size, shape, values or checksum are not those of the published file.
    """
    remedy = f"fetch it again from {file.url}"
    if len(content) != file.size:
        lines = content.count(b"\n")
        raise DataError(
            f"{path}: expected {file.rows:,} lines of {_MNIST_DIMENSIONS} bits, {file.size:,} bytes uncompressed, "
            f"found {lines:,} lines and {'more' if len(content) > file.size else f'{len(content):,}'} bytes; {remedy}"
        )
    text = np.frombuffer(content, np.uint8).reshape(file.rows, -1)
    bits = text[:, 0::2] - ord("0")
    if bits.max() > 1:
        line, column = np.argwhere(bits > 1)[0]
        raise DataError(
            f"{path}: expected only 0 and 1, found {chr(text[line, 2 * column])!r} in line {line + 1}, "
            f"value {column + 1}; {remedy}"
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise DataError(f"{path}: expected SHA-256 {file.sha256}, found {digest}; {remedy}")
    return np.ascontiguousarray(bits)
