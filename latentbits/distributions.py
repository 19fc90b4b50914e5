"""Distributions that networks return; what PyTorch does not have, or not fast enough."""

from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from .fused import (
    bernoulli,
    bernoulli_log_prob,
    is_on_cpu,
    mixture_log_prob,
    softplus_sum,
    standard_normal,
    uniform,
)
from .kernels import LEAST_LOG_SCALE, MOST_LOG_SCALE


class Likelihood(Protocol):
    """What is asked of p(x | z), and of q(z | x) but for the mean: those here, or one's own."""

    @property
    def mean(self) -> Tensor:
        """Mean of the data, with shape (*, D)."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Of data (B, D) under the parameters (K, B, ...) of K samples, in nats, with shape (K, B)."""

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Data with shape (*sample_shape, *, D), drawn with the generator."""


def in_single(parameters: Tensor) -> Tensor:
    """Parameters (*) in float32 at least: sums of a thousand terms in bfloat16 are off by nats."""
    return parameters.float() if parameters.dtype in (torch.bfloat16, torch.float16) else parameters


class Bits(Independent[Bernoulli]):
    """Independent bits over the last dimension, sampled from a generator of one's own.

    Arguments:
        logits: Log-odds of a one, with shape (*, D); of half precision, for a sum over D to be exact, in float32.
    """

    def __init__(self, logits: Tensor) -> None:
        logits = in_single(logits)
        super().__init__(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)
        self.logits = logits

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of bits, in nats.

        Either side may have leading dimensions that the other lacks: data (B, D) under the logits
        (K, B, D) of K samples, or K samples (K, B, D) under one posterior's logits (B, D), gives (K, B).
        """
        if value.dim() == 2 and self.logits.dim() == 3:
            return bernoulli_log_prob(value, self.logits)
        return (value * self.logits).sum(-1) - softplus_sum(self.logits)

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Bits as 0.0 or 1.0, with shape (*sample_shape, *, D)."""
        return bernoulli(self.logits.expand(*sample_shape, *self.logits.shape), generator)

    def rsample(
        self, sample_shape: Any = (), generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        r"""Relaxed bits with shape (*sample_shape, *, D), through which gradients reach the logits.

        .. math:: \zeta = \sigma((a + \mathrm{logit}(u)) / \tau), \; u \sim U(0, 1)

        The concrete distribution of Maddison et al. 2017; towards temperature 0 it gives bits, and gradients noise.
        """
        u = uniform((*sample_shape, *self.logits.shape), self.logits, generator).clamp(min=1e-6)
        return torch.sigmoid((self.logits + torch.logit(u)) / temperature)


class DiagonalNormal(Independent[Normal]):
    """Independent normals over the last dimension, sampled from a generator of one's own.

    Arguments:
        loc: Means, with shape (*, M).
        scale: Standard deviations, with shape (*, M).
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        loc, scale = in_single(loc), in_single(scale)
        super().__init__(Normal(loc, scale, validate_args=False), 1, validate_args=False)
        self.loc, self.scale = loc, scale

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Latents with shape (*sample_shape, *, M), without gradient."""
        return self.rsample(sample_shape, generator).detach()

    def rsample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Latents with shape (*sample_shape, *, M), through which gradients reach means and standard deviations."""
        noise = standard_normal((*sample_shape, *self.loc.shape), self.loc, generator)
        return self.loc + self.scale * noise


class LogisticMixture(Distribution):
    r"""A discretized mixture of logistics over images of 256 levels (Salimans et al. 2017, PixelCNN++).

    All channels of a pixel come from one of C' components. With levels scaled to [-1, 1], scale s and half a level
    :math:`\delta = 1 / 255`, a sub-pixel x has, given its component,

    .. math:: P(x) = \sigma((x + \delta - m) / s) - \sigma((x - \delta - m) / s)

    where the lowest level takes all that is below it and the highest all above. Green's m moves linearly with the
    red that was drawn, blue's with both. In logs, with p and n the two arguments,
    :math:`\sigma(p) - \sigma(n) = \sigma(p) \, \sigma(-n) \, (1 - e^{-2 \delta / s})`, in which nothing cancels.

    Arguments:
        parameters: The network's output, with shape (*, P, H, W), where P is C' (1 + 3 channels + 3) for three
            channels and C' (1 + 2) for one: logits of the components, then for each channel means and log scales,
            then the three coefficients (green on red, blue on red, blue on green) before their tanh.
        channels: 1 or 3.
    """

    def __init__(self, parameters: Tensor, channels: int = 3) -> None:
        parameters = in_single(parameters)
        *batch, count, height, width = parameters.shape
        each = self.parameters_each(channels)
        if channels not in (1, 3) or count % each:
            raise ValueError(
                f"LogisticMixture: expected 1 or 3 channels and parameters (*, P, H, W) with P a multiple of {each}, "
                f"got {channels} and {tuple(parameters.shape)}"
            )
        self.components = count // each
        parts = parameters.unflatten(-3, (each, self.components))  # (*, each, C', H, W)
        self.logits = parts.select(-4, 0)
        self.loc: Tensor = parts.narrow(-4, 1, channels)  # (*, channels, C', H, W)
        super().__init__(torch.Size(batch), torch.Size([channels * height * width]), validate_args=False)
        self.parameters, self.channels, self.size = parameters, channels, (height, width)
        self._parts: Tensor = parts
        self._each = each

    @cached_property
    def log_scale(self) -> Tensor:
        """Log scales, with shape (*, channels, C', H, W), between -7 and 7."""
        scales = self._parts.narrow(-4, 1 + self.channels, self.channels)
        return torch.clamp(scales, float(LEAST_LOG_SCALE), float(MOST_LOG_SCALE))

    @cached_property
    def coefficients(self) -> Tensor:
        """Of green on red, blue on red and blue on green, between -1 and 1, with shape (*, 3, C', H, W)."""
        return torch.tanh(self._parts.narrow(-4, 1 + 2 * self.channels, self._each - 1 - 2 * self.channels))

    @staticmethod
    def parameters_each(channels: int) -> int:
        """Parameters of one component in one pixel."""
        return 1 + 2 * channels + (3 if channels == 3 else 0)

    def _means(self, x: Tensor) -> Tensor:
        """Means (*, channels, C', H, W) of each sub-pixel given the pixel's earlier ones x (*, channels, 1, H, W)."""
        if self.channels == 1:
            return self.loc
        red, green, _ = x.unbind(-4)
        on_red, blue_on_red, blue_on_green = self.coefficients.unbind(-4)
        loc = self.loc.unbind(-4)
        means = (loc[0], loc[1] + on_red * red, loc[2] + blue_on_red * red + blue_on_green * green)
        return torch.stack(torch.broadcast_tensors(*means), -4)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of images (*, D) with levels 0 to 255, D = channels * H * W, in nats, with shape (*)."""
        one_image_a_row = value.dim() == 2 and self.batch_shape[-1:] == value.shape[:1]
        if self.channels == 3 and one_image_a_row and is_on_cpu(self.parameters) and not value.requires_grad:
            return mixture_log_prob(value, self.parameters)
        x = value.unflatten(-1, (self.channels, 1, *self.size)).to(self.logits) / 127.5 - 1
        inverse_scale = (-self.log_scale).exp()
        centered = (x - self._means(x)) * inverse_scale
        half = inverse_scale / 255
        below, above = F.logsigmoid(centered + half), F.logsigmoid(half - centered)
        inside = below + above + (-(-2 * half).expm1()).log()
        log_p = torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside)).sum(-4)
        pixels: Tensor = (log_p + self.logits.log_softmax(-3)).logsumexp(-3)
        return pixels.sum((-2, -1))

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Images as levels 0 to 255, with shape (*sample_shape, *, D)."""
        shape = (*sample_shape, *self.logits.shape)
        u = uniform(shape, self.logits, generator).clamp(1e-6, 1 - 1e-6)
        chosen = (self.logits - (-u.log()).log()).argmax(-3, keepdim=True)  # Gumbel's trick
        levels: list[Tensor] = []
        for channel in range(self.channels):
            m, s = (self._of(part.select(-4, channel), chosen) for part in (self.loc, self.log_scale))
            pairs = {1: [(0, 0)], 2: [(1, 0), (2, 1)]}.get(channel, [])  # which coefficient, on which channel
            for number, earlier in pairs:
                m = m + self._of(self.coefficients.select(-4, number), chosen) * levels[earlier]
            u = uniform(m.shape, m, generator).clamp(1e-6, 1 - 1e-6)
            x = m + s.exp() * torch.logit(u)
            levels.append(((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1)
        x = torch.cat(levels, -3)
        return ((x + 1) * 127.5).round().flatten(-3)

    @staticmethod
    def _of(part: Tensor, chosen: Tensor) -> Tensor:
        """Of a parameter (*, C', H, W) the chosen component's (*sample_shape, *, 1, H, W)."""
        *lead, _, height, width = chosen.shape
        return part.expand(*lead, part.shape[-3], height, width).gather(-3, chosen)

    @property
    def mean(self) -> Tensor:
        """Levels 0 to 255 on average, with shape (*, D); what saturates at the edges is not corrected for."""
        loc = list(self.loc.unbind(-4))
        if self.channels == 3:
            on_red, blue_on_red, blue_on_green = self.coefficients.unbind(-4)
            loc[1] = loc[1] + on_red * loc[0]
            loc[2] = loc[2] + blue_on_red * loc[0] + blue_on_green * loc[1]
        x: Tensor = (torch.stack(loc, -4).clamp(-1, 1) * self.logits.softmax(-3).unsqueeze(-4)).sum(-3)
        return ((x + 1) * 127.5).flatten(-3)
