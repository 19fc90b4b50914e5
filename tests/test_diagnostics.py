"""Autocorrelation against a process and an enumerated chain with known ones; a small diagnosis against exact values."""

import math

import numpy as np
import pytest
import torch
from checks import LIMIT, machine, random_rbm, seeded
from exact import free_energies as exact_free_energies
from exact import log_partition, probabilities, transition

from latentbits.diagnostics import (
    COUNTS,
    affordable,
    autocorrelation,
    autocorrelation_time,
    diagnose,
    leading_direction,
    observe,
)
from latentbits.gibbs import gibbs, random_bits
from latentbits.rbm import RBM


def autoregressive(a, chains, steps, seed):
    """x_t = a x_{t-1} + noise, stationary with variance 1 and autocorrelation a^l, with shape (chains, steps)."""
    noise = torch.randn(chains, steps, generator=seeded(seed), dtype=torch.float64)
    x = torch.empty_like(noise)
    x[:, 0] = noise[:, 0]
    for t in range(1, steps):
        x[:, t] = a * x[:, t - 1] + math.sqrt(1 - a**2) * noise[:, t]
    return x


@pytest.mark.parametrize("a", [-0.5, 0.0, 0.8])
def test_an_autoregressive_process_has_its_autocorrelation(a):
    x = autoregressive(a, 500, 2000, seed=1)
    rho = autocorrelation(x, 300)
    expected = torch.tensor([a**lag for lag in range(301)], dtype=torch.float64)
    tau = (1 + a) / (1 - a)
    # each lag's error is at most about that of an independent sample of n / (1 + a^2) / (1 - a^2) values
    assert torch.allclose(rho, expected, atol=LIMIT * math.sqrt((1 + a * a) / (1 - a * a) / x.numel()))
    found = autocorrelation_time(rho, x.numel())
    assert found.whole
    assert abs(found.value - tau) < LIMIT * found.standard_error
    assert found.standard_error < 0.1 * tau


def test_the_stated_error_is_the_spread_over_repetitions():
    a, tau, scores = 0.7, 1.7 / 0.3, []
    for seed in range(300):
        x = autoregressive(a, 100, 400, seed)
        found = autocorrelation_time(autocorrelation(x, 200), x.numel())
        scores.append((found.value - tau) / found.standard_error)
    # Sokal's formula is a bound here: 600 seeds have a spread of 0.81 of what it states, and a bias of 0.05
    assert abs(np.mean(scores)) < 0.2
    assert 0.7 < np.std(scores) < 0.92


def test_gibbs_chains_have_the_enumerated_autocorrelation_of_their_free_energy():
    rbm = random_rbm(4, 3, seed=2)
    oracle, lags = machine(rbm), 12
    p, f, T = probabilities(oracle), exact_free_energies(oracle), transition(oracle)
    mean, variance = p @ f, p @ (f - p @ f) ** 2
    exact, ahead = [], f
    for _ in range(lags + 1):
        exact.append((p @ (f * ahead) - mean**2) / variance)
        ahead = T @ ahead
    z = gibbs(rbm, random_bits(500, rbm, seeded(3)), 200, seeded(4))
    trace = observe(rbm, leading_direction(rbm), z, 600, seeded(5))[0]
    assert abs(float(trace.mean()) - mean) < LIMIT * float(trace.mean(1).std()) / math.sqrt(500)
    assert np.allclose(autocorrelation(trace, lags), exact, atol=0.01)
    # tau is the sum over all lags, by solving (1 - T) g = f - mean on the functions with mean zero
    g = np.linalg.solve(np.eye(len(p)) - T + np.outer(np.ones_like(p), p), f - mean)
    tau = 2 * (p @ ((f - mean) * g)) / variance - 1
    found = autocorrelation_time(autocorrelation(trace, 200), trace.numel())
    assert tau > 1.5
    assert abs(found.value - tau) < LIMIT * found.standard_error
    assert found.standard_error < 0.05 * tau


def test_chains_that_never_move_or_keep_apart():
    assert autocorrelation(torch.full((3, 8), 2.5), 3).tolist() == [1, 0, 0, 0]
    assert autocorrelation(torch.full((100, 500), 0.1), 3).tolist() == [1, 0, 0, 0]  # whose mean is rounded
    assert autocorrelation_time(torch.tensor([1.0, 0, 0, 0]), 24).value == 1
    apart = torch.tensor([[0.0], [1.0]]).expand(2, 100)
    rho = autocorrelation(apart, 49)
    assert torch.allclose(rho, torch.ones(50, dtype=torch.float64))
    found = autocorrelation_time(rho, 200)
    assert not found.whole
    assert found.value == pytest.approx(99)
    with pytest.raises(ValueError, match="expected lags of 0 to 7 for chains of 8, got 8"):
        autocorrelation(torch.zeros(3, 8), 8)


def test_counts_fit_the_time():
    assert affordable(0.01, 10, COUNTS) == 1000
    assert affordable(0.01, 9.99, COUNTS) == 500
    assert affordable(100, 1, COUNTS) == COUNTS[0]


def test_a_diagnosis_agrees_with_exact_values_and_repeats():
    rbm, told = random_rbm(8, 5, seed=6, scale=0.7), []
    rbm.base_bias = None
    z = gibbs(rbm, random_bits(50, rbm, seeded(7)), 100, seeded(8))
    found, again = (
        diagnose(rbm, z, 1e-6, 3, seeded(9), lambda title, share, so_far: told.append((title, share))) for _ in range(2)
    )
    estimate = found.annealing.estimate
    assert abs(estimate.log_z - log_partition(machine(rbm))) < LIMIT * estimate.standard_error
    assert len(estimate.log_weights) == 250
    assert found.annealing.betas.shape == (101,)
    for trace in found.chains:
        assert trace.from_random.shape == trace.from_data.shape == (50, 100)
        assert abs(trace.difference) < LIMIT * trace.difference_error
        assert trace.time.value < 20
    assert found.tempering.betas.tolist()[::2] == [0, 1]
    assert found.tempering.swaps.tried.sum() == 300 * found.tempering.chains
    assert 0 < found.tempering.barrier < 2
    assert found.seconds > 0
    # how fast the machine is decides how much is done, and not what comes of it
    assert torch.equal(found.chains.free_energy.from_data, again.chains.free_energy.from_data)
    assert torch.equal(estimate.log_weights, again.annealing.estimate.log_weights)
    assert torch.equal(found.tempering.swaps.refused, again.tempering.swaps.refused)
    assert {title for title, _ in told} == {"Gibbs chains", "AIS", "parallel tempering"}
    assert all(0 <= share <= 1 for _, share in told)


def test_chains_that_cannot_leave_their_mode_are_told():
    """Two modes, all zeros and all ones, 10 nats apart, between which Gibbs steps do not cross."""
    rbm = RBM.from_arrays(np.full((10, 1), 20.0), np.full(10, -9.0), np.array([-100.0]))
    energy = diagnose(rbm, torch.zeros(50, 10), 1e-6, 1, seeded(10), lambda *told: None).chains.free_energy
    assert energy.difference < -5 * energy.difference_error
    assert not energy.time.whole
    assert energy.rho.min() > 0.9


def test_chains_that_cannot_leave_their_mode_are_told_where_modes_have_the_same_free_energy():
    """Spins without fields: all zeros and all ones are mirror images, between which Gibbs steps do not cross."""
    rbm = RBM.from_arrays(np.full((10, 1), 8.0), np.full(10, -4.0), np.array([-40.0]))
    z = gibbs(rbm, torch.zeros(50, 10), 10, seeded(11))
    energy, projection = diagnose(rbm, z, 1e-6, 1, seeded(12), lambda *told: None).chains
    assert energy.time.value < 2
    assert abs(energy.difference) < LIMIT * energy.difference_error
    assert not projection.time.whole
    assert projection.rho.min() > 0.9
    assert projection.difference > 5 * projection.difference_error  # data's chains are all in one of the two


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (1, 1)])
def test_the_leading_direction_is_the_one_that_the_weights_see_most_of(shape):
    rbm = random_rbm(*shape, seed=13)
    left, _, _ = np.linalg.svd(rbm.weight.detach().numpy())
    u = leading_direction(rbm).numpy()
    assert np.allclose(np.abs(u @ left[:, 0]), 1, atol=1e-6)
    assert u.sum() >= 0
