r"""Log-likelihoods with error bars: the bound :math:`L_K` with log Z by AIS, and RAISE from the other side.

.. math:: \log p(x) \ge L_K = \log \frac{1}{K} \sum_i \frac{p^*(x, z_i)}{q(z_i | x)} - \log Z

With AIS the second term is on average too small, so the likelihood looks too good. RAISE replaces
:math:`e^{-F(z)} / Z` by an unbiased estimate :math:`\hat p(z)` of what annealed sampling gives z: m of the K
samples are resampled by weight and :math:`\frac{1}{K} \sum_i w^*_i \cdot \frac{1}{m} \sum_j \hat p(z_j)
e^{F(z_j)}` is unbiased for the hybrid's likelihood under that sampler.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .anneal import AISEstimate, adaptive_schedule, ais, raise_log_prob
from .config import ValidationConfig
from .model import LatentModel
from .rbm import RBM, Prior

LARGEST_EXACT_LAYER = 20
"""Up to this many units in the smaller layer log Z is summed exactly without being asked."""

Report = Callable[[str, float], None]
"""Called with the name of a phase and the share of it that is done."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LogPartition(Frozen):
    """log Z of the prior, in nats."""

    value: float
    standard_error: float | None = Field(description="over chains; 0 if exact, none for a single chain")
    method: Literal["exact", "ais"]
    chains: int = 0
    temperatures: int = 0
    schedule: str = ""
    effective_sample_size: float = Field(0.0, description="of the chains' weights")


class Likelihood(Frozen):
    """Mean negative log-likelihood of a split, in nats for each image."""

    nll: float
    standard_error_images: float | None = Field(description="over images: how it would vary with another test set")
    standard_error_monte_carlo: float | None = Field(description="for this test set: posterior samples and chains")
    bits_per_dimension: float
    images: int
    samples: int = Field(description="K; 0 where nothing is summed out by sampling")
    effective_sample_size: float = Field(0.0, description="of the posterior samples' weights, mean over images")


class RaiseLikelihood(Likelihood):
    """The same from the other side."""

    resampled: int = Field(description="m, posterior samples with an annealing chain of their own")
    resampled_effective_sample_size: float = Field(0.0, description="of the m chains, mean over images")
    temperatures: int
    schedule: str = ""
    difference: float = Field(description="this NLL minus the one with `log_partition` on the same images")
    difference_standard_error: float | None = Field(description="over images and resampled chains, and log Z's own")


class Evaluation(Frozen):
    """What `evaluation.json` holds."""

    split: str
    dimensions: int
    log_partition: LogPartition
    log_partition_ais: LogPartition | None = Field(None, description="beside an exact one, where AIS was run too")
    likelihood: Likelihood
    likelihood_fewer_samples: Likelihood | None = Field(None, description="the same bound with K / 10")
    likelihood_raise: RaiseLikelihood | None = None


class Counts(NamedTuple):
    """How much to spend on an evaluation.

    Attributes:
        samples: K, posterior samples for each image.
        chains: AIS chains.
        temperatures: AIS temperatures.
        raise_images: First images of the split to run RAISE on.
        raise_resampled: m, posterior samples with a RAISE chain of their own.
        raise_temperatures: RAISE temperatures; 0 for no RAISE.
    """

    samples: int = 500
    chains: int = 1000
    temperatures: int = 10_000
    raise_images: int = 200
    raise_resampled: int = 4
    raise_temperatures: int = 2000


def check_counts(counts: Counts, images: int) -> None:
    """Check what an evaluation is asked to spend.

    Raises:
        ValueError: With a line for each count that is out of range.
    """
    least = {
        "samples": 1,
        "chains": 0,
        "temperatures": 1 if counts.chains else 0,
        "raise_images": 0,
        "raise_resampled": 1,
    }
    problems = [
        f"{name}: expected at least {bound}, got {getattr(counts, name)}"
        for name, bound in {**least, "raise_temperatures": 0}.items()
        if getattr(counts, name) < bound
    ]
    if images < 1:
        problems.append("images: expected at least 1, got none")
    if problems:
        raise ValueError("\n".join(problems))


@torch.no_grad()
def fit_prior_base(model: LatentModel | RBM, x: Tensor) -> None:
    """Let annealing start from the mean bits of the posterior on training data x (N, D)."""
    if isinstance(model, RBM):
        model.fit_base(x.mean(0, dtype=torch.float64), len(x))
    elif isinstance(model.prior, RBM):
        p = torch.cat([model.posterior(part.to(model.prior.weight)).mean for part in x.split(10_000)])
        model.prior.fit_base(p.mean(0), len(x))


def exact_log_partition(prior: Prior, largest: int = LARGEST_EXACT_LAYER) -> LogPartition | None:
    """log Z by enumeration, or None if the prior's smaller layer has more units than ``largest``."""
    if isinstance(prior, RBM) and min(prior.visible, prior.hidden) > largest:
        return None
    return LogPartition(value=float(prior.log_partition()), standard_error=0.0, method="exact")


def summarize_ais(estimate: AISEstimate, temperatures: int, schedule: str) -> LogPartition:
    """An AIS estimate with the counts behind it."""
    return LogPartition(
        value=estimate.log_z,
        standard_error=_finite(estimate.standard_error),
        method="ais",
        chains=len(estimate.log_weights),
        temperatures=temperatures,
        schedule=schedule,
        effective_sample_size=estimate.ess,
    )


def _finite(value: float) -> float | None:
    """A number that JSON can hold, or None where there is no estimate."""
    return value if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _likelihood(
    log_p: Tensor, variance: Tensor, log_z_error: float | None, dimensions: int, samples: int, ess: Tensor
) -> Likelihood:
    """Summarize log p(x) (N,), its Monte-Carlo variance (N,) and the effective sample sizes (N,)."""
    n = len(log_p)
    shared = math.inf if log_z_error is None else log_z_error
    return Likelihood(
        nll=-float(log_p.mean()),
        standard_error_images=_finite(float(log_p.std() / math.sqrt(n))) if n > 1 else None,
        standard_error_monte_carlo=_finite(math.sqrt(float(variance.sum()) / n**2 + shared**2)),
        bits_per_dimension=-float(log_p.mean()) / (dimensions * math.log(2)),
        images=n,
        samples=samples,
        effective_sample_size=float(ess.mean()),
    )


def _ignore(phase: str, share: float) -> None:
    pass


@torch.no_grad()
def evaluate(
    model: LatentModel | RBM,
    x: Tensor,
    split: str = "",
    counts: Counts = Counts(),  # noqa: B008 (immutable)
    schedule: Literal["adaptive", "linear"] = "adaptive",
    generator: torch.Generator | None = None,
    report: Report = _ignore,
) -> Evaluation:
    """Evaluate a model from both sides.

    Arguments:
        model: A latent-variable model, or an RBM over the data.
        x: Data, with shape (N, D).
        split: Name of the data, for the record.
        counts: How much to spend.
        schedule: Temperatures placed by an independent pilot run, or equally spaced.
        generator: Source of the randomness; the default generator if None.
        report: Told now and then how far a phase has come.

    Raises:
        ValueError: If a count is out of range, or log Z can be had in no way.
    """
    check_counts(counts, len(x))
    prior = model if isinstance(model, RBM) else model.prior
    D = x.shape[1]
    x = x.to(prior.visible_bias.detach())
    annealed = None
    if isinstance(prior, RBM) and counts.chains:
        annealed = _ais(prior, counts, schedule, generator, report)
    log_z = exact_log_partition(prior) or annealed
    if log_z is None:
        raise ValueError("evaluate: counts.chains=0 leaves log Z unknown, and the RBM is too large to enumerate")

    fewer = None
    z: Tensor | None
    if isinstance(model, RBM):
        log_p, z = model.log_prob(x, log_z.value).double(), x.expand(counts.raise_resampled, -1, -1)
        variance = ess = torch.zeros_like(log_p)
        likelihood = _likelihood(log_p, variance, log_z.standard_error, D, 0, ess)
    else:
        log_p, variance, z, ess = _bound(model, x, counts.samples, counts.raise_resampled, generator, report)
        log_p = log_p - log_z.value
        likelihood = _likelihood(log_p, variance, log_z.standard_error, D, counts.samples, ess)
        if counts.samples >= 20:
            K = counts.samples // 10
            few, few_variance, _, few_ess = _bound(model, x, K, 0, generator, report)
            fewer = _likelihood(few - log_z.value, few_variance, log_z.standard_error, D, K, few_ess)

    raised = None
    if isinstance(prior, RBM) and counts.raise_temperatures and counts.raise_images:
        n = min(counts.raise_images, len(x))
        log_raise = _raise(prior, z[:, :n], counts, schedule, generator, report)
        log_ratio = log_raise - prior.log_prob(z[:, :n], log_z.value).double()
        difference = log_ratio.logsumexp(0) - math.log(len(z))  # log of p_ann / p, for each image
        base = _likelihood(log_p[:n] + difference, variance[:n], 0.0, D, likelihood.samples, ess[:n])
        error = float(difference.std() / math.sqrt(n)) if n > 1 else math.nan
        raised = RaiseLikelihood(
            **base.model_dump(exclude={"standard_error_monte_carlo"}),
            standard_error_monte_carlo=_finite(math.hypot(_or_nan(base.standard_error_monte_carlo), error)),
            resampled=len(z),
            resampled_effective_sample_size=float(
                (2 * log_ratio.logsumexp(0) - (2 * log_ratio).logsumexp(0)).exp().mean()
            ),
            temperatures=counts.raise_temperatures,
            schedule=schedule,
            difference=-float(difference.mean()),
            # log Z is in the difference, and its error is the same for every image
            difference_standard_error=_finite(math.hypot(error, _or_nan(log_z.standard_error))),
        )
    return Evaluation(
        split=split,
        dimensions=D,
        log_partition=log_z,
        log_partition_ais=annealed if log_z.method == "exact" else None,
        likelihood=likelihood,
        likelihood_fewer_samples=fewer,
        likelihood_raise=raised,
    )


def _schedule(prior: RBM, temperatures: int, kind: str, generator: torch.Generator | None) -> Tensor | None:
    return adaptive_schedule(prior, temperatures, generator) if kind == "adaptive" else None


def _counter(phase: str, total: int, report: Report) -> Callable[[int], None]:
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        report(phase, done / total)

    return progress


def _ais(prior: RBM, counts: Counts, schedule: str, generator: torch.Generator | None, report: Report) -> LogPartition:
    progress = _counter("AIS", counts.chains * counts.temperatures, report)
    estimate = ais(
        prior,
        counts.chains,
        counts.temperatures,
        generator,
        schedule=_schedule(prior, counts.temperatures, schedule, generator),
        progress=progress,
    )
    return summarize_ais(estimate, counts.temperatures, schedule)


def _bound(
    model: LatentModel, x: Tensor, samples: int, keep: int, generator: torch.Generator | None, report: Report
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L_K + log Z (N,), its Monte-Carlo variance (N,), m kept samples (m, N, M) and the ESS (N,)."""
    parts = []
    for part in x.split(500):
        parts.append(model.importance_sums(part, samples, keep, generator))
        report(f"bound with K = {samples:,}", 500 * len(parts) / len(x))
    return (
        torch.cat([part.log_mean for part in parts]),
        torch.cat([part.variance for part in parts]),
        torch.cat([part.z for part in parts], 1),
        torch.cat([part.effective_sample_size for part in parts]),
    )


def _raise(
    prior: RBM,
    z: Tensor,
    counts: Counts,
    schedule: str,
    generator: torch.Generator | None,
    report: Report,
) -> Tensor:
    """RAISE's log-probabilities of samples z (m, n, M), with shape (m, n)."""
    m, n, M = z.shape
    return raise_log_prob(
        prior,
        z.reshape(m * n, M),
        counts.raise_temperatures,
        generator=generator,
        schedule=_schedule(prior, counts.raise_temperatures, schedule, generator),
        progress=_counter("RAISE", m * n * counts.raise_temperatures, report),
    ).view(m, n)


@torch.no_grad()
def quick_nll(
    model: LatentModel | RBM, x: Tensor, x_base: Tensor, config: ValidationConfig, seed: int
) -> tuple[float, float | None]:
    """The quick estimate that training goes by, and the standard error of its log Z, in nats.

    The same seed gives the same images, posterior noise and chains, so that models are compared with
    common random numbers; no training stream is touched.

    Arguments:
        model: A latent-variable model, or an RBM over the data; its annealing base is fitted anew.
        x: Validation data, with shape (N, D).
        x_base: Training data, with shape (N', D), for the annealing base.
        config: Counts.
        seed: Seed of this estimate.
    """
    prior = model if isinstance(model, RBM) else model.prior
    generator = torch.Generator(prior.visible_bias.device).manual_seed(seed)
    fit_prior_base(model, x_base)
    log_z = exact_log_partition(prior)
    if log_z is None:
        assert isinstance(prior, RBM)
        estimate = ais(prior, config.ais_chains, config.ais_temperatures, generator)
        log_z = summarize_ais(estimate, config.ais_temperatures, "linear")
    x = x[: config.images].to(prior.visible_bias)
    if isinstance(model, RBM):
        log_p = model.log_prob(x, log_z.value)
    else:
        log_p = model.log_prob(x, config.samples, log_z.value, generator)
    return -float(log_p.double().mean()), log_z.standard_error
