"""Distributions that networks return; what PyTorch does not have, or not fast enough."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal

from .fused import bernoulli, bernoulli_log_prob, softplus_sum


class Bits(Independent[Bernoulli]):
    """Independent bits over the last dimension, sampled from a generator of one's own.

    Arguments:
        logits: Log-odds of a one, with shape (*, D).
    """

    def __init__(self, logits: Tensor) -> None:
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


class DiagonalNormal(Independent[Normal]):
    """Independent normals over the last dimension, sampled from a generator of one's own.

    Arguments:
        loc: Means, with shape (*, M).
        scale: Standard deviations, with shape (*, M).
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(Normal(loc, scale, validate_args=False), 1, validate_args=False)
        self.loc, self.scale = loc, scale

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Latents with shape (*sample_shape, *, M), without gradient."""
        noise = standard_normal((*sample_shape, *self.loc.shape), self.loc, generator)
        return (self.loc + self.scale * noise).detach()


def standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers of the type and on the device of another tensor."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
