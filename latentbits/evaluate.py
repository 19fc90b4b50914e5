r"""Log-likelihoods with error bars: the bound :math:`L_K` (Eq. 6) with log Z by AIS, and RAISE from the other side.

.. math:: \log p(x) \ge L_K = \log \frac{1}{K} \sum_i \frac{p^*(x, z_i)}{q(z_i | x)} - \log Z

With AIS the second term is on average too small, so the likelihood looks too good. RAISE replaces
:math:`e^{-F(z)} / Z` by an unbiased estimate :math:`\hat p(z)` of what annealed sampling gives z: m of the K
samples are resampled by weight and :math:`\frac{1}{K} \sum_i w^*_i \cdot \frac{1}{m} \sum_j \hat p(z_j)
e^{F(z_j)}` is unbiased for the hybrid's likelihood under that sampler.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import distributed
from .anneal import AISEstimate, Progress, adaptive_schedule, ais, raise_log_prob
from .config import MOST, ValidationConfig
from .figures import NLL, Evaluation, LogPartition, RaiseNLL
from .files import Unfinished, fingerprint
from .fused import draw_key, fork
from .importance import ImportanceSums, LargestWeights
from .model import LatentModel
from .nets import evaluating, full_float32
from .progress import of_whole
from .rbm import RBM, Prior, check_bits, check_count, check_finite, not_finite
from .refine import refine
from .splits import evenly_spaced, some_of

LARGEST_EXACT_LAYER = 20
"""Up to this many units in the smaller layer log Z is summed exactly without being asked."""

IMAGES_PER_PART, DIMENSIONS_PER_PART, SAMPLES_PER_PART = 500, 500 * 784, 100_000
"""Images that are evaluated together, at most, also by their size and their samples; each such part has a random stream
of its own, goes to the process that is free and is written down."""

IMAGES_AT_ONCE = 1000
"""Images that go through a network together where no gradient is wanted."""

Report = Callable[[str, float, str], None]
"""Called with the name of a phase, the share of it that is done, and what it has found so far."""


class Counts(NamedTuple):
    """How much to spend on an evaluation.

    Attributes:
        samples: K, posterior samples for each image.
        chains: AIS chains.
        temperatures: AIS temperatures.
        raise_images: Images of the split to run RAISE on, evenly spaced.
        raise_resampled: m, posterior samples with a RAISE chain of their own.
        raise_temperatures: RAISE temperatures; 0 for no RAISE.
        refine_steps: Gradient steps on each image's posterior, see :func:`latentbits.refine`; 0 for the encoder's own.
    """

    samples: int = 500
    chains: int = 1000
    temperatures: int = 10_000
    raise_images: int = 200
    raise_resampled: int = 4
    raise_temperatures: int = 2000
    refine_steps: int = 0


def check_counts(counts: Counts, images: int) -> None:
    """Check what an evaluation is asked to spend.

    Raises:
        ValueError: With a line for each count that is no whole number or out of range.
    """
    least = {
        "samples": 1,
        "chains": 0,
        "temperatures": 1 if counts.chains else 0,
        "raise_images": 0,
        "raise_resampled": 1,
        "raise_temperatures": 0,
        "refine_steps": 0,
        "images": 1,
    }
    problems = []
    for name, value in {**counts._asdict(), "images": images}.items():
        try:
            check_count(name, value, least[name])
        except (TypeError, ValueError) as error:
            problems.append(str(error))
        else:
            if value > MOST:
                problems.append(f"{name}: expected up to {MOST:,}, got {value}")
    if problems:
        raise ValueError("\n".join(problems))


@torch.no_grad()
def fit_prior_base(model: LatentModel | RBM, x: Tensor) -> None:
    """Let annealing start from the mean bits of the posterior on training data x (N, D)."""
    if isinstance(model, RBM):
        model.fit_base(x.mean(0, dtype=torch.float64), len(x))
    elif isinstance(model.prior, RBM):
        model.prior.fit_base(mean_latents(model, x), len(x))


@torch.no_grad()
def mean_latents(model: LatentModel, x: Tensor) -> Tensor:
    """The posterior's means, averaged over data x (N, D), with shape (M,), float64."""
    parts = x.split(min(IMAGES_AT_ONCE, model.rows_at_once()))
    total = sum(model.posterior(part.to(model.prior.visible_bias)).mean.sum(0, dtype=torch.float64) for part in parts)
    return torch.as_tensor(total) / len(x)


def exact_log_partition(prior: Prior) -> LogPartition | None:
    """log Z by enumeration, or None if the prior's smaller layer has more than ``LARGEST_EXACT_LAYER`` units."""
    if isinstance(prior, RBM) and min(prior.visible, prior.hidden) > LARGEST_EXACT_LAYER:
        return None
    with torch.no_grad():
        return LogPartition(value=float(prior.log_partition()), standard_error=0.0, method="exact")


def log_partition(
    prior: Prior,
    chains: int,
    temperatures: int,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> LogPartition:
    """log Z: by enumeration where that can be had, else by AIS at equally spaced temperatures."""
    if (exact := exact_log_partition(prior)) is not None:
        return exact
    assert isinstance(prior, RBM)
    return summarize_ais(ais(prior, chains, temperatures, generator, progress=progress), temperatures, "linear")


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


class _Bound(NamedTuple):
    """What an evaluation keeps for each image.

    Attributes:
        samples: K; 0 where nothing is summed out by sampling.
        log_p: log p(x) + log Z, in nats, with shape (N,).
        variance: Monte-Carlo variance of log_p, with shape (N,).
        effective_sample_size: With shape (N,).
        z: Samples from the posterior's normalised weights, with shape (m, N, M).
    """

    samples: int
    log_p: Tensor
    variance: Tensor
    effective_sample_size: Tensor
    z: Tensor

    @classmethod
    def summed(cls, sums: ImportanceSums) -> "_Bound":
        """By importance sums."""
        return cls(sums.samples, sums.log_mean, sums.variance, sums.effective_sample_size, sums.z)

    def of(self, rows: Tensor) -> "_Bound":
        """The same of some images, by their positions (n,)."""
        each = self.log_p[rows], self.variance[rows], self.effective_sample_size[rows]
        return _Bound(self.samples, *each, self.z[:, rows])


def _likelihood(bound: _Bound, log_z: float, log_z_error: float | None, dimensions: int) -> NLL:
    """Summarize a bound, given log Z and its standard error."""
    n, log_p = len(bound.log_p), bound.log_p - log_z
    shared = math.inf if log_z_error is None else log_z_error
    return NLL(
        nll=-float(log_p.mean()),
        standard_error_images=_finite(float(log_p.std() / math.sqrt(n))) if n > 1 else None,
        standard_error_monte_carlo=_finite(math.sqrt(float(bound.variance.sum()) / n**2 + shared**2)),
        bits_per_dimension=-float(log_p.mean()) / (dimensions * math.log(2)),
        images=n,
        samples=bound.samples,
        effective_sample_size=float(bound.effective_sample_size.mean()),
    )


def ignore(phase: str, share: float, so_far: str) -> None:
    """A report that nobody wants."""


@torch.no_grad()
@full_float32()
def evaluate(
    model: LatentModel | RBM,
    x: Tensor,
    split: str = "",
    counts: Counts = Counts(),  # noqa: B008 (immutable)
    schedule: Literal["adaptive", "linear"] = "adaptive",
    generator: torch.Generator | None = None,
    report: Report = ignore,
    checkpoints: Path | str | None = None,
) -> Evaluation:
    """Evaluate a model from both sides.

    Arguments:
        model: A latent-variable model, or an RBM over the data. If its RBM has no base, which training gives it,
            one is fitted to these data, and kept.
        x: Data, with shape (N, D); bits for an RBM.
        split: Name of the data, for the record.
        counts: How much to spend.
        schedule: Temperatures placed by an independent pilot run, or equally spaced.
        generator: Source of the randomness; the default generator if None.
        report: Told now and then how far a phase has come.
        checkpoints: Folder for what has been computed, which is written down every minute and at the end of a
            phase; the same call, interrupted, goes on from it. Delete it when you have the result.

    Raises:
        ValueError: If a count is out of range, the data do not fit the model, a parameter of it is not finite, or log Z
            can be had in no way.
    """
    if schedule not in ("adaptive", "linear"):
        raise ValueError(f"schedule: expected adaptive or linear, got {schedule}")
    check_counts(counts, len(x))
    prior = model if isinstance(model, RBM) else model.prior
    if isinstance(model, RBM):
        check_bits("x", x, model.visible)
        if counts.refine_steps:
            raise ValueError(f"refine_steps: expected 0 for an RBM over the data, got {counts.refine_steps}")
    else:
        model.check_data("x", x)
    check_finite("model", model)
    annealing = _Annealing(schedule, generator, report, None if checkpoints is None else Path(checkpoints))
    with evaluating(model):
        return _evaluate(model, prior, x.to(prior.visible_bias.device), split, counts, annealing)


def _evaluate(
    model: LatentModel | RBM, prior: Prior, x: Tensor, split: str, counts: Counts, annealing: "_Annealing"
) -> Evaluation:
    """As :func:`evaluate`, of a model in evaluation mode and data (N, D) that fit it."""
    _, generator, report, checkpoints = annealing
    if isinstance(prior, RBM) and prior.base_bias is None:
        fit_prior_base(model, x)
    annealed = annealing.log_partition(prior, counts) if isinstance(prior, RBM) and counts.chains else None
    log_z = exact_log_partition(prior) or annealed
    if log_z is None:
        raise ValueError("evaluate: counts.chains=0 leaves log Z unknown, and the RBM is too large to enumerate")

    raises = isinstance(prior, RBM) and counts.raise_temperatures > 0 and counts.raise_images > 0
    keep = counts.raise_resampled if raises else 0
    refined = None
    if isinstance(model, LatentModel) and counts.refine_steps:
        refined = _refined(model, x, counts.refine_steps, generator, report, checkpoints)
    tenth = counts.samples // 10 if counts.samples >= 20 else 0
    bound, few = _bound(model, x, counts.samples, keep, generator, tenth, report, checkpoints, refined)
    raised = None
    if raises:
        assert isinstance(prior, RBM)
        some = bound.of(evenly_spaced(len(x), min(len(x), counts.raise_images)).to(x.device))
        raised = _raise(prior, some, counts, log_z, x.shape[1], annealing)
    return Evaluation(
        split=split,
        dimensions=x.shape[1],
        log_partition=log_z,
        log_partition_ais=annealed if log_z.method == "exact" else None,
        likelihood=_likelihood(bound, log_z.value, log_z.standard_error, x.shape[1]),
        likelihood_fewer_samples=few and _likelihood(few, log_z.value, log_z.standard_error, x.shape[1]),
        likelihood_raise=raised,
        refine_steps=counts.refine_steps,
    )


class _Annealing(NamedTuple):
    """How AIS and RAISE are run in an evaluation."""

    schedule: str
    generator: torch.Generator | None
    report: Report
    checkpoints: Path | None

    def betas(self, prior: RBM, temperatures: int) -> Tensor | None:
        """The schedule (temperatures + 1,); None for the linear one."""
        return adaptive_schedule(prior, temperatures, self.generator) if self.schedule == "adaptive" else None

    def log_partition(self, prior: RBM, counts: Counts) -> LogPartition:
        """log Z by AIS."""
        betas = self.betas(prior, counts.temperatures)
        estimate = ais(
            prior, counts.chains, counts.temperatures, self.generator, schedule=betas,
            progress=self._tell("AIS"), checkpoints=self.checkpoints,
        )  # fmt: skip
        return summarize_ais(estimate, counts.temperatures, self.schedule)

    def log_prob(self, prior: RBM, z: Tensor, temperatures: int) -> Tensor:
        """log p_ann of z (m, n, M) by RAISE, one chain each, with shape (m, n)."""
        m, n, M = z.shape
        return raise_log_prob(
            prior, z.reshape(m * n, M), temperatures, 1, self.generator, schedule=self.betas(prior, temperatures),
            progress=self._tell("RAISE"), checkpoints=self.checkpoints,
        ).view(m, n)  # fmt: skip

    def _tell(self, title: str) -> Progress:
        def tell(share: float, estimate: AISEstimate | None) -> None:
            so_far = "" if estimate is None else f"log Z {estimate.log_z:.3f} ± {estimate.standard_error:.3f}"
            self.report(title, share, so_far)

        return tell


def _bound(
    model: LatentModel | RBM,
    x: Tensor,
    samples: int,
    keep: int,
    generator: torch.Generator | None,
    fewer: int = 0,
    report: Report = ignore,
    checkpoints: Path | None = None,
    parameters: Tensor | None = None,
) -> tuple[_Bound, _Bound | None]:
    """L_K + log Z of data x (N, D), in parts that processes share out, and the same with fewer of the samples.

    An RBM over the data needs no samples.

    Posteriors are the encoder's, or those of given parameters (N, outputs of the encoder).
    """
    if isinstance(model, RBM):
        x = x.to(model.visible_bias.detach())
        log_f = -model.free_energy(x).double()
        return _Bound(0, log_f, torch.zeros_like(log_f), torch.zeros_like(log_f), x.expand(keep, -1, -1)), None
    key = draw_key(generator)
    given = () if parameters is None else (parameters,)
    path = _unfinished("bound", checkpoints, key, samples, keep, fewer, x, *given, *model.state_dict().values())
    parts = _Parts(len(x), keep, model.prior, path)
    for number, rows in _parts_to_do(x, samples, parts.done):
        tell = of_whole(lambda share: report(f"bound with K = {samples:,}", share, ""), rows, len(x))
        tell(0.0)
        own = None if parameters is None else parameters[rows]
        stream = fork(key, number, x.device)
        parts.put(rows, model.importance_sums(x[rows], samples, keep, stream, tell, own, fewer))
    sums, z = distributed.total(parts.sums), distributed.total(parts.z)  # a process's rows are zeros in the others
    parts.unfinished.write(parts.state, finished=True)
    few = _Bound.summed(ImportanceSums.of(fewer, sums[1], z[:0])) if fewer else None
    return _Bound.summed(ImportanceSums.of(samples, sums[0], z)), few


def _parts_to_do(x: Tensor, samples: int, done: Tensor) -> Iterator[tuple[int, slice]]:
    """The parts of data x (N, D), with so many samples each, that fall to this process, and their numbers.

    What has been ``done`` (N,), by this process or by another, is left out.
    """
    done = distributed.total(done.int()).bool()
    size = max(1, min(IMAGES_PER_PART, DIMENSIONS_PER_PART // x.shape[1], SAMPLES_PER_PART // samples))
    parts = [slice(first, min(first + size, len(x))) for first in range(0, len(x), size)]
    for number in distributed.share_dynamically(len(parts)):
        if not done[parts[number].start]:
            yield number, parts[number]


def _unfinished(phase: str, checkpoints: Path | None, *of: object) -> Path | None:
    """Where a process writes down how far a phase has come, under a name that says what it is computed from."""
    if checkpoints is None:
        return None
    return checkpoints / f"{phase}-{fingerprint(tuple(distributed.world()), *of)}.safetensors"


def _refined(
    model: LatentModel,
    x: Tensor,
    steps: int,
    generator: torch.Generator | None,
    report: Report,
    checkpoints: Path | None,
) -> Tensor:
    """Parameters of posteriors, refined for each of data x (N, D) by itself, with shape (N, outputs of the encoder)."""
    key = draw_key(generator)
    unfinished = Unfinished(_unfinished("refined", checkpoints, key, steps, x, *model.state_dict().values()))
    done = torch.zeros(len(x), dtype=torch.bool)
    like = model.encoder(x[:2].to(model.prior.visible_bias))  # two, for what normalizes a batch
    parameters = like.new_zeros(len(x), like.shape[1])
    if saved := unfinished.read():
        done, parameters = saved["done"], saved["parameters"].to(x.device)
    for number, rows in _parts_to_do(x, steps, done):
        tell = of_whole(lambda share: report("refining posteriors", share, ""), rows, len(x))
        parameters[rows] = refine(model, x[rows], steps, fork(key, number, x.device), tell)
        done[rows] = True
        unfinished.write(lambda: {"done": done, "parameters": parameters})
    unfinished.write(lambda: {"done": done, "parameters": parameters}, finished=True)
    return distributed.total(parameters)  # a process's rows are zeros in the others


class _Parts:
    """Importance sums of N data, of all samples and of the first; they come in parts and are written down every minute.

    Arguments:
        count: N.
        keep: Number m of samples that are kept for each datum.
        prior: Over the samples.
        path: Where to write the parts down, or None.
    """

    def __init__(self, count: int, keep: int, prior: Prior, path: Path | None) -> None:
        like = prior.visible_bias.detach()
        self.sums = like.new_zeros(2, 3, count, dtype=torch.float64)
        self.z = like.new_zeros(keep, count, prior.visible)
        self.done, self.unfinished = torch.zeros(count, dtype=torch.bool), Unfinished(path)
        if saved := self.unfinished.read():
            self.sums, self.z, self.done = saved["sums"].to(like.device), saved["z"].to(self.z), saved["done"]

    def put(self, rows: slice, sums: ImportanceSums) -> None:
        """Add the sums of some rows."""
        self.sums[0, :, rows], self.z[:, rows] = sums.summary, sums.z
        if sums.fewer:
            self.sums[1, :, rows] = sums.fewer.summary
        self.done[rows] = True
        self.unfinished.write(self.state)

    def state(self) -> dict[str, Tensor]:
        """What is written down."""
        return {"sums": self.sums, "z": self.z.bool(), "done": self.done}


def _raise(
    prior: RBM, bound: _Bound, counts: Counts, log_z: LogPartition, dimensions: int, annealing: "_Annealing"
) -> RaiseNLL:
    """RAISE on the resampled posterior samples of a bound's images."""
    m, n, _ = bound.z.shape
    log_raise = annealing.log_prob(prior, bound.z, counts.raise_temperatures)
    log_ratio = log_raise - prior.log_prob(bound.z, log_z.value).double()
    difference = log_ratio.logsumexp(0) - math.log(m)  # log of p_ann / p, for each image
    error = float(difference.std() / math.sqrt(n)) if n > 1 else math.nan
    variance = bound.variance + _chains_variance(log_ratio, error)
    raised = bound._replace(log_p=bound.log_p + difference, variance=variance)
    return RaiseNLL(
        **_likelihood(raised, log_z.value, 0.0, dimensions).model_dump(),
        resampled=m,
        resampled_effective_sample_size=float((2 * log_ratio.logsumexp(0) - (2 * log_ratio).logsumexp(0)).exp().mean()),
        temperatures=counts.raise_temperatures,
        schedule=annealing.schedule,
        difference=-float(difference.mean()),
        # log Z is in the difference, and its error is the same for every image
        difference_standard_error=_finite(math.hypot(error, _or_nan(log_z.standard_error))),
        evenly_spaced=True,
    )


def _chains_variance(log_ratio: Tensor, error: float) -> Tensor:
    """Of the log of the mean over the chains of log_ratio (m, n), by the jackknife, with shape (n,).

    With one chain each, that of the standard error over images, which is too large: it has their differences in it.
    """
    m, n = log_ratio.shape
    if m == 1:
        return torch.full_like(log_ratio[0], n * error**2)
    weights = LargestWeights(log_ratio[0])
    weights.add(log_ratio)
    return weights.variance(m)


@torch.no_grad()
def quick_nll(
    model: LatentModel | RBM, x: Tensor, x_base: Tensor, config: ValidationConfig, seed: int
) -> tuple[float, float | None]:
    """The quick estimate that training goes by, and the standard error of its log Z, in nats; NaN if a parameter is.

    The same seed gives the same images, posterior noise and chains, so that models are compared with
    common random numbers; no training stream is touched.

    Arguments:
        model: A latent-variable model, or an RBM over the data; its annealing base is fitted anew.
        x: Validation data, with shape (N, D).
        x_base: Training data, with shape (N', D), for the annealing base.
        config: Counts.
        seed: Seed of this estimate.
    """
    if not_finite(model):
        return math.nan, None
    prior = model if isinstance(model, RBM) else model.prior
    generator = torch.Generator(prior.visible_bias.device).manual_seed(seed)
    fit_prior_base(model, x_base)
    log_z = log_partition(prior, config.ais_chains, config.ais_temperatures, generator)
    x = some_of(x, config.images)
    bound, _ = _bound(model, x, config.samples, 0, generator)
    return -float(bound.log_p.mean() - log_z.value), log_z.standard_error
