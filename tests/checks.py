"""Scores that compare samples with exact values, in standard errors, and the RBMs to sample from."""

import numpy as np
import torch
from exact import Machine

from latentbits.rbm import RBM

# |score| beyond this has probability below 1e-5 for a normal variable; a union over the 16 to 64 scores
# of a test stays below 1e-3, and seeds are fixed.
LIMIT = 4.5


def seeded(seed):
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def random_rbm(visible, hidden, seed=0, scale=1.5):
    """An RBM far from factorized: weights and biases of standard deviation ``scale``."""
    rng = np.random.default_rng(seed)
    shapes = ((visible, hidden), (visible,), (hidden,))
    return RBM.from_arrays(*(scale * rng.standard_normal(shape) for shape in shapes))


def machine(rbm):
    """The parameters of an RBM for the oracle, exactly."""
    return Machine(*(p.detach().double().numpy() for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias)))


def tensor(array, dtype=torch.float32):
    return torch.as_tensor(np.asarray(array), dtype=dtype)


def mean_scores(samples, expected):
    """(mean - expected) / standard error over the first axis of samples (N, *), with shape (*)."""
    samples = np.asarray(samples, dtype=np.float64)
    return (samples.mean(0) - expected) / (samples.std(0, ddof=1) / np.sqrt(len(samples)))


def correlation_score(x, y):
    """Correlation of two samples, in its standard error under independence, 1 / sqrt(N)."""
    x, y = np.ravel(x).astype(np.float64), np.ravel(y).astype(np.float64)
    return np.corrcoef(x, y)[0, 1] * np.sqrt(x.size)


def chi_square_score(counts, p):
    """Pearson's chi-square of counts (S,) under probabilities p (S,), as a standard normal score.

    Cells that expect fewer than 5 are merged; Wilson and Hilferty's cube root makes it normal.
    """
    counts, expected = np.asarray(counts, dtype=np.float64), np.sum(counts) * np.asarray(p)
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    df = len(counts) - 1
    chi_square = ((counts - expected) ** 2 / np.maximum(expected, 1e-12)).sum()
    return ((chi_square / df) ** (1 / 3) - (1 - 2 / (9 * df))) / np.sqrt(2 / (9 * df))
