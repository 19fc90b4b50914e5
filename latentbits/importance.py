r"""What is kept of importance weights that come in chunks: their sums, the largest, and how far to trust them.

The bound :math:`L_K = \log \frac{1}{K} \sum_i w_i` has the jackknife's variance

.. math:: \frac{K - 1}{K} \sum_i (l_i - \bar l)^2, \quad l_i = \log \sum_{j \ne i} w_j

The delta method's, which cannot exceed 1, is too small by a factor of four where a few weights carry the sum; this one
is on the safe side there, and equal to it where many do.

References:
    | The jackknife estimate of variance (Efron & Stein 1981), which shows that it is on average not too small
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 16
"""Weights that are kept each; for the others, each below 1 / 16 of the sum, log(1 - w) is as good as -w."""


def jackknife_error(log_w: Tensor) -> float:
    """Standard error of the log of the mean of weights, given their logs (n,), two or more, all at once."""
    log_sum = log_w.logsumexp(0)
    change = torch.log1p(-(log_w - log_sum).exp())  # l_i - l
    largest = log_w.argmax()
    change[largest] = torch.cat([log_w[:largest], log_w[largest + 1 :]]).logsumexp(0) - log_sum  # near 1 - 1 it is lost
    return math.sqrt((len(log_w) - 1) * float(change.var(correction=0)))


class ImportanceSums(NamedTuple):
    """What is kept of K importance weights w_i for each datum.

    Attributes:
        samples: K.
        log_sum: log sum_i w_i, float64, with shape (B,).
        log_sum_squares: log sum_i w_i^2, float64, with shape (B,).
        variance: Monte-Carlo variance of the log of the mean weight, by the jackknife, with shape (B,); K = 1: NaN.
        z: Samples drawn from the normalised weights, with shape (m, B, M).
        fewer: The same of the first samples alone, without any z, if it was asked for.
    """

    samples: int
    log_sum: Tensor
    log_sum_squares: Tensor
    variance: Tensor
    z: Tensor
    fewer: "ImportanceSums | None" = None

    @classmethod
    def of(cls, samples: int, summary: Tensor, z: Tensor, fewer: "ImportanceSums | None" = None) -> "ImportanceSums":
        """Of K, a summary (3, B) and samples z (m, B, M)."""
        log_sum, log_sum_squares, variance = summary
        return cls(samples, log_sum, log_sum_squares, variance, z, fewer)

    @property
    def summary(self) -> Tensor:
        """Log of the sum of all K weights, of that of their squares, and the variance, with shape (3, B)."""
        return torch.stack([self.log_sum, self.log_sum_squares, self.variance])

    @property
    def log_mean(self) -> Tensor:
        """L_K + log Z, the first term of Eq. 6, in nats, with shape (B,)."""
        return self.log_sum - math.log(self.samples)

    @property
    def effective_sample_size(self) -> Tensor:
        """Between 1 and K, with shape (B,)."""
        return (2 * self.log_sum - self.log_sum_squares).exp()


class LargestWeights:
    """The largest of the log-weights of B data, and the sums of the others.

    Arguments:
        like: A float64 tensor of shape (B,).
    """

    def __init__(self, like: Tensor) -> None:
        self.largest = like.new_empty(0, len(like))
        self.log_rest = torch.full_like(like, -torch.inf)
        self.log_rest_squares = self.log_rest.clone()

    def add(self, log_w: Tensor) -> None:
        """Take in more log-weights (k, B)."""
        every = torch.cat([self.largest, log_w]).sort(0, descending=True).values
        self.largest, rest = every[:LARGEST], every[LARGEST:]
        if len(rest):
            self.log_rest = torch.logaddexp(self.log_rest, rest.logsumexp(0))
            self.log_rest_squares = torch.logaddexp(self.log_rest_squares, (2 * rest).logsumexp(0))

    @property
    def log_sum(self) -> Tensor:
        """log sum_i w_i, with shape (B,)."""
        return torch.cat([self.largest, self.log_rest[None]]).logsumexp(0)

    @property
    def log_sum_squares(self) -> Tensor:
        """log sum_i w_i^2, with shape (B,)."""
        return torch.cat([2 * self.largest, self.log_rest_squares[None]]).logsumexp(0)

    def summary(self, samples: int) -> Tensor:
        """As that of :class:`ImportanceSums`, with shape (3, B)."""
        return torch.stack([self.log_sum, self.log_sum_squares, self.variance(samples)])

    def variance(self, samples: int) -> Tensor:
        """Of the log of the mean of all K weights, by the jackknife, with shape (B,); NaN for K = 1."""
        every, log_sum = torch.cat([self.largest, self.log_rest[None]]), self.log_sum
        itself = torch.eye(len(every), dtype=torch.bool, device=every.device)[:-1, :, None]
        without = every.expand(len(every) - 1, -1, -1).masked_fill(itself, -torch.inf).logsumexp(1)
        change = without - log_sum  # l_i - l, (n, B)
        total = change.sum(0) - (self.log_rest - log_sum).exp()
        squares = change.square().sum(0) + (self.log_rest_squares - 2 * log_sum).exp()
        spread = (squares - total.square() / samples).clamp(min=0)
        return spread * (samples - 1) / samples if samples > 1 else torch.full_like(log_sum, torch.nan)
