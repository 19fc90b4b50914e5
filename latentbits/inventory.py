"""Which data sets are present: the files of each, where they were looked for, and their size."""

from pathlib import Path
from typing import NamedTuple

from . import colour, data
from .folders import ENDINGS, NATURAL64_FILES, walk
from .splits import DataError, cache_dir


class DataSet(NamedTuple):
    """A data set and what is there of it.

    Attributes:
        name: As ``--data.name`` takes it.
        summary: What it is.
        files: Each file's name, and the path where it lies or None; several may lie in one archive.
        place: Where they were looked for; None where they have no place of their own and none was named.
        absent: What to do about files that are not there.
    """

    name: str
    summary: str
    files: dict[str, Path | None]
    place: Path | None
    absent: str

    def lines(self) -> list[str]:
        """What it is, what is present, and what is absent."""
        found = list(dict.fromkeys(path for path in self.files.values() if path is not None))
        missing = [name for name, path in self.files.items() if path is None]
        told = [f"{self.name}: {self.summary}"]
        if found:
            which = "present" if not missing else f"{len(self.files) - len(missing)} of {len(self.files)} files present"
            told.append(f"  {which} in {self.place}: {', '.join(path.name for path in found)}; {size_of(found)}")
        if missing:
            where = "" if self.place is None else f" in {self.place}"
            told.append(f"  absent{where}: {', '.join(missing)}; {self.absent}")
        return told


def size_of(paths: list[Path]) -> str:
    """The bytes of files together."""
    size = sum(path.stat().st_size for path in paths)
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def published(data_dir: Path | None) -> list[DataSet]:
    """The data sets that consist of certain files, looked for in a folder, or in the cache if none is named."""
    folder = cache_dir() if data_dir is None else data_dir
    mnist = {file.name: data.find(file, data_dir) for file in data.MNIST_FILES.values()}
    megabytes = sum(file.size for file in data.MNIST_FILES.values()) / 1e6
    first = next(iter(data.MNIST_FILES.values()))
    return [
        DataSet(
            "binarized-mnist",
            "statically binarized MNIST, 50,000 / 10,000 / 10,000 images of 28x28",
            mnist,
            folder,
            f"downloaded when needed, unless --data-dir is given, {megabytes:.0f} MB together, from "
            f"{first.url.removesuffix(first.name)}",
        ),
        DataSet(
            "cifar10",
            "45,000 / 5,000 / up to 10,000 colour images of 32x32, as many for test as the test batch has",
            colour.cifar10_files(folder),
            folder,
            f"downloaded when needed, unless --data-dir is given, 170 MB in one archive, from {colour.CIFAR10_URL}",
        ),
        DataSet(
            "imagenet64",
            "ImageNet at 64x64 (Chrabaszcz et al. 2017), 1,271,167 / 10,000 / 50,000 colour images, 16 GB in memory",
            present(colour.IMAGENET64_BATCHES, data_dir),
            data_dir,
            f"not downloaded; fetch them from {colour.IMAGENET64_URL}, which asks for an account, and name their "
            "folder with --data-dir",
        ),
        DataSet(
            "natural64",
            "photographs of 64x64 in two archives: 50 and 5 pictures of each of Tiny ImageNet's 200 kinds, or others",
            present(NATURAL64_FILES, data_dir),
            data_dir,
            "not downloaded; name their folder with --data-dir",
        ),
    ]


def present(names: tuple[str, ...], folder: Path | None) -> dict[str, Path | None]:
    """Where files lie in a folder, if one is named."""
    return {name: folder / name if folder is not None and (folder / name).is_file() else None for name in names}


def own_pictures(place: Path | None) -> str:
    """What is at a place of one's own pictures, by the names of its files alone."""
    if place is None:
        return "no place named; name a folder, .tar or .zip with --data-dir"
    if place.is_file():
        return f"the file {place}, {size_of([place])}, which was not looked into"
    try:
        found = [path for path in walk(place) if path.suffix.lower() in ENDINGS and path.is_file()]
    except DataError as error:  # about one kind of data, where all are listed
        return str(error)
    if not found:
        return f"absent in {place}: none that end in {', '.join(ENDINGS)}"
    return f"present in {place}: {len(found):,} that end in {', '.join(ENDINGS)}; {size_of(found)}"


def digits_size() -> str:
    """What scikit-learn's file of digits takes."""
    from importlib.util import find_spec

    origin = getattr(find_spec("sklearn"), "origin", None)  # the package itself is slow to import
    path = Path(str(origin)).parent / "datasets" / "data" / "digits.csv.gz"
    return size_of([path]) if path.is_file() else "of unknown size"
