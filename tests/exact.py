r"""Enumeration oracle: distributions over bits as tables, straight from their definitions.

Plain NumPy in float64. Nothing here comes from latentbits, and nothing uses a sigmoid or a softplus: the
joint table of both layers is exponentiated, summed and normalized. State number s of n bits has bit i
equal to (s >> i) & 1. In shapes, V = 2^M and G = 2^H.
"""

from typing import NamedTuple

import numpy as np
from numpy import ndarray


class Machine(NamedTuple):
    """Parameters of an RBM: weight W (M, H), visible bias b (M,) and hidden bias c (H,)."""

    W: ndarray
    b: ndarray
    c: ndarray


class Statistics(NamedTuple):
    """Expectations of -dE/dW, -dE/db and -dE/dc, with the shapes (M, H), (M,) and (H,)."""

    W: ndarray
    b: ndarray
    c: ndarray


def states(n: int) -> ndarray:
    """All states of n bits, with shape (2^n, n)."""
    return np.array([[(s >> i) & 1 for i in range(n)] for s in range(2**n)], dtype=np.float64)


def index(z: ndarray) -> ndarray:
    """Numbers of the states z (*, n), with shape (*)."""
    return (np.asarray(z) * 2 ** np.arange(np.shape(z)[-1])).sum(-1).astype(np.int64)


def frequencies(z: ndarray) -> ndarray:
    """Relative frequency of each state among samples z (N, n), with shape (2^n,)."""
    return np.bincount(index(z), minlength=2 ** z.shape[-1]) / len(z)


def log_sum_exp(log_values: ndarray, axis: int | None = None) -> ndarray:
    """log sum exp over one axis, or over all."""
    top = log_values.max(axis=axis, keepdims=True)
    total = np.log(np.exp(log_values - top).sum(axis=axis, keepdims=True)) + top
    return total.squeeze(axis)


# ----------------------------------------------------------------------------- the RBM


def energies(machine: Machine) -> ndarray:
    """E(z, h) = -z·b - h·c - zWh of every pair, with shape (V, G)."""
    W, b, c = machine
    z, h = states(len(b)), states(len(c))
    return -(z @ b)[:, None] - (h @ c)[None, :] - np.einsum("vi,ij,gj->vg", z, W, h)


def log_partition(machine: Machine) -> float:
    """Log Z by summing over both layers jointly."""
    return float(log_sum_exp(-energies(machine)))


def joint(machine: Machine) -> ndarray:
    """p(z, h), with shape (V, G)."""
    return np.exp(-energies(machine) - log_partition(machine))


def probabilities(machine: Machine) -> ndarray:
    """p(z), with shape (V,)."""
    return joint(machine).sum(1)


def free_energies(machine: Machine) -> ndarray:
    """F(z) = -log sum_h exp(-E(z, h)), with shape (V,)."""
    return -log_sum_exp(-energies(machine), axis=1)


def statistics(machine: Machine, p: ndarray) -> Statistics:
    """Expected statistics when z has the probabilities p (V,) and h follows p(h | z)."""
    table = joint(machine)
    table = p[:, None] * table / table.sum(1, keepdims=True)
    z, h = states(len(machine.b)), states(len(machine.c))
    return Statistics(np.einsum("vg,vi,gj->ij", table, z, h), table.sum(1) @ z, table.sum(0) @ h)


def log_likelihood_gradient(machine: Machine, data: ndarray) -> Statistics:
    """Gradient of the mean log p(z) over data (N, M) in W, b and c: data minus model statistics."""
    positive = statistics(machine, frequencies(data))
    negative = statistics(machine, probabilities(machine))
    return Statistics(*(p - n for p, n in zip(positive, negative, strict=True)))


# ----------------------------------------------------------------------------- annealing


def annealed(machine: Machine, base: ndarray, beta: float) -> Machine:
    """The RBM at inverse temperature beta, with E_beta(z, h) = beta E(z, h) - (1 - beta) z·b_A."""
    W, b, c = machine
    return Machine(beta * W, (1 - beta) * base + beta * b, beta * c)


def annealed_log_f(machine: Machine, base: ndarray, beta: float) -> ndarray:
    """log f_beta(z) = log sum_h exp(-E_beta(z, h)), with shape (V,)."""
    return -free_energies(annealed(machine, base, beta))


def transition(machine: Machine) -> ndarray:
    """T[z, z'] = sum_h p(h | z) p(z' | h) of one block Gibbs step, with shape (V, V)."""
    table = joint(machine)
    hidden_given_visible = table / table.sum(1, keepdims=True)
    visible_given_hidden = table / table.sum(0, keepdims=True)
    return hidden_given_visible @ visible_given_hidden.T


def annealed_transition(machine: Machine, base: ndarray, beta: float) -> ndarray:
    """The block Gibbs step that leaves p_beta invariant, with shape (V, V)."""
    return transition(annealed(machine, base, beta))


def annealing_probabilities(machine: Machine, base: ndarray, betas: ndarray) -> ndarray:
    """p_ann(z): z_0 from the base, then T_1 ... T_N at betas[1:]; z_N's distribution, with shape (V,)."""
    p = probabilities(annealed(machine, base, 0.0))
    for beta in betas[1:]:
        p = p @ annealed_transition(machine, base, beta)
    return p


def ais_moment(machine: Machine, base: ndarray, betas: ndarray, power: int) -> float:
    """E[w^power] of an AIS chain's weight w = prod_k f_k(z_{k-1}) / f_{k-1}(z_{k-1}); E[w] = Z / Z_0."""
    measure = probabilities(annealed(machine, base, 0.0))
    for k in range(1, len(betas)):
        log_ratio = annealed_log_f(machine, base, betas[k]) - annealed_log_f(machine, base, betas[k - 1])
        measure = measure * np.exp(power * log_ratio)
        measure = measure @ annealed_transition(machine, base, betas[k])
    return float(measure.sum())


def ais_relative_variance(machine: Machine, base: ndarray, betas: ndarray) -> float:
    """Var[w] / E[w]^2 of one AIS chain."""
    return ais_moment(machine, base, betas, 2) / ais_moment(machine, base, betas, 1) ** 2 - 1
