r"""Log-likelihoods by annealing: AIS from one side, RAISE from the other.

Both move through the sequence, from a factorized base with biases :math:`b_A` to the RBM,

.. math:: f_k(z) = \exp\Big( (1 - \beta_k) z^\top b_A + \beta_k z^\top b
    + \sum_j \log(1 + e^{\beta_k (c_j + (z^\top W)_j)}) \Big), \quad k = 0, \dots, N

with hidden units summed out, :math:`\log Z_0 = H \log 2 + \sum_i \log(1 + e^{b_{A,i}})`, and
:math:`T_k` the block Gibbs step that leaves :math:`f_k` invariant.

References:
    | Annealed importance sampling (Neal 2001)
    | On the quantitative analysis of deep belief networks (Salakhutdinov & Murray 2008)
    | Accurate and conservative estimates of MRF log-likelihood using reverse annealing (Burda et al. 2014)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .fused import bernoulli
from .gibbs import Block, Weights, run_blocks
from .rbm import RBM

Progress = Callable[[int], None]
"""Called with the number of chain-temperatures (chains times temperatures) done since the last call."""

_REPORT_EVERY = 200


class AISEstimate(NamedTuple):
    """An estimate of log Z.

    Attributes:
        log_z: log of the mean weight. The mean is unbiased for Z, so its log is on average too small.
        standard_error: Of log_z, by the delta method, in nats.
        ess: Effective sample size of the weights, between 1 and the number of chains.
        log_weights: Log of each chain's estimate of Z, float64, with shape (chains,).
    """

    log_z: float
    standard_error: float
    ess: float
    log_weights: Tensor


def linear_schedule(temperatures: int) -> Tensor:
    """Inverse temperatures 0 = beta_0 < ... < beta_N = 1, equally spaced, with shape (N + 1,)."""
    if temperatures < 1:
        raise ValueError(f"temperatures must be at least 1, got {temperatures}")
    return torch.linspace(0, 1, temperatures + 1, dtype=torch.float64)


def estimate_from_log_weights(log_weights: Tensor) -> AISEstimate:
    """Summarize log-weights (chains,): the estimate, its standard error and effective sample size."""
    n = log_weights.numel()
    log_mean = log_weights.logsumexp(0) - math.log(n)
    w = (log_weights - log_mean).exp()  # mean 1
    error = float(w.std() / math.sqrt(n)) if n > 1 else math.inf
    return AISEstimate(float(log_mean), error, float(n / w.square().mean()), log_weights)


def log_base_partition(rbm: RBM, base_bias: Tensor) -> float:
    """log Z_0 of the base with biases (M,), in nats."""
    return rbm.hidden * math.log(2) + float(torch.nn.functional.softplus(base_bias.double()).sum())


def _base(rbm: RBM, base_bias: Tensor | None) -> Tensor:
    """The base's biases (M,): as given, else the RBM's fitted base, else its visible bias."""
    if not isinstance(rbm, RBM):
        raise TypeError(f"annealing is for an RBM, got {type(rbm).__name__}; a Bernoulli prior's log Z is exact")
    if base_bias is None:
        base_bias = rbm.visible_bias if rbm.base_bias is None else rbm.base_bias
    if base_bias.shape != (rbm.visible,):
        raise ValueError(f"base_bias: expected shape ({rbm.visible},), got {tuple(base_bias.shape)}")
    return base_bias.detach().to(rbm.visible_bias)


def _betas(temperatures: int, schedule: Tensor | None) -> list[float]:
    betas = linear_schedule(temperatures) if schedule is None else schedule.double()
    if len(betas) != temperatures + 1 or betas[0] != 0 or betas[-1] != 1 or not (betas.diff() >= 0).all():
        raise ValueError(
            f"schedule: expected {temperatures + 1} values rising from 0 to 1 for temperatures="
            f"{temperatures}, got {len(betas)} from {float(betas[0])} to {float(betas[-1])}"
        )
    return [float(beta) for beta in betas]


def ais(
    rbm: RBM,
    chains: int,
    temperatures: int,
    generator: torch.Generator | None = None,
    base_bias: Tensor | None = None,
    schedule: Tensor | None = None,
    progress: Progress | None = None,
) -> AISEstimate:
    r"""Estimate log Z by annealed importance sampling.

    A chain starts at :math:`z_0 \sim p_0` and moves by :math:`z_k \sim T_k(\cdot | z_{k-1})`; its weight is
    :math:`Z_0 \prod_{k=1}^N f_k(z_{k-1}) / f_{k-1}(z_{k-1})`.

    Arguments:
        rbm: The RBM.
        chains: Number of independent chains.
        temperatures: Number N of transitions from the base to the RBM.
        generator: Source of the randomness; the default generator if None.
        base_bias: Biases of the base, with shape (M,). If None, those of ``rbm.fit_base``, or else the
            RBM's own visible bias.
        schedule: Inverse temperatures, with shape (N + 1,), rising from 0 to 1; linear if None.
            See :func:`adaptive_schedule`.
        progress: Called now and then with the chain-temperatures done since the last call.

    Raises:
        ValueError: If there are fewer than one chain or temperature, or the shapes do not fit.
    """
    if chains < 1:
        raise ValueError(f"ais: chains must be at least 1, got {chains}")
    betas = _betas(temperatures, schedule)
    base_bias = _base(rbm, base_bias)
    log_w = torch.full((chains,), log_base_partition(rbm, base_bias), dtype=torch.float64, device=base_bias.device)

    def advance(block: Block, rows: slice) -> None:
        for k in range(1, temperatures + 1):
            block.project()
            block.add_log_ratio(betas[k], betas[k - 1], log_w[rows])
            if k < temperatures:  # the last transition would change no weight
                block.draw_hidden(betas[k])
                block.draw_visible(betas[k])
            if progress and k % _REPORT_EVERY == 0:
                progress(_REPORT_EVERY * (rows.stop - rows.start))

    z = bernoulli(base_bias.expand(chains, -1), generator)
    run_blocks(Weights(rbm, chains, base_bias), z, generator, advance)
    return estimate_from_log_weights(log_w)


def raise_log_prob(
    rbm: RBM,
    z: Tensor,
    temperatures: int,
    chains: int = 1,
    generator: torch.Generator | None = None,
    base_bias: Tensor | None = None,
    schedule: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    r"""Estimate log p(z) conservatively by annealing in reverse (RAISE).

    A chain starts at :math:`x_N = z` and moves by :math:`x_{k-1} \sim T_k(\cdot | x_k)`, which is its own
    reverse; its estimate is :math:`\frac{f_N(z)}{Z_0} \prod_{k=0}^{N-1} f_k(x_k) / f_{k+1}(x_k)`. The mean
    is exactly the probability :math:`p_{ann}(z)` that annealed sampling ends in z; its log, averaged over
    data, is below the log-likelihood of p up to the difference of p_ann and p, and tightens with N.

    Arguments:
        rbm: The RBM.
        z: Bits, with shape (B, M).
        temperatures: Number N of transitions.
        chains: Independent chains for each z, whose estimates are averaged before the log.
        generator: Source of the randomness; the default generator if None.
        base_bias: As in :func:`ais`; use the same for both.
        schedule: As in :func:`ais`.
        progress: Called now and then with the chain-temperatures done since the last call.

    Returns:
        Log of the mean of the chains' estimates, float64, with shape (B,).

    Raises:
        ValueError: If there are fewer than one chain or temperature, or the shapes do not fit.
    """
    if chains < 1:
        raise ValueError(f"raise_log_prob: chains must be at least 1, got {chains}")
    if z.dim() != 2 or z.shape[1] != rbm.visible:
        raise ValueError(f"raise_log_prob: expected z of shape (B, {rbm.visible}), got {tuple(z.shape)}")
    betas = _betas(temperatures, schedule)
    base_bias = _base(rbm, base_bias)
    z = z.to(rbm.weight)
    log_p = (-rbm.free_energy(z).detach().double() - log_base_partition(rbm, base_bias)).repeat(chains)

    def advance(block: Block, rows: slice) -> None:
        block.project()
        for k in range(temperatures, 0, -1):
            block.draw_hidden(betas[k])
            block.draw_visible(betas[k])
            block.project()
            block.add_log_ratio(betas[k - 1], betas[k], log_p[rows])
            if progress and k % _REPORT_EVERY == 0:
                progress(_REPORT_EVERY * (rows.stop - rows.start))

    run_blocks(Weights(rbm, len(log_p), base_bias), z.repeat(chains, 1), generator, advance)
    return log_p.view(chains, -1).logsumexp(0) - math.log(chains)


def adaptive_schedule(
    rbm: RBM,
    temperatures: int,
    generator: torch.Generator | None = None,
    base_bias: Tensor | None = None,
    pilot_chains: int = 250,
    pilot_temperatures: int = 1000,
) -> Tensor:
    r"""Place temperatures where the log-weights vary, as seen by an independent pilot run.

    The variance of one increment is about :math:`(\Delta\beta)^2 \, \mathrm{Var}[d \log f_\beta / d\beta]`. The sum
    over the path is least when every interval has the same share of the integral of the standard
    deviation. The pilot's chains are used for nothing else, so an estimate with the returned schedule
    is as unbiased as one with the linear schedule.

    Returns:
        Inverse temperatures rising from 0 to 1, float64, with shape (temperatures + 1,).
    """
    betas = _betas(pilot_temperatures, None)
    base_bias = _base(rbm, base_bias)
    increments = torch.zeros(pilot_temperatures, pilot_chains, dtype=torch.float64, device=base_bias.device)

    def advance(block: Block, rows: slice) -> None:
        for k in range(1, pilot_temperatures + 1):
            block.project()
            block.add_log_ratio(betas[k], betas[k - 1], increments[k - 1, rows])
            block.draw_hidden(betas[k])
            block.draw_visible(betas[k])

    z = bernoulli(base_bias.expand(pilot_chains, -1), generator)
    run_blocks(Weights(rbm, pilot_chains, base_bias), z, generator, advance)
    return place_temperatures(increments.std(1), temperatures)


def place_temperatures(spread: Tensor, temperatures: int) -> Tensor:
    """Inverse temperatures (temperatures + 1,) with equal shares of ``spread`` (N',) over N' equal intervals."""
    if not spread.sum() > 0:  # nothing varies, and any schedule will do
        return linear_schedule(temperatures)
    spread = spread + 0.1 * spread.mean()  # no interval so wide that a surprise in it could go unseen
    length = np.concatenate([[0.0], spread.cumsum(0).cpu().numpy()])
    targets = np.linspace(0, length[-1], temperatures + 1)
    return torch.from_numpy(np.interp(targets, length, np.linspace(0, 1, len(length))))
