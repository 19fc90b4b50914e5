"""Parallel tempering against enumeration: distributions at every temperature, swaps, and modes crossed."""

import exact
import numpy as np
import pytest
import torch
from checks import LIMIT, chi_square_score, machine, mean_scores, random_rbm, seeded, tensor

from latentbits.chains import Chains
from latentbits.rbm import RBM, BernoulliPrior
from latentbits.tempering import (
    Swaps,
    parallel_tempering,
    respace,
    sample_prior,
    start,
    tempering_schedule,
)

BASE = np.array([-1.0, 0.5, 1.5, -2.0])
BETAS = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)


def tables(rbm, betas=BETAS):
    """p_beta (2^M,) at each temperature."""
    return [exact.probabilities(exact.annealed(machine(rbm), BASE, float(beta))) for beta in betas]


def exact_replicas(rbm, n, seed):
    """Independent samples at each temperature, with shape (R, n, M)."""
    rng, states = np.random.default_rng(seed), exact.states(rbm.visible)
    return torch.stack([tensor(states[rng.choice(len(p), n, p=p)], rbm.weight.dtype) for p in tables(rbm)])


def acceptance(p, q):
    """Enumerated probability that a swap between independent states of two tables (V,) is accepted."""
    ratio = np.exp(np.subtract.outer(np.log(q) - np.log(p), np.log(q) - np.log(p)))  # q(x) p(y) / (p(x) q(y))
    return float((np.outer(p, q) * np.minimum(1, ratio)).sum())


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_every_temperature_keeps_its_distribution(to_path, rounds):
    rbm = to_path(random_rbm(4, 3))
    z, _ = parallel_tempering(rbm, exact_replicas(rbm, 40_000, 0), BETAS, rounds, seeded(1), tensor(BASE))
    for replica, p in zip(z, tables(rbm), strict=True):
        counts = exact.frequencies(replica.numpy()) * len(replica)
        assert abs(chi_square_score(counts, p)) < LIMIT


def test_swaps_are_refused_as_often_as_enumerated(to_path):
    """One round from independent states: replicas are still independent when the swap is tried."""
    rbm, n = to_path(random_rbm(4, 3)), 200_000
    tried = {}
    for seed in range(4):
        _, swaps = parallel_tempering(rbm, exact_replicas(rbm, n, seed), BETAS, 1, seeded(seed), tensor(BASE))
        tried |= {int(pair): float(swaps.rejection[pair]) for pair in swaps.tried.nonzero().flatten()}
    assert sorted(tried) == [0, 1, 2]  # even and odd pairs, by the coin
    p = tables(rbm)
    for pair, rejection in tried.items():
        expected = 1 - acceptance(p[pair], p[pair + 1])
        assert 0.05 < expected < 0.95
        assert abs(rejection - expected) < LIMIT * np.sqrt(expected * (1 - expected) / n)


def test_pairs_take_turns():
    rbm = random_rbm(4, 3)
    _, swaps = parallel_tempering(rbm, start(rbm, 10, 4, seeded(0)), BETAS, 6, seeded(1))
    assert swaps.tried.tolist() == [30.0, 30.0, 30.0]
    _, swaps = parallel_tempering(rbm, start(rbm, 10, 4, seeded(0)), BETAS, 1, seeded(1))
    assert swaps.tried.tolist() in ([10.0, 0.0, 10.0], [0.0, 10.0, 0.0])


def two_modes(units=6, strength=7.0):
    """All ones and all zeros, with one hidden unit to hold them: Gibbs steps stay where they are."""
    weight = torch.full((units, 1), strength)
    return RBM.from_arrays(weight, np.full(units, -strength / 2), [-strength * units / 2])


def test_tempered_chains_cross_between_modes_and_plain_ones_do_not():
    """From the base, half of the chains should come to each mode; from one mode, plain Gibbs steps stay."""
    rbm = two_modes()
    p = exact.probabilities(machine(rbm))
    ones_expected = float((p * exact.states(6).mean(1)).sum())
    assert p[0] == pytest.approx(p[-1])
    assert p[0] > 0.4
    rbm.fit_base(torch.full((6,), 0.3), 1000)  # a base to one side, so that crossing is needed
    shares = [
        float(sample_prior(rbm, 2000, rounds, seeded(2), temperatures=8).mean()) for rounds in (1, 400)
    ]  # fmt: skip
    assert abs(shares[1] - ones_expected) < 0.05
    assert abs(shares[0] - ones_expected) > 0.2  # more rounds help
    plain = Chains(torch.zeros(2000, 6))
    assert float(plain.advance(rbm, 100, seeded(3)).mean()) < 0.1


def test_placed_temperatures_are_refused_equally_often():
    rbm = random_rbm(12, 10, scale=1.0)
    placed = tempering_schedule(rbm, 6, seeded(4))
    assert (placed[0], placed[-1], placed.dtype) == (0, 1, torch.float64)
    spreads = []
    for betas in (torch.linspace(0, 1, 6, dtype=torch.float64), placed):
        z, _ = parallel_tempering(rbm, start(rbm, 500, 6, seeded(5)), betas, 50, seeded(6))
        _, swaps = parallel_tempering(rbm, z, betas, 100, seeded(7))
        spreads.append(float(swaps.rejection.max() - swaps.rejection.min()))
    assert spreads[1] < 0.08
    assert spreads[1] < 0.5 * spreads[0]


def test_respacing_by_hand():
    """Refusals of 0.1 and 0.3, with a hundredth of their mean added: half of the barrier, 0.202, is a third on."""
    tried = torch.full((2,), 1e9, dtype=torch.float64)
    betas = respace(torch.tensor([0.0, 0.5, 1.0]), Swaps(tried, tried * torch.tensor([0.1, 0.3])))
    assert betas.tolist() == pytest.approx([0, 0.5 + 0.5 * 0.1 / 0.302, 1], abs=1e-4)
    untried = Swaps(torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    assert respace(torch.tensor([0.0, 0.4, 1.0]), untried).tolist() == pytest.approx([0, 0.4, 1])
    half = Swaps(torch.tensor([1e9, 0.0]), torch.tensor([2.5e8, 0.0]))  # 0.25, and 0.5 where nothing is known
    middle = 0.4 + 0.6 * 0.125 / 0.50375
    assert respace(torch.tensor([0.0, 0.4, 1.0]), half).tolist() == pytest.approx([0, middle, 1], abs=1e-4)
    never = respace(torch.tensor([0.0, 0.4, 1.0]), Swaps(tried, torch.zeros(2, dtype=torch.float64)))
    assert (never.diff() > 0).all()


def test_the_generator_decides():
    """Everything that draws gives the same twice from the same seed, and something else from another."""
    rbm = random_rbm(6, 5)
    works = {
        "start": lambda g: start(rbm, 50, 3, g),
        "schedule": lambda g: tempering_schedule(rbm, 4, g),
        "rounds": lambda g: parallel_tempering(rbm, torch.zeros(4, 50, 6), BETAS, 3, g)[0],
        "samples": lambda g: sample_prior(rbm, 50, 3, g, temperatures=3),
        "plain samples": lambda g: sample_prior(rbm, 50, 3, g),
        "plain chains": lambda g: Chains(torch.zeros(50, 6)).advance(rbm, 3, g),
        "tempered chains": lambda g: Chains.begin(rbm, torch.zeros(50, 6), 2, g).advance(rbm, 3, g),
        "placed": lambda g: Chains.begin(rbm, torch.zeros(50, 6), 4, g).tempering.betas,
    }
    for name, work in works.items():
        one, same, other = work(seeded(21)), work(seeded(21)), work(seeded(22))
        assert torch.equal(one, same), name
        assert not torch.equal(one, other), name


def test_a_base_that_is_given_is_the_one_that_is_used():
    rbm, base = random_rbm(4, 3), tensor(BASE)
    given = start(rbm, 300, 4, seeded(23), base), tempering_schedule(rbm, 4, seeded(24), base)
    own = start(rbm, 300, 4, seeded(23)), tempering_schedule(rbm, 4, seeded(24))
    rbm.base_bias = base
    fitted = start(rbm, 300, 4, seeded(23)), tempering_schedule(rbm, 4, seeded(24))
    for one, same, other in zip(given, fitted, own, strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
    assert given[1].dtype == torch.float64


def test_negatives_of_tempered_chains_have_the_models_moments():
    """The negative phase that training sees: means of z and of z h, after the chains have settled."""
    rbm, n = random_rbm(4, 3), 20_000
    chains = Chains.begin(rbm, torch.zeros(n, 4), 5, seeded(8))
    assert chains.z.shape == (n, 5, 4)
    chains.advance(rbm, 60, seeded(9))
    z = chains.advance(rbm, 5, seeded(10))
    assert z.shape == (n, 4)
    assert torch.equal(z, chains.z[:, -1])
    expected = (exact.probabilities(machine(rbm))[:, None] * exact.states(4)).sum(0)
    assert np.abs(mean_scores(z.numpy(), expected)).max() < LIMIT
    before = chains.tempering
    _, once = parallel_tempering(rbm, torch.zeros(5, n, 4), before.betas, 65, seeded(10))
    assert before.swaps.tried.sum() == once.tried.sum()
    assert before.swaps.refused.sum() == pytest.approx(float(once.refused.sum()), rel=0.2)
    chains.respace()
    assert not torch.equal(chains.tempering.betas, before.betas)
    assert chains.tempering.swaps.tried.sum() == 0


def test_chains_come_back_from_their_state():
    rbm = random_rbm(4, 3)
    chains = Chains.begin(rbm, torch.zeros(50, 4), 3, seeded(11))
    chains.advance(rbm, 3, seeded(12))
    again = Chains.restore(chains.state(), torch.device("cpu"))
    assert torch.equal(again.z, chains.z)
    assert torch.equal(chains.advance(rbm, 3, seeded(13)), again.advance(rbm, 3, seeded(13)))
    assert torch.equal(again.tempering.swaps.refused, chains.tempering.swaps.refused)
    plain = Chains.restore(Chains(torch.ones(5, 4)).state(), torch.device("cpu"))
    assert plain.tempering is None
    assert torch.equal(plain.z, torch.ones(5, 4))


def test_chains_keep_their_base_when_the_model_gets_another():
    """Validation fits the model's base anew, and must not reach into training."""
    rbm, after = random_rbm(4, 3), []
    for means in (0.1, 0.9):
        chains = Chains.begin(rbm, torch.zeros(50, 4), 3, seeded(17))
        rbm.fit_base(torch.full((4,), means), 100)
        chains.advance(rbm, 3, seeded(18))
        chains.respace()
        chains = Chains.restore(chains.state(), torch.device("cpu"))
        after.append(chains.advance(rbm, 30, seeded(18)))
        rbm.base_bias = None
    assert torch.equal(*after)


@pytest.mark.parametrize("threads", [1, 2])
def test_streams_do_not_depend_on_threads(to_path, threads, with_threads):
    rbm = to_path(random_rbm(4, 3))
    for betas in (BETAS, BETAS[[0, 3]]):
        with_threads(2)
        expected, _ = parallel_tempering(rbm, start(rbm, 300, len(betas), seeded(19)), betas, 20, seeded(20))
        with_threads(threads)
        for _ in range(3):
            z, _ = parallel_tempering(rbm, start(rbm, 300, len(betas), seeded(19)), betas, 20, seeded(20))
            assert torch.equal(z, expected)


def test_a_bernoulli_prior_needs_no_temperatures():
    prior = BernoulliPrior(4)
    chains = Chains.begin(prior, torch.zeros(10, 4), 5, seeded(14))
    assert chains.tempering is None
    assert chains.advance(prior, 1, seeded(15)).shape == (10, 4)
    assert sample_prior(prior, 7, 1, seeded(16), temperatures=3).shape == (7, 4)


def test_no_chains_are_none():
    rbm = random_rbm(4, 3)
    assert sample_prior(rbm, 0, 5, seeded(1), temperatures=3).shape == (0, 4)
    z, swaps = parallel_tempering(rbm, torch.zeros(4, 0, 4), BETAS, 2)
    assert z.shape == (4, 0, 4)
    assert swaps.tried.sum() == 0


def test_arguments_are_named():
    rbm = random_rbm(4, 3)
    with pytest.raises(ValueError, match="pilot_chains: expected a whole number of at least 1, got 0"):
        tempering_schedule(rbm, 3, pilot_chains=0)
    with pytest.raises(ValueError, match="expected z of shape"):
        parallel_tempering(rbm, torch.zeros(3, 10, 4), BETAS, 1)
    with pytest.raises(ValueError, match="expected z of shape"):
        parallel_tempering(rbm, torch.zeros(4, 10), BETAS, 1)
    for betas in ([0.0, 0.5], [0.1, 1.0], [0.0, 0.5, 0.5, 1.0], [1.0]):
        with pytest.raises(ValueError, match="rising from 0 to 1"):
            parallel_tempering(rbm, torch.zeros(len(betas), 10, 4), torch.tensor(betas), 1)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        tempering_schedule(rbm, 1)
    with pytest.raises(ValueError, match="rounds: expected a whole number of at least 0, got -3"):
        parallel_tempering(rbm, torch.zeros(4, 10, 4), BETAS, -3)
    with pytest.raises(ValueError, match="temperatures: expected a whole number of at least 1, got 0"):
        sample_prior(rbm, 5, 10, temperatures=0)
    for call in (lambda prior: tempering_schedule(prior, 3), lambda prior: parallel_tempering(prior, None, BETAS, 1)):
        with pytest.raises(TypeError, match="for an RBM, got BernoulliPrior"):
            call(BernoulliPrior(4))


def test_without_a_generator_the_default_one_serves():
    rbm = random_rbm(4, 3)
    z = torch.zeros(3, 20, 4)
    betas = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.manual_seed(5)
    first, _ = parallel_tempering(rbm, z, betas, 3)
    torch.manual_seed(5)
    same, _ = parallel_tempering(rbm, z, betas, 3)
    other, _ = parallel_tempering(rbm, z, betas, 3)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("temperatures", "shape"), [(1, (6, 4)), (2, (6, 2, 4))])
def test_chains_are_tempered_from_two_temperatures_on(temperatures, shape):
    rbm = random_rbm(4, 3)
    rbm.fit_base(torch.full((4,), 0.5), 100)
    chains = Chains.begin(rbm, torch.zeros(6, 4), temperatures, seeded(0))
    assert chains.z.shape == shape
    assert (chains.tempering is None) == (temperatures == 1)
    assert chains.advance(rbm, 2, seeded(1)).shape == (6, 4)


@pytest.mark.parametrize(("count", "rows"), [(4, [0, 3, 6, 9]), (6, [0, 2, 4, 6, 8, 10]), (24, [*range(12)] * 2)])
def test_chains_begin_at_data_from_all_over(count, rows):
    """Data may be sorted by what they show."""
    x = torch.arange(12)[:, None].expand(12, 4)
    z = Chains.at_data(random_rbm(4, 3), x, count, lambda some: some, 1, seeded(0)).bits
    assert sorted(z[:, 0].tolist()) == sorted(rows)


def test_tempered_chains_advance_on_the_plain_path():
    """Float64; chains keep their replicas in the second axis, and what is given is a transposed view."""
    rbm = random_rbm(4, 3).double()
    chains = Chains.begin(rbm, torch.zeros(30_000, 4), 3, seeded(1))
    z = chains.advance(rbm, 10, seeded(2))
    assert z.shape == (30_000, 4)
    counts = np.bincount(exact.index(z.numpy()), minlength=16)
    assert abs(chi_square_score(counts, exact.probabilities(machine(rbm)))) < LIMIT
