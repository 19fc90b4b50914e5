"""Gibbs chains against exact transition matrices, on every CPU path."""

import math
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import exact
import numpy as np
import pytest
import torch
from checks import (
    LIMIT,
    chi_square_score,
    correlation_score,
    machine,
    mean_scores,
    random_rbm,
    seeded,
    tensor,
)

from latentbits.gibbs import (
    Weights,
    bfloat16_products,
    blocks_of_chains,
    gibbs,
    random_bits,
    rows_per_block,
    run_blocks,
    two_terms,
)
from latentbits.rbm import RBM, BernoulliPrior, NormalPrior
from latentbits.tempering import sample_prior

BASE = np.array([-1.0, 0.5, 1.5, -2.0])


def one_step(rbm, z, beta, base_bias, generator):
    """One block Gibbs step at inverse temperature beta, and the log-weights of moving 0.2 -> 0.7."""
    out, log_w = torch.empty_like(z), torch.zeros(len(z), dtype=torch.float64)

    def advance(block, rows):
        block.project()
        block.anneal_hidden(0.7, 0.2, log_w[rows])
        block.draw_hidden(beta)
        block.draw_visible(beta)
        out[rows] = block.z

    run_blocks(Weights(rbm, len(z), base_bias), z, generator, advance)
    return out, log_w


def exact_samples(p, n, rng):
    """Samples z (n, M) from the table p (2^M,)."""
    return tensor(exact.states(int(np.log2(len(p))))[rng.choice(len(p), n, p=p)])


# ----------------------------------------------------------------------------- the oracle itself


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_exact_transition_is_reversible_and_leaves_p_beta_invariant(beta):
    target = exact.annealed(machine(random_rbm(4, 3)), BASE, beta)
    p, T = exact.probabilities(target), exact.transition(target)
    np.testing.assert_allclose(T.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(p @ T, p, rtol=1e-10)
    np.testing.assert_allclose(p[:, None] * T, (p[:, None] * T).T, rtol=1e-10)


def test_exact_transition_from_the_sigmoid_conditionals():
    """The matrix made from the joint table is the one that the conditionals' formulas give."""
    beta, (W, b, c) = 0.3, machine(random_rbm(4, 3))
    z, h = exact.states(4), exact.states(3)

    def bernoulli_table(bits, logits):
        p = 1 / (1 + np.exp(-logits))
        return np.prod(np.where(bits[None] == 1, p[:, None], 1 - p[:, None]), axis=-1)

    T = bernoulli_table(h, beta * (z @ W + c)) @ bernoulli_table(z, (1 - beta) * BASE + beta * (b + h @ W.T))
    np.testing.assert_allclose(exact.annealed_transition(exact.Machine(W, b, c), BASE, beta), T, rtol=1e-10)


# ----------------------------------------------------------------------------- one step


@pytest.mark.parametrize("beta", [1.0, 0.4, 0.0])
def test_one_step_from_every_state(to_path, beta):
    """Transition counts from each z; chi-square by row and over all rows."""
    rbm, n = to_path(random_rbm(4, 3)), 4000
    T = exact.annealed_transition(machine(rbm), BASE, beta)
    start = tensor(exact.states(4), rbm.weight.dtype).repeat(n, 1)  # every block holds every state
    z, _ = one_step(rbm, start, beta, tensor(BASE), seeded(1))
    counts = np.zeros((16, 16))
    np.add.at(counts, (exact.index(start.numpy()), exact.index(z.numpy())), 1)
    scores = [chi_square_score(row, p) for row, p in zip(counts, T, strict=True)]
    assert max(scores) < LIMIT
    assert sum(scores) / 4 < LIMIT
    assert np.abs((counts.sum(0) - n * T.sum(0)) / np.sqrt(n * (T * (1 - T)).sum(0))).max() < LIMIT


def test_gibbs_is_one_step_at_beta_one(to_path):
    rbm, n = to_path(random_rbm(4, 3)), 4000
    start = exact.states(4).repeat(n, 0)
    z = gibbs(rbm, tensor(start, rbm.weight.dtype), 1, seeded(2)).numpy().reshape(16, n, 4)
    T = exact.transition(machine(rbm))
    scores = [chi_square_score(n * exact.frequencies(row), p) for row, p in zip(z, T, strict=True)]
    assert max(scores) < LIMIT


def test_log_ratio_of_intermediate_densities(to_path):
    rbm = to_path(random_rbm(4, 3))
    _, log_w = one_step(rbm, tensor(exact.states(4), rbm.weight.dtype), 1.0, tensor(BASE), seeded(1))
    expected = exact.annealed_log_f(machine(rbm), BASE, 0.7) - exact.annealed_log_f(machine(rbm), BASE, 0.2)
    np.testing.assert_allclose(log_w, expected, atol=1e-5)  # float32 softplus; weights in two terms to 1e-5


def test_paths_agree_on_a_larger_machine(to_path):
    """Means and pair means of 16 bits after three steps, against a float64 chain by plain NumPy."""
    rbm, n, rng = random_rbm(16, 24, scale=0.5), 20_000, np.random.default_rng(5)
    W, b, c = machine(rbm)
    z = np.zeros((n, 16))
    for _ in range(3):
        h = rng.random((n, 24)) < 1 / (1 + np.exp(-(z @ W + c)))
        z = (rng.random((n, 16)) < 1 / (1 + np.exp(-(h @ W.T + b)))).astype(float)
    rbm = to_path(rbm)
    got = gibbs(rbm, torch.zeros(n, 16, dtype=rbm.weight.dtype), 3, seeded(6)).double().numpy()
    rows, columns = np.triu_indices(16)
    pairs = [x[:, rows] * x[:, columns] for x in (got, z)]  # the diagonal holds the means
    error = np.sqrt(sum(x.var(0) for x in pairs) / n) + 1e-12
    assert np.abs((pairs[0].mean(0) - pairs[1].mean(0)) / error).max() < LIMIT


# ----------------------------------------------------------------------------- many steps


def test_long_chains_reach_p(to_path):
    rbm, steps, n = to_path(random_rbm(4, 3)), 60, 12_000
    p, T = exact.probabilities(machine(rbm)), exact.transition(machine(rbm))
    assert np.abs(np.linalg.matrix_power(T, steps)[0] - p).sum() < 1e-4  # all chains start at z = 0
    z = gibbs(rbm, torch.zeros(n, 4, dtype=rbm.weight.dtype), steps, seeded(7)).numpy()
    assert chi_square_score(n * exact.frequencies(z), p) < LIMIT


def test_one_chain_visits_states_in_proportion(to_path):
    """A few chains followed for long, thinned to nearly independent states."""
    rbm, thin, n = to_path(random_rbm(4, 3, scale=0.7)), 10, 50
    p, T = exact.probabilities(machine(rbm)), exact.transition(machine(rbm))
    assert np.abs(np.linalg.matrix_power(T, thin) - p).sum(1).max() < 0.02
    z, generator, seen = torch.zeros(n, 4, dtype=rbm.weight.dtype), seeded(8), []
    for _ in range(120):
        z = gibbs(rbm, z, thin, generator)
        seen.append(z.numpy())
    assert chi_square_score(n * 120 * exact.frequencies(np.concatenate(seen)), p) < LIMIT


def test_exact_samples_stay_at_p(to_path):
    rbm, n = to_path(random_rbm(4, 3, scale=3)), 40_000
    p = exact.probabilities(machine(rbm))
    z = exact_samples(p, n, np.random.default_rng(9)).to(rbm.weight.dtype)
    z = gibbs(rbm, z, 3, seeded(10)).numpy()
    assert chi_square_score(n * exact.frequencies(z), p) < LIMIT


@pytest.mark.parametrize(("steps", "is_unbiased"), [(60, True), (1, False)])
def test_contrastive_divergence_gradient(to_path, steps, is_unbiased):
    """CD-k tends to the log-likelihood gradient; CD-1 does not equal it, which the test must see."""
    rbm, n = to_path(random_rbm(4, 3)), 20_000
    data = tensor(exact.states(4)[[1, 1, 7, 9]], rbm.weight.dtype)
    z = gibbs(rbm, data.repeat(n // 4, 1), steps, seeded(11))
    loss = rbm.free_energy(data).mean() + rbm.log_partition_surrogate(z)
    loss.backward()

    expected = exact.log_likelihood_gradient(machine(rbm), data.numpy())
    W, _, c = machine(rbm)
    z = z.double().numpy()
    h = 1 / (1 + np.exp(-(z @ W + c)))
    samples = [z[:, :, None] * h[:, None], z, h]
    scores = [
        np.abs(p.grad.double().numpy() + gradient) / (sample.std(0) / np.sqrt(n))
        for p, gradient, sample in zip(rbm.parameters(), expected, samples, strict=True)
    ]
    worst = max(score.max() for score in scores)
    assert worst < LIMIT if is_unbiased else worst > 10


# ----------------------------------------------------------------------------- chains are independent


def test_chains_of_all_blocks_differ(to_path):
    """Fair bits in 64 columns: two of 1,300 equal rows would have probability below 1e-12."""
    rbm = RBM(64, 8, scale=1e-3, generator=seeded(12))
    rbm = to_path(rbm)
    z = gibbs(rbm, torch.zeros(1300, 64, dtype=rbm.weight.dtype), 1, seeded(13)).numpy()
    assert len(np.unique(z, axis=0)) == 1300
    signs = 2 * z - 1
    overlap = signs @ signs.T / 8  # correlation of each pair of rows, in standard errors
    np.fill_diagonal(overlap, 0)
    assert np.abs(overlap).max() < 6.5  # 845,000 pairs: 8e-11 each


def test_steps_draw_fresh_bits(to_path):
    """With W = 0 the states after one and two steps, and of two calls, are independent."""
    rbm = to_path(RBM(64, 64, scale=0.0))
    z = torch.zeros(1000, 64, dtype=rbm.weight.dtype)
    generator = seeded(14)
    first, second, again = (
        gibbs(rbm, z, 1, seeded(14)),
        gibbs(rbm, z, 2, generator),
        gibbs(rbm, z, 1, generator),
    )
    if first.dtype == torch.float32:  # a fused stream is a function of key and position
        assert not torch.equal(first, second)
    assert abs(correlation_score(first, second)) < LIMIT
    assert abs(correlation_score(first, again)) < LIMIT
    assert abs(correlation_score(second, again)) < LIMIT
    for shift in (1, 500):  # along chains, and from block to block
        assert abs(correlation_score(second[shift:], second[:-shift])) < LIMIT


def test_hidden_and_visible_bits_of_a_step_are_independent(to_path):
    rbm = to_path(RBM(64, 64, scale=0.0))
    pairs = []

    def advance(block, rows):
        block.project()
        block.draw_hidden(1.0)
        block.draw_visible(1.0)
        h = block.h if hasattr(block, "h") else block.h_wide[:, :64]
        pairs.append((h.clone(), block.z.clone()))

    run_blocks(Weights(rbm, 1000), torch.zeros(1000, 64, dtype=rbm.weight.dtype), seeded(15), advance)
    assert abs(correlation_score(*(torch.cat(layer) for layer in zip(*pairs, strict=True)))) < LIMIT


@pytest.mark.parametrize("n", [1, 3, 500, 1203])
def test_bits_depend_on_the_seed_and_not_on_threads(to_path, with_threads, n):
    rbm = to_path(random_rbm(40, 30, scale=0.3))
    z = torch.zeros(n, 40, dtype=rbm.weight.dtype)
    results = []
    for threads in (1, 2, 2):
        with_threads(threads)
        results.append(gibbs(rbm, z, 5, seeded(16)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])
    assert not torch.equal(results[0], gibbs(rbm, z, 5, seeded(17)))
    assert z.abs().max() == 0


def test_a_run_keeps_the_number_of_threads(with_threads):
    """In the calling thread and in threads started later; three, so that the pool is made here."""
    with_threads(3)
    gibbs(RBM(4, 3), torch.zeros(1203, 4), 1, seeded(18))
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 3


def test_default_generator():
    rbm, z = random_rbm(20, 10), torch.zeros(50, 20)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(gibbs(rbm, z, 2))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# ----------------------------------------------------------------------------- two bfloat16 terms


@pytest.mark.parametrize("scale", [0.01, 0.3, 5.0])
def test_two_terms_are_bfloat16_and_their_error_is_the_worst_of_all_states(scale):
    W = random_rbm(10, 7, scale=scale).weight.detach()
    terms = two_terms(W)
    for term in (terms.high, terms.low):
        assert torch.equal(term, term.bfloat16().float())
    difference = (terms.high.double() + terms.low.double() - W.double()).numpy()
    error = max(np.abs(exact.states(10) @ difference).max(), np.abs(exact.states(7) @ difference.T).max())
    assert terms.error == pytest.approx(error, rel=1e-5)
    assert error < 10 * float(W.abs().max()) * 2**-17  # each weight to 17 bits, or better


@pytest.mark.parametrize("shape", [(200, 300), (37, 5)])
def test_two_term_logits_stay_within_the_bound(set_bfloat16_units, shape):
    set_bfloat16_units(True)
    rbm = random_rbm(*shape, scale=0.1)
    weights = Weights(rbm, 700)
    assert weights.two_terms
    z = random_bits(700, rbm, seeded(19))
    h = random_bits(700, RBM(shape[1], 1), seeded(20))
    for bits, terms, W in ((z, weights.W, rbm.weight), (h, weights.WT, rbm.weight.T)):
        W = W.detach()
        with weights.products():
            doubled = len(terms) > len(W)  # of the two layers the smaller one is
            logits = torch.cat([bits, bits], 1) @ terms if doubled else sum((bits @ terms).split(W.shape[1], 1))
            assert doubled == (W.shape[0] == min(shape))
        error = (logits.double() - bits.double() @ W.double()).abs().max()
        # Sums in float32 add at most some units in the last place of the largest partial sum.
        rounding = 8 * 2**-24 * float(W.abs().sum(0).max())
        assert float(error) <= two_terms(W).error + rounding
    assert two_terms(rbm.weight.detach()).error <= 1e-4


def test_annealing_begins_with_scores_in_float32(set_bfloat16_units):
    """z (b - b_A) of the first states is a product of its own, and none of the two-term ones."""
    set_bfloat16_units(True)
    rbm = random_rbm(200, 400, scale=0.1)
    base = 3 * torch.randn(200, generator=seeded(21))
    weights, z, scores = Weights(rbm, 1000, base), random_bits(1000, rbm, seeded(22)), torch.empty(1000).double()
    assert weights.two_terms

    def advance(block, rows):
        scores[rows] = block.position[1:]

    run_blocks(weights, z, seeded(23), advance)
    expected = z.double() @ (rbm.visible_bias.detach() - base).double()
    assert (scores - expected).abs().max() < 1e-4  # bfloat16 would be off by 0.1


@pytest.mark.parametrize(("scale", "side"), [(1e-4, "either"), (1.0, "either"), (1.0, "hidden")])
def test_the_bound_decides_between_products(set_bfloat16_units, scale, side):
    """A bound above 1e-4 in either layer's logits rules two terms out; so does a CPU without the units."""
    W = np.full((400, 1), 1 / 3 * scale)  # many inputs to one unit, so errors add up in its logit only
    W = W.T if side == "hidden" else W
    rbm = RBM.from_arrays(W, np.zeros(W.shape[0]), np.zeros(W.shape[1]))
    assert (two_terms(rbm.weight.detach()).error > 1e-4) == (scale == 1.0)
    set_bfloat16_units(True)
    assert Weights(rbm, 1000).two_terms == (scale < 1)
    set_bfloat16_units(False)
    assert not Weights(rbm, 1000).two_terms


@pytest.fixture
def matmul():
    """PyTorch's settings of CPU matrix products, put back afterwards."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    yield settings
    settings.fp32_precision = before


@pytest.mark.parametrize("before", ["none", "ieee", "bf16"])
def test_product_precision_is_put_back(matmul, before):
    matmul.fp32_precision = before
    with bfloat16_products():
        assert matmul.fp32_precision == "bf16"
    assert matmul.fp32_precision == before
    with pytest.raises(RuntimeError, match="inside"), bfloat16_products():
        raise RuntimeError("inside")
    assert matmul.fp32_precision == before


# ----------------------------------------------------------------------------- arguments


def test_no_steps_leave_the_state():
    rbm, z = random_rbm(5, 3), tensor(exact.states(5))
    assert torch.equal(gibbs(rbm, z, 0, seeded(21)), z)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64])
def test_bits_of_any_type(to_path, dtype):
    rbm = to_path(random_rbm(5, 3))
    z = tensor(exact.states(5)).repeat(3, 1)
    got = gibbs(rbm, z.to(dtype), 2, seeded(22))
    assert got.dtype == rbm.weight.dtype
    assert torch.equal(got, gibbs(rbm, z.to(rbm.weight.dtype), 2, seeded(22)))


@pytest.mark.parametrize("wrong", [2 * torch.eye(4) - 1, torch.full((2, 4), torch.nan)])
def test_gibbs_takes_bits_only(wrong):
    with pytest.raises(ValueError, match="gibbs: z: expected 0s and 1s"):
        gibbs(random_rbm(4, 3), wrong, 2)


def test_no_chains_are_no_bits(to_path):
    assert gibbs(to_path(random_rbm(4, 3)), torch.zeros(0, 4), 2).shape == (0, 4)


def test_samples_of_a_broken_machine_are_refused():
    """The compiled loops make bits of anything."""
    rbm = random_rbm(4, 3)
    with torch.no_grad():
        rbm.weight[1, 2] = math.nan
    with pytest.raises(ValueError, match="sample_prior: prior: expected finite parameters, got others in weight"):
        sample_prior(rbm, 5, 3)


def test_a_seed_is_no_generator():
    with pytest.raises(TypeError, match=r"generator: expected a torch.Generator or None, got int; .*manual_seed"):
        gibbs(random_rbm(4, 3), torch.zeros(2, 4), 2, 0)


def test_another_default_type_changes_nothing():
    rbm = random_rbm(4, 3)
    expected = gibbs(rbm, torch.zeros(2000, 4), 3, seeded(3))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(gibbs(rbm, torch.zeros(2000, 4), 3, seeded(3)), expected)
        rbm.free_energy(expected).sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("shape", [(4,), (10, 3), (2, 10, 4)])
def test_gibbs_names_the_expected_shape(shape):
    with pytest.raises(ValueError, match=r"gibbs: z: expected shape \(B, 4\), got \(" + ", ".join(map(str, shape))):
        gibbs(RBM(4, 3), torch.zeros(shape), 1)


def test_gibbs_refuses_negative_steps():
    with pytest.raises(ValueError, match="steps: expected a whole number of at least 0, got -1"):
        gibbs(RBM(4, 3), torch.zeros(2, 4), -1)


def test_chains_carry_no_gradient():
    z = gibbs(random_rbm(4, 3), torch.zeros(2, 4), 1, seeded(23))
    assert not z.requires_grad


def test_bernoulli_prior_is_sampled_exactly():
    prior = BernoulliPrior(3)
    prior.fit_means(torch.tensor([0.1, 0.5, 0.9]), 10**6)
    z = gibbs(prior, torch.zeros(20_000, 3), 1, seeded(24))
    assert np.abs(mean_scores(z, [0.1, 0.5, 0.9])).max() < LIMIT
    start = torch.ones(4, 3)
    assert torch.equal(gibbs(prior, start, 0), start)


def test_random_bits_are_fair():
    z = random_bits(20_000, RBM(4, 3), seeded(25))
    assert chi_square_score(20_000 * exact.frequencies(z.numpy()), np.full(16, 1 / 16)) < LIMIT


def test_starts_and_exact_samples_come_from_the_generator():
    rbm, prior = random_rbm(5, 4), BernoulliPrior(5)
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        results.append((random_bits(50, rbm, seeded(9)), gibbs(prior, torch.zeros(50, 5), 1, seeded(9))))
    for one, same in zip(*results, strict=True):
        assert torch.equal(one, same)


def test_on_a_cpu_chains_do_not_depend_on_how_they_are_shared_out(to_path, with_threads):
    rbm, found = to_path(random_rbm(6, 5)), []
    for threads in (1, 3):
        with_threads(threads)
        found.append(gibbs(rbm, torch.zeros(2500, 6, dtype=rbm.weight.dtype), 2, seeded(3)))
    assert torch.equal(*found)
    blocks = [blocks_of_chains(Weights(rbm, 2500), 2500, processes) for processes in (1, 2)]
    assert blocks[0] == blocks[1]
    assert len(blocks[0]) > 2


def test_the_number_of_chains_decides_on_two_terms(monkeypatch):
    module, seen = import_module("latentbits.gibbs"), []

    class Spy(Weights):
        def __init__(self, rbm, chains, base_bias=None):
            seen.append(chains)
            super().__init__(rbm, chains, base_bias)

    monkeypatch.setattr(module, "Weights", Spy)
    gibbs(random_rbm(5, 4), torch.zeros(70, 5), 1, seeded(1))
    assert seen == [70]


def test_blocks_are_two_four_eight_of_bounded_size():
    rows = {1: 64, 128: 64, 129: 65, 1999: 1000, 2000: 500, 4000: 500, 5000: 625, 10_000: 1250, 10_001: 626}
    assert {n: rows_per_block(n) for n in rows} == rows


@pytest.mark.parametrize("failing", [0, 1])
def test_a_block_stops_where_another_has_failed(to_path, with_threads, failing):
    with_threads(2)
    rbm = to_path(random_rbm(6, 5))
    steps = [0, 0]

    def advance(block, rows):
        number = int(rows.start > 0)
        for _ in range(100_000):
            if number == failing and steps[1 - failing] > 10:
                raise RuntimeError("of this block")
            block.project()
            block.draw_hidden(1.0)
            steps[number] += 1

    with pytest.raises(RuntimeError, match="of this block"):
        run_blocks(Weights(rbm, 8), torch.zeros(8, 6), seeded(1), advance, blocks=[slice(0, 4), slice(4, 8)])
    assert 10 < steps[1 - failing] < 90_000


def test_what_can_be_drawn_exactly_needs_no_steps():
    z = sample_prior(NormalPrior(5), 1000, 0, seeded(3))
    assert abs(mean_scores(z.numpy(), np.zeros(5))).max() < LIMIT
    assert float(z.std()) == pytest.approx(1.0, abs=0.05)
    with pytest.raises(ValueError, match="gibbs_steps: expected a whole number of at least 0, got -1"):
        sample_prior(NormalPrior(5), 1, -1)
