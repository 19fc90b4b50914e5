"""What a result's file says: figures, the weights and images behind them, and where it all comes from."""

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import __version__, distributed
from .evaluate import Evaluation
from .files import append_line, read_text, write_json
from .runs import Run, RunError
from .splits import Splits


def provenance() -> dict[str, Any]:
    """Where a result comes from: command, commit, versions, machine and time."""
    package = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, check=False)
        except OSError:  # no git here
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD") if git("rev-parse", "--show-toplevel") == str(package.parent) else ""
    if commit and git("status", "--porcelain", "--untracked-files=no", "."):
        commit += "-modified"
    return {
        "command": shlex.join(["latentbits", *sys.argv[1:]]),
        "commit": commit or None,
        "versions": {
            "latentbits": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": distributed.world().size,
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def evaluation_record(
    run: Run, weights: str, evaluation: Evaluation, images: tuple[int, int], seed: int, splits: Splits, seconds: float
) -> dict[str, Any]:
    """What is kept of an evaluation.

    Arguments:
        run: The run folder.
        weights: Name of the weights that were evaluated.
        evaluation: The figures.
        images: How many of the split's images, and how many it has.
        seed: Seed of the evaluation.
        splits: The data.
        seconds: Wall time.
    """
    used, there = images
    return {
        "evaluation": evaluation.model_dump(exclude_none=True),
        "recipe": run.config.recipe,
        "config": run.config.model_dump(),
        "weights": {"file": weights, **run.weights_origin(weights)},
        "images": which_images(used, there),
        "training_seconds": (run.metrics() or [{}])[-1].get("seconds"),
        "wall_seconds": round(seconds, 1),
        "seed": seed,
        "data_checksum": splits.checksum,
        "trained_on": run.data_checksum,
        **provenance(),
    }


def which_images(used: int, there: int) -> str:
    """Which images of a split an evaluation is of, in words."""
    return f"{used:,} evenly spaced of {there:,}" if used < there else f"all {there:,}"


def keep_evaluation(folder: Run, record: dict[str, Any], out: Path | None) -> None:
    """Write an evaluation's record: as the run's last, at the end of its list, and where it is wanted besides."""
    write_json(folder.path / "evaluation.json", record)
    append_line(folder.path / "evaluations.jsonl", record)
    if out is not None:
        write_json(out, record)


class Record(NamedTuple):
    """A run's last evaluation.

    Attributes:
        evaluation: The figures.
        about: All that its file says, as :func:`evaluation_record` wrote it.
    """

    evaluation: Evaluation
    about: dict[str, Any]


def of_other_data(record: Record) -> bool:
    """Whether an evaluation is of other data than the run was trained on, as far as is known."""
    return record.about.get("trained_on") not in (None, record.about["data_checksum"])


def last_evaluation(run: Run) -> Record | None:
    """What ``evaluation.json`` says, or None if the run has not been evaluated.

    Raises:
        RunError: If the file is damaged.
    """
    path = run.path / "evaluation.json"
    if not path.is_file():
        return None
    try:
        about = json.loads(read_text(path))
        kinds = {"command": str, "images": str, "data_checksum": str, "weights": dict, "versions": dict}
        for name, kind in kinds.items():
            if not isinstance(about[name], kind):
                raise ValueError(f"{name}: expected a {kind.__name__}")
        if not isinstance(about["weights"]["file"], str):
            raise ValueError("weights: expected their file's name")
        return Record(Evaluation.model_validate(about["evaluation"]), about)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path}: damaged; evaluate again to replace it") from error
