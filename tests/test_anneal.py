"""AIS and RAISE against enumeration: values, error bars, and the distribution p_ann."""

import math
from importlib import import_module
from itertools import pairwise

import exact
import numpy as np
import pytest
import torch
from checks import LIMIT, machine, mean_scores, random_rbm, seeded, tensor

from latentbits.anneal import (
    adaptive_schedule,
    ais,
    estimate_from_log_weights,
    linear_schedule,
    log_base_partition,
    place_temperatures,
    raise_log_prob,
)
from latentbits.rbm import RBM, BernoulliPrior

BASE = np.array([-1.0, 0.5, 1.5, -2.0])
UNEVEN = np.array([0.0, 0.05, 0.2, 0.6, 1.0])  # not symmetric, so that beta_k and 1 - beta_k differ


def weights(rbm, chains, betas, seed, base=BASE):
    """Log-weights of AIS chains, relative to the exact log Z."""
    estimate = ais(rbm, chains, len(betas) - 1, seeded(seed), tensor(base), tensor(betas, torch.float64))
    return estimate.log_weights.numpy() - exact.log_partition(machine(rbm))


def raise_samples(rbm, n, betas, seed, base=BASE):
    """Independent estimates of every state's probability, with shape (n, 2^M)."""
    z = tensor(exact.states(rbm.visible), rbm.weight.dtype).repeat(n, 1)
    log_p = raise_log_prob(rbm, z, len(betas) - 1, 1, seeded(seed), tensor(base), tensor(betas, torch.float64))
    assert log_p.dtype == torch.float64
    return log_p.exp().numpy().reshape(n, -1)


# ----------------------------------------------------------------------------- the oracle itself


def test_the_oracles_agree_among_themselves():
    """f_0 and f_N are base and target, E[w] Z_0 = Z, and slow annealing ends at p."""
    target = machine(random_rbm(4, 3))
    log_z0 = exact.log_partition(exact.annealed(target, BASE, 0.0))
    assert log_z0 == pytest.approx(float(3 * np.log(2) + np.log1p(np.exp(BASE)).sum()))
    first_moment = exact.ais_moment(target, BASE, UNEVEN, 1)
    assert np.log(first_moment) + log_z0 == pytest.approx(exact.log_partition(target))
    p = exact.probabilities(target)
    far = np.abs(exact.annealing_probabilities(target, BASE, UNEVEN) - p).sum()
    near = np.abs(exact.annealing_probabilities(target, BASE, np.linspace(0, 1, 200)) - p).sum()
    assert near < 0.02 < 0.1 < far


# ----------------------------------------------------------------------------- AIS


def test_log_base_partition():
    rbm = random_rbm(4, 3)
    expected = exact.log_partition(exact.annealed(machine(rbm), BASE, 0.0))
    assert log_base_partition(rbm, tensor(BASE)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("betas", [UNEVEN, np.linspace(0, 1, 4), np.array([0.0, 1.0])], ids=["uneven", "3", "1"])
def test_ais_weights_have_the_exact_mean_and_variance(to_path, betas):
    """Few temperatures, so that weights spread; their first two moments are matrix products."""
    rbm, n = to_path(random_rbm(4, 3)), 40_000
    w = np.exp(weights(rbm, n, betas, 1))
    assert abs(mean_scores(w, 1.0)) < LIMIT
    second = 1 + exact.ais_relative_variance(machine(rbm), BASE, betas)
    assert abs(mean_scores(w**2, second)) < LIMIT


def test_repeated_runs_are_unbiased_for_z(to_path):
    """E[Z_hat] = Z; and E[log Z_hat] < log Z where the error is large enough to show it."""
    rbm = to_path(random_rbm(4, 3))
    log_z = exact.log_partition(machine(rbm))
    runs = [ais(rbm, 4, 2, seeded(seed), tensor(BASE)).log_z - log_z for seed in range(600)]
    assert abs(mean_scores(np.exp(runs), 1.0)) < LIMIT
    assert mean_scores(runs, 0.0) < -LIMIT


def test_standard_error_covers_the_truth():
    """100 runs: 95 of them within 2 standard errors, give or take 2.1; errors over standard errors near 1."""
    rbm = random_rbm(6, 5, scale=1.0)
    base, log_z = tensor(np.zeros(6)), exact.log_partition(machine(rbm))
    runs = [ais(rbm, 400, 20, seeded(seed), base) for seed in range(100)]
    scores = np.array([(run.log_z - log_z) / run.standard_error for run in runs])
    assert 0.88 <= (np.abs(scores) < 2).mean() <= 0.995
    assert 0.75 < np.sqrt((scores**2).mean()) < 1.3  # the root has standard error 0.07
    predicted = math.sqrt(exact.ais_relative_variance(machine(rbm), np.zeros(6), np.linspace(0, 1, 21)) / 400)
    errors = np.array([run.standard_error for run in runs])
    assert abs(errors.mean() / predicted - 1) < 0.15


def test_error_falls_with_temperatures_and_chains():
    rbm = random_rbm(6, 5, scale=1.0)
    base, log_z = tensor(np.zeros(6)), exact.log_partition(machine(rbm))

    def budget(chains, temperatures):
        runs = [ais(rbm, chains, temperatures, seeded(seed), base) for seed in range(40)]
        rmse = math.sqrt(np.mean([(run.log_z - log_z) ** 2 for run in runs]))
        return rmse, np.mean([run.standard_error for run in runs])

    budgets = [(100, 4), (100, 16), (100, 64), (1600, 64)]
    rmse, error = np.array([budget(*b) for b in budgets]).T
    # Each step is worth a factor of at least 1.6 in theory; the RMSE of 40 runs is known to 11 percent.
    assert (rmse[1:] < rmse[:-1]).all()
    assert (error[1:] < error[:-1] / 1.3).all()
    assert rmse[-1] < rmse[0] / 6
    assert error[3] / error[2] == pytest.approx(1 / 4, rel=0.1)  # 16 times the chains


@pytest.mark.parametrize("temperatures", [1, 10, 100])
def test_ess_lies_between_one_and_chains(temperatures):
    rbm, chains = random_rbm(4, 3), 3000
    estimate = ais(rbm, chains, temperatures, seeded(3), tensor(BASE))
    assert 1 <= estimate.ess <= chains
    assert estimate.log_weights.shape == (chains,)
    assert estimate.log_weights.dtype == torch.float64
    variance = exact.ais_relative_variance(machine(rbm), BASE, np.linspace(0, 1, temperatures + 1))
    assert estimate.ess == pytest.approx(chains / (1 + variance), rel=0.25)


def test_summary_of_given_weights():
    """Weights 1, 2 and 3 around a huge scale: mean 2, sums without one 5, 4 and 3, sum^2 / sum of squares = 36 / 14."""
    estimate = estimate_from_log_weights(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).log() + 5000)
    assert estimate.log_z == pytest.approx(5000 + math.log(2), abs=1e-9)
    assert estimate.standard_error == pytest.approx(math.sqrt(2 * np.var(np.log([5, 4, 3]))), rel=1e-9)
    assert estimate.ess == pytest.approx(36 / 14, rel=1e-9)


@pytest.mark.parametrize("sigma", [0.5, 2.5])
def test_the_error_bar_holds_where_few_chains_carry_the_estimate(sigma):
    """Log-normal weights with mean 1, of an effective sample size of about 160 and 10 of 200."""
    weights = sigma * torch.randn(2000, 200, generator=seeded(9), dtype=torch.float64) - sigma**2 / 2
    runs = [estimate_from_log_weights(row) for row in weights]
    spread = np.std([run.log_z for run in runs])
    assert np.sqrt(np.mean([run.standard_error**2 for run in runs])) == pytest.approx(spread, rel=0.1)
    assert np.median([run.ess for run in runs]) == pytest.approx({0.5: 157, 2.5: 10}[sigma], rel=0.15)


def test_one_chain_has_no_error_bar():
    estimate = ais(random_rbm(4, 3), 1, 5, seeded(4))
    assert estimate.standard_error == math.inf
    assert estimate.ess == pytest.approx(1)
    assert estimate.log_z == pytest.approx(float(estimate.log_weights))


def test_weights_are_constant_where_the_base_is_the_target():
    rbm = RBM.from_arrays(np.zeros((4, 3)), BASE, np.zeros(3))
    estimate = ais(rbm, 100, 5, seeded(5))
    assert estimate.log_z == pytest.approx(exact.log_partition(machine(rbm)), abs=1e-6)
    assert estimate.standard_error < 1e-6
    assert estimate.ess == pytest.approx(100)


# ----------------------------------------------------------------------------- base


def test_default_base(with_threads):
    """The RBM's visible bias; after fit_base, the fitted biases; a given base comes first."""
    rbm = random_rbm(4, 3)
    z = tensor(exact.states(4))

    def run(**options):
        return (
            ais(rbm, 50, 5, seeded(6), **options).log_weights,
            raise_log_prob(rbm, z, 5, 2, seeded(7), **options),
        )

    def equal(one, two):
        return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))

    own, given = run(), run(base_bias=tensor(BASE))
    assert equal(own, run(base_bias=rbm.visible_bias))
    assert not equal(own, given)
    rbm.fit_base(torch.sigmoid(tensor(BASE)), 10**9)
    fitted = run()
    assert equal(fitted, run(base_bias=rbm.base_bias))
    assert not equal(fitted, own)
    assert equal(given, run(base_bias=tensor(BASE)))


@pytest.mark.parametrize("base", [BASE, np.zeros(4), None], ids=["given", "zeros", "own"])
def test_every_base_gives_the_same_log_z(base):
    rbm = random_rbm(4, 3)
    estimate = ais(rbm, 20_000, 20, seeded(8), None if base is None else tensor(base))
    assert abs(estimate.log_z - exact.log_partition(machine(rbm))) < LIMIT * estimate.standard_error


# ----------------------------------------------------------------------------- schedules


def test_linear_schedule():
    assert linear_schedule(4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert linear_schedule(4).dtype == torch.float64


def peaked_rbm():
    """Two opposite modes, all bits off or on, that form between beta = 0 and 0.3."""
    W = np.full((6, 5), 4.0)
    return RBM.from_arrays(W, -0.5 * W.sum(1), -0.5 * W.sum(0))


@pytest.mark.parametrize("temperatures", [1, 7, 300])
def test_adaptive_schedule_rises_from_zero_to_one(temperatures):
    betas = adaptive_schedule(peaked_rbm(), temperatures, seeded(11), pilot_temperatures=100)
    assert betas.shape == (temperatures + 1,)
    assert betas.dtype == torch.float64
    assert betas[0] == 0
    assert betas[-1] == 1
    assert (betas.diff() > 0).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperatures", [10, 40])
def test_adaptive_schedule_lowers_the_variance(seed, temperatures):
    """The exact variance of a weight under either schedule; only the pilot run is random."""
    rbm, base = peaked_rbm(), np.zeros(6)
    betas = adaptive_schedule(rbm, temperatures, seeded(seed), tensor(base), pilot_temperatures=200).numpy()
    adaptive = exact.ais_relative_variance(machine(rbm), base, betas)
    linear = exact.ais_relative_variance(machine(rbm), base, np.linspace(0, 1, temperatures + 1))
    assert adaptive < linear / 1.5


def test_adaptive_schedule_where_nothing_varies():
    """An RBM with W = 0 starts at its own distribution: any rising schedule will do."""
    betas = adaptive_schedule(RBM(4, 3, scale=0.0), 5, seeded(28), pilot_temperatures=20)
    assert betas.isfinite().all()
    assert (betas.diff() > 0).all()
    assert (betas[0], betas[-1]) == (0, 1)


def test_adaptive_schedule_is_unbiased():
    rbm, base = peaked_rbm(), np.zeros(6)
    betas = adaptive_schedule(rbm, 8, seeded(12), tensor(base), pilot_temperatures=200)
    assert abs(mean_scores(np.exp(weights(rbm, 40_000, betas.numpy(), 13, base)), 1.0)) < LIMIT


@pytest.mark.parametrize("largest", [100.0, 1000.0, 10_000.0])
@pytest.mark.parametrize("temperatures", [1000, 5000, 10_000])
def test_steps_of_large_energies_add_up_to_the_whole_way(largest, temperatures):
    """Without weights nothing is random, and log Z is known; each step is rounded, alike at both its ends."""
    biases = np.linspace(-largest, 1.1 * largest, 20)
    estimate = ais(RBM.from_arrays(np.zeros((4, 20)), np.zeros(4), biases), 20, temperatures, seeded(0))
    exact = 4 * math.log(2) + np.logaddexp(0, biases.astype(np.float32).astype(np.float64)).sum()
    assert abs(estimate.log_z - exact) < 1e-3 + 2e-7 * exact


# ----------------------------------------------------------------------------- RAISE


@pytest.mark.parametrize("betas", [UNEVEN, np.linspace(0, 1, 4), np.array([0.0, 1.0])], ids=["uneven", "3", "1"])
def test_raise_is_unbiased_for_the_annealing_distribution(to_path, betas):
    """E[p_hat(z)] = p_ann(z) for every z, and not p(z)."""
    rbm, n = to_path(random_rbm(4, 3)), 15_000
    samples = raise_samples(rbm, n, betas, 14)
    p_ann = exact.annealing_probabilities(machine(rbm), BASE, betas)
    scores = mean_scores(samples, p_ann)
    assert np.abs(scores).max() < LIMIT
    assert (scores**2).mean() < 1 + LIMIT * math.sqrt(2 / 16)
    assert np.abs(mean_scores(samples, exact.probabilities(machine(rbm)))).max() > 10


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64])
def test_raise_takes_bits_of_any_type(dtype):
    rbm, z = random_rbm(4, 3), tensor(exact.states(4))
    expected = raise_log_prob(rbm, z, 4, 1, seeded(29))
    assert torch.equal(raise_log_prob(rbm, z.to(dtype), 4, 1, seeded(29)), expected)


def test_raise_has_the_variance_of_reversed_ais():
    """One temperature: p_hat(z) = f_1(z) / Z_0 * f_0(x) / f_1(x), x ~ T_1(z, .), so E[p_hat^2] is a sum."""
    rbm = random_rbm(4, 3)
    samples = raise_samples(rbm, 40_000, [0.0, 1.0], 15)
    log_f = [exact.annealed_log_f(machine(rbm), BASE, beta) for beta in (0.0, 1.0)]
    log_z0 = exact.log_sum_exp(log_f[0])
    T = exact.annealed_transition(machine(rbm), BASE, 1.0)
    second = np.exp(2 * (log_f[1] - log_z0)) * (T @ np.exp(2 * (log_f[0] - log_f[1])))
    assert np.abs(mean_scores(samples**2, second)).max() < LIMIT


def test_chains_of_raise_are_averaged_for_each_datum():
    """exp of the result is near p_ann(z) of its own z, with a standard error of 1 / sqrt(chains)."""
    rbm, chains, betas = random_rbm(4, 3), 4000, np.linspace(0, 1, 5)
    p_ann = exact.annealing_probabilities(machine(rbm), BASE, betas)
    error = raise_samples(rbm, 4000, betas, 16).std(0) / math.sqrt(chains)
    z = tensor(exact.states(4)[[3, 12, 3, 7]])
    log_p = raise_log_prob(rbm, z, 4, chains, seeded(17), tensor(BASE))
    assert log_p.shape == (4,)
    assert np.abs((log_p.exp().numpy() - p_ann[[3, 12, 3, 7]]) / error[[3, 12, 3, 7]]).max() < LIMIT
    assert log_p[0] != log_p[2]  # the same z has chains of its own


def test_raise_is_conservative_and_tightens():
    """Averaged over z ~ p, E log p_hat rises towards E log p from below."""
    rbm, n = random_rbm(4, 3), 3000
    p = exact.probabilities(machine(rbm))
    gaps, errors = [], []
    for temperatures in (1, 4, 16, 64):
        log_p = np.log(raise_samples(rbm, n, np.linspace(0, 1, temperatures + 1), 18)) @ p
        gaps.append((p * np.log(p)).sum() - log_p.mean())
        errors.append(log_p.std() / math.sqrt(n))
    assert all(gap > LIMIT * error for gap, error in zip(gaps, errors, strict=True))
    assert all(after < before / 1.5 for before, after in pairwise(gaps))
    assert gaps[-1] < 0.1


def test_raise_is_exact_where_the_base_is_the_target():
    rbm = RBM.from_arrays(np.zeros((4, 3)), BASE, np.zeros(3))
    log_p = raise_log_prob(rbm, tensor(exact.states(4)), 5, 2, seeded(19))
    np.testing.assert_allclose(log_p, np.log(exact.probabilities(machine(rbm))), atol=1e-5)


def test_ais_and_raise_bracket_log_z():
    """-F(z) - log p_hat(z), averaged over z ~ p, is above log Z; log Z_hat of few chains is below."""
    rbm = random_rbm(4, 3)
    p, log_z = exact.probabilities(machine(rbm)), exact.log_partition(machine(rbm))
    above = (-exact.free_energies(machine(rbm)) - np.log(raise_samples(rbm, 500, np.linspace(0, 1, 4), 20))) @ p
    below = [ais(rbm, 2, 3, seeded(seed), tensor(BASE)).log_z for seed in range(200)]
    assert mean_scores(below, log_z) < -LIMIT < LIMIT < mean_scores(above, log_z)


# ----------------------------------------------------------------------------- randomness, progress


@pytest.mark.parametrize("n", [3, 1203])
def test_results_depend_on_the_seed_and_not_on_threads(to_path, with_threads, n):
    rbm = to_path(random_rbm(30, 20, scale=0.3))
    z = torch.ones(n, 30, dtype=rbm.weight.dtype)

    def run(seed):
        betas = adaptive_schedule(rbm, 5, seeded(seed), pilot_chains=max(2, n // 4), pilot_temperatures=20)
        estimate = ais(rbm, n, 10, seeded(seed))
        return betas, estimate.log_weights, raise_log_prob(rbm, z, 10, 1, seeded(seed))

    results = []
    for threads in (1, 2):
        with_threads(threads)
        results.append(run(21))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(results[0], run(22), strict=True))


def test_log_weights_of_chains_are_uncorrelated_across_blocks():
    w = np.concatenate([weights(random_rbm(4, 3), 1500, UNEVEN, seed) for seed in range(10)]).reshape(10, 3, 500)
    w = (w - w.mean()) / w.std()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs((w[:, i] * w[:, j]).mean()) * math.sqrt(5000) < LIMIT


def test_progress_tells_the_share_and_the_estimate_by_chains_that_have_arrived():
    rbm, told = random_rbm(4, 3), []
    final = ais(rbm, 2600, 400, seeded(23), progress=lambda *report: told.append(report))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (len(told), shares[-1]) == (8, 1.0)  # four blocks of 650, each told of twice
    arrived = [0 if estimate is None else len(estimate.log_weights) for _, estimate in told]
    assert arrived == sorted(arrived)
    assert (arrived[0], arrived[-1]) == (0, 2600)
    assert told[-1][1].log_z == pytest.approx(final.log_z, abs=1e-12)


def test_raise_tells_its_share():
    told = []
    z = torch.ones(350, 4)
    raise_log_prob(random_rbm(4, 3), z, 400, 2, seeded(24), progress=lambda *report: told.append(report))
    assert [estimate for _, estimate in told] == [None] * len(told)
    assert told[-1][0] == 1.0
    assert len(told) == 4


class InterruptionError(Exception):
    pass


@pytest.mark.parametrize("estimator", ["ais", "raise"])
def test_an_interrupted_estimate_goes_on_to_the_same_result(estimator, to_path, tmp_path, monkeypatch):
    """Stopped once, the second call starts from the file, and ends at the result of one that was never stopped."""
    monkeypatch.setattr("latentbits.files.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    rbm, z = to_path(random_rbm(40, 30, scale=0.3)), torch.bernoulli(torch.full((800, 40), 0.5), generator=seeded(1))
    rbm.fit_base(torch.linspace(0.1, 0.9, 40), 100)  # a base with other biases, whose part of the weights counts

    def run(progress=None, checkpoints=tmp_path):
        if estimator == "ais":
            return ais(rbm, 800, 900, seeded(60), progress=progress, checkpoints=checkpoints).log_weights
        return raise_log_prob(rbm, z, 900, 1, seeded(60), progress=progress, checkpoints=checkpoints)

    def interrupt(share, estimate):
        if share > 0.8:  # on one thread the second block has been written down twice on its way by then
            raise InterruptionError

    expected = run(checkpoints=None)
    with pytest.raises(InterruptionError):
        run(interrupt)
    assert [path.name[:10] for path in tmp_path.iterdir()] == ["annealing-"]
    shares = []
    resumed = run(lambda share, estimate: shares.append(share))
    assert torch.equal(resumed, expected)
    assert shares[0] > 0.6
    shares.clear()
    assert torch.equal(run(lambda share, estimate: shares.append(share)), expected)
    assert shares == []  # it had arrived


def test_an_estimate_does_not_go_on_from_that_of_another_model(tmp_path, monkeypatch):
    monkeypatch.setattr("latentbits.files.SECONDS_BETWEEN_CHECKPOINTS", -1.0)

    def interrupt(share, estimate):
        if share > 0.5:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        ais(random_rbm(4, 3), 100, 900, seeded(61), progress=interrupt, checkpoints=tmp_path)
    other, shares = random_rbm(4, 3, seed=1), []
    ais(other, 100, 900, seeded(61), progress=lambda share, _: shares.append(share), checkpoints=tmp_path)
    assert shares[0] < 0.4
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("other", ["stream", "start", "weight", "visible bias", "hidden bias", "base", "path"])
def test_an_estimate_goes_on_from_the_same_call_only(tmp_path, monkeypatch, other):
    """One thing differs from the call whose chains were written down: these are not taken up."""
    module = import_module("latentbits.anneal")
    monkeypatch.setattr("latentbits.files.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    rbm = random_rbm(4, 3)
    call = {"z": torch.zeros(100, 4), "path": [0.0, 0.5, 1.0], "base_bias": tensor(BASE)}

    def run(seed, folder):
        return module.anneal(rbm, generator=seeded(seed), checkpoints=folder, **call)

    run(1, tmp_path / "nested" / "folder")
    parameters = {"weight": rbm.weight, "visible bias": rbm.visible_bias, "hidden bias": rbm.hidden_bias}
    if other in parameters:
        parameters[other].data[0] += 0.1
    call["z"] = torch.ones(100, 4) if other == "start" else call["z"]
    call["base_bias"] = -tensor(BASE) if other == "base" else call["base_bias"]
    call["path"] = [0.0, 0.5 + 1e-9, 1.0] if other == "path" else call["path"]
    seed = 2 if other == "stream" else 1
    assert torch.equal(run(seed, tmp_path / "nested" / "folder"), run(seed, None))
    assert len(list((tmp_path / "nested" / "folder").iterdir())) == 2


def test_nothing_is_written_in_the_first_minute(tmp_path):
    ais(random_rbm(4, 3), 600, 500, seeded(62), checkpoints=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_no_gradient_is_kept():
    rbm = random_rbm(4, 3)
    assert not ais(rbm, 5, 3, seeded(25)).log_weights.requires_grad
    assert not raise_log_prob(rbm, tensor(exact.states(4)), 3, 1, seeded(26)).requires_grad


# ----------------------------------------------------------------------------- arguments


def run_ais(**options):
    return ais(RBM(4, 3), **{"chains": 5, "temperatures": 4, **options})


def run_raise(**options):
    return raise_log_prob(RBM(4, 3), torch.zeros(2, 4), **{"temperatures": 4, **options})


@pytest.mark.parametrize("estimate", [run_ais, run_raise])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 0}, "chains: expected a whole number of at least 1, got 0"),
        ({"temperatures": 0}, "temperatures: expected a whole number of at least 1, got 0"),
        ({"base_bias": torch.zeros(3)}, r"base_bias: expected shape \(4,\), got \(3,\)"),
        ({"base_bias": torch.tensor([0, 0, math.inf, 0])}, "base_bias: holds values that are not finite"),
        ({"schedule": torch.tensor([[0.0], [5.0], [-3.0], [0.5], [1.0]])}, r"expected shape \(5,\), got \(5, 1\)"),
        ({"schedule": [0, 0.5, 0.4, 0.8, 1]}, "rising from 0 to 1"),
        ({"schedule": torch.linspace(0, 1, 4)}, "expected 5 values rising from 0 to 1.*got 4"),
        ({"schedule": torch.linspace(0.1, 1, 5)}, "rising from 0 to 1"),
        ({"schedule": torch.linspace(0, 0.9, 5)}, "rising from 0 to 1"),
        ({"schedule": torch.tensor([0, 0.6, 0.4, 0.8, 1])}, "rising from 0 to 1"),
        pytest.param({"schedule": torch.tensor([0, 0.2, math.nan, 0.8, 1])}, "rising from 0 to 1"),
    ],
)
def test_bad_arguments(estimate, options, message):
    with pytest.raises(ValueError, match=message):
        estimate(**options)


@pytest.mark.parametrize("estimate", [run_ais, run_raise])
@pytest.mark.parametrize("count", ["chains", "temperatures"])
def test_counts_are_whole_numbers(estimate, count):
    with pytest.raises(TypeError, match=rf"{count}: expected a whole number of at least 1, got 10000\.0"):
        estimate(**{count: 1e4})
    assert torch.as_tensor(estimate(**{count: np.int64(3)})[0]).isfinite()


@pytest.mark.parametrize("count", ["temperatures", "pilot_chains", "pilot_temperatures"])
def test_adaptive_schedule_names_what_is_too_few(count):
    counts = {"temperatures": 5, "pilot_chains": 4, "pilot_temperatures": 3, count: 0}
    with pytest.raises(
        ValueError, match=rf"adaptive_schedule: {count}: expected a whole number of at least [12], got 0"
    ):
        adaptive_schedule(RBM(4, 3), **counts)


@pytest.mark.parametrize("run", [run_ais, run_raise, lambda: adaptive_schedule(RBM(4, 3), 3)])
def test_machines_that_annealing_has_no_loops_for_are_refused(run, monkeypatch):
    built = RBM.__init__

    def spoilt(self, *arguments):
        built(self, *arguments)
        self.hidden_bias.data[0] = math.nan

    monkeypatch.setattr(RBM, "__init__", spoilt)
    with pytest.raises(ValueError, match="rbm: expected finite parameters, got others in hidden_bias"):
        run()
    monkeypatch.setattr(RBM, "__init__", lambda self, *sizes: built(self, *sizes) or (self.bfloat16() and None))
    with pytest.raises(TypeError, match=r"in float32 or float64, got torch\.bfloat16; take"):
        run()


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 2, 4)])
def test_raise_names_the_expected_shape(shape):
    with pytest.raises(ValueError, match=r"raise_log_prob: z: expected shape \(B, 4\)"):
        raise_log_prob(RBM(4, 3), torch.zeros(shape), 4)


def test_adaptive_schedule_refuses_no_temperatures():
    with pytest.raises(ValueError, match="temperatures: expected a whole number of at least 1, got 0"):
        adaptive_schedule(random_rbm(4, 3), 0, seeded(27), pilot_temperatures=0)


def test_temperatures_have_equal_shares_of_the_spread():
    """Spreads 0, 0, 3, 1 and a tenth of their mean each: half of 4.4 is reached 2 / 3.1 into the third quarter."""
    betas = place_temperatures(torch.tensor([0.0, 0.0, 3.0, 1.0], dtype=torch.float64), 2)
    np.testing.assert_allclose(betas, [0, (2 + 2.0 / 3.1) / 4, 1], rtol=1e-12)
    small = place_temperatures(torch.tensor([0.0, 0.0, 3e-9, 1e-9], dtype=torch.float64), 2)
    np.testing.assert_allclose(small, betas, rtol=1e-12)
    np.testing.assert_allclose(place_temperatures(torch.full((7,), 1e-3), 5), np.linspace(0, 1, 6), atol=1e-6)
    assert torch.equal(place_temperatures(torch.zeros(7), 5), linear_schedule(5))


def test_the_pilot_sees_the_spread_of_the_increments(monkeypatch):
    """Standard deviation of log f_k - log f_{k-1} over p_{k-1}, by enumeration; 20,000 chains give it to 1 %."""
    rbm, base, n, seen = random_rbm(4, 3), np.full(4, 3.0), 5, []
    monkeypatch.setattr(import_module("latentbits.anneal"), "place_temperatures", lambda *a: seen.append(a))
    for generator, global_seed in ((seeded(40), 1), (seeded(40), 2)):
        torch.manual_seed(global_seed)
        adaptive_schedule(rbm, 5, generator, tensor(base), 20_000, n)
    assert torch.equal(seen[0][0], seen[1][0])
    betas, expected = np.linspace(0, 1, n + 1), []
    p = exact.probabilities(exact.annealed(machine(rbm), base, 0.0))
    for k in range(1, n + 1):
        x = exact.annealed_log_f(machine(rbm), base, betas[k]) - exact.annealed_log_f(machine(rbm), base, betas[k - 1])
        expected.append(np.sqrt(p @ x**2 - (p @ x) ** 2))
        p = p @ exact.annealed_transition(machine(rbm), base, betas[k])
    np.testing.assert_allclose(seen[0][0], expected, rtol=0.04)
    assert max(expected) > 1.3 * min(expected)  # or a shift by one would not show
    assert seen[0][1] == 5


def test_raise_runs_one_chain_unless_asked_otherwise():
    rbm, z = random_rbm(4, 3), tensor(exact.states(4))
    assert torch.equal(raise_log_prob(rbm, z, 5, generator=seeded(43)), raise_log_prob(rbm, z, 5, 1, seeded(43)))


def test_a_schedule_may_stand_still():
    estimate = ais(random_rbm(4, 3), 50, 3, seeded(44), schedule=torch.tensor([0, 0.5, 0.5, 1.0]))
    assert math.isfinite(estimate.log_z)


def test_two_chains_have_an_error_and_one_has_none():
    assert math.isfinite(estimate_from_log_weights(torch.tensor([0.0, 1.0], dtype=torch.float64)).standard_error)
    assert estimate_from_log_weights(torch.zeros(1, dtype=torch.float64)).standard_error == math.inf


@pytest.mark.parametrize("estimate", [ais, adaptive_schedule])
def test_a_bernoulli_prior_is_not_annealed(estimate):
    with pytest.raises(TypeError, match="annealing is for an RBM, got BernoulliPrior; a Bernoulli prior's log Z is"):
        estimate(BernoulliPrior(3), 5, 5) if estimate is ais else estimate(BernoulliPrior(3), 5)
