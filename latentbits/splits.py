"""What a data set is, and the user's cache."""

import contextlib
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
import torch
from torch import Tensor

from .files import DamagedError, read_bytes, write_atomically
from .fused import generator_device
from .progress import DownloadBar
from .rbm import clamp_means

PUBLISHED_TEST_IMAGES = {"cifar10": 10_000}
"""Of data sets whose test images may be there in part."""


class DataError(ValueError):
    """Data that are missing, damaged or of the wrong form; the message says what to do."""


class Form(NamedTuple):
    """What the images of a data set look like.

    Attributes:
        channels: 1, or 3 for colour.
        height: In pixels.
        width: In pixels.
        levels: 2 for bits, 256 for bytes.
        ink: Whether the highest level is ink, which pictures show as black on white.
    """

    channels: int
    height: int
    width: int
    levels: int = 2
    ink: bool = False

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self[:3]

    @property
    def dimensions(self) -> int:
        """D, their product."""
        return self.channels * self.height * self.width

    def bits_per_dimension(self, nats: float) -> float:
        """A negative log-likelihood in nats for an image, in the bits/dim that images of many levels are quoted in."""
        return nats / (self.dimensions * math.log(2))


class Splits(NamedTuple):
    """A data set.

    Attributes:
        name: Its name.
        train: Training data, uint8 below the form's levels, with shape (N, D).
        valid: Validation data, likewise.
        test: Test data, likewise.
        form: What an image looks like.
        checksum: SHA-256 of the three splits, bits packed.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    form: Form
    checksum: str

    def summary(self) -> str:
        """Its name, how many images each split has, and what they look like."""
        sizes = " / ".join(f"{len(part):,}" for part in (self.train, self.valid, self.test))
        part = self.of_published("test")
        found = f"{self.name}: {sizes} images of {self.form.height} by {self.form.width}, {self.form.levels} levels"
        return found + (f"; test images: {len(self.test):,}{part}" if part else "")

    def of_published(self, split: str) -> str:
        """Words to put behind the number of a split's images, if more of them were published than are there."""
        published = PUBLISHED_TEST_IMAGES.get(self.name, 0) if split == "test" else 0
        return f" present, of {published:,} published" if len(self.test) < published else ""

    def to(self, device: str) -> "Splits":
        """The same data on a device."""
        return self._replace(train=self.train.to(device), valid=self.valid.to(device), test=self.test.to(device))

    def mean_logits(self) -> Tensor:
        """Log-odds of the training bits' means, with shape (D,), finite by clamping the means."""
        sums = [part.sum(0) for part in self.train.split(10_000)]  # whole numbers take eight times the bytes
        return torch.logit(clamp_means(torch.stack(sums).sum(0).double() / len(self.train), len(self.train))).float()


def make_splits(name: str, parts: Sequence[np.ndarray | Tensor], form: Form) -> Splits:
    """A data set from its training, validation and test data.

    Arguments:
        name: Of the data.
        parts: The three, arrays or tensors of uint8 below the form's levels, or of bool, with shape (N, D).
        form: What an image looks like; of other data (1, 1, D).

    Raises:
        DataError: If they do not have that form.
    """
    if len(parts) != 3:
        raise DataError(f"{name}: expected training, validation and test data, got {len(parts)} parts")
    if not isinstance(form, Form):
        raise DataError(f"{name}: expected form as latentbits.Form(channels, height, width, levels), got {form!r}")
    arrays = [part.cpu().numpy() if isinstance(part, Tensor) else np.asarray(part) for part in parts]
    arrays = [part.astype(np.uint8) if part.dtype == bool else part for part in arrays]
    for title, part in zip(("training", "validation", "test"), arrays, strict=True):
        if part.dtype != np.uint8 or part.ndim != 2 or part.shape[1] != form.dimensions or not len(part):
            raise DataError(
                f"{name}: expected {title} data as uint8 with shape (N, {form.dimensions}), N at least 1, got "
                f"{part.dtype} with {part.shape}"
                + ("; convert them to uint8" if part.dtype.kind in "iu" and part.dtype != np.uint8 else "")
            )
        if form.levels < 256 and (highest := int(part.max())) >= form.levels:
            raise DataError(f"{name}: expected {title} data below {form.levels}, got {highest}")
    digest = hashlib.sha256()
    for part in arrays:
        digest.update(np.ascontiguousarray(np.packbits(part, axis=1) if form.levels == 2 else part).data)
    train, valid, test = (torch.from_numpy(part) for part in arrays)
    return Splits(name, train, valid, test, form, digest.hexdigest())


def evenly_spaced(images: int, count: int) -> Tensor:
    """Positions (count,) of images of a split, evenly spaced from its first; of more than it has, some come repeatedly.

    A split may be sorted, as the published test images of binarized MNIST are, so that its first images are no sample.
    """
    return torch.arange(count) * images // max(1, count)


def some_of(x: Tensor, count: int | None) -> Tensor:
    """So many of the data x (N, D), evenly spaced, (n, D); the data themselves, not a copy, where that is all."""
    return x if count is None or count >= len(x) else x[evenly_spaced(len(x), count)]


def cache_dir() -> Path:
    """The user's cache folder for data."""
    return Path(os.environ.get("LATENTBITS_CACHE") or pooch.os_cache("latentbits"))


def plain_or_packed(path: Path, ending: str) -> Path | None:
    """The file itself, or else the one that is compressed, whose name goes on with the ending; None without either."""
    return next((each for each in (path, path.with_name(path.name + ending)) if each.is_file()), None)


def download(name: str, url: str, sha256: str) -> Path:
    """Download a published file into the cache, checked.

    Raises:
        DataError: If it cannot be had, or is another file.
    """
    try:
        with DownloadBar(name) as bar:
            downloader = pooch.HTTPDownloader(progressbar=bar)
            return Path(pooch.retrieve(url, f"sha256:{sha256}", name, cache_dir(), downloader=downloader))
    except Exception as error:
        raise DataError(
            f"{name}: could not be downloaded from {url} ({error}); fetch it by hand and name its folder with "
            "--data-dir"
        ) from error


def read_file(path: Path, most: int) -> bytes:
    """The content of a file of up to so many bytes.

    Raises:
        DataError: If it cannot be read or is longer.
    """
    try:
        return read_bytes(path, most)
    except DamagedError as error:
        raise DataError(f"{error}; fetch it again") from error


def read_cached(path: Path) -> np.ndarray | None:
    """The bytes of a cached file, flat, if it is whole, else None; its last 32 bytes are the SHA-256 of the others."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body, digest = content[:-32], content[-32:]
    return np.frombuffer(body, np.uint8) if hashlib.sha256(body).digest() == digest else None


def write_cached(path: Path, rows: np.ndarray) -> None:
    """Keep bytes in a file of the cache, where that can be written."""
    body = rows.tobytes()
    with contextlib.suppress(OSError):  # the cache saves time and nothing else
        write_atomically(path, body + hashlib.sha256(body).digest())


def flip(x: Tensor, form: Form, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Images x (B, D), each with some probability as in a mirror, left for right."""
    if not probability:
        return x
    mirrored = torch.rand(len(x), 1, generator=generator, device=generator_device(generator, x)) < probability
    return torch.where(mirrored.to(x.device), x.view(len(x), *form.image).flip(-1).reshape(len(x), -1), x)


def shift(x: Tensor, form: Form, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Images x (B, D), each moved with some probability by a pixel in one of eight directions; zeros come in."""
    if not probability:
        return x
    B, (C, H, W) = len(x), form.image
    device = generator_device(generator, x)
    moved = torch.rand(B, generator=generator, device=device) < probability
    where = torch.randint(8, (B,), generator=generator, device=device)
    where = torch.where(moved, where + (where >= 4), 4).to(x.device)[:, None]  # of the nine, 4 stays
    rows = where // 3 + torch.arange(H, device=x.device)  # in the image with a border of zeros
    columns = where % 3 + torch.arange(W, device=x.device)
    bordered = torch.nn.functional.pad(x.view(B, C, H, W), (1, 1, 1, 1))
    image = torch.arange(B, device=x.device)[:, None, None, None]
    channel = torch.arange(C, device=x.device)[None, :, None, None]
    return bordered[image, channel, rows[:, None, :, None], columns[:, None, None, :]].reshape(B, -1)


def distort(x: Tensor, form: Form, amplitude: float, generator: torch.Generator | None = None) -> Tensor:
    """Images x (B, D), each bent by a smooth random displacement (Simard et al. 2003), nearest pixel; zeros come in.

    Normal displacements on a grid of 4 x 4 points, interpolated between them, with a standard deviation that is
    drawn for each image between 0 and ``amplitude`` pixels.
    """
    if not amplitude:
        return x
    B, (C, H, W) = len(x), form.image
    device = generator_device(generator, x)
    coarse = torch.randn(B, 2, 4, 4, generator=generator, device=device)
    coarse = coarse * (amplitude * torch.rand(B, 1, 1, 1, generator=generator, device=device))
    pixels = torch.nn.functional.interpolate(coarse.to(x.device), (H, W), mode="bilinear", align_corners=True)
    down, right = pixels.round().long().unbind(1)
    rows = torch.arange(H, device=x.device)[:, None] + down
    columns = torch.arange(W, device=x.device) + right
    inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    source = rows.clamp(0, H - 1) * W + columns.clamp(0, W - 1)
    bent = x.view(B, C, H * W).gather(2, source.view(B, 1, -1).expand(-1, C, -1)).view(B, C, H, W)
    return (bent * inside[:, None]).reshape(B, -1)
