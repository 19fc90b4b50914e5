"""Codes of images in a file, and images and their names from a place that a user names."""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .files import FileError, write_atomically
from .folders import read_pictures, warn_of
from .splits import Form

MOST_BYTES = 2**30


class CodesError(FileError):
    """A file of codes that cannot be used; the message says why."""


class Codes(NamedTuple):
    """Latents of images.

    Attributes:
        z: Bits as 0.0 and 1.0, or continuous latents, with shape (N, M).
        names: Of the images.
        made_by: Fingerprint of the weights that made them; empty if not known.
    """

    z: Tensor
    names: list[str]
    made_by: str = ""


def save_codes(path: Path | str, codes: Codes, binary: bool = True) -> None:
    """Write codes as an npz file: ``names``, ``made_by``, and ``bits`` packed by eight and ``count``, or ``latents``.

    Raises:
        ValueError: If they are not bits although they should be, or have not a name each.
    """
    z = codes.z.cpu().numpy()
    if z.ndim != 2 or len(z) != len(codes.names):
        raise ValueError(f"codes: expected z (N, M) and N names, got {z.shape} and {len(codes.names)} names")
    if binary and not np.isin(z, (0, 1)).all():
        raise ValueError("codes: expected 0s and 1s, got other values; continuous latents are written by binary=False")
    arrays = {"bits": np.packbits(z.astype(bool), axis=1), "count": np.array(z.shape[1])} if binary else {"latents": z}
    content = io.BytesIO()
    about = {"names": np.array(codes.names), "made_by": np.array(codes.made_by)}
    np.savez_compressed(content, allow_pickle=False, **about, **arrays)
    write_atomically(Path(path), content.getvalue())


def load_codes(path: Path) -> Codes:
    """Read codes from an npz file; nothing in it is unpickled.

    Raises:
        CodesError: If it is missing, damaged, no file of codes, or of more than ``MOST_BYTES`` in memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(info.file_size for info in archive.infolist()))
        codes = _arrays(path)
    except CodesError:
        raise
    except FileNotFoundError as error:
        raise CodesError(f"{path}: not found; `latentbits encode` writes such a file") from error
    except Exception as error:  # zipfile, numpy and what unpacks for them raise many kinds
        raise CodesError(f"{path}: expected codes from `latentbits encode`, found another or a damaged file") from error
    z, names = codes.z, codes.names
    if z.ndim != 2 or len(z) != len(names) or not z.isfinite().all():
        shape = tuple(z.shape)
        raise CodesError(f"{path}: expected finite codes and a name for each, found {shape} and {len(names)} names")
    return codes


def _check_size(path: Path, size: int) -> None:
    if size > MOST_BYTES:
        raise CodesError(f"{path}: expected codes of up to {MOST_BYTES:,} bytes, found {size:,}; split the images up")


def _arrays(path: Path) -> Codes:
    with np.load(path, allow_pickle=False) as file:
        names = [str(name) for name in file["names"]]
        made_by = str(file["made_by"]) if "made_by" in file else ""  # which older files do not say
        if "latents" in file:
            return Codes(torch.from_numpy(np.asarray(file["latents"], np.float32)), names, made_by)
        bits, count = file["bits"], int(file["count"])
        if not 0 <= count <= 8 * bits.shape[1]:
            raise ValueError(f"count: expected up to {8 * bits.shape[1]}, found {count}")
        _check_size(path, len(bits) * max(count, 8 * bits.shape[1]) * 4)  # a float32 for each
        z = np.unpackbits(bits, axis=1, count=count).astype(np.float32)
        return Codes(torch.from_numpy(z), names, made_by)


def read_images(path: Path | str, form: Form, invert: bool = False) -> Codes:
    """Pictures of a folder or an archive in a model's form: levels (N, D) in place of latents, and their names.

    Arguments:
        path: The folder, ``.tar`` or ``.zip``.
        form: What the model's images look like.
        invert: Whether light and dark are exchanged, as for ink on paper under a model of light on dark.

    Raises:
        DataError: As :func:`latentbits.folders.read_pictures`.
    """
    pictures = read_pictures(Path(path), form)
    warn_of(pictures, Path(path))
    levels = torch.from_numpy(pictures.images)
    return Codes(form.levels - 1 - levels if invert else levels, pictures.names)
