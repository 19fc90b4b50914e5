r"""A posterior of each datum's own, by gradient steps from where the encoder puts it.

An encoder has one set of weights for all data. What its posteriors lose against the best ones of their family is the
amortization gap (Cremer, Li & Duvenaud 2018), hundreds of nats for the code of a colour image. Here the parameters
:math:`\phi` of each :math:`q_\phi(z)` climb the ELBO of reparametrized samples, as in Kim et al. 2018 and, for binary
latents, in Hjelm et al. 2016 by other means:

.. math:: \phi \leftarrow \phi + \epsilon \, \nabla_\phi
    \left( \mathbb{E}_{q_\phi} [\log p(x | z) - F(z)] + H(q_\phi) \right)

The bound L_K holds for any q that its samples did not help to choose, so it stays a bound, of the same model.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Adam

from .model import LatentModel
from .nets import evaluating
from .progress import of_whole
from .rbm import check_count

RATE = 0.07
"""Of Adam, at first, in units of a datum's mean absolute parameter; a tenth at the end."""

GRADIENT_MEMORY = 8
"""Of a pass with a gradient, as a multiple of one without."""


def refine(
    model: LatentModel,
    x: Tensor,
    steps: int,
    generator: torch.Generator | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Parameters of a posterior for each datum by itself, as the encoder's output; see the module.

    Arguments:
        model: Encoder, decoder and prior. The decoder has to take relaxed bits and be differentiable.
        x: Data, with shape (B, D).
        steps: How many, of one sample each; a step costs as much as three to four samples of the bound.
        generator: Source of the randomness; the default generator if None.
        progress: Told now and then what share of all, between 0 and 1, is done.

    Returns:
        With shape (B, outputs of the encoder), for ``model.posterior_of`` and ``model.importance_sums``.

    Raises:
        TypeError: If steps is no whole number.
        ValueError: If x has another shape, no rows, or other values than p(x | z) is of, or steps is negative.
    """
    model.check_data("x", x)
    if not len(x):
        raise ValueError("x: expected one row or more, got none")
    check_count("steps", steps, 0)
    x, parts = x.to(model.prior.visible_bias), []
    at_once = max(1, model.rows_at_once() // GRADIENT_MEMORY)
    with evaluating(model):
        for first in range(0, len(x), at_once):
            rows = slice(first, min(first + at_once, len(x)))
            parts.append(_refine(model, x[rows], steps, generator, of_whole(progress, rows, len(x))))
    return torch.cat(parts)


def _refine(
    model: LatentModel, x: Tensor, steps: int, generator: torch.Generator | None, tell: Callable[[float], None]
) -> Tensor:
    with torch.no_grad():
        first = model.encoder(x)
    # logits reach 15, means of normal latents 0.3; that a logit of 15 has a gradient of 1e-7 is nothing to Adam
    unit = first.abs().mean(-1, keepdim=True).clamp(min=1e-2)
    moved = torch.zeros_like(first, requires_grad=True)
    adam = Adam([moved], betas=(0.9, 0.99))
    for step in range(steps):
        adam.param_groups[0]["lr"] = RATE * (1 - 0.9 * step / steps)
        with torch.enable_grad():
            q = model.posterior_of(first + unit * moved)
            elbo = model.log_joint(x, q.rsample((1,), generator)) + q.entropy()
            moved.grad = torch.autograd.grad(-elbo.sum(), moved)[0]
        adam.step()
        tell((step + 1) / steps)
    parameters: Tensor = (first + unit * moved).detach()
    return parameters
