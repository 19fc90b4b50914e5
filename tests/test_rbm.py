"""The RBM and the Bernoulli prior against the enumeration oracle."""

import math
from importlib import import_module

import exact
import numpy as np
import pytest
import torch
from checks import LIMIT, machine, mean_scores, random_rbm, seeded, tensor

from latentbits.gibbs import gibbs, random_bits
from latentbits.joint import center
from latentbits.rbm import RBM, BernoulliPrior, all_states

SHAPES = [(1, 1), (4, 3), (3, 5), (4, 4)]
# Enumeration is exact; what remains is float32 rounding of energies of magnitude up to about 30.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def bits(n):
    return tensor(exact.states(n))


def gradients(loss, prior):
    loss.backward()
    return [p.grad.double().numpy() for p in prior.parameters()]


@pytest.mark.parametrize("shape", SHAPES)
def test_energy_of_every_pair(shape):
    rbm = random_rbm(*shape)
    z, h = bits(shape[0])[:, None], bits(shape[1])[None]
    z, h = z.expand(-1, h.shape[1], -1), h.expand(z.shape[0], -1, -1)
    np.testing.assert_allclose(rbm.energy(z, h).detach(), exact.energies(machine(rbm)), **CLOSE)


@pytest.mark.parametrize("no_grad", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_free_energy_sums_out_the_hidden_bits(shape, no_grad):
    rbm = random_rbm(*shape)
    with torch.inference_mode(no_grad):
        F = rbm.free_energy(bits(shape[0]))
    np.testing.assert_allclose(F.detach(), exact.free_energies(machine(rbm)), **CLOSE)


def test_free_energy_keeps_leading_dimensions():
    rbm = random_rbm(4, 3)
    z = bits(4).view(2, 8, 4)
    assert torch.equal(rbm.free_energy(z).view(16), rbm.free_energy(bits(4)))


@pytest.mark.parametrize("shape", SHAPES)
def test_conditionals(shape):
    rbm = random_rbm(*shape)
    table = exact.joint(machine(rbm))
    z, h = bits(shape[0]), bits(shape[1])
    h_given_z = table / table.sum(1, keepdims=True)
    z_given_h = (table / table.sum(0, keepdims=True)).T

    p = rbm.hidden_given_visible(z)
    np.testing.assert_allclose(p.mean.detach(), h_given_z @ exact.states(shape[1]), **CLOSE)
    np.testing.assert_allclose(p.log_prob(h[:, None]).exp().detach().T, h_given_z, **CLOSE)
    p = rbm.visible_given_hidden(h)
    np.testing.assert_allclose(p.mean.detach(), z_given_h @ exact.states(shape[0]), **CLOSE)
    np.testing.assert_allclose(p.log_prob(z[:, None]).exp().detach().T, z_given_h, **CLOSE)


@pytest.mark.parametrize("shape", [*SHAPES, (8, 4), (4, 8)])
def test_log_partition(shape):
    rbm = random_rbm(*shape)
    log_z = rbm.log_partition()
    assert log_z.dtype == torch.float64
    assert log_z.shape == ()
    assert log_z.item() == pytest.approx(exact.log_partition(machine(rbm)), abs=1e-9)


@pytest.mark.parametrize(
    ("part", "count", "shape"),
    [((3, 4), 5, (15, 20)), ((4, 3), 5, (20, 15)), ((1, 4), 8, (8, 32)), ((4, 1), 8, (32, 8))],
)
def test_log_partition_of_independent_parts(part, count, shape):
    """The units are shuffled; log Z is the sum of the parts' log Z. More than 2^14 states, or 25 units."""
    rng = np.random.default_rng(1)
    parts = [machine(random_rbm(*part, seed)) for seed in range(count)]
    rows, columns = rng.permutation(shape[0]), rng.permutation(shape[1])
    W = torch.block_diag(*(torch.from_numpy(m.W) for m in parts))[rows][:, columns]
    b, c = np.concatenate([m.b for m in parts])[rows], np.concatenate([m.c for m in parts])[columns]
    rbm = RBM.from_arrays(W, b, c)
    assert (rbm.visible, rbm.hidden) == shape
    expected = sum(exact.log_partition(m) for m in parts)
    assert rbm.log_partition().item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (15, 16)])
def test_log_partition_has_the_gradient_of_log_z(shape, monkeypatch):
    """The statistics' expectations, summed over every state in chunks; of larger ones by finite differences."""
    rbm = random_rbm(*shape, scale=0.5)
    monkeypatch.setattr(import_module("latentbits.rbm"), "_STATES_PER_CHUNK", 2**13 if shape[0] > 10 else 4)
    rbm.log_partition().backward()
    if shape[0] > 10:
        for parameter, place in ((rbm.weight, (2, 3)), (rbm.visible_bias, (4,)), (rbm.hidden_bias, (5,))):
            values = []
            for change in (0.01, -0.02):
                with torch.no_grad():
                    parameter[place] += change
                    values.append(rbm.log_partition().item())
            with torch.no_grad():
                parameter[place] += 0.01
            assert float(parameter.grad[place]) == pytest.approx((values[0] - values[1]) / 0.02, abs=1e-4)
    else:
        oracle = machine(rbm)
        expected = exact.statistics(oracle, exact.probabilities(oracle))
        for parameter, value in zip((rbm.weight, rbm.visible_bias, rbm.hidden_bias), expected, strict=True):
            np.testing.assert_allclose(parameter.grad, value, **CLOSE)


def test_a_small_machine_is_trained_by_its_exact_likelihood():
    rbm, z = random_rbm(4, 3, scale=0.1), bits(4)[[3, 3, 3, 12]]
    optimizer = torch.optim.Adam(rbm.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss = -rbm.log_prob(z, rbm.log_partition()).mean()
        loss.backward()
        optimizer.step()
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert entropy <= loss.item() < entropy + 0.05


def test_autocast_rounds_no_energy():
    rbm = random_rbm(200, 300, scale=0.3)
    z = gibbs(rbm, random_bits(20, rbm, seeded(0)), 5, seeded(1))
    h = rbm.hidden_given_visible(z).sample(generator=seeded(2))
    plain = rbm.log_prob(z, 0.0), rbm.energy(z, h), rbm.hidden_logits(z), rbm.visible_logits(h)
    with torch.autocast("cpu", torch.bfloat16):
        assert (z @ rbm.weight).dtype == torch.bfloat16
        rounded = rbm.log_prob(z, 0.0), rbm.energy(z, h), rbm.hidden_logits(z), rbm.visible_logits(h)
    for before, under in zip(plain, rounded, strict=True):
        assert torch.equal(before, under)


def test_a_large_log_z_is_subtracted_before_rounding():
    rbm = random_rbm(6, 4)
    with torch.no_grad():
        rbm.hidden_bias += 5000.0
    log_p = rbm.log_prob(bits(6), rbm.log_partition()).detach().double()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=2e-2)  # free energies of 20,000 are rounded to 2e-3


def test_log_partition_refuses_more_than_25_units():
    with pytest.raises(ValueError, match=r"26 units.*at most 25.*ais"):
        RBM(26, 27).log_partition()


def test_all_states_in_parts():
    parts = [all_states(4, first, first + 4, torch.zeros(1)) for first in range(0, 16, 4)]
    assert len({tuple(row) for row in torch.cat(parts).tolist()}) == 16
    assert set(torch.cat(parts).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("shape", SHAPES)
def test_log_prob_sums_to_one(shape):
    rbm = random_rbm(*shape)
    log_p = rbm.log_prob(bits(shape[0]), rbm.log_partition()).detach().double()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(log_p, np.log(exact.probabilities(machine(rbm))), **CLOSE)


def test_from_arrays_takes_lists_and_float64():
    rbm = RBM.from_arrays([[1, 2, 3], [4, 5, 6]], np.array([0.1, 0.2]), [7.0, 8.0, 9.0])
    assert (rbm.visible, rbm.hidden) == (2, 3)
    assert rbm.weight.tolist() == [[1, 2, 3], [4, 5, 6]]
    np.testing.assert_allclose(rbm.visible_bias.detach(), [0.1, 0.2], rtol=1e-6)
    assert rbm.hidden_bias.tolist() == [7, 8, 9]
    assert all(p.dtype == torch.float32 and p.requires_grad for p in rbm.parameters())


def test_from_arrays_copies():
    W = torch.zeros(2, 3)
    rbm = RBM.from_arrays(W, torch.zeros(2), torch.zeros(3))
    W += 1
    assert rbm.weight.abs().max() == 0


@pytest.mark.parametrize("shapes", [((3, 2), 2, 3), ((2, 3), 3, 3), ((2, 3), 2, 2), ((6,), 2, 3)])
def test_from_arrays_names_the_expected_shapes(shapes):
    with pytest.raises(ValueError, match=r"weight \(M, H\), visible_bias \(M,\) and hidden_bias \(H,\)"):
        RBM.from_arrays(*(np.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("which", ["weight", "visible_bias", "hidden_bias"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_from_arrays_names_what_is_not_finite(which, bad):
    arrays = {"weight": np.zeros((2, 3)), "visible_bias": np.zeros(2), "hidden_bias": np.zeros(3)}
    arrays[which].flat[-1] = bad
    with pytest.raises(ValueError, match=f"{which} holds values that are not finite"):
        RBM.from_arrays(**arrays)


@pytest.mark.parametrize(("visible", "hidden", "name"), [(0, 3, "visible"), (3, 0, "hidden")])
def test_a_layer_needs_a_unit(visible, hidden, name):
    with pytest.raises(ValueError, match=f"{name}: expected a whole number of at least 1, got 0"):
        RBM(visible, hidden)


def test_initial_weights_follow_scale_and_generator():
    rbm = RBM(100, 200, scale=0.5, generator=seeded(0))
    # The standard deviation of 20,000 normals has standard error 0.5 / sqrt(40,000).
    assert float(rbm.weight.detach().std()) == pytest.approx(0.5, abs=LIMIT * 0.5 / 200)
    assert torch.equal(rbm.weight, RBM(100, 200, scale=0.5, generator=seeded(0)).weight)
    assert not torch.equal(rbm.weight, RBM(100, 200, scale=0.5, generator=seeded(1)).weight)
    assert rbm.visible_bias.abs().max() == rbm.hidden_bias.abs().max() == 0


# ----------------------------------------------------------------------------- gradients


def test_gradient_for_given_negatives():
    """With negatives replicated in known proportions the surrogate's gradient is a known sum."""
    rbm = random_rbm(4, 3)
    data, negatives = bits(4)[[1, 1, 7, 9]], bits(4)[[0, 3, 3, 3, 8, 15]]
    loss = rbm.free_energy(data).mean() + rbm.log_partition_surrogate(negatives)
    positive = exact.statistics(machine(rbm), exact.frequencies(data.numpy()))
    negative = exact.statistics(machine(rbm), exact.frequencies(negatives.numpy()))
    for got, p, n in zip(gradients(loss, rbm), positive, negative, strict=True):
        np.testing.assert_allclose(got, n - p, **CLOSE)


def test_gradient_in_expectation_is_that_of_the_log_likelihood():
    """E over z ~ p of the surrogate's gradient, each state weighted by its probability."""
    rbm = random_rbm(4, 3)
    data = bits(4)[[1, 1, 7, 9]]
    p = exact.probabilities(machine(rbm))
    surrogates = torch.stack([rbm.log_partition_surrogate(z[None]) for z in bits(4)])
    loss = rbm.free_energy(data).mean() + (tensor(p) * surrogates).sum()
    expected = exact.log_likelihood_gradient(machine(rbm), data.numpy())
    for got, gradient in zip(gradients(loss, rbm), expected, strict=True):
        np.testing.assert_allclose(got, -gradient, **CLOSE)


def test_log_likelihood_gradient_by_finite_differences():
    """The oracle's own gradient."""
    parameters, data = machine(random_rbm(3, 2)), exact.states(3)[[1, 5, 5]]
    step = 1e-5

    def log_likelihood(m):
        return np.log(exact.probabilities(m))[exact.index(data)].mean()

    for k, gradient in enumerate(exact.log_likelihood_gradient(parameters, data)):
        for position in np.ndindex(gradient.shape):
            up, down = ([a.copy() for a in parameters] for _ in range(2))
            up[k][position] += step
            down[k][position] -= step
            slope = log_likelihood(exact.Machine(*up)) - log_likelihood(exact.Machine(*down))
            assert slope / (2 * step) == pytest.approx(gradient[position], abs=1e-8)


# ----------------------------------------------------------------------------- base biases


def test_fit_base_clamps_the_means():
    rbm = RBM(4, 3)
    rbm.fit_base(torch.tensor([0.0, 1.0, 0.5, 0.25]), 10)
    p = 1 / (1 + np.exp(-rbm.base_bias.double().numpy()))
    np.testing.assert_allclose(p, [1 / 12, 11 / 12, 0.5, 0.25], rtol=1e-6)
    assert not rbm.base_bias.requires_grad
    assert len(list(rbm.parameters())) == 3


def test_base_bias_survives_a_state_dict():
    rbm, other = random_rbm(4, 3), RBM(4, 3)
    rbm.fit_base(torch.tensor([0.1, 0.2, 0.3, 0.4]), 100)
    other.load_state_dict(rbm.state_dict())
    assert torch.equal(other.base_bias, rbm.base_bias)
    assert torch.equal(other.weight, rbm.weight)
    nested = torch.nn.ModuleDict({"prior": RBM(4, 3)})
    nested.load_state_dict(torch.nn.ModuleDict({"prior": rbm}).state_dict())
    assert torch.equal(nested["prior"].base_bias, rbm.base_bias)


def test_state_dict_without_base_bias():
    rbm, other = random_rbm(4, 3), RBM(4, 3)
    other.load_state_dict(rbm.state_dict())
    assert other.base_bias is None
    assert torch.equal(other.hidden_bias, rbm.hidden_bias)


# ----------------------------------------------------------------------------- Bernoulli prior


@pytest.fixture
def bernoulli_prior():
    prior = BernoulliPrior(5)
    with torch.no_grad():
        prior.visible_bias.copy_(torch.tensor([-3.0, -0.5, 0.0, 1.0, 4.0]))
    return prior


def log_weights(prior):
    """z·b for each state."""
    return exact.states(prior.visible) @ prior.visible_bias.detach().double().numpy()


def test_bernoulli_prior_log_partition(bernoulli_prior):
    log_z = bernoulli_prior.log_partition()
    assert log_z.dtype == torch.float64
    assert float(log_z.detach()) == pytest.approx(float(exact.log_sum_exp(log_weights(bernoulli_prior))), abs=1e-9)


def test_bernoulli_prior_log_partition_has_its_gradient(bernoulli_prior):
    (got,) = gradients(bernoulli_prior.log_partition(), bernoulli_prior)
    p = np.exp(log_weights(bernoulli_prior) - exact.log_sum_exp(log_weights(bernoulli_prior)))
    np.testing.assert_allclose(got, p @ exact.states(5), **CLOSE)


def test_bernoulli_prior_log_prob_sums_to_one(bernoulli_prior):
    prior = bernoulli_prior
    log_p = prior.log_prob(bits(5), prior.log_partition()).detach().double()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(prior.free_energy(bits(5)).detach(), -log_weights(prior), **CLOSE)


def test_bernoulli_prior_fits_clamped_means():
    prior = BernoulliPrior(4)
    prior.fit_means(torch.tensor([0.0, 1.0, 0.5, 0.25]), 10)
    p = prior.log_prob(bits(4), prior.log_partition()).detach().double().exp()
    np.testing.assert_allclose(p @ bits(4).double(), [1 / 12, 11 / 12, 0.5, 0.25], rtol=1e-5)


def test_bernoulli_prior_samples(bernoulli_prior):
    z = bernoulli_prior.sample(20_000, seeded(3))
    assert z.shape == (20_000, 5)
    p = np.exp(log_weights(bernoulli_prior) - exact.log_sum_exp(log_weights(bernoulli_prior)))
    assert np.abs(mean_scores(z, p @ exact.states(5))).max() < LIMIT
    assert torch.equal(z, bernoulli_prior.sample(20_000, seeded(3)))


def test_bernoulli_prior_surrogate_gradient_is_exact(bernoulli_prior):
    prior = bernoulli_prior
    data = bits(5)[[3, 3, 17, 30]]
    surrogate = prior.log_partition_surrogate(torch.zeros(2, 5))
    assert surrogate.dtype == torch.float32
    (got,) = gradients(prior.free_energy(data).mean() + surrogate, prior)
    p = np.exp(log_weights(prior) - exact.log_sum_exp(log_weights(prior)))
    np.testing.assert_allclose(got, p @ exact.states(5) - data.mean(0).double().numpy(), **CLOSE)


def test_enumeration_goes_up_to_its_limit_and_no_further(monkeypatch):
    monkeypatch.setattr(import_module("latentbits.rbm"), "MOST_UNITS_TO_ENUMERATE", 5)
    assert random_rbm(5, 9).log_partition().isfinite()
    assert random_rbm(9, 5).log_partition().isfinite()
    with pytest.raises(ValueError, match="has 6 units, and enumeration is for at most 5"):
        random_rbm(6, 9).log_partition()


def test_initial_weights_are_small_unless_asked_otherwise():
    """20,000 draws give a standard deviation to 0.5 %."""
    assert float(RBM(200, 100, generator=seeded(8)).weight.detach().std()) == pytest.approx(0.01, rel=0.03)
    assert float(RBM(200, 100, 0.5, seeded(8)).weight.detach().std()) == pytest.approx(0.5, rel=0.03)


def test_centered_gradient_is_that_of_the_centered_parameters():
    """Autograd through the primed parameters; a step in them, carried over, is the step that we make."""
    rbm = random_rbm(4, 3)
    data, negatives = bits(4)[[1, 1, 7, 9]], bits(4)[[0, 3, 8, 15]]
    mu, nu = torch.tensor([0.2, 0.9, 0.5, 0.4]), torch.tensor([0.7, 0.1, 0.3])
    W, b, c = (p.detach().double() for p in rbm.parameters())
    primed = [W, b + W @ nu.double(), c + W.T @ mu.double()]
    for p in primed:
        p.requires_grad_()

    def energy(z):
        """Centered, summed over h by enumeration: -log sum_h exp(-E(z, h))."""
        z, h = z.double(), bits(3).double()
        zc, hc = z - mu, h - nu
        terms = (zc @ primed[1])[:, None] + (hc @ primed[2])[None] + zc @ primed[0] @ hc.T
        return -terms.exp().sum(1).log()

    steps = torch.autograd.grad(energy(data).mean() - energy(negatives).mean(), primed)
    expected = [steps[0], steps[1] - steps[0] @ nu.double(), steps[2] - steps[0].T @ mu.double()]
    (rbm.free_energy(data).mean() + rbm.log_partition_surrogate(negatives)).backward()
    rbm.center_gradient(mu, nu)
    for p, step in zip(rbm.parameters(), expected, strict=True):
        np.testing.assert_allclose(p.grad, step, **CLOSE)


def test_centering_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match="no gradient yet; call backward first"):
        random_rbm(3, 2).center_gradient(torch.zeros(3), torch.zeros(2))


def test_spins_have_the_energies_of_bits():
    """Every state of both layers, by the two definitions; and back again."""
    rbm = random_rbm(4, 3)
    ising = rbm.to_ising()
    z, h = exact.states(4), exact.states(3)
    s, t = 2 * z - 1, 2 * h - 1
    J, f, g = (part.numpy() for part in ising[:3])
    found = -np.einsum("vi,ij,gj->vg", s, J, t) - (s @ f)[:, None] - (t @ g)[None] + float(ising.offset)
    np.testing.assert_allclose(found, exact.energies(machine(rbm)), atol=1e-6)
    again = RBM.from_ising(*ising[:3])
    for one, other in zip(rbm.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_couplings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected couplings \(M, H\).* transpose couplings if they are \(H, M\)"):
        RBM.from_ising(np.zeros((3, 4)), np.zeros(4), np.zeros(3))
    with pytest.raises(ValueError, match="values that are not finite"):
        RBM.from_ising(np.full((3, 4), np.inf), np.zeros(3), np.zeros(4))


def test_log_prob_is_of_bits_in_any_number_format_and_of_nothing_else():
    rbm = random_rbm(4, 3)
    z, log_z = bits(4), rbm.log_partition()
    for dtype in (torch.uint8, torch.bool, torch.float64):
        assert torch.equal(rbm.log_prob(z.to(dtype), log_z), rbm.log_prob(z, log_z))
    for wrong in (2 * z - 1, z / 2, z * torch.nan, z[:, :3]):
        with pytest.raises(ValueError, match="z: expected"):
            rbm.log_prob(wrong, log_z)
    with pytest.raises(TypeError, match=r"z: expected a torch\.Tensor, got ndarray"):
        rbm.log_prob(z.numpy(), log_z)


def test_log_partition_of_spins_is_that_of_bits_and_the_offset():
    """By a sum over all spins, as an annealer's user has them: without an offset."""
    rbm = random_rbm(4, 3)
    J, f, g, _ = (value.numpy() for value in rbm.to_ising())
    s, t = 2 * exact.states(4) - 1, 2 * exact.states(3) - 1
    energies = -(s @ J @ t.T) - (s @ f)[:, None] - (t @ g)[None]
    log_z = np.log(np.exp(-energies).sum())
    made = RBM.from_ising(J, f, g)
    assert (made.log_partition() + made.to_ising().offset).item() == pytest.approx(log_z, abs=1e-5)
    back = RBM.from_ising(*rbm.to_ising())
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(back.parameters(), rbm.parameters(), strict=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RBM.from_arrays(np.ones((2, 3)), None, np.ones(3)), "visible_bias: expected an array of real numbers"),
        (lambda: RBM.from_arrays("w.npy", [0, 0], [0]), "weight: expected an array of real numbers, got str"),
        (lambda: RBM.from_ising({(0, 0): 1.0}, [0], [0]), "couplings: expected an array of real numbers, got dict"),
        (lambda: RBM.from_arrays(np.ones((1, 1)) * 1j, [0], [0]), "weight: expected an array of real numbers"),
        (lambda: random_rbm(3, 2).fit_base(torch.full((3,), 3.0), 10), "fit_base: expected means between 0 and 1"),
        (lambda: random_rbm(3, 2).fit_base(torch.full((3,), torch.nan), 10), "fit_base: expected means between"),
        (lambda: random_rbm(3, 2).fit_base(torch.zeros(2), 10), r"with shape \(3,\), got shape \(2,\)"),
        (
            lambda: random_rbm(3, 2).fit_base(torch.zeros(3), 0),
            "fit_base: count: expected a whole number of at least 1, got 0",
        ),
        (lambda: RBM.from_arrays([[1, 2], [3]], [0, 0], [0, 0]), "from_arrays: weight: expected an array of real"),
    ],
)
def test_what_is_no_machine_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_centering_is_at_the_chains_means():
    rbm, twin = random_rbm(4, 3), random_rbm(4, 3)
    z = torch.bernoulli(torch.full((50, 4), 0.3), generator=seeded(1))
    for each in (rbm, twin):
        each.free_energy(z).sum().backward()
    center(rbm, z)
    of = machine(twin)
    hidden = 1 / (1 + np.exp(-(z.numpy() @ of.W + of.c)))
    twin.center_gradient(z.mean(0), tensor(hidden.mean(0)))
    for p, q in zip(rbm.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
