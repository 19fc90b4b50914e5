"""Where the seconds of an epoch of stage 3 go: the real training loop, with a clock around its parts."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.optim import SGD, Adam
from torch.optim.swa_utils import AveragedModel

from latentbits import LatentModel, joint, stages, train
from latentbits.chains import Chains
from latentbits.recipes import mnist_mlp


def parts_of_an_epoch(data_dir: Path | None) -> dict[str, float]:
    """Seconds of one epoch of mnist-mlp's stage 3 from random weights, in all and for each part.

    Arguments:
        data_dir: Folder with binarized MNIST's files.
    """
    seconds: dict[str, float] = defaultdict(float)
    began: list[str] = []

    def timed(owner: Any, name: str, part: str) -> Any:
        work: Callable[..., Any] = getattr(owner, name)

        def clocked(*arguments: Any, **options: Any) -> Any:
            began.append(part)
            started = time.perf_counter()
            try:
                return work(*arguments, **options)
            finally:
                began.pop()
                if "validation" not in began:  # which scores samples too
                    seconds[part] += time.perf_counter() - started

        return mock.patch.object(owner, name, clocked)

    recipe = mnist_mlp()
    config = recipe.model_copy(
        update={
            "autoencoder": recipe.autoencoder.model_copy(update={"epochs": 0}),
            "rbm": recipe.rbm.model_copy(update={"cd_epochs": 0, "pcd_epochs": 0}),
            "joint": recipe.joint.model_copy(update={"epochs": 1}),
        }
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        timed(Chains, "advance", "chains"),
        timed(LatentModel, "log_joint", "scoring K samples"),
        timed(joint, "joint_losses", "losses"),
        timed(torch.Tensor, "backward", "backward"),
        timed(Adam, "step", "optimizers"),
        timed(SGD, "step", "optimizers"),
        timed(AveragedModel, "update_parameters", "moving average"),
        timed(stages, "quick_nll", "validation"),
    ):
        run = train(config, Path(folder) / "run", data_dir=data_dir, quiet=True)
        epoch = float(run.metrics()[-1]["seconds"])
    names = ("chains", "scoring K samples", "backward", "optimizers", "moving average", "validation")
    parts = {name: seconds[name] for name in names}
    parts["losses but for scoring"] = seconds["losses"] - seconds["scoring K samples"]
    parts["the rest"] = epoch - sum(parts.values())
    return {"epoch": epoch, **parts}
