r"""Parallel tempering: replicas of an RBM at several temperatures that swap places.

Replica r follows :math:`f_{\beta_r}` of :mod:`latentbits.anneal`, from the factorized base at
:math:`\beta_1 = 0`, which a Gibbs step samples exactly, to the RBM at :math:`\beta_R = 1`. In a round
each replica makes one Gibbs step, and then neighbours swap with probability

.. math:: \min\Big(1, \frac{f_r(z_{r+1}) \, f_{r+1}(z_r)}{f_r(z_r) \, f_{r+1}(z_{r+1})}\Big)

for even and odd pairs in turn, which carries states from base to model faster than random pairs would.
Chains at :math:`\beta_R` then cross between modes that plain Gibbs steps do not leave.

References:
    | Parallel tempering for training of restricted Boltzmann machines (Desjardins et al. 2010)
    | Non-reversible parallel tempering: a scalable highly parallel MCMC scheme (Syed et al. 2022)
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .fused import bernoulli, generator_device
from .gibbs import Block, PlainBlock, Weights, gibbs, random_bits, run_blocks
from .rbm import RBM, Prior, check_bits, check_count, check_finite

PILOT_CHAINS = 100
PILOT_ROUNDS = (20, 40, 80, 160)


class Swaps(NamedTuple):
    """Swaps between neighbours, counted.

    Attributes:
        tried: With shape (R - 1,).
        refused: With shape (R - 1,).
    """

    tried: Tensor
    refused: Tensor

    @classmethod
    def none(cls, temperatures: int) -> "Swaps":
        """No swaps yet."""
        return cls(*torch.zeros(2, temperatures - 1, dtype=torch.float64))

    def plus(self, more: "Swaps") -> "Swaps":
        """Both counts together."""
        return Swaps(self.tried + more.tried, self.refused + more.refused)

    @property
    def rejection(self) -> Tensor:
        """Share of refused swaps, with shape (R - 1,); NaN where none was tried."""
        return self.refused / self.tried


def _check_rbm(rbm: object) -> None:
    if not isinstance(rbm, RBM):
        raise TypeError(f"tempering is for an RBM, got {type(rbm).__name__}; a Bernoulli prior is sampled exactly")


def _check_betas(betas: Tensor) -> None:
    if betas.dim() != 1 or len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or not (betas.diff() > 0).all():
        raise ValueError(f"betas: expected 2 or more values rising from 0 to 1, got {betas.tolist()}")


@torch.no_grad()
def parallel_tempering(
    rbm: RBM,
    z: Tensor,
    betas: Tensor,
    rounds: int,
    generator: torch.Generator | None = None,
    base_bias: Tensor | None = None,
) -> tuple[Tensor, Swaps]:
    """Advance replicas by rounds of a Gibbs step and a swap.

    Arguments:
        rbm: The RBM.
        z: Bits of N chains at R temperatures, with shape (R, N, M).
        betas: Inverse temperatures, rising from 0 to 1, with shape (R,); see :func:`tempering_schedule`.
        rounds: Number of rounds; the pairs that swap are even or odd in the first, by a coin, and then in turn.
        generator: Source of the randomness; the default generator if None.
        base_bias: Biases of the base, with shape (M,); as in :func:`latentbits.ais` if None.

    Returns:
        Bits, with shape (R, N, M), of which the last are the model's; and the swaps.

    Raises:
        TypeError: If rounds is no whole number.
        ValueError: If the shapes do not fit, or z is not bits.
    """
    _check_rbm(rbm)
    _check_betas(betas)
    check_count("parallel_tempering: rounds", rounds, 0)
    if z.dim() != 3 or (len(z), z.shape[2]) != (len(betas), rbm.visible):
        raise ValueError(
            f"parallel_tempering: expected z of shape ({len(betas)}, N, {rbm.visible}), got {tuple(z.shape)}"
        )
    check_bits("parallel_tempering: z", z, rbm.visible, "*")
    R, N, _ = z.shape
    if not N:
        return z, Swaps.none(R)
    z, weights = z.to(rbm.weight), Weights(rbm, R * N, rbm.annealing_base(base_bias))
    swaps, refused = Swaps.none(R), torch.zeros(R - 1, dtype=torch.int64, device=z.device)
    device = generator_device(generator, z)
    first = int(torch.rand((), generator=generator, device=device) < 0.5)
    for number in range(first, first + rounds):
        swapping = range(number % 2, R - 1, 2)
        lower = torch.arange(R - 1, device=z.device)[number % 2 :: 2]
        partner = [r + 1 if r in swapping else r - 1 if r - 1 in swapping else r for r in range(R)]
        z, gain = _move(weights, z, betas.tolist(), partner, generator)
        u = torch.rand(len(lower), N, dtype=torch.float64, generator=generator, device=device)
        accept = u.to(gain.device).log() < gain[lower] + gain[lower + 1]
        swaps.tried[number % 2 :: 2] += N
        refused[lower] += N - accept.sum(1)
        z = _swap(z, lower, accept)
    swaps.refused.add_(refused.cpu())  # once, for a GPU would wait for it
    return z, swaps


def _move(
    weights: Weights, z: Tensor, betas: list[float], partner: list[int], generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A Gibbs step of each replica z (R, N, M), and what its log f would gain at its partner's temperature (R, N)."""
    R, N, M = z.shape
    moved, gain = z.new_empty(R, N, M), torch.zeros(R, N, dtype=torch.float64, device=z.device)
    if not weights.fused:  # all replicas at once, where each would leave a GPU idle
        at, to = (
            torch.tensor(each, dtype=z.dtype).repeat_interleave(N)[:, None].to(z.device)
            for each in (betas, [betas[r] for r in partner])
        )

        def advance_all(block: Block, rows: slice) -> None:
            assert isinstance(block, PlainBlock)
            block.project()
            block.draw_hidden(at)
            block.draw_visible(at)
            block.project()
            moved.view(R * N, M).copy_(block.z)
            block.anneal_hidden(to, at, gain.view(-1))

        run_blocks(weights, z.reshape(R * N, M), generator, advance_all, blocks=[slice(0, R * N)])
        return moved, gain

    def advance(block: Block, rows: slice) -> None:
        r = rows.start // N
        block.project()
        block.draw_hidden(betas[r])
        block.draw_visible(betas[r])
        if partner[r] != r:
            block.project()
            block.anneal_hidden(betas[partner[r]], betas[r], gain[r])
        moved[r] = block.z

    blocks = [slice(r * N, (r + 1) * N) for r in range(R)]
    run_blocks(weights, z.reshape(R * N, M), generator, advance, blocks=blocks)
    return moved, gain


def _swap(z: Tensor, lower: Tensor, accept: Tensor) -> Tensor:
    """Replicas z (R, N, M) with those of the pairs (lower, lower + 1) exchanged where accepted (P, N)."""
    swapped, below, above = z.clone(), z[lower], z[lower + 1]
    swapped[lower] = torch.where(accept[:, :, None], above, below)
    swapped[lower + 1] = torch.where(accept[:, :, None], below, above)
    return swapped


def start(
    rbm: RBM, n: int, temperatures: int, generator: torch.Generator | None = None, base_bias: Tensor | None = None
) -> Tensor:
    """Replicas that start from the base, with shape (R, n, M)."""
    return bernoulli(rbm.annealing_base(base_bias).expand(temperatures, n, -1), generator)


def respace(betas: Tensor, swaps: Swaps) -> Tensor:
    """Inverse temperatures (R,) between which swaps would be refused equally often, by what was seen at betas (R,)."""
    rejection = torch.nan_to_num(swaps.rejection, nan=0.5)
    rejection = rejection + 0.01 * rejection.mean() + 1e-6  # no two temperatures fall together
    barrier = np.concatenate([[0.0], rejection.cumsum(0).numpy()])
    return torch.from_numpy(np.interp(np.linspace(0, barrier[-1], len(betas)), barrier, betas.cpu().double().numpy()))


def tempering_schedule(
    rbm: RBM,
    temperatures: int,
    generator: torch.Generator | None = None,
    base_bias: Tensor | None = None,
    pilot_chains: int = PILOT_CHAINS,
) -> Tensor:
    """Place temperatures so that swaps between neighbours are refused equally often, by pilot runs.

    Arguments:
        rbm: The RBM.
        temperatures: Number R of them, 2 or more.
        generator: Source of the randomness; the default generator if None.
        base_bias: Biases of the base, with shape (M,); as in :func:`latentbits.ais` if None.
        pilot_chains: Chains at each temperature in the pilot runs.

    Returns:
        Inverse temperatures rising from 0 to 1, float64, with shape (temperatures,).

    Raises:
        TypeError: If a count is no whole number.
        ValueError: If there are fewer than two, or no pilot chains.
    """
    _check_rbm(rbm)
    check_count("tempering_schedule: temperatures", temperatures, 2)
    check_count("tempering_schedule: pilot_chains", pilot_chains)
    betas = torch.linspace(0, 1, temperatures, dtype=torch.float64)
    z = start(rbm, pilot_chains, temperatures, generator, base_bias)
    for rounds in PILOT_ROUNDS:
        z, swaps = parallel_tempering(rbm, z, betas, rounds, generator, base_bias)
        betas = respace(betas, swaps)
    return betas


@torch.no_grad()
def sample_prior(
    prior: Prior, n: int, gibbs_steps: int, generator: torch.Generator | None = None, temperatures: int = 1
) -> Tensor:
    """Bits of n chains, with shape (n, M).

    Arguments:
        prior: An RBM; others are sampled exactly.
        n: Number of chains.
        gibbs_steps: Length of the chains.
        generator: Source of the randomness; the default generator if None.
        temperatures: 1 for chains that start at random bits; above that, parallel tempering from the base.

    Raises:
        TypeError: If a count is no whole number.
        ValueError: If a number is out of range, or a parameter of the RBM is not finite.
    """
    check_count("sample_prior: temperatures", temperatures)
    check_count("sample_prior: n", n, 0)
    check_count("sample_prior: gibbs_steps", gibbs_steps, 0)
    if not isinstance(prior, RBM):
        return prior.sample(n, generator)
    check_finite("sample_prior: prior", prior)  # the compiled loops would make bits of anything
    if not n:
        return prior.visible_bias.detach().new_empty(0, prior.visible)
    if temperatures == 1:
        return gibbs(prior, random_bits(n, prior, generator), gibbs_steps, generator)
    betas = tempering_schedule(prior, temperatures, generator)
    z, _ = parallel_tempering(prior, start(prior, n, temperatures, generator), betas, gibbs_steps, generator)
    return z[-1]
