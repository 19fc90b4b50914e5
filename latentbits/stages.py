"""What the stages of training share: learning rates over time, augmentation, weight decay, quick validation."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from .config import Augmentation
from .evaluate import fit_prior_base, quick_nll
from .model import LatentModel
from .nets import evaluating, weight_matrices
from .rbm import RBM
from .session import Session
from .splits import Form, distort, flip, shift, some_of

IMAGES_FOR_BASE = 10_000


def rate_factor(step: int, steps: int, decay: float, warmup: int = 0) -> float:
    """Rising linearly to 1 over ``warmup`` steps, falling linearly to 0 over the last share ``decay`` of all steps."""
    left = (steps - step) / steps
    falling = min(1.0, left / decay) if decay else 1.0
    return min(falling, (step + 1) / warmup) if warmup else falling


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Multiply each group's first learning rate by a factor."""
    for each in optimizer.param_groups:
        each["lr"] = each["initial_lr"] * factor


def group(parameters: Any, rate: float, **options: float) -> dict[str, Any]:
    """Parameters of an optimizer, each once, with a first learning rate, which :func:`set_rates` scales."""
    return {"params": list(dict.fromkeys(parameters)), "lr": rate, "initial_lr": rate, **options}


def augment(x: Tensor, form: Form, config: Augmentation, share: float, generator: torch.Generator) -> Tensor:
    """Training images (B, D) mirrored as a stage's settings ask, moved and bent by a share of that, in float."""
    x = flip(x, form, config.flip, generator)
    return distort(shift(x, form, config.shift * share, generator), form, config.distort * share, generator).float()


@torch.no_grad()
def shrink(model: LatentModel, amount: float) -> None:
    """Decoupled weight decay of the networks' weight matrices."""
    if amount:
        both = dict.fromkeys([*weight_matrices(model.encoder), *weight_matrices(model.decoder)])  # a tied one once
        torch._foreach_mul_(list(both), 1 - amount)


def validate_nll(session: Session, epoch: int, epochs: int) -> dict[str, float | None]:
    """The quick validation NLL every so many epochs and after the last; keeps the best weights."""
    config, state, splits = session.config, session.state, session.splits
    model = cast(LatentModel | RBM, state.evaluated)
    if config.validation.keep and state.stage == "joint" and epoch % config.validation.keep == 0:
        with evaluating(model):
            fit_prior_base(model, splits.train)
        session.save_weights(f"joint-{epoch:04d}", {"stage": "joint", "step": str(state.step)})
    if epoch % config.validation.every and epoch != epochs:
        return {}
    with evaluating(model):
        x = some_of(splits.train, IMAGES_FOR_BASE)
        nll, error = quick_nll(model, splits.valid, x, config.validation, config.seed)
    session.consider(nll)
    found = {"valid_nll": nll, "log_partition_error": error}
    if splits.form.levels > 2:
        found["valid_bits_per_dimension"] = splits.form.bits_per_dimension(nll)
    return found
