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
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import distributed
from .files import Unfinished, fingerprint
from .fused import bernoulli, default_generator
from .gibbs import Block, Weights, blocks_of_chains, gibbs, run_blocks
from .importance import jackknife_error
from .rbm import RBM, check_bits, check_count, check_finite

_REPORT_EVERY = 200


class AISEstimate(NamedTuple):
    """An estimate of log Z.

    Attributes:
        log_z: log of the mean weight. The mean is unbiased for Z, so its log is on average too small.
        standard_error: Of log_z, by the jackknife, in nats; infinite for one chain.
        ess: Effective sample size of the weights, between 1 and the number of chains.
        log_weights: Log of each chain's estimate of Z, float64, with shape (chains,).
    """

    log_z: float
    standard_error: float
    ess: float
    log_weights: Tensor


Progress = Callable[[float, AISEstimate | None], None]
"""Told now and then the share of the work that is done, and the estimate by the chains that have arrived."""


def linear_schedule(temperatures: int) -> Tensor:
    """Inverse temperatures 0 = beta_0 < ... < beta_N = 1, equally spaced, with shape (N + 1,).

    Raises:
        TypeError: If their number N is no whole number.
        ValueError: If it is below 1.
    """
    check_count("temperatures", temperatures)
    return torch.linspace(0, 1, temperatures + 1, dtype=torch.float64)


def estimate_from_log_weights(log_weights: Tensor) -> AISEstimate:
    """Summarize log-weights (chains,): the estimate, its standard error and effective sample size."""
    n, log_sum = log_weights.numel(), log_weights.logsumexp(0)
    error = jackknife_error(log_weights) if n > 1 else math.inf
    ess = (2 * log_sum - (2 * log_weights).logsumexp(0)).exp()
    return AISEstimate(float(log_sum) - math.log(n), error, float(ess), log_weights)


def log_base_partition(rbm: RBM, base_bias: Tensor) -> float:
    """log Z_0 of the base with biases (M,), in nats."""
    return rbm.hidden * math.log(2) + float(torch.nn.functional.softplus(base_bias.double()).sum())


def _base(rbm: RBM, base_bias: Tensor | None) -> Tensor:
    if not isinstance(rbm, RBM):
        raise TypeError(f"annealing is for an RBM, got {type(rbm).__name__}; a Bernoulli prior's log Z is exact")
    if rbm.weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"annealing: expected an RBM in float32 or float64, got {rbm.weight.dtype}; take rbm.float()")
    check_finite("rbm", rbm)
    return rbm.annealing_base(base_bias)


def _betas(temperatures: int, schedule: Tensor | None) -> list[float]:
    betas = linear_schedule(temperatures) if schedule is None else torch.as_tensor(schedule, dtype=torch.float64)
    if betas.dim() != 1:
        raise ValueError(f"schedule: expected shape ({temperatures + 1},), got {tuple(betas.shape)}")
    if len(betas) != temperatures + 1 or betas[0] != 0 or betas[-1] != 1 or not (betas.diff() >= 0).all():
        raise ValueError(
            f"schedule: expected {temperatures + 1} values rising from 0 to 1 for temperatures="
            f"{temperatures}, got {len(betas)} from {float(betas[0])} to {float(betas[-1])}"
        )
    return [float(beta) for beta in betas]


class _Journey:
    """Where each chain stands on its path: told to whoever waits, and written down now and then.

    Arguments:
        z: Where the chains start, with shape (N, M).
        steps: Length of the path.
        name: A fingerprint of everything that the chains' way depends on.
        tell: Called with the share done and the log-weights of the chains that have arrived.
        folder: Where to write the chains down, or None.
    """

    def __init__(
        self, z: Tensor, steps: int, name: str, tell: Callable[[float, Tensor], None], folder: Path | None
    ) -> None:
        self.z, self.steps, self.tell = z.clone(), steps, tell
        self.log_w = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        self.done = torch.zeros(len(z), dtype=torch.int64)
        self.positions: dict[str, Tensor] = {}
        self.unfinished = Unfinished(None if folder is None else folder / f"annealing-{name}.safetensors")
        self._lock = threading.Lock()
        if saved := self.unfinished.read():
            self.z, self.log_w = saved["z"].to(self.z), saved["log_w"].to(self.log_w)
            self.done, self.positions = saved["done"], saved["positions"]

    def start(self, block: Block, rows: slice) -> int:
        """Put a block where it was last written down; returns its number of steps so far."""
        if str(rows.start) in self.positions:
            block.move(self.z[rows], self.positions[str(rows.start)])
        return int(self.done[rows.start])

    def reached(self, block: Block, rows: slice, log_w: Tensor, step: int) -> None:
        """Note that a block has come to a step, with log-weights (n,)."""
        with self._lock:
            self.z[rows], self.log_w[rows], self.done[rows] = block.z, log_w, step
            self.positions[str(rows.start)] = block.position
            share = distributed.world().size * float(self.done.sum()) / (self.steps * len(self.done))
            self.tell(min(1.0, share), self.arrived)
            self.unfinished.write(self.state)

    @property
    def arrived(self) -> Tensor:
        """Log-weights of the n chains at the end of the path, with shape (n,)."""
        return self.log_w[self.done.to(self.log_w.device) == self.steps]

    def state(self) -> dict[str, Any]:
        """What is written down."""
        return {"z": self.z.bool(), "log_w": self.log_w, "done": self.done, "positions": self.positions}


def anneal(
    rbm: RBM,
    z: Tensor,
    path: Sequence[float],
    base_bias: Tensor,
    generator: torch.Generator | None = None,
    tell: Callable[[float, Tensor], None] = lambda share, arrived: None,
    checkpoints: Path | str | None = None,
) -> Tensor:
    r"""Take chains along a path of inverse temperatures, in as many threads and processes as there are.

    At each step a chain's log-weight grows by :math:`\log f_k(z) - \log f_{k-1}(z)`, and then z moves by T_k.

    Arguments:
        rbm: The RBM.
        z: Bits from which the chains start, with shape (N, M).
        path: Inverse temperatures, the first that of z.
        base_bias: Biases of the base, with shape (M,).
        generator: Source of the randomness; the default generator if None.
        tell: Called now and then with the share done and the log-weights of the chains that have arrived.
        checkpoints: Folder in which the chains are written down every minute and at the end. The same call, with
            a generator in the same state, goes on from there to the same result. Delete it when you have that.

    Returns:
        Log-weights, float64, with shape (N,).
    """
    steps = len(path) - 1
    weights = Weights(rbm, len(z), base_bias)
    blocks = blocks_of_chains(weights, len(z), distributed.world().size)
    stream = (generator or default_generator(weights.b.device)).get_state()
    way = torch.tensor(path, dtype=torch.float64)
    name = fingerprint(distributed.world(), blocks, stream, z, rbm.weight, weights.b, weights.c, base_bias, way)
    journey = _Journey(z, steps, name, tell, None if checkpoints is None else Path(checkpoints))

    def advance(block: Block, rows: slice) -> None:
        log_w = journey.log_w[rows].clone()
        for k in range(journey.start(block, rows) + 1, steps + 1):
            block.project()
            block.anneal_hidden(path[k], path[k - 1], log_w)
            if k < steps:  # the last transition would change no weight
                block.draw_visible(path[k])
            if k % _REPORT_EVERY == 0 or k == steps:
                journey.reached(block, rows, log_w, k)

    run_blocks(weights, z, generator, advance, shared=True)
    log_w = distributed.total(journey.log_w)
    journey.unfinished.write(journey.state, finished=True)
    return log_w


def ais(
    rbm: RBM,
    chains: int,
    temperatures: int,
    generator: torch.Generator | None = None,
    base_bias: Tensor | None = None,
    schedule: Tensor | None = None,
    progress: Progress | None = None,
    checkpoints: Path | str | None = None,
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
        progress: Told now and then the share done, and the estimate by the chains that have arrived.
        checkpoints: Folder for the chains of a long run, which the same call then goes on from; see
            :func:`anneal`.

    Raises:
        TypeError: If a count is no whole number.
        ValueError: If there are fewer than one chain or temperature, or the shapes do not fit.
    """
    check_count("ais: chains", chains)
    betas = _betas(temperatures, schedule)
    base_bias = _base(rbm, base_bias)
    log_z_base = log_base_partition(rbm, base_bias)

    def tell(share: float, arrived: Tensor) -> None:
        if progress:
            progress(share, estimate_from_log_weights(log_z_base + arrived) if len(arrived) else None)

    z = bernoulli(base_bias.expand(chains, -1), generator)
    log_w = anneal(rbm, z, betas, base_bias, generator, tell, checkpoints)
    return estimate_from_log_weights(log_z_base + log_w)


def raise_log_prob(
    rbm: RBM,
    z: Tensor,
    temperatures: int,
    chains: int = 1,
    generator: torch.Generator | None = None,
    base_bias: Tensor | None = None,
    schedule: Tensor | None = None,
    progress: Progress | None = None,
    checkpoints: Path | str | None = None,
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
        progress: Told now and then the share done.
        checkpoints: As in :func:`ais`.

    Returns:
        Log of the mean of the chains' estimates, float64, with shape (B,).

    Raises:
        TypeError: If a count is no whole number.
        ValueError: If there are fewer than one chain or temperature, shapes do not fit, or z is not bits.
    """
    check_count("raise_log_prob: chains", chains)
    check_bits("raise_log_prob: z", z, rbm.visible)
    betas = _betas(temperatures, schedule)
    base_bias = _base(rbm, base_bias)
    z = z.to(rbm.weight)
    log_f = -rbm.free_energy(z).detach().double()

    def tell(share: float, arrived: Tensor) -> None:
        if progress:
            progress(share, None)

    x = gibbs(rbm, z.repeat(chains, 1), 1, generator)
    log_w = anneal(rbm, x, betas[::-1], base_bias, generator, tell, checkpoints)
    mean = log_w.view(chains, -1).logsumexp(0) - math.log(chains)
    return log_f - log_base_partition(rbm, base_bias) + mean


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

    Raises:
        TypeError: If a count is no whole number.
        ValueError: If there are fewer than one temperature, in the pilot run either, or two pilot chains.
    """
    check_count("adaptive_schedule: temperatures", temperatures)
    check_count("adaptive_schedule: pilot_chains", pilot_chains, 2)
    check_count("adaptive_schedule: pilot_temperatures", pilot_temperatures)
    betas = _betas(pilot_temperatures, None)
    base_bias = _base(rbm, base_bias)
    increments = torch.zeros(pilot_temperatures, pilot_chains, dtype=torch.float64, device=base_bias.device)

    def advance(block: Block, rows: slice) -> None:
        for k in range(1, pilot_temperatures + 1):
            block.project()
            block.anneal_hidden(betas[k], betas[k - 1], increments[k - 1, rows])
            block.draw_visible(betas[k])

    z = bernoulli(base_bias.expand(pilot_chains, -1), generator)
    run_blocks(Weights(rbm, pilot_chains, base_bias), z, generator, advance, shared=True)
    return place_temperatures(distributed.total(increments).std(1), temperatures)


def place_temperatures(spread: Tensor, temperatures: int) -> Tensor:
    """Inverse temperatures (temperatures + 1,) with equal shares of ``spread`` (N',) over N' equal intervals."""
    if not spread.sum() > 0:  # nothing varies, and any schedule will do
        return linear_schedule(temperatures)
    spread = spread + 0.1 * spread.mean()  # no interval so wide that a surprise in it could go unseen
    length = np.concatenate([[0.0], spread.cumsum(0).cpu().numpy()])
    targets = np.linspace(0, length[-1], temperatures + 1)
    return torch.from_numpy(np.interp(targets, length, np.linspace(0, 1, len(length))))
