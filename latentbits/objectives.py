r"""Objectives of stage 3: VIMCO and contrastive reweighted wake-sleep; a relaxed ELBO and IWAE beside them.

For the first two everything is a function of the log-weights :math:`\log w_i = \log p^*(x, z_i) - \log q(z_i | x)` of K
posterior samples. Both objectives move decoder and prior along
:math:`\sum_i \tilde w_i \nabla \log p(x, z_i)` with :math:`\tilde w_i = w_i / \sum_j w_j` (Eq. 5), and the
encoder along :math:`\sum_i s_i \nabla \log q(z_i | x)`; they differ in the signals :math:`s_i`, and
contrastive reweighted wake-sleep adds a sleep phase from the prior's persistent chains.

The relaxed ELBO replaces the bits by :math:`\zeta = \sigma((a + \mathrm{logit}(u)) / \tau)`, through which a
gradient can pass: one sample, little noise, some bias. IWAE has continuous latents and no such trouble.

References:
    | Variational inference for Monte Carlo objectives (Mnih & Rezende 2016)
    | Reweighted wake-sleep (Bornschein & Bengio 2014)
    | GumBolt: extending Gumbel trick to Boltzmann priors (Khoshaman & Amin 2018)
    | Importance weighted autoencoders (Burda et al. 2015)
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from .distributions import Bits
from .fused import bernoulli, generator_device, softplus_sum, standard_normal
from .model import GaussianModel, LatentModel, Products
from .rbm import check_count

LARGEST_WEIGHT_ERROR = 1e-4


class Signal(NamedTuple):
    """What K log-weights say. A function of one's own from log_w (K, B) to this is an objective too.

    Attributes:
        bound: log of the mean weight: L_K (Eq. 2), plus log Z if the prior is not normalised; with shape (B,).
        weights: Normalised weights, with shape (K, B).
        encoder_signal: The factor s_i of each log q(z_i | x)'s gradient, with shape (K, B).
    """

    bound: Tensor
    weights: Tensor
    encoder_signal: Tensor


SignalFunction = Callable[[Tensor], Signal]


def _check_log_w(log_w: Tensor) -> None:
    if log_w.dim() != 2 or log_w.shape[0] < 2:
        raise ValueError(f"log_w: expected shape (K, B) with K of 2 or more, got {tuple(log_w.shape)}")


def vimco(log_w: Tensor) -> Signal:
    r"""VIMCO's signals (Algorithm 2), where L is L_K (Eq. 2).

    .. math::
        L & = \log \frac{1}{K} \sum_j w_j \\
        L_{-i} & = \log \frac{1}{K} \Big( w_{-i} + \sum_{j \neq i} w_j \Big), \quad
            w_{-i} = \prod_{j \neq i} w_j^{1 / (K - 1)} \\
        s_i & = L - L_{-i} - \tilde w_i

    Arguments:
        log_w: Log-weights, with shape (K, B), K of 2 or more.
    """
    _check_log_w(log_w)
    log_w = log_w.detach()
    K = log_w.shape[0]
    others = ~torch.eye(K, dtype=torch.bool, device=log_w.device)
    log_w_rest = torch.where(others[:, :, None], log_w[None], 0).sum(1) / (K - 1)
    # row i of (K, K, B): all log-weights, with the geometric mean of the others in place of number i
    replaced = torch.where(others[:, :, None], log_w[None], log_w_rest[:, None])
    bound = log_w.logsumexp(0) - math.log(K)
    bound_rest = replaced.logsumexp(1) - math.log(K)
    weights = log_w.softmax(0)
    return Signal(bound, weights, bound - bound_rest - weights)


def wake(log_w: Tensor) -> Signal:
    """Reweighted wake-sleep's wake phase (Algorithm 1): log_w (K, B); the signals are the weights."""
    _check_log_w(log_w)
    log_w = log_w.detach()
    weights = log_w.softmax(0)
    return Signal(log_w.logsumexp(0) - math.log(log_w.shape[0]), weights, weights)


def effective_sample_size(weights: Tensor) -> Tensor:
    """1 / sum_i w_i^2 of normalised weights (K, B), between 1 and K, with shape (B,)."""
    return 1 / weights.square().sum(0)


def resample(weights: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Systematic resampling: sample i is taken ``count * weights[i]`` times in expectation.

    Arguments:
        weights: Normalised weights, with shape (K, B).
        count: Number S of samples to take for each datum.
        generator: Source of the randomness; the default generator if None.

    Returns:
        Indices into the K samples, with shape (S, B).

    Raises:
        TypeError: If the count is no whole number.
        ValueError: If a weight is negative, as log-weights are, or the count below 1.
    """
    K, B = weights.shape
    check_count("resample: count", count)
    if (weights < 0).any():
        raise ValueError(f"resample: expected weights of 0 or more, got some down to {float(weights.min()):g}")
    device = generator_device(generator, weights)
    u = torch.rand(B, 1, generator=generator, device=device, dtype=torch.float64).to(weights.device)
    positions = (u + torch.arange(count, device=weights.device)) / count
    cumulative = weights.double().cumsum(0).T.contiguous()
    cumulative = cumulative / cumulative[:, -1:]
    return torch.searchsorted(cumulative, positions, right=True).clamp(max=K - 1).T


def is_drawn(count: int, samples: int) -> bool:
    """Whether of so many samples only a count, which is not 0, goes backward."""
    return 0 < count < samples


def choose(weights: Tensor, samples: Tensor, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """What goes backward of samples (K, B, M) with normalised weights (K, B), and the weights that it has there.

    With a count S below K, so many of them resampled, (S, B, M) with weights 1 / S, which leaves a weighted sum's
    gradient unbiased; else all of them.
    """
    if not is_drawn(count, len(samples)):
        return samples, weights
    index = resample(weights, count, generator)
    kept = samples.gather(0, index[:, :, None].expand(-1, -1, samples.shape[2]))
    return kept, torch.full_like(index, 1, dtype=weights.dtype) / count


def check_signal(signal: Signal, log_w: Tensor, drawn: bool) -> None:
    """Refuse what a function of one's own says of log-weights log_w (K, B) if it cannot be used.

    Arguments:
        signal: What it returned.
        log_w: What it was given.
        drawn: Whether samples will be drawn by its weights.

    Raises:
        TypeError: If it is no signal, or not of tensors.
        ValueError: If a shape does not fit or a value is not finite; or if samples cannot be drawn, for a weight is
            negative, or the weights of a datum do not have the sum 1.
    """
    if not isinstance(signal, Signal):
        raise TypeError(f"objective: expected it to return a latentbits.Signal, got {type(signal).__name__}")
    for name, expected in (("bound", log_w.shape[1:]), ("weights", log_w.shape), ("encoder_signal", log_w.shape)):
        if not isinstance(given := getattr(signal, name), Tensor):
            raise TypeError(f"objective: expected {name} as a torch.Tensor, got {type(given).__name__}")
        if given.shape != expected:
            raise ValueError(f"objective: expected {name} of shape {tuple(expected)}, got {tuple(given.shape)}")
        if log_w.isfinite().all() and not given.isfinite().all():
            raise ValueError(f"objective: expected finite {name} of log-weights that are finite, got others")
    weights = signal.weights
    if drawn and not ((weights >= 0).all() and ((weights.sum(0) - 1).abs() < LARGEST_WEIGHT_ERROR).all()):
        raise ValueError(
            "objective: expected weights of 0 or more with the sum 1 for each datum, by which samples are drawn to go "
            "backward; with joint.backward_samples=0 all go, and weights may be anything"
        )


class Losses(NamedTuple):
    """Scalars whose gradients are the updates, and what to watch.

    Attributes:
        decoder: Gradient reaches the decoder only, and where samples carry it the encoder.
        encoder: Gradient reaches the encoder only, and in the relaxed ELBO the prior, whose positive phase it is.
        prior: Gradient reaches the prior only.
        gap: Mean free energy of the data's latents minus that of the chains, in nats, without gradient.
        bound: Mean over the batch of L_K + log Z, in nats.
        effective_sample_size: Mean over the batch.
    """

    decoder: Tensor
    encoder: Tensor
    prior: Tensor
    gap: Tensor
    bound: Tensor
    effective_sample_size: Tensor


LossesFunction = Callable[[LatentModel, Tensor, Tensor, int, torch.Generator], Losses]
"""From the model, data x (B, D), bits of the prior's chains (N, M), K and a generator to the losses of a batch."""


def joint_losses(
    model: LatentModel,
    x: Tensor,
    z_negative: Tensor,
    objective: str | SignalFunction,
    samples: int,
    backward_samples: int = 0,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    products: Products = nullcontext,
    sleep_weight: float = 0.0,
    dreams: int = 0,
) -> Losses:
    r"""Surrogate losses of one batch for stage 3.

    All K samples are scored without gradient. Decoder and prior then see ``backward_samples`` of them,
    resampled by weight, which leaves their gradient unbiased; if all K go backward, they are scored once, with
    gradient. The encoder's needs no decoder: with
    logits a, :math:`\sum_i s_i \log q(z_i | x) = a \cdot \sum_i s_i z_i - \mathrm{softplus}(a) \cdot \sum_i s_i`.

    Arguments:
        model: Encoder, decoder and prior.
        x: Data, with shape (B, D).
        z_negative: Samples of the prior from persistent chains, with shape (N, M).
        objective: "vimco", "crws", or a function from log_w (K, B) to a :class:`Signal`.
        samples: K, posterior samples for each datum.
        backward_samples: S, how many of them go backward; 0 for all K, by weight.
        dropout: Probability that the encoder sees a data bit as 0; the likelihood has the data as they are.
        generator: Source of the randomness; the default generator if None.
        products: Context of the networks' matrix products; all sums over bits and samples stay outside.
        sleep_weight: Of a sleep phase in VIMCO's encoder loss.
        dreams: How many of the prior's samples, at random, dream in a sleep phase; 0 for all.
    """
    with products():
        a = model.encoder(drop(x, dropout, generator))
    with torch.no_grad():
        z = Bits(a.detach()).sample((samples,), generator)
    return losses_of_samples(
        model, x, a, z, z_negative, objective, backward_samples, generator, products, sleep_weight, dreams
    )


def losses_of_samples(
    model: LatentModel,
    x: Tensor,
    a: Tensor,
    z: Tensor,
    z_negative: Tensor,
    objective: str | SignalFunction,
    backward_samples: int = 0,
    generator: torch.Generator | None = None,
    products: Products = nullcontext,
    sleep_weight: float = 0.0,
    dreams: int = 0,
) -> Losses:
    """As :func:`joint_losses`, given posterior logits a (B, M) and samples z (K, B, M) from them."""
    signal_of = {"vimco": vimco, "crws": wake}.get(objective) if isinstance(objective, str) else objective
    if signal_of is None:
        raise ValueError(f"objective: expected vimco, crws or a function of log-weights, got {objective}")
    q, drawn = Bits(a), is_drawn(backward_samples, len(z))
    if not drawn:
        log_p, free_energy = model.joint_terms(x, z, products)
    with torch.no_grad():
        log_joint = model.log_joint(x, z, products) if drawn else log_p - free_energy
        log_w = log_joint - q.log_prob(z)
        signal = signal_of(log_w)
        if not isinstance(objective, str):
            check_signal(signal, log_w, drawn)
            signal = Signal(*(each.to(log_w) for each in signal))
        z_kept, weights = choose(signal.weights, z, backward_samples, generator)
    if drawn:
        log_p, free_energy = model.joint_terms(x, z_kept, products)

    s = signal.encoder_signal
    s_z = torch.einsum("kb,kbm->bm", s, z)
    encoder = -((s_z * q.logits).sum(-1) - s.sum(0) * softplus_sum(q.logits)).mean()
    if objective == "crws":
        sleep_weight = 1.0  # the algorithm's own
    if sleep_weight:
        encoder = encoder - sleep_weight * sleep(model, z_negative, generator, dreams)
    decoder = -(weights * log_p).sum(0).mean()
    # Eq. 5: the samples' free energies by weight, against those of the chains in the surrogate
    prior = (weights * free_energy).sum(0).mean() + model.prior.log_partition_surrogate(z_negative)
    size = effective_sample_size(signal.weights).mean()
    return Losses(decoder, encoder, prior, prior.detach(), signal.bound.mean(), size)


def relaxed_losses(
    model: LatentModel,
    x: Tensor,
    z_negative: Tensor,
    relaxation: float,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    products: Products = nullcontext,
) -> Losses:
    r"""The ELBO (Eq. 1) of one relaxed sample, whose gradient reaches the encoder through the sample (GumBolt's).

    .. math:: \log p(x | \zeta) - F(\zeta) + H(q) - \log Z

    The sample is :meth:`latentbits.distributions.Bits.rsample`'s; the entropy H(q) is that of the bits, exactly.

    Arguments:
        model: Encoder, decoder and prior.
        x: Data, with shape (B, D).
        z_negative: Samples of the prior from persistent chains, with shape (N, M).
        relaxation: The temperature; towards 0 samples become bits and gradients noise.
        dropout: Probability that the encoder sees a data bit as 0; the likelihood has the data as they are.
        generator: Source of the randomness; the default generator if None.
        products: Context of the networks' matrix products.
    """
    with products():
        a = model.encoder(drop(x, dropout, generator))
    q = Bits(a)
    log_p, free_energy = model.joint_terms(x, q.rsample(generator=generator, temperature=relaxation), products)
    entropy = q.entropy()
    log_partition = model.prior.log_partition_surrogate(z_negative)
    return Losses(
        decoder=-log_p.mean(),
        encoder=(free_energy - entropy).mean(),
        prior=log_partition,
        gap=(free_energy.mean() + log_partition).detach(),
        bound=(log_p - free_energy + entropy).detach().mean(),
        effective_sample_size=torch.ones((), device=a.device),
    )


def iwae_losses(
    model: GaussianModel,
    x: Tensor,
    z_negative: Tensor,
    samples: int,
    backward_samples: int = 0,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    products: Products = nullcontext,
) -> Losses:
    r"""IWAE's bound for continuous latents: :math:`\sum_i \tilde w_i \nabla \log w(z_i)` through the samples z_i.

    As in :func:`joint_losses`, all K are scored without gradient and some, resampled by weight, go backward; or all,
    with gradient.

    Arguments:
        model: Encoder, decoder and prior.
        x: Data, with shape (B, D).
        z_negative: Samples of the prior, with shape (N, M), for a prior of one's own that is not normalized.
        samples: K, posterior samples for each datum.
        backward_samples: S, how many of them go backward; 0 for all K, by weight.
        dropout: Probability that the encoder sees a data bit as 0; the likelihood has the data as they are.
        generator: Source of the randomness; the default generator if None.
        products: Context of the networks' matrix products.
    """
    with products():
        q = model.posterior(drop(x, dropout, generator))
    noise = standard_normal((samples, *q.loc.shape), q.loc, generator)

    def log_weights(noise: Tensor) -> Tensor:
        z = q.loc + q.scale * noise
        log_q: Tensor = q.log_prob(z)
        return model.log_joint(x, z, products) - log_q

    drawn = is_drawn(backward_samples, samples)
    with torch.no_grad() if drawn else nullcontext():
        log_w_kept = log_weights(noise)
    log_w = log_w_kept.detach()
    weights = log_w.softmax(0)
    noise, kept = choose(weights, noise, backward_samples, generator)
    if drawn:
        log_w_kept = log_weights(noise)
    return Losses(
        decoder=-(kept * log_w_kept).sum(0).mean(),
        encoder=log_w.new_zeros(()),
        prior=model.prior.log_partition_surrogate(z_negative),
        gap=log_w.new_zeros(()),
        bound=(log_w.logsumexp(0) - math.log(samples)).mean(),
        effective_sample_size=effective_sample_size(weights).mean(),
    )


def drop(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Data x (B, D) with each value set to 0 with some probability, and the others scaled to keep the mean."""
    if not probability:
        return x
    kept = bernoulli(torch.full_like(x, probability).logit().neg(), generator)
    return x * kept / (1 - probability)


def sleep(model: LatentModel, z_negative: Tensor, generator: torch.Generator | None = None, dreams: int = 0) -> Tensor:
    """The sleep phase (Algorithm 1): mean log q(z | x) of dreams x ~ p(x | z); a scalar.

    Arguments:
        model: Encoder and decoder.
        z_negative: Samples of the prior, with shape (N, M).
        generator: Source of the randomness; the default generator if None.
        dreams: How many of them dream, drawn at random with replacement; 0 for each of them once.
    """
    with torch.no_grad():
        if dreams:
            device = generator_device(generator, z_negative)
            rows = torch.randint(len(z_negative), (dreams,), generator=generator, device=device)
            z_negative = z_negative[rows.to(z_negative.device)]
        parts = z_negative.split(model.rows_at_once())
        x_negative = torch.cat([model.likelihood(z).sample(generator=generator) for z in parts])
    return model.posterior(x_negative).log_prob(z_negative).mean()
