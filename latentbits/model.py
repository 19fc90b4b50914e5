r"""The hybrid model: a deep encoder and decoder with bits between them, and a prior over the bits.

.. math::
    q(z | x) & = \mathrm{Bernoulli}(\sigma(\mathcal{E}(x))) \\
    p(x) & = \sum_z p(x | z) \, p(z), \quad p(z) = e^{-F(z)} / Z

Importance weights use the unnormalised :math:`p^*(x, z) = e^{-F(z)} p(x | z)` (Eq. 4), since Z cancels
wherever weights are normalised and is estimated once wherever they are not.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from .config import ModelConfig
from .distributions import Bits, DiagonalNormal, Likelihood, LogisticMixture
from .fused import generator_device, uniform
from .importance import ImportanceSums, LargestWeights
from .nets import MLP, DCCritic, DCGenerator, ResNetDecoder, ResNetEncoder, check_last_map, evaluating
from .progress import of_whole
from .rbm import RBM, BernoulliPrior, NormalPrior, Prior, check_count, check_shape
from .splits import Form
from .tempering import sample_prior

ELEMENTS_PER_CHUNK = 2**24
"""Largest (K, B, D) tensor that an evaluation makes: 64 MiB of float32."""


ELEMENTS_PER_SCORING = 2**21
"""Largest tensor that scoring samples makes at once: 8 MiB of float32, measured to be the fastest for an mlp.

Another decoder may say otherwise by its attribute ``elements_at_once``.
"""

TIMES_ON_A_GPU = 16
"""Larger tensors than on a CPU; not measured."""

STEPS_BEFORE_A_WALK = 200
"""Of the prior's chains among whose samples inpainting looks for a place to begin."""

Products = Callable[[], AbstractContextManager[None]]
"""A context for matrix products, such as :func:`latentbits.gibbs.bfloat16_products`."""


class Scores(NamedTuple):
    """Log-likelihoods of data.

    Attributes:
        log_prob: L_K, in nats, float64, with shape (B,).
        standard_error: Of each, from the spread of its weights by the jackknife, with shape (B,).
        effective_sample_size: Of the K samples, with shape (B,).
    """

    log_prob: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor


def elements_on(x: Tensor, elements: int) -> int:
    """How large a tensor may be where x is, that has so many elements on a CPU: a GPU idles with these."""
    return elements if x.device.type == "cpu" else TIMES_ON_A_GPU * elements


def over_samples(function: Callable[[Tensor], Tensor], z: Tensor, elements: int, at_once: int) -> Tensor:
    """``function(z)`` for samples z (K, B, M), in chunks over K; its values (K, B).

    Arguments:
        function: Of some of the samples, (k, B, M) -> (k, B).
        z: Samples, with shape (K, B, M).
        elements: Size of the largest tensor that the function makes for one of the K.
        at_once: Size of the largest tensor that it may make.
    """
    parts = z.split(max(1, at_once // elements))
    return torch.cat([function(part) for part in parts])


def draw_index(log_w: Tensor, generator: torch.Generator | None) -> Tensor:
    """An index (B,) drawn by the weights of which these are the logs (K, B): Gumbel's trick."""
    u = uniform(log_w.shape, log_w, generator).clamp(min=1e-30)
    return (log_w - (-u.log()).log()).argmax(0)


check_rows = partial(check_shape, hint="; a row is an image, flattened, or its latents")


class LatentModel(nn.Module):
    """Encoder, decoder and prior.

    Arguments:
        encoder: Data (B, D) to posterior logits (B, M).
        decoder: Bits (*, M) to logits of the data (*, D).
        prior: An RBM or a Bernoulli prior over M bits.
        family: Of p(x | z): the decoder's output to a distribution over data (*, D).
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, prior: Prior, family: Callable[[Tensor], Likelihood] = Bits
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior, self.family = encoder, decoder, prior, family

    def _elements(self, x: Tensor) -> int:
        """Size of the largest tensor that is made for one sample of a datum of x (B, D)."""
        return max(x.shape[1], self.prior.visible, int(getattr(self.decoder, "elements", 0)))

    @property
    def inputs(self) -> int | None:
        """D, where the encoder says it; one of one's own need not."""
        inputs = getattr(self.encoder, "inputs", None)
        return inputs if isinstance(inputs, int) else None

    def check_data(self, argument: str, x: Tensor, leading: str = "B") -> None:
        """Refuse data x (leading, D) that p(x | z) is not of: for bits anything but 0 and 1, say.

        Raises:
            ValueError: If shape or values are others.
        """
        check_rows(argument, x, self.inputs, leading)
        family = getattr(self.family, "func", self.family)
        if family is Bits:
            expected, fits = "bits, 0 or 1", (x == 0) | (x == 1)
        elif family is LogisticMixture:
            values = x.float()
            expected, fits = "whole numbers from 0 to 255", (values >= 0) & (values <= 255) & (values == values.round())
        else:  # one's own may take any
            return
        if not fits.all():
            values = x.float()
            raise ValueError(f"{argument}: expected {expected}, got values from {values.min():g} to {values.max():g}")

    def rows_at_once(self) -> int:
        """How many rows of latents the decoder may take at once where no gradient is wanted."""
        return max(1, ELEMENTS_PER_CHUNK // int(getattr(self.decoder, "elements", 1000)))

    def posterior(self, x: Tensor) -> Bits:
        """q(z | x) for data x (B, D), a distribution over bits (B, M).

        Raises:
            ValueError: If x has another shape.
        """
        check_rows("x", x, self.inputs, "*")
        return self.posterior_of(self.encoder(x))

    def posterior_of(self, parameters: Tensor) -> Bits:
        """q(z | x) given what the encoder says of x: logits (B, M)."""
        return Bits(parameters)

    def likelihood(self, z: Tensor) -> Likelihood:
        """p(x | z) for bits z (*, M), a distribution over data (*, D)."""
        return self.family(self.decoder(z))

    def log_weight(self, x: Tensor, samples: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """log p*(x, z) - log q(z | x), in nats; the prior is not normalised (Eq. 4).

        Arguments:
            x: Data, with shape (B, D).
            samples: Bits z, with shape (K, B, M), or a number K of them to draw from the posterior.
            generator: Source of the randomness if z is to be drawn.

        Returns:
            Log-weights, with shape (K, B).

        Raises:
            TypeError: If the number is no whole number.
            ValueError: If it is below 1, or x has another shape.
        """
        q = self.posterior(x)
        if isinstance(samples, Tensor):
            z = samples
        else:
            check_count("samples", samples)
            z = q.sample((samples,), generator)
        return self.log_joint(x, z) - q.log_prob(z)

    def joint_terms(self, x: Tensor, z: Tensor, products: Products = nullcontext) -> tuple[Tensor, Tensor]:
        """log p(x | z) and F(z) of data x (B, D) and latents z (*, B, M), in nats, each with shape (*, B) (Eq. 4)."""
        with products():
            p_x = self.likelihood(z)
        return p_x.log_prob(x), self.prior.free_energy(z)

    def log_joint(self, x: Tensor, z: Tensor, products: Products = nullcontext) -> Tensor:
        """log p*(x, z) = log p(x | z) - F(z), in nats, with shape (K, B) (Eq. 4).

        Where no gradient is wanted, samples go through in chunks of bounded size.

        Arguments:
            x: Data, with shape (B, D).
            z: Bits, with shape (K, B, M).
            products: Context of the decoder's matrix products; the prior's are as they are.
        """
        if torch.is_grad_enabled():
            log_p, free_energy = self.joint_terms(x, z, products)
            return log_p - free_energy
        with products():
            at_once = elements_on(x, int(getattr(self.decoder, "elements_at_once", ELEMENTS_PER_SCORING)))
            log_p = over_samples(lambda part: self.likelihood(part).log_prob(x), z, len(x) * self._elements(x), at_once)
        elements, at_once = len(x) * max(self.prior.visible, self.prior.hidden), elements_on(x, ELEMENTS_PER_SCORING)
        return log_p - over_samples(self.prior.free_energy, z, elements, at_once)

    @torch.no_grad()
    def log_prob(
        self,
        x: Tensor,
        samples: int,
        log_partition: Tensor | float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The bound L_K on log p(x), in nats (Eq. 6); samples are streamed through bounded memory.

        Arguments:
            x: Data, with shape (B, D).
            samples: K, posterior samples for each datum.
            log_partition: log Z of the prior, exact or estimated.
            generator: Source of the randomness; the default generator if None.

        Returns:
            L_K for each datum, float64, with shape (B,).

        Raises:
            ValueError: If x has another shape, or values that p(x | z) is not of.
        """
        return self.importance_sums(x, samples, generator=generator).log_mean - log_partition

    @torch.no_grad()
    def score(
        self,
        x: Tensor,
        samples: int,
        log_partition: Tensor | float,
        generator: torch.Generator | None = None,
        parameters: Tensor | None = None,
    ) -> Scores:
        """Each datum's log-likelihood with its own Monte-Carlo error: the bound L_K of :meth:`log_prob`.

        Arguments:
            x: Data, with shape (B, D).
            samples: K, posterior samples for each datum; 2 or more for an error.
            log_partition: log Z of the prior, whose error is common to all.
            generator: Source of the randomness; the default generator if None.
            parameters: Of other posteriors than the encoder's, as in :meth:`importance_sums`.

        Raises:
            ValueError: If x has another shape, or values that p(x | z) is not of.
        """
        sums = self.importance_sums(x, samples, 0, generator, parameters=parameters)
        return Scores(sums.log_mean - log_partition, sums.variance.sqrt(), sums.effective_sample_size)

    @torch.no_grad()
    def importance_sums(
        self,
        x: Tensor,
        samples: int,
        keep: int = 0,
        generator: torch.Generator | None = None,
        progress: Callable[[float], None] | None = None,
        parameters: Tensor | None = None,
        fewer: int = 0,
    ) -> ImportanceSums:
        """Draw K posterior samples for each datum in chunks, keeping sums of their weights and a few of them.

        Arguments:
            x: Data, with shape (B, D).
            samples: K, posterior samples for each datum.
            keep: Number m of samples to keep, independent draws from the normalised weights.
            generator: Source of the randomness; the default generator if None.
            progress: Told after each chunk what share of all, between 0 and 1, is done.
            parameters: Of the posteriors to draw from, as of :func:`latentbits.refine`, with shape (B, outputs of the
                encoder); the encoder's own if None.
            fewer: Give the sums of the first so many samples too; 0 for not.

        Raises:
            TypeError: If a count is no whole number.
            ValueError: If x has another shape, no rows, or values that p(x | z) is not of; or ``fewer`` is above K.
        """
        check_count("samples", samples)
        check_count("keep", keep, 0)
        check_count("fewer", fewer, 0)
        if fewer > samples:
            raise ValueError(f"fewer: expected at most samples={samples}, got {fewer}")
        self.check_data("x", x)
        if not len(x):
            raise ValueError("x: expected one row or more, got none")
        x, parts = x.to(self.prior.visible_bias), []
        at_once = max(1, elements_on(x, ELEMENTS_PER_CHUNK) // (min(samples, 64) * self._elements(x)))
        with evaluating(self):
            for first in range(0, len(x), at_once):
                rows = slice(first, min(first + at_once, len(x)))
                q = self.posterior(x[rows]) if parameters is None else self.posterior_of(parameters[rows])
                tell = of_whole(progress, rows, len(x))
                parts.append(self._importance_sums(x[rows], q, samples, keep, fewer, generator, tell))
        sums, sums_of_first, z = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        return ImportanceSums.of(samples, sums, z, ImportanceSums.of(fewer, sums_of_first, z[:0]) if fewer else None)

    def _importance_sums(
        self,
        x: Tensor,
        q: Bits,
        samples: int,
        keep: int,
        fewer: int,
        generator: torch.Generator | None,
        tell: Callable[[float], None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Summaries (3, B) of all samples and of the first ones, and samples that are kept (m, B, M)."""
        B, M = x.shape[0], self.prior.visible
        weights = LargestWeights(x.new_zeros(B, dtype=torch.float64))
        sums_of_first, kept = x.new_zeros(3, B, dtype=torch.float64), x.new_zeros(keep, B, M)
        chunk = max(1, elements_on(x, ELEMENTS_PER_CHUNK) // (len(x) * self._elements(x)))
        for done, after in pairwise(sorted({*range(0, samples, chunk), fewer, samples})):
            z = q.sample((after - done,), generator)
            if z.shape[-1] != M:  # a prior of independent latents would take any number
                raise ValueError(f"prior: expected one over the encoder's {z.shape[-1]} latents, got one over {M}")
            log_w = (self.log_joint(x, z) - q.log_prob(z)).double()
            weights.add(log_w)
            if after == fewer:
                sums_of_first = weights.summary(fewer)
            if keep:
                # each slot takes a draw from this chunk with the chunk's share of the weight so far
                u = torch.rand(
                    2, keep, B, generator=generator, dtype=torch.float64, device=generator_device(generator, x)
                )
                u, log_chunk = u.to(x.device), log_w.logsumexp(0)
                cumulative = (log_w - log_chunk).exp().cumsum(0).T.contiguous()
                index = torch.searchsorted(cumulative, u[0].T.contiguous() * cumulative[:, -1:], right=True)
                index = index.clamp(max=z.shape[0] - 1).T[:, :, None].expand(-1, -1, M)
                taken = u[1] < (log_chunk - weights.log_sum).exp()
                kept = torch.where(taken[:, :, None], z.gather(0, index), kept)
            tell(after / samples)
        return weights.summary(samples), sums_of_first, kept

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The most probable bits under q(z | x) for data x (B, D), with shape (B, M).

        Raises:
            ValueError: If x has another shape, or values that p(x | z) is not of.
        """
        self.check_data("x", x, "*")
        with evaluating(self):
            return (self.posterior(x.to(self.prior.visible_bias)).logits > 0).to(self.prior.visible_bias)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x | z) for bits z (*, M), with shape (*, D).

        Raises:
            ValueError: If z has another shape.
        """
        check_rows("z", z, self.prior.visible, "*")
        rows = z.to(self.prior.visible_bias).reshape(-1, z.shape[-1])
        with evaluating(self):
            means = torch.cat([self.likelihood(part).mean for part in rows.split(self.rows_at_once())])
        return means.reshape(*z.shape[:-1], means.shape[-1])

    @torch.no_grad()
    def sample(
        self, n: int, gibbs_steps: int = 1000, generator: torch.Generator | None = None, temperatures: int = 1
    ) -> Tensor:
        """Means of p(x | z) for z from chains of the prior.

        Arguments:
            n: Number of chains, each of which gives one sample.
            gibbs_steps: Length of the chains.
            generator: Source of the randomness; the default generator if None.
            temperatures: 1 for chains that start at random bits; above that, parallel tempering at so many.

        Returns:
            Means, with shape (n, D).
        """
        return self.decode(sample_prior(self.prior, n, gibbs_steps, generator, temperatures))

    @torch.no_grad()
    def inpaint(
        self,
        x: Tensor,
        known: Tensor,
        steps: int = 100,
        samples: int = 20,
        generator: torch.Generator | None = None,
        means: bool = False,
        progress: Callable[[float], None] | None = None,
        starts: int = 500,
    ) -> Tensor:
        """Draw the unknown pixels of images given the known ones, by Gibbs moves over latents and pixels.

        The walk begins at a sample of the model whose mean is near to the known pixels, for from others it takes
        hundreds of steps to where it belongs. What the unknown pixels are in x is not looked at.

        At each step the present z and ``samples - 1`` new ones from q(z | x) compete by their importance weights,
        which leaves p(z | x) as it is (iterated sampling importance resampling, Andrieu, Lee & Vihola 2018); then
        the unknown pixels are drawn from p(x | z).

        Arguments:
            x: Images, with shape (B, D); unknown pixels may have any value.
            known: Which pixels are kept, bool, with shape (D,) or (B, D); of a colour pixel all channels or none.
            steps: Length of the walk.
            samples: How many z compete, 2 or more.
            generator: Source of the randomness; the default generator if None.
            means: Give the mean of the unknown pixels' last distribution instead of a draw.
            progress: Called with the number of steps that are done.
            starts: Number of samples among which each walk's start is chosen, of which it sees half; 0 to begin at x.

        Returns:
            Images with shape (B, D).

        Raises:
            TypeError: If a count is no whole number.
            ValueError: If shapes or counts do not fit, a colour pixel is known in part, or known pixels have values
                that p(x | z) is not of.
        """
        check_rows("x", x, self.inputs)
        if not len(x):
            raise ValueError("x: expected one row or more, got none")
        for name, given, least in (("steps", steps, 1), ("samples", samples, 2), ("starts", starts, 0)):
            check_count(name, given, least)
        if known.dtype != torch.bool or known.shape not in (x.shape, x.shape[1:]):
            raise ValueError(
                f"known: expected bool with shape {tuple(x.shape)} or {tuple(x.shape[1:])}, got {known.dtype} with "
                f"{tuple(known.shape)}"
            )
        x = x.to(self.prior.visible_bias)
        known = known.to(x.device)
        self._check_whole_pixels(known)
        self.check_data("x where known", torch.where(known, x, 0.0))
        with evaluating(self):
            if starts:
                x = torch.where(known, x, 0.0)  # what is unknown may be NaN
                x = torch.where(known, x, self._begin_near(x, known, starts, generator))
            z = self.posterior(x).sample((1,), generator)
            for step in range(steps):
                z = self._move_latents(x, z, samples, generator)
                parts = z[0].split(self.rows_at_once())
                drawn = torch.cat([self.likelihood(part).sample(generator=generator) for part in parts])
                x = torch.where(known, x, drawn)
                if progress is not None:
                    progress(step + 1)
            return torch.where(known, x, self.decode(z[0])) if means else x

    def _check_whole_pixels(self, known: Tensor) -> None:
        """Refuse a mask (*, D) that splits a colour pixel, whose channels are drawn together."""
        is_mixture = getattr(self.family, "func", self.family) is LogisticMixture
        channels = getattr(self.family, "keywords", {}).get("channels", 3) if is_mixture else 1
        of_channels = known.unflatten(-1, (channels, -1))
        if (of_channels != of_channels[..., :1, :]).any():
            raise ValueError(f"known: expected all {channels} channels of a pixel or none, got a mask that splits some")

    def _begin_near(self, x: Tensor, known: Tensor, starts: int, generator: torch.Generator | None) -> Tensor:
        """Images (B, D) drawn given latents of the prior, by how near their means are to the known pixels of x (B, D).

        As if these were normal, of a variance that fits; for a place to begin at it need not be the likelihood.
        """
        z = sample_prior(self.prior, starts, STEPS_BEFORE_A_WALK, generator)
        mean, seen = self.decode(z), known.to(x).expand_as(x)
        count = seen.sum(1, keepdim=True)
        squares = (seen * x * x).sum(1, keepdim=True) + seen @ (mean * mean).T - 2 * (seen * x) @ mean.T  # (B, starts)
        log_fit = -count / 2 * squares.clamp(min=1e-6).log()
        hidden = uniform(log_fit.shape, x, generator) < 0.5  # walks of one image begin apart
        hidden[:, 0] = False
        nearest = z[draw_index(log_fit.masked_fill(hidden, -torch.inf).T, generator)]
        return torch.cat([self.likelihood(p).sample(generator=generator) for p in nearest.split(self.rows_at_once())])

    def _move_latents(self, x: Tensor, z: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
        """Latents (1, B, M) that took their place among new ones from q(z | x) by importance weights."""
        q = self.posterior(x)
        every = torch.cat([z, q.sample((samples - 1,), generator)])
        chosen = draw_index(self.log_joint(x, every) - q.log_prob(every), generator)
        return every.gather(0, chosen[None, :, None].expand(1, -1, every.shape[2]))


LARGEST_LOG_SCALE = 10.0
"""Of normal latents, and the negative of the least; trained ones stay well within."""


class GaussianModel(LatentModel):
    """The continuous counterpart: normal latents under a standard normal prior, a VAE or IWAE.

    Arguments:
        encoder: Data (B, D) to the posterior's means and log standard deviations, side by side (B, 2 M).
        decoder: Latents (*, M) to logits of the data (*, D).
        prior: A standard normal over M latents.
    """

    def posterior(self, x: Tensor) -> DiagonalNormal:  # type: ignore[override]
        """q(z | x) for data x (B, D), a distribution over latents (B, M).

        Raises:
            ValueError: If x has another shape.
        """
        check_rows("x", x, self.inputs, "*")
        return self.posterior_of(self.encoder(x))

    def posterior_of(self, parameters: Tensor) -> DiagonalNormal:  # type: ignore[override]
        """q(z | x) given what the encoder says of x: means and log standard deviations (B, 2 M).

        Log standard deviations stop at ±``LARGEST_LOG_SCALE``, but their gradient goes on as if they did not: after a
        bad step of Adam's the loss is finite, and pulls them back.
        """
        loc, log_scale = parameters.chunk(2, -1)
        beyond = log_scale.clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE) - log_scale
        return DiagonalNormal(loc, (log_scale + beyond.detach()).exp())

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The posterior's means for data x (B, D), with shape (B, M).

        Raises:
            ValueError: If x has another shape, or values that p(x | z) is not of.
        """
        self.check_data("x", x, "*")
        with evaluating(self):
            return self.posterior(x.to(self.prior.visible_bias)).loc


class WGAN(nn.Module):
    """A generator and its critic; it draws images and has no likelihood (Arjovsky et al. 2017).

    Arguments:
        generator: Latents (N, M) to images (N, D) in [-1, 1].
        critic: Such images to a number each, (N, 1).
        prior: A standard normal over M latents.
        levels: Of the data.
    """

    def __init__(self, generator: nn.Module, critic: nn.Module, prior: NormalPrior, levels: int) -> None:
        super().__init__()
        self.generator, self.critic, self.prior, self.levels = generator, critic, prior, levels

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Images in the data's levels, between 0 and levels - 1, with shape (n, D)."""
        parts = self.prior.sample(n, generator).split(100)
        images: Tensor = torch.cat([self.generator(z) for z in parts])
        return (images + 1) * (self.levels - 1) / 2


Model = LatentModel | RBM | WGAN


def build(config: ModelConfig, form: Form, generator: torch.Generator | None = None) -> Model:
    """A model with random weights for images of the given form.

    A configuration without networks gives the RBM alone, over the data themselves.

    Raises:
        ValueError: If the networks do not fit the images, or were given in Python.
    """
    check_pixels(form)
    if config.network == "given":
        raise ValueError(
            "model.network=given: this run's model was given in Python; give it again, to load(run, model=)"
        )
    with torch.random.fork_rng(devices=[]):  # torch.nn's initialization knows the global generator only
        torch.default_generator.manual_seed(0 if generator is None else _integer(generator))  # no GPU's
        if config.network == "none":
            return RBM(form.dimensions, config.hidden)
        if config.network == "dcgan":
            generating = DCGenerator(form.image, config.maps, config.latent, config.precision)
            critic = DCCritic(form.image, config.maps, config.precision)
            return WGAN(generating, critic, NormalPrior(config.latent), form.levels)
        continuous = config.prior == "normal"
        encoder, decoder = networks(config, form, config.latent * (2 if continuous else 1))
        family = Bits if form.levels == 2 else partial(LogisticMixture, channels=form.channels)
        if continuous:
            return GaussianModel(encoder, decoder, NormalPrior(config.latent), family)
        prior = RBM(config.latent, config.hidden) if config.prior == "rbm" else BernoulliPrior(config.latent)
        return LatentModel(encoder, decoder, prior, family)


def _integer(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))


def check_pixels(form: Form) -> None:
    """Check that there is a p(x | z) for an image's pixels.

    Raises:
        ValueError: If there is none.
    """
    if form.levels not in (2, 256) or (form.levels == 256 and form.channels not in (1, 3)):
        raise ValueError(
            "data: expected pixels of 2 levels, or of 256 in 1 or 3 channels, for the package's own networks, got "
            f"{form.levels} levels in {form.channels} channels; scale them, or give a model of your own"
        )


def networks(config: ModelConfig, form: Form, outputs: int) -> tuple[nn.Module, nn.Module]:
    """Encoder, with so many outputs, and decoder.

    Raises:
        ValueError: If they do not fit the images.
    """
    if config.network == "mlp":
        if form.levels != 2:
            raise ValueError("model.network: expected resnet for images with more than two levels, got mlp")
        return (
            MLP([form.dimensions, *config.layers, outputs], config.activation),
            MLP([config.latent, *reversed(config.layers), form.dimensions], config.activation),
        )
    check_last_map(form.image, config.maps, config.latent, config.fully_connected)
    parameters = 0 if form.levels == 2 else config.components * LogisticMixture.parameters_each(form.channels)
    common = (config.fully_connected, config.norm, config.activation, config.precision)
    *maps, last = config.encoder_maps or config.maps
    if not config.fully_connected:  # the last map has to give all outputs, of which a normal posterior wants two each
        last = last * outputs // config.latent
    repeats = config.encoder_repeats or config.repeats
    return (
        ResNetEncoder(form.image, (*maps, last), outputs, repeats, *common, form.levels),
        ResNetDecoder(form.image, config.maps, config.latent, parameters, config.repeats, *common),
    )
