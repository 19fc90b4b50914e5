"""What a result's file says: figures, the weights and images behind them, and where it all comes from."""

import contextlib
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
from .figures import NLL, Evaluation, doubts
from .files import DamagedError, FileError, append_line, read_text, write_json
from .nets import processor
from .runs import Run, RunError
from .splits import Splits


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Where a result comes from: command, commit, versions, machine with the device that was used, and time."""
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
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": distributed.world().size,
            "accelerator": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        },
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def evaluation_record(
    run: Run,
    weights: str,
    evaluation: Evaluation,
    seed: int,
    splits: Splits,
    seconds: float,
    device: str,
) -> dict[str, Any]:
    """What is kept of an evaluation.

    Arguments:
        run: The run folder.
        weights: Name of the weights that were evaluated.
        evaluation: The figures.
        seed: Seed of the evaluation.
        splits: The data.
        seconds: Wall time.
        device: Where the model was, as PyTorch names it.
    """
    return {
        "evaluation": evaluation.model_dump(exclude_none=True),
        "recipe": run.config.recipe,
        "config": run.config.model_dump(),
        "weights": {"file": weights, **run.weights_origin(weights)},
        "images": which_images(evaluation.likelihood.images, splits, evaluation.split),
        "training_seconds": (run.metrics() or [{}])[-1].get("seconds"),
        "wall_seconds": round(seconds, 1),
        "seed": seed,
        "data_checksum": splits.checksum,
        "trained_on": run.data_checksum,
        **provenance(device),
    }


def which_images(used: int, splits: Splits, split: str) -> str:
    """Which images of a split an evaluation is of, in words, and whether more of the split were published."""
    there = len(getattr(splits, split))
    which = f"{used:,} evenly spaced of {there:,}" if used < there else f"all {there:,}"
    return which + splits.of_published(split)


def keep_evaluation(folder: Run, record: dict[str, Any], out: Path | None) -> None:
    """Write an evaluation's record: where it is wanted besides, as the run's last, and at the end of its list."""
    if out is not None:  # first: a place that cannot be written to leaves the run as it was
        write_json(out, record)
    last, every = folder.path / "evaluation.json", folder.path / "evaluations.jsonl"
    if last.is_file() and not every.exists():  # of a folder that was exported
        with contextlib.suppress(DamagedError, json.JSONDecodeError):  # which this evaluation is to replace
            before = json.loads(read_text(last))
            append_line(every, before)
    write_json(last, record)
    append_line(every, record)


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


def of_other_weights(run: Run, record: Record, weights: str = "model") -> str:
    """Of which weights an evaluation is, if it is not of these of the run as they are now; else nothing."""
    evaluated = record.about["weights"]
    origin: dict[str, str] = {}
    if (run.path / f"{weights}.safetensors").is_file():
        with contextlib.suppress(FileError):  # damaged ones are not those that were evaluated
            origin = run.weights_origin(weights)
    same_place = all(evaluated.get(key) == origin.get(key) for key in ("stage", "step"))
    if same_place and (evaluated["file"] == weights or "step" in origin):  # the last epoch's may be the best
        return ""
    step = f" at step {evaluated['step']}" if evaluated.get("step") else ""
    stage = f" of stage {evaluated['stage']}" if evaluated.get("stage") else ""
    return f"{evaluated['file']}{stage}{step}"


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


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


EVALUATION_HEAD = ("", "nats", "± MC", "± images", "bits/dim", "images", "K", "ESS")


def evaluation_rows(evaluation: Evaluation) -> list[list[str]]:
    """An evaluation's estimates, with a cell for each title of ``EVALUATION_HEAD``."""

    def row(name: str, of: NLL) -> list[str]:
        return [
            name,
            f"{of.nll:.3f}",
            _number(of.standard_error_monte_carlo),
            _number(of.standard_error_images),
            f"{of.bits_per_dimension:.4f}",
            f"{of.images:,}",
            f"{of.samples:,}" if of.samples else "",
            f"{of.effective_sample_size:,.{0 if of.effective_sample_size >= 100 else 1}f}" if of.samples else "",
        ]

    bound = "L_K, " if evaluation.likelihood.samples else ""  # an RBM over the data sums nothing out by sampling
    if evaluation.refine_steps:
        bound = "refined, "
    method = "exact Z" if evaluation.log_partition.method == "exact" else "AIS"
    rows = [row(f"{bound}{method}", evaluation.likelihood)]
    if evaluation.likelihood_fewer_samples:
        rows.append(row("smaller K", evaluation.likelihood_fewer_samples))
    if evaluation.likelihood_raise:
        images = evaluation.likelihood_raise.images
        name = "RAISE" if images == evaluation.likelihood.images else f"RAISE on {images:,}"  # whose own bound differs
        rows.append(row(name, evaluation.likelihood_raise))
    return rows


def evaluation_captions(evaluation: Evaluation) -> list[str]:
    """What the columns are, log Z, how RAISE differs on the images that it shares with the first row, and doubts."""
    lines = ["± MC: Monte-Carlo error for these images; ± images: standard error over images"]
    if evaluation.refine_steps:
        lines.append(
            f"refined: each image's posterior by {evaluation.refine_steps:,} gradient steps before its K samples"
        )
    for log_z in (evaluation.log_partition, evaluation.log_partition_ais):
        if log_z and log_z.method == "exact":
            lines.append(f"log Z = {log_z.value:.3f}, exact")
        elif log_z:
            lines.append(
                f"log Z = {log_z.value:.3f} ± {_number(log_z.standard_error)} by AIS, {log_z.chains:,} chains, "
                f"{log_z.temperatures:,} {log_z.schedule} temperatures, ESS {log_z.effective_sample_size:,.0f}"
            )
    if raised := evaluation.likelihood_raise:
        lines.append(
            f"RAISE minus the first row on the same {raised.images:,} images: {raised.difference:+.3f} ± "
            f"{_number(raised.difference_standard_error)} ({raised.resampled} resampled, "
            f"{raised.temperatures:,} temperatures)"
        )
    return [*lines, *(f"Doubtful: {doubt}" for doubt in doubts(evaluation))]
