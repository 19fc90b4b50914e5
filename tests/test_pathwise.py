"""Objectives whose gradient passes through the samples, against integrals over their noise on a grid."""

import copy
import math
from contextlib import contextmanager

import exact_latent
import numpy as np
import pytest
import torch
from checks import LIMIT, mean_scores, random_rbm, seeded
from test_objectives import flat

from latentbits import LatentModel
from latentbits.config import ModelConfig
from latentbits.distributions import DiagonalNormal
from latentbits.model import GaussianModel, build
from latentbits.nets import MLP
from latentbits.objectives import iwae_losses, relaxed_losses
from latentbits.rbm import NormalPrior, TractablePrior
from latentbits.splits import Form

D, M, H = 3, 2, 2
X = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])


def enlarge(model, factor):
    with torch.no_grad():
        for net in (model.encoder, model.decoder):
            for p in net.parameters():
                p.mul_(factor)
    return model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return enlarge(LatentModel(MLP([D, 4, M]), MLP([M, 4, D]), random_rbm(M, H, 0, scale=1.0)), 2.0)


@pytest.fixture
def continuous():
    torch.manual_seed(1)
    return enlarge(GaussianModel(MLP([D, 4, 2]), MLP([1, 4, D]), NormalPrior(1)), 1.5)


def log_bernoulli(logits, x):
    p = 1 / (1 + torch.exp(-logits))
    return torch.where(x > 0.5, p, 1 - p).log().sum(-1)


def relaxed_elbo(model, tau, points=300):
    """Mean over X of the relaxed ELBO, by the midpoint rule over both bits' noise; gradients by autograd."""
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    u = torch.cartesian_prod(u, u)[:, None]  # (points^2, 1, M)
    x = X.double()
    a = model.encoder(x)
    zeta = 1 / (1 + torch.exp(-(a + (u / (1 - u)).log()) / tau))
    W, b, c = model.prior.weight, model.prior.visible_bias, model.prior.hidden_bias
    terms = [zeta @ b + (zeta @ W + c) @ h for h in exact_latent.states(H)]
    negative_free_energy = torch.stack(terms).exp().sum(0).log()
    q = 1 / (1 + torch.exp(-a))
    entropy = -(q * q.log() + (1 - q) * (1 - q).log()).sum(-1)
    joint = [(z @ b + (z @ W + c) @ h).exp() for z in exact_latent.states(M) for h in exact_latent.states(H)]
    inner = log_bernoulli(model.decoder(zeta), x) + negative_free_energy
    return (inner.mean(0) + entropy).mean() - torch.stack(joint).sum().log()


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_relaxed_elbo_in_expectation(model, tau):
    twin = copy.deepcopy(model).double()
    elbo = relaxed_elbo(twin, tau)
    expected = -flat(torch.autograd.grad(elbo, list(twin.parameters())))
    p = exact_latent.prior_table(*(q.detach().double() for q in model.prior.parameters()))
    generator, rows, bounds = seeded(0), [], []
    for _ in range(40):
        z_negative = exact_latent.states(M).float()[torch.multinomial(p, 4000, replacement=True, generator=generator)]
        losses = relaxed_losses(model, X.repeat(2000, 1), z_negative, tau, generator=generator)
        total = losses.decoder + losses.encoder + losses.prior
        rows.append(flat(torch.autograd.grad(total, list(model.parameters()))))
        bounds.append(float(losses.bound))
    assert np.abs(mean_scores(np.stack(rows), expected)).max() < LIMIT
    log_z = model.prior.log_partition().item()
    assert abs(mean_scores(np.array(bounds), float(elbo.detach()) + log_z)) < LIMIT


def test_the_relaxed_elbo_tends_to_that_of_the_bits(model):
    """Enumerated E_q log p*(x, z) + H(q), which a lower temperature comes closer to."""
    enlarge(model, 2.0)
    twin = copy.deepcopy(model).double()
    tables = exact_latent.Tables(twin.encoder, twin.decoder, tuple(twin.prior.parameters()), X.double())
    exact = float((tables.q * tables.weights().log()).sum(1).mean().detach())
    gaps = []
    for tau in (1.0, 0.05):
        # two million samples: an error of half a thousandth
        losses = relaxed_losses(model, X.repeat(1_000_000, 1), torch.zeros(1, M), tau, generator=seeded(1))
        gaps.append(abs(float(losses.bound) - model.prior.log_partition().item() - exact))
    assert gaps[1] < 0.005
    assert gaps[1] < 0.3 * gaps[0]


def test_the_gap_is_zero_for_chains_that_are_where_the_data_are(model):
    """Near temperature 0 samples are bits of the posterior; chains of the same distribution are as likely."""
    x = X.repeat(20_000, 1)
    z = model.posterior(x).sample(generator=seeded(3)).detach()
    losses = relaxed_losses(model, x, z, 0.01, generator=seeded(4))
    spread = model.prior.free_energy(z).detach().std() * math.sqrt(2 / len(x))
    assert abs(losses.gap) < LIMIT * spread
    elsewhere = relaxed_losses(model, x, 1 - z, 0.01, generator=seeded(4))
    expected = (model.prior.free_energy(z) - model.prior.free_energy(1 - z)).mean()
    assert abs(elsewhere.gap - expected) < LIMIT * spread
    assert abs(expected) > 3 * LIMIT * spread


def iwae_bound(model, K, points=400):
    """Mean over X of L_K by the trapezoid rule over the K samples' noise (one latent)."""
    node = torch.linspace(-7, 7, points, dtype=torch.float64)
    grid = torch.cartesian_prod(*[node] * K).view(-1, K)  # (points^K, K)
    probability = torch.exp(-grid.square().sum(-1) / 2)
    probability = probability / probability.sum()
    x = X.double()
    loc, log_scale = model.encoder(x).chunk(2, -1)  # (B, 1)
    z = loc + log_scale.exp() * grid[:, :, None, None]  # (points^K, K, B, 1)
    log_q = (-grid.square() / 2 - math.log(2 * math.pi) / 2)[:, :, None] - log_scale[:, 0]
    log_p = -z[..., 0].square() / 2 - math.log(2 * math.pi) / 2
    w = (log_bernoulli(model.decoder(z), x) + log_p - log_q).exp()
    return (probability[:, None] * w.mean(1).log()).sum(0).mean()


@pytest.mark.parametrize(("K", "backward_samples"), [(1, 0), (2, 0), (2, 1)])
def test_iwae_gradient_in_expectation(continuous, K, backward_samples):
    """With one sample it is the ELBO's, a plain VAE."""
    twin = copy.deepcopy(continuous).double()
    bound = iwae_bound(twin, K)
    expected = -flat(torch.autograd.grad(bound, list(twin.parameters())))
    generator, rows, bounds = seeded(2), [], []
    for _ in range(40):
        losses = iwae_losses(continuous, X.repeat(4000, 1), torch.ones(5, 1), K, backward_samples, generator=generator)
        rows.append(flat(torch.autograd.grad(losses.decoder, list(continuous.parameters()))))
        bounds.append(float(losses.bound))
    assert np.abs(mean_scores(np.stack(rows), expected)).max() < LIMIT
    assert abs(mean_scores(np.array(bounds), float(bound.detach()) + math.log(2 * math.pi) / 2)) < LIMIT


def test_importance_sums_of_continuous_latents_reach_log_prob(continuous):
    """p(x) of one latent by the trapezoid rule."""
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    decoder = copy.deepcopy(continuous.decoder).double()
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    with torch.no_grad():
        p = [torch.trapezoid(log_bernoulli(decoder(z[:, None]), x).exp() * density, z) for x in X.double()]
    exact = torch.stack(p).log()
    sums = continuous.importance_sums(X, 50_000, generator=seeded(3))
    found = sums.log_mean - continuous.prior.log_partition()
    assert (sums.variance.sqrt() < 0.01).all()
    assert ((found - exact).abs() < LIMIT * sums.variance.sqrt() + 1e-5).all()


def test_normal_prior_and_posterior_are_pytorchs(continuous):
    z = torch.randn(50, 4, generator=seeded(4))
    prior = NormalPrior(4)
    reference = torch.distributions.MultivariateNormal(torch.zeros(4), torch.eye(4))
    torch.testing.assert_close(prior.log_prob(z, prior.log_partition().item()), reference.log_prob(z))
    q = DiagonalNormal(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]]))
    sample = q.sample((20_000,), seeded(5))[:, 0].double().numpy()
    assert np.abs(mean_scores(sample, [1.0, -2.0])).max() < LIMIT
    assert sample.std(0) == pytest.approx([0.5, 3.0], rel=0.03)
    assert torch.equal(q.sample((3,), seeded(6)), q.sample((3,), seeded(6)))


def test_a_continuous_model_is_built_sampled_and_encoded():
    model = build(ModelConfig(layers=(5,), latent=4, prior="normal"), Form(1, 2, 3), seeded(0))
    assert isinstance(model, GaussianModel)
    x = torch.ones(3, 6)
    assert model.encode(x).shape == (3, 4)
    torch.testing.assert_close(model.encode(x), model.posterior(x).mean.detach())
    assert model.sample(7, generator=seeded(1)).shape == (7, 6)
    assert not list(model.prior.parameters())


def relaxed(model, seed=1, **options):
    return relaxed_losses(model, X.repeat(20, 1), torch.ones(5, M), 0.5, generator=seeded(seed), **options)


def iwae(model, seed=1, **options):
    return iwae_losses(model, X.repeat(20, 1), torch.ones(5, 1), 6, generator=seeded(seed), **options)


@pytest.mark.parametrize("losses", [relaxed, iwae])
def test_all_randomness_comes_from_the_generator(model, continuous, losses):
    """Dropout, noise and resampling: the global generator has no say."""
    subject, options = (model, {}) if losses is relaxed else (continuous, {"backward_samples": 2})
    results = []
    for seed, global_seed in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(global_seed)
        results.append(losses(subject, seed, dropout=0.3, **options))
    assert torch.equal(results[0].decoder, results[1].decoder)
    assert torch.equal(results[0].bound, results[1].bound)
    assert not torch.equal(results[0].decoder, results[2].decoder)


@pytest.mark.parametrize("backward_samples", [0, 1])
def test_each_of_iwaes_draws_comes_from_the_generator(continuous, backward_samples):
    """The noise alone, and the resampling too."""
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        results.append(iwae(continuous, backward_samples=backward_samples).decoder)
    assert torch.equal(*results)


@pytest.mark.parametrize("losses", [relaxed, iwae])
def test_dropout_is_of_what_the_encoder_sees(model, continuous, losses):
    subject = model if losses is relaxed else continuous
    inputs = []
    hook = subject.encoder.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    losses(subject)
    losses(subject, dropout=0.5)
    hook.remove()
    assert torch.equal(inputs[0], X.repeat(20, 1))
    assert sorted(inputs[1].unique().tolist()) == [0.0, 2.0]


def test_a_uniform_number_of_zero_does_no_harm(model, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape))
    assert all(part.isfinite() for part in relaxed(model))


def test_effective_sample_sizes(model, continuous):
    assert float(relaxed(model).effective_sample_size) == 1.0
    with torch.no_grad():  # all weights equal: nothing depends on z but the prior, and q is the prior
        continuous.encoder[-1].weight.zero_()
        continuous.encoder[-1].bias.zero_()
        continuous.decoder[0].weight.zero_()
    assert float(iwae(continuous).effective_sample_size) == pytest.approx(6.0, rel=1e-4)


def test_iwae_carries_all_k_backward_unless_asked_otherwise(continuous):
    plain = iwae(continuous)
    assert torch.equal(plain.decoder, iwae(continuous, backward_samples=0).decoder)
    assert not torch.equal(plain.decoder, iwae(continuous, backward_samples=1).decoder)
    assert float(plain.encoder) == float(plain.prior) == 0.0


def test_iwaes_networks_run_in_the_context_of_their_products(continuous):
    inside, calls = [False], []

    @contextmanager
    def products():
        inside[0] = True
        yield
        inside[0] = False

    for net in (continuous.encoder, continuous.decoder):
        net.register_forward_hook(lambda module, inputs, output: calls.append(inside[0]))
    iwae(continuous, backward_samples=2, products=products)
    assert calls == [True] * 3


def test_normal_prior_draws_from_its_generator_and_has_nothing_to_save():
    prior = NormalPrior(3)
    torch.manual_seed(0)
    first = prior.sample(4, seeded(1))
    torch.manual_seed(1)
    assert torch.equal(first, prior.sample(4, seeded(1)))
    assert prior.state_dict() == {}
    assert prior.log_partition().dtype == torch.float64


def test_nothing_of_a_normal_prior_is_trained():
    assert float(NormalPrior(3).log_partition_surrogate(torch.ones(5, 3))) == 0.0


def test_without_a_generator_the_default_one_serves(model):
    results = []
    for global_seed in (1, 1, 2):
        torch.manual_seed(global_seed)
        results.append(relaxed_losses(model, X, torch.ones(5, M), 0.5).decoder)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


class Precision(TractablePrior):
    """Normal latents of variance exp(-t), without the factor that would make exp(-F) integrate to 1."""

    def __init__(self):
        super().__init__(1)
        self.t = torch.nn.Parameter(torch.tensor(0.3))

    def free_energy(self, z):
        return self.t.exp() * z.square().sum(-1) / 2

    def log_partition_surrogate(self, z_negative):
        return -self.free_energy(z_negative).mean()

    def sample(self, n, generator=None):
        return (-self.t / 2).exp() * torch.randn(n, 1, generator=generator)


def test_a_prior_of_ones_own_over_continuous_latents_follows_its_normalizer(continuous):
    """d/dt of log Z is -1/2; and the data's phase is the bound's, from the same samples."""
    continuous.prior = Precision()
    z = continuous.prior.sample(200_000, seeded(8)).detach()
    losses = iwae_losses(continuous, X, z, 3, generator=seeded(9))
    normalizer = float(torch.autograd.grad(losses.prior, continuous.prior.t)[0])
    assert abs(normalizer + 0.5) < LIMIT * 0.5 * math.sqrt(2 / 200_000)
    of_data = float(torch.autograd.grad(losses.decoder, continuous.prior.t)[0])
    q = continuous.posterior(X)
    noise = torch.randn(3, *q.loc.shape, generator=seeded(9))
    samples = (q.loc + q.scale * noise).detach()
    log_w = log_bernoulli(continuous.decoder(samples), X) - continuous.prior.free_energy(samples) - q.log_prob(samples)
    expected = -torch.autograd.grad(log_w.exp().mean(0).log().mean(), continuous.prior.t)[0]
    assert of_data == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("log_scale", [-66.5, -10.5, 20.5, 90.0])
def test_a_scale_beyond_all_bounds_is_finite_and_pulled_back(log_scale):
    """In float32, where the square of e^-66 is 0 and e^90 is infinite."""
    model = GaussianModel(torch.nn.Identity(), torch.nn.Linear(2, 3), NormalPrior(2))
    parameters = torch.tensor([[0.3, -0.2, log_scale, 0.1]], requires_grad=True)
    q = model.posterior_of(parameters)
    z = q.rsample((64,), seeded(0))
    x = torch.tensor([[1.0, 0.0, 1.0]])
    loss = (q.log_prob(z) - model.log_joint(x, z)).mean()
    loss.backward()
    assert loss.isfinite()
    assert parameters.grad.isfinite().all()
    assert parameters.grad[0, 2] * log_scale > 0  # a step against the gradient makes it less extreme


def test_a_scale_within_bounds_is_the_exponential_with_its_gradient():
    model = GaussianModel(torch.nn.Identity(), torch.nn.Linear(2, 3), NormalPrior(2))
    parameters = torch.tensor([[0.3, -0.2, -9.5, 1.7]], requires_grad=True)
    scale = model.posterior_of(parameters).scale
    assert torch.equal(scale, parameters[:, 2:].exp())
    (gradient,) = torch.autograd.grad(scale.sum(), parameters)
    torch.testing.assert_close(gradient[:, 2:], scale)
