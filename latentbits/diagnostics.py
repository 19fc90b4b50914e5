r"""How well an RBM's samplers do: autocorrelation of chains, spread of annealing's weights, swaps of tempering.

For a stationary series :math:`x_t` with autocorrelation :math:`\rho_l`, the mean of n values has the variance
:math:`\tau \, \mathrm{Var}[x] / n`, with the integrated autocorrelation time

.. math:: \tau = 1 + 2 \sum_{l \ge 1} \rho_l = 2 \sum_{k \ge 0} \Gamma_k - 1, \quad
    \Gamma_k = \rho_{2k} + \rho_{2k+1}

A step z -> h -> z' of block Gibbs is reversible, so that :math:`\Gamma_k` is positive and falls. The sum ends where an
estimate of it is not positive, at the lag W, and earlier ones are held at the least so far. Its standard error is about
:math:`\tau \sqrt{2 (2 W + 1) / n}`. What costs time here is given seconds, and measures what there is time for.

References:
    | Practical Markov chain Monte Carlo (Geyer 1992), for the initial monotone sequence
    | The pivot algorithm (Madras & Sokal 1988), for the error
    | Non-reversible parallel tempering: a scalable highly parallel MCMC scheme (Syed et al. 2022), for the barrier
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .anneal import AISEstimate, adaptive_schedule, ais
from .evaluate import Report, ignore
from .gibbs import gibbs, random_bits
from .rbm import RBM, check_bits, check_finite
from .tempering import Swaps, parallel_tempering, start, tempering_schedule

CHAINS = 50
"""Gibbs chains from each of the two kinds of starts."""

AIS_CHAINS, AIS_PILOT_CHAINS = 250, 100
COUNTS = (100, 200, 500, 1000, 2000, 5000, 10_000)
"""Steps or temperatures that time is spent on: round numbers, so that two pages can have the same."""

TEMPERED_CHAINS = (10, 20, 50, 100)
_PILOT_ROUNDS, _ROUNDS = 300, 300


class AutocorrelationTime(NamedTuple):
    """An integrated autocorrelation time, in steps.

    Attributes:
        value: tau; that many values tell as much about a mean as an independent one.
        standard_error: Of the sum up to the window.
        window: W, where the sum ends.
        whole: Whether the sum came to its end; if not, tau is at least about the value.
    """

    value: float
    standard_error: float
    window: int
    whole: bool

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.standard_error:.2g}" if self.whole else f"at least about {self.value:.3g}"


def autocorrelation(x: Tensor, lags: int) -> Tensor:
    """Autocorrelation of chains x (N, T) about their common mean, at lags 0 to ``lags``, with shape (lags + 1,).

    The common mean lets chains that keep apart count as correlated. Constant chains have none beyond lag 0.

    Raises:
        ValueError: If there are not more than ``lags`` values in a chain.
    """
    N, T = x.shape
    if not 0 <= lags < T:
        raise ValueError(f"autocorrelation: expected lags of 0 to {T - 1} for chains of {T}, got {lags}")
    centered = x.double() - x.double().mean()
    spectrum = torch.fft.rfft(centered, n=2 * T).abs().square().sum(0)  # zeros keep the ends of a chain apart
    covariance = torch.fft.irfft(spectrum, n=2 * T)[: lags + 1] / (N * torch.arange(T, T - lags - 1, -1))
    if not covariance[0] > 1e-24 * x.double().square().mean():  # rounding gives constants a variance
        return torch.eye(1, lags + 1, dtype=torch.float64)[0]
    rho: Tensor = covariance / covariance[0]
    return rho


def autocorrelation_time(rho: Tensor, values: int) -> AutocorrelationTime:
    """Integrated autocorrelation time of a reversible chain, by Geyer's initial monotone sequence.

    Arguments:
        rho: Autocorrelation from lag 0, with shape (lags + 1,).
        values: Number n of values, of all chains together, behind it.
    """
    pairs = rho[: len(rho) // 2 * 2].view(-1, 2).sum(1)
    ends = (pairs <= 0).nonzero()
    count = int(ends[0]) if len(ends) else len(pairs)
    tau = float(2 * pairs[:count].cummin(0).values.sum() - 1)
    window = 2 * count
    return AutocorrelationTime(tau, abs(tau) * math.sqrt(2 * (2 * window + 1) / values), window, len(ends) > 0)


class Trace(NamedTuple):
    """A function of the state along Gibbs chains from two kinds of starts.

    Attributes:
        from_random: Its values along chains that started at random bits, after each step, with shape (N, T).
        from_data: The same from bits of data.
        rho: Autocorrelation over the second halves of all chains, with shape (lags + 1,).
        time: Its integral.
        difference: Mean in the second halves, from random bits minus from data.
        difference_error: Its standard error, over chains.
    """

    from_random: Tensor
    from_data: Tensor
    rho: Tensor
    time: AutocorrelationTime
    difference: float
    difference_error: float


class ChainDiagnosis(NamedTuple):
    """Gibbs chains from two kinds of starts, seen in two ways.

    Attributes:
        free_energy: F(z), in nats.
        projection: z on the leading left singular vector of W, which tells modes apart that have the same free energy,
            as a state of spins without fields and its mirror image have.
    """

    free_energy: Trace
    projection: Trace


class AnnealingDiagnosis(NamedTuple):
    """A small run of AIS.

    Attributes:
        estimate: log Z, its error, effective sample size and log-weights.
        betas: The schedule, placed by a pilot run, with shape (N + 1,).
    """

    estimate: AISEstimate
    betas: Tensor


class TemperingDiagnosis(NamedTuple):
    """Parallel tempering at temperatures placed by a pilot run.

    Attributes:
        betas: Inverse temperatures, with shape (R,).
        swaps: Tried and refused, with shape (R - 1,) each.
        chains: Number of chains at each temperature.
        rounds: Number of rounds in which swaps were counted.
    """

    betas: Tensor
    swaps: Swaps
    chains: int
    rounds: int

    @property
    def barrier(self) -> float:
        """Refused shares summed over pairs, B: at best, one state in 2 + 2 B rounds comes back from the other end."""
        return float(self.swaps.rejection.sum())


class Diagnosis(NamedTuple):
    """What was found in so many seconds; ``tempering`` is None where it was not asked for."""

    chains: ChainDiagnosis
    annealing: AnnealingDiagnosis
    tempering: TemperingDiagnosis | None
    budget: float
    seconds: float


@torch.no_grad()
def leading_direction(rbm: RBM) -> Tensor:
    """The left singular vector of W with the largest singular value, (M,), its sum not negative."""
    W = rbm.weight.double()
    if rbm.hidden < rbm.visible:  # the smaller of the two products, for time grows with the cube of its size
        u = W @ torch.linalg.eigh(W.T @ W).eigenvectors[:, -1]
    else:
        u = torch.linalg.eigh(W @ W.T).eigenvectors[:, -1]
    u = torch.nn.functional.normalize(u, dim=0).to(rbm.weight)
    return u if u.sum() >= 0 else -u


@torch.no_grad()
def observe(
    rbm: RBM,
    u: Tensor,
    z: Tensor,
    steps: int,
    generator: torch.Generator | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """Gibbs chains from bits z (N, M): free energies, in nats, and projections on u (M,), by step, (2, N, steps)."""
    traces = torch.empty(2, len(z), steps, dtype=torch.float64, device=rbm.weight.device)
    for t in range(steps):
        z = gibbs(rbm, z, 1, generator)
        traces[0, :, t], traces[1, :, t] = rbm.free_energy(z), z @ u
        tell((t + 1) / steps)
    return traces.cpu()


def affordable(seconds_each: float, seconds: float, choices: Sequence[int]) -> int:
    """The largest of some rising counts that seconds are enough for; the smallest if none is."""
    return max((count for count in choices if count * seconds_each <= seconds), default=choices[0])


def _seconds_each(work: Callable[[int], object], count: int) -> float:
    work(1)  # what is compiled or laid out once
    began = time.perf_counter()
    work(count)
    return (time.perf_counter() - began) / count


@torch.no_grad()
def diagnose_chains(
    rbm: RBM, z: Tensor, seconds: float, generator: torch.Generator | None, report: Report
) -> ChainDiagnosis:
    """Run chains from random bits and from bits of data z (N, M) for so many seconds, and compare."""
    first, u = torch.cat([random_bits(len(z), rbm, generator), z.to(rbm.weight)]), leading_direction(rbm)
    scratch = torch.Generator(rbm.weight.device).manual_seed(0)  # how fast it goes must not change what is drawn
    each = _seconds_each(lambda steps: observe(rbm, u, first, steps, scratch), 5)
    steps = affordable(each, seconds, COUNTS)
    traces = observe(rbm, u, first, steps, generator, lambda share: report("Gibbs chains", share, f"{steps:,} steps"))
    return ChainDiagnosis(*(compare(*trace.split(len(z))) for trace in traces))


def compare(from_random: Tensor, from_data: Tensor) -> Trace:
    """Values along chains from two kinds of starts, (N, T) each, with what their second halves say."""
    steps = from_random.shape[1]
    settled = torch.cat([from_random, from_data])[:, steps // 2 :]
    rho = autocorrelation(settled, settled.shape[1] // 2)
    means = settled.mean(1).split(len(from_random))
    return Trace(
        from_random,
        from_data,
        rho,
        autocorrelation_time(rho, settled.numel()),
        float(means[0].mean() - means[1].mean()),
        math.sqrt(sum(float(part.var()) / len(part) for part in means)),
    )


@torch.no_grad()
def diagnose_annealing(
    rbm: RBM, seconds: float, generator: torch.Generator | None, report: Report
) -> AnnealingDiagnosis:
    """Run AIS for so many seconds, a sixth of them for the pilot run that places its temperatures."""
    scratch = torch.Generator(rbm.weight.device).manual_seed(0)
    each = _seconds_each(lambda temperatures: ais(rbm, AIS_CHAINS, temperatures, scratch), 10)
    temperatures = affordable(1.2 * each, seconds, COUNTS)
    report("AIS", 0.0, "pilot run")
    betas = adaptive_schedule(rbm, temperatures, generator, None, AIS_PILOT_CHAINS, temperatures // 2)
    estimate = ais(
        rbm, AIS_CHAINS, temperatures, generator, schedule=betas,
        progress=lambda share, _: report("AIS", share, f"{temperatures:,} temperatures"),
    )  # fmt: skip
    return AnnealingDiagnosis(estimate, betas)


@torch.no_grad()
def diagnose_tempering(
    rbm: RBM, temperatures: int, seconds: float, generator: torch.Generator | None, report: Report
) -> TemperingDiagnosis:
    """Place temperatures and count swaps between them for so many seconds, half of them for the placing."""
    scratch, even = (
        torch.Generator(rbm.weight.device).manual_seed(0),
        torch.linspace(0, 1, temperatures, dtype=torch.float64),
    )
    replicas = start(rbm, TEMPERED_CHAINS[-1], temperatures, scratch)
    each = _seconds_each(lambda rounds: parallel_tempering(rbm, replicas, even, rounds, scratch), 2)
    chains = affordable(each * (_PILOT_ROUNDS + _ROUNDS) / TEMPERED_CHAINS[-1], seconds, TEMPERED_CHAINS)
    report("parallel tempering", 0.0, "pilot runs")
    betas = tempering_schedule(rbm, temperatures, generator, pilot_chains=chains)
    z, swaps = start(rbm, chains, temperatures, generator), Swaps.none(temperatures)
    for part in range(10):
        z, more = parallel_tempering(rbm, z, betas, _ROUNDS // 10, generator)
        swaps = swaps.plus(more)
        report("parallel tempering", 0.5 + (part + 1) / 20, f"{chains} chains")
    return TemperingDiagnosis(betas, swaps, chains, _ROUNDS)


def diagnose(
    rbm: RBM,
    z: Tensor,
    seconds: float,
    temperatures: int = 0,
    generator: torch.Generator | None = None,
    report: Report = ignore,
) -> Diagnosis:
    """See how well Gibbs chains, AIS and parallel tempering do on an RBM, in about so many seconds.

    Arguments:
        rbm: The RBM.
        z: Bits of data, where half of the Gibbs chains start, with shape (N, M).
        seconds: What it may cost. Less is tried if there is time for less, down to a least size of each part.
        temperatures: Of parallel tempering; below 2 for none.
        generator: Source of the randomness; the default generator if None.
        report: Told now and then how far a phase has come.

    Raises:
        ValueError: If z is not bits of this shape, or a parameter of the RBM is not finite.
    """
    check_bits("diagnose: z", z, rbm.visible)
    check_finite("diagnose: rbm", rbm)
    began, parts = time.perf_counter(), 3 if temperatures > 1 else 2
    chains = diagnose_chains(rbm, z, seconds / parts, generator, report)
    annealing = diagnose_annealing(rbm, seconds / parts, generator, report)
    tempering = None
    if temperatures > 1:
        tempering = diagnose_tempering(rbm, temperatures, seconds / parts, generator, report)
    return Diagnosis(chains, annealing, tempering, seconds, time.perf_counter() - began)
