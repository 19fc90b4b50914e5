"""What an evaluation finds, as its JSON holds it, and what speaks against it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FEWEST_CHAINS, FEWEST_SAMPLES, LARGEST_DIFFERENCE = 10, 2, 0.1  # below, and above in nats, a figure is doubtful


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LogPartition(Frozen):
    """log Z of the prior, in nats.

    Attributes:
        value: The estimate.
        standard_error: Over chains; 0 if exact, none for a single chain.
        method: Enumerated, or by AIS.
        chains: Of AIS, as what follows.
        temperatures: Number of transitions.
        schedule: How they were placed: adaptive or linear.
        effective_sample_size: Of the chains' weights.
    """

    value: float
    standard_error: float | None = None
    method: Literal["exact", "ais"]
    chains: int = 0
    temperatures: int = 0
    schedule: str = ""
    effective_sample_size: float = 0.0


class NLL(Frozen):
    """Mean negative log-likelihood of a split, in nats for each image.

    Attributes:
        nll: The mean.
        standard_error_images: Over images: how it would vary with another test set.
        standard_error_monte_carlo: For this test set: posterior samples and chains.
        bits_per_dimension: The mean over D ln 2.
        images: Number of images.
        samples: K; 0 where nothing is summed out by sampling.
        effective_sample_size: Of the posterior samples' weights, mean over images.
    """

    nll: float
    standard_error_images: float | None = None
    standard_error_monte_carlo: float | None = None
    bits_per_dimension: float
    images: int
    samples: int
    effective_sample_size: float = 0.0


class RaiseNLL(NLL):
    """The same from the other side.

    Attributes:
        standard_error_monte_carlo: As of the bound, with the annealing chains; of one chain for each image the spread
            over images takes the place of the chains', and is too large.
        resampled: m, posterior samples with an annealing chain of their own.
        resampled_effective_sample_size: Of the m chains, mean over images.
        temperatures: Number of transitions.
        schedule: How they were placed: adaptive or linear.
        difference: This NLL minus the one with ``log_partition`` on the same images.
        difference_standard_error: Over images and resampled chains, and log Z's own.
        evenly_spaced: Whether the images are evenly spaced over those of the first row; once they were its first.
    """

    resampled: int
    resampled_effective_sample_size: float = 0.0
    temperatures: int
    schedule: str = ""
    difference: float
    difference_standard_error: float | None = None
    evenly_spaced: bool = False


class Evaluation(Frozen):
    """What ``evaluation.json`` holds.

    Attributes:
        split: Name of the data.
        dimensions: D.
        log_partition: Exact where it can be, else by AIS.
        log_partition_ais: Beside an exact one, where AIS was run too.
        likelihood: The bound L_K, or of an RBM over the data the likelihood itself.
        likelihood_fewer_samples: The same bound with the first K / 10 of the samples.
        likelihood_raise: From the other side, where RAISE was run.
        refine_steps: Gradient steps on each image's posterior before it was sampled, for all of these; 0 for none.
    """

    split: str
    dimensions: int
    log_partition: LogPartition
    log_partition_ais: LogPartition | None = None
    likelihood: NLL
    likelihood_fewer_samples: NLL | None = None
    likelihood_raise: RaiseNLL | None = None
    refine_steps: int = 0


def doubts(evaluation: Evaluation) -> list[str]:
    """What speaks against an evaluation's figures, a sentence each; the rules of thumb of docs/likelihoods.md.

    Few of the AIS chains or of the posterior samples carry the weight, or the two sides of log Z are apart.
    """
    found = []
    for log_z in (evaluation.log_partition, evaluation.log_partition_ais):
        few = log_z and not log_z.effective_sample_size >= max(FEWEST_CHAINS, log_z.chains / 100)  # NaN is few
        if log_z and log_z.method == "ais" and few:
            found.append(
                f"Of {log_z.chains:,} AIS chains {log_z.effective_sample_size:.1f} count (ESS): neither log Z nor its "
                "error can be trusted. Take more temperatures."
            )
    bound = evaluation.likelihood
    if bound.samples and not bound.effective_sample_size >= FEWEST_SAMPLES:
        found.append(
            f"Of K = {bound.samples:,} posterior samples {bound.effective_sample_size:.1f} count (ESS): the bound is "
            "loose. Take a larger K, or refine the posteriors by more steps."
        )
    if raised := evaluation.likelihood_raise:
        error = raised.difference_standard_error
        if abs(raised.difference) > LARGEST_DIFFERENCE and (error is None or abs(raised.difference) > 3 * error):
            exact = evaluation.log_partition.method == "exact"
            found.append(
                f"RAISE is {raised.difference:+.2f} nats from the first row: "
                + (
                    "that row's log Z is exact, so RAISE has not converged. Take more temperatures for it."
                    if exact
                    else "one of the two has not converged, or both. Take more temperatures for both."
                )
            )
    return found
