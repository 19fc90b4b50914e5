"""Data sets made of picture files: a folder, a tar or a zip archive of PNG and JPEG, and ``natural64``.

Archives are read as streams and nothing is extracted. Each picture is turned as its camera says, laid on white where
it is transparent, made RGB, grey or black and white, scaled and cropped about its center, one at a time; the result
is a byte for each channel of a pixel, twice while it is put together. Names that do not end as pictures do are passed
over; what claims to be a picture and cannot be read, is truncated, or has more pixels than ``MOST_PIXELS`` is skipped
and named in a warning, or refused, by ``data.damaged``.
"""

import contextlib
import hashlib
import io
import os
import posixpath
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .progress import printable
from .splits import DataError, Form, Splits, make_splits

ENDINGS = (".png", ".jpg", ".jpeg")
PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8\xff")
ARCHIVE_ENDINGS = (".tar", ".zip", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz")
ARCHIVE_STARTS = (b"PK", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
MOST_PIXELS = 50_000_000
MOST_BYTES = 100_000_000
MOST_HEADER = 1_000_000
NATURAL64_FILES, NATURAL64_VALIDATION = ("train.tar", "val.tar"), 1000


class Pictures(NamedTuple):
    """Pictures that were read.

    Attributes:
        images: uint8, with shape (N, 3 * size * size), channel by channel.
        names: Of the files, sorted.
        skipped: Name and reason of each file that is no whole picture.
    """

    images: np.ndarray
    names: list[str]
    skipped: list[tuple[str, str]]


def read_pictures(path: Path, form: Form, refuse: bool = False) -> Pictures:
    """Read a folder, a ``.tar`` or a ``.zip`` of pictures as images of one form.

    Arguments:
        path: The folder or archive.
        form: Of the images. With one channel pictures become grey, with two levels black and white at half of white.
        refuse: Whether a file that is no whole picture is an error, instead of being skipped.

    Raises:
        DataError: If the path is missing or damaged, holds no picture, or a file is refused.
    """
    found: dict[str, np.ndarray] = {}
    skipped = []
    for name, content in _files(path):
        try:
            fitted = _fitted(content, form)
        except Exception as error:  # a decoder may raise anything
            if refuse:
                raise DataError(
                    f"{path}: {name} is no whole picture ({error}); remove it, or use --data.damaged skip"
                ) from error
            skipped.append((name, str(error)))
            continue
        if name in found:  # as where an archive is extracted, the last one stays
            skipped.append((name, "replaced by a later one of this name"))
        found[name] = fitted
    if not found:
        raise _none_found(path, skipped)
    names = sorted(found)
    return Pictures(np.stack([found[name] for name in names]), names, skipped)


def _unread(skipped: list[tuple[str, str]]) -> str:
    """How many files are no whole pictures, and the first of them."""
    return f"{len(skipped)} could not be read, such as {skipped[0][0]} ({skipped[0][1]})"


def _none_found(path: Path, skipped: list[tuple[str, str]]) -> DataError:
    reason = _unread(skipped) if skipped else "name the folder or archive that holds them"
    return DataError(f"{path}: expected pictures that end in {', '.join(ENDINGS)}, found none; {reason}")


def _files(path: Path, wanted: Callable[[], bool] = lambda: True) -> Iterator[tuple[str, bytes | Exception]]:
    """Name and content of each file that ends as a picture does; of one that cannot be read, why.

    Once content is not ``wanted`` any more, nothing is read, and b"" stands in its place.
    """
    if path.is_dir():
        for entry in sorted(walk(path)):
            if entry.suffix.lower() in ENDINGS and entry.is_file():
                yield entry.relative_to(path).as_posix(), _content(partial(open, entry, "rb")) if wanted() else b""
        return
    try:
        if _is_zip(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.filename.lower().endswith(ENDINGS):
                        yield _name(info.filename), _content(partial(archive.open, info)) if wanted() else b""
        else:
            with tarfile.open(path, "r|*", tarinfo=_Member) as archive:
                for member in archive:
                    is_picture = member.isreg() and member.name.lower().endswith(ENDINGS)  # links are passed over
                    file = archive.extractfile(member) if is_picture else None
                    if file is not None:
                        yield _name(member.name), file.read(MOST_BYTES) if wanted() else b""
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: expected a folder, a .tar or a .zip of pictures, found nothing there; correct the path"
        ) from error
    except Exception as error:  # tarfile, zipfile and what unpacks for them raise many kinds
        raise DataError(
            f"{path}: expected a folder, a .tar or a .zip of pictures, found {_instead(path, error)}"
        ) from error


def walk(path: Path) -> Iterator[Path]:
    """Every file below a folder, also behind links to other folders, but not twice, by links to what is in it.

    Raises:
        DataError: If a folder in it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{path}: {error.filename} cannot be read ({error.strerror}); make it readable or move it away")

    entered: set[Path] = {path.resolve()}  # those behind links, besides

    def is_new(folder: Path) -> bool:
        if not folder.is_symlink():
            return True
        target = folder.resolve()
        if any(target.is_relative_to(each) or each.is_relative_to(target) for each in entered):
            return False
        entered.add(target)
        return True

    for folder, folders, files in os.walk(path, followlinks=True, onerror=refuse):
        here = Path(folder)
        folders[:] = [name for name in sorted(folders) if is_new(here / name)]
        yield from (here / name for name in files)


def _content(opening: Callable[[], IO[Any]]) -> bytes | Exception:
    """What is in a file, no more than ``MOST_BYTES`` whatever it claims, or why that cannot be read."""
    try:
        with opening() as stream:
            content: bytes = stream.read(MOST_BYTES)
            return content
    except Exception as error:  # zipfile and what unpacks for it raise many kinds
        return error


def _name(name: str) -> str:
    """A name in an archive as that of the same file in a folder: tar may write ./ before it."""
    return posixpath.normpath(name)


def _is_zip(path: Path) -> bool:
    """By its name or its first bytes."""
    if path.suffix.lower() == ".zip":
        return True
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _instead(path: Path, error: Exception) -> str:
    """What a file that could not be read as an archive is, and what to do."""
    if isinstance(error, PermissionError):
        return "one that may not be read; correct its permissions, or name another"
    if path.suffix.lower() in (".npy", ".npz"):
        return "a NumPy array; arrays are given in Python, as splits=latentbits.make_splits(...) to train"
    with path.open("rb") as stream:
        start = stream.read(512)
    if start.startswith(PICTURE_STARTS) or path.suffix.lower() in ENDINGS:
        return f"a single picture; name its folder, {path.absolute().parent}"
    if (
        path.suffix.lower() not in ARCHIVE_ENDINGS
        and not start.startswith(ARCHIVE_STARTS)
        and start[257:262] != b"ustar"
    ):
        return f"a file of another kind{f' ({path.suffix})' if path.suffix else ''}; name a folder or an archive"
    return f"a damaged one ({error}); make or fetch it again"


class _Member(tarfile.TarInfo):
    """Refuses what tarfile would read into memory however long it is: headers, and the maps of sparse files."""

    @classmethod
    def frombuf(cls, *arguments: Any) -> "_Member":
        try:
            member = super().frombuf(*arguments)
        except tarfile.HeaderError as error:
            if arguments[0].count(0) == tarfile.BLOCKSIZE:  # the mark of the end
                raise
            raise tarfile.ReadError(f"{error}, where a file or the end was expected") from error
        headers = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        if member.type in (*headers, tarfile.SOLARIS_XHDTYPE) and member.size > MOST_HEADER:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        return member

    def _proc_gnusparse_10(self, *arguments: Any) -> None:
        raise tarfile.ReadError("a sparse file")


@contextlib.contextmanager
def opened(file: Path | io.BytesIO) -> Iterator[Image.Image]:
    """A PNG or JPEG picture that is not unpacked yet.

    Raises:
        ValueError: If it has more pixels than ``MOST_PIXELS``.
        Exception: Of many kinds, if it is no such picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damage, which shows by itself, and of many pixels
        try:
            picture = Image.open(file, formats=("PNG", "JPEG"))
        except UnidentifiedImageError:
            raise ValueError("it is no PNG or JPEG") from None
        with picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MOST_PIXELS:,}")
            yield picture


def in_bytes(picture: Image.Image, channels: int = 1) -> Image.Image:
    """A picture in RGB, or in grey for one channel, with a byte for each; on white where it is transparent."""
    if picture.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        above = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return picture.convert("RGB" if channels == 3 else "L")


def _fitted(content: bytes | Exception, form: Form) -> np.ndarray:
    """A picture as (D,) levels, channel by channel.

    Raises:
        Exception: Of many kinds, if it is none, or why it could not be read.
    """
    if isinstance(content, Exception):
        raise content
    with opened(io.BytesIO(content)) as picture:
        upright = in_bytes(ImageOps.exif_transpose(picture), form.channels)
    fitted = np.asarray(ImageOps.fit(upright, (form.width, form.height), Image.Resampling.LANCZOS))
    levels = fitted if form.levels == 256 else (fitted >= 128).astype(np.uint8)
    return np.atleast_3d(levels).transpose(2, 0, 1).reshape(-1)


KINDS = {"colour": (3, 256), "grey": (1, 256), "black-and-white": (1, 2)}


def square_form(size: int, kind: str = "colour") -> Form:
    """Of squares in colour, grey, or black and white."""
    channels, levels = KINDS[kind]
    return Form(channels, size, size, levels)


class Description(NamedTuple):
    """What pictures at a place look like.

    Attributes:
        kind: One of ``KINDS``.
        files: How many end as pictures do.
        looked_at: How many of them were opened.
    """

    kind: str
    files: int
    looked_at: int


def describe(path: Path, most: int = 200) -> Description:
    """Look at the first pictures of a folder or an archive.

    They are in colour if in more than one in twenty the channels differ by more than a JPEG's rounding, black and white
    if nearly all pixels are near an end of the scale in nearly all of them, and grey otherwise.

    Raises:
        DataError: As :func:`read_pictures`.
    """
    form = square_form(64)
    coloured: list[bool] = []
    two_levels: list[bool] = []
    names: set[str] = set()
    skipped = []
    for name, content in _files(path, wanted=lambda: len(coloured) < most):
        names.add(name)
        if len(coloured) == most:
            continue
        try:
            planes = _fitted(content, form).reshape(3, -1).astype(np.int16)
            spread = planes.max(0) - planes.min(0)
            light = planes.mean(0)
            coloured.append(bool(np.quantile(spread, 0.95) > 16))
            two_levels.append(bool(np.mean((light < 48) | (light > 207)) > 0.7))
        except Exception as error:  # a decoder may raise anything
            skipped.append((name, str(error)))
    if not coloured:
        raise _none_found(path, skipped)
    is_black_and_white = np.mean(two_levels) > 0.9
    kind = "colour" if np.mean(coloured) > 1 / 20 else "black-and-white" if is_black_and_white else "grey"
    return Description(kind, len(names), len(coloured))


def images(path: Path, form: Form, refuse: bool = False) -> Splits:
    """One's own pictures, 8 in 10 for training, split by a hash of each one's name: adding some to a folder moves none.

    What is skipped is named in a warning.

    Raises:
        DataError: As :func:`read_pictures`, or if a split stays empty.
    """
    pictures = read_pictures(path, form, refuse)
    tenth = np.array([hashlib.sha256(os.fsencode(name)).digest()[0] * 10 // 256 for name in pictures.names])
    parts = [pictures.images[which] for which in (tenth < 8, tenth == 8, tenth == 9)]
    if not all(len(part) for part in parts):
        found = f"{len(pictures.names)}{f', and {_unread(pictures.skipped)}' if pictures.skipped else ''}"
        raise DataError(
            f"{path}: expected enough pictures for training, validation and test, found {found}; their names decide "
            "which is which; add some: 50 or more are nearly always enough"
        )
    warn_of(pictures, path)
    return make_splits("images", parts, form)


def warn_of(pictures: Pictures, path: Path) -> None:
    """Count and name what was skipped."""
    if pictures.skipped:
        some = printable(", ".join(f"{name} ({reason})" for name, reason in pictures.skipped[:5]))
        warnings.warn(f"{path}: skipped {len(pictures.skipped)} files that are no whole pictures: {some}", stacklevel=2)


def natural64(folder: Path, refuse: bool = False) -> Splits:
    """Photographs of 64x64: ``train.tar``, the last 1,000 by name for validation, and ``val.tar`` for test."""
    both = [read_pictures(folder / name, square_form(64), refuse) for name in NATURAL64_FILES]
    for pictures, name in zip(both, NATURAL64_FILES, strict=True):
        warn_of(pictures, folder / name)
    train, test = (pictures.images for pictures in both)
    if len(train) <= NATURAL64_VALIDATION:
        raise DataError(
            f"{folder / 'train.tar'}: expected more than {NATURAL64_VALIDATION:,} pictures, found {len(train):,}"
        )
    parts = [train[:-NATURAL64_VALIDATION], train[-NATURAL64_VALIDATION:], test]
    return make_splits("natural64", parts, square_form(64))
