"""Samplers, estimators and gradients on every device that is present, against exact values."""

import exact
import numpy as np
import pytest
import torch
from checks import LIMIT, chi_square_score, machine, mean_scores, random_rbm

from latentbits import BernoulliPrior, Counts, LatentModel, ais, bernoulli, evaluate, gibbs, raise_log_prob
from latentbits.adversarial import generator_loss
from latentbits.config import ModelConfig
from latentbits.model import WGAN, build
from latentbits.objectives import joint_losses
from latentbits.splits import Form, distort, shift
from latentbits.tempering import parallel_tempering, start, tempering_schedule

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

pytestmark = pytest.mark.parametrize("device", DEVICES)


def generator(device, seed):
    return torch.Generator(device).manual_seed(seed)


def test_bits_have_their_probabilities(device):
    p = torch.tensor([0.001, 0.3, 0.5, 0.9], device=device)
    bits = bernoulli(p.logit().expand(200_000, -1), generator(device, 0))
    assert bits.device.type == device
    assert np.abs(mean_scores(bits.cpu().numpy(), p.cpu().double().numpy())).max() < LIMIT


def test_chains_keep_the_distribution(device):
    rbm = random_rbm(4, 3)
    p, n = exact.probabilities(machine(rbm)), 50_000
    first = exact.states(4)[np.random.default_rng(1).choice(16, n, p=p)]
    z = torch.tensor(first, dtype=torch.float32, device=device)
    rbm = rbm.to(device)
    z = gibbs(rbm, z, 3, generator(device, 2))
    assert abs(chi_square_score(exact.frequencies(z.cpu().numpy()) * n, p)) < LIMIT
    betas = tempering_schedule(rbm, 4, generator(device, 3))
    replicas, _ = parallel_tempering(rbm, start(rbm, n, 4, generator(device, 4)), betas, 30, generator(device, 5))
    assert abs(chi_square_score(exact.frequencies(replicas[-1].cpu().numpy()) * n, p)) < LIMIT


def test_estimates_of_both_sides_agree_with_enumeration(device):
    rbm = random_rbm(6, 5)
    log_z = exact.log_partition(machine(rbm))
    z = torch.tensor(exact.states(6)[:20], dtype=torch.float32, device=device)
    rbm = rbm.to(device)
    estimate = ais(rbm, 2000, 200, generator(device, 6))
    assert abs(estimate.log_z - log_z) < LIMIT * estimate.standard_error
    assert estimate.standard_error < 0.02
    below = rbm.log_prob(z, log_z).double() - raise_log_prob(rbm, z, 500, 50, generator(device, 7))
    assert below.abs().max() < 0.2


@pytest.mark.parametrize("objective", ["vimco", "crws"])
@pytest.mark.parametrize("prior", ["rbm", "bernoulli"])
def test_a_step_reaches_every_parameter(device, objective, prior):
    model = build(
        ModelConfig(layers=(8,), latent=6, hidden=5, prior=prior), Form(1, 3, 4), torch.Generator().manual_seed(0)
    )
    assert isinstance(model, LatentModel)
    model = model.to(device)
    x = bernoulli(torch.zeros(20, 12, device=device), generator(device, 8))
    z = bernoulli(torch.zeros(30, 6, device=device), generator(device, 9))
    losses = joint_losses(model, x, z, objective, 8, 3, 0.1, generator(device, 10))
    (losses.decoder + losses.encoder + losses.prior).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0, name
    assert isinstance(model.prior, BernoulliPrior) == (prior == "bernoulli")


def test_an_evaluation_is_exact_where_it_can_be(device):
    model = build(ModelConfig(layers=(8,), latent=6, hidden=5), Form(1, 3, 4), torch.Generator().manual_seed(0))
    assert isinstance(model, LatentModel)
    model = model.to(device)
    x = bernoulli(torch.zeros(40, 12, device=device), generator(device, 11))
    result = evaluate(model, x, "", Counts(2000, 500, 100, 20, 4, 200), "linear", generator(device, 12))
    z = torch.tensor(exact.states(6), dtype=torch.float32, device=device)
    with torch.no_grad():
        log_p = (
            model.likelihood(z[:, None].expand(-1, 40, -1)).log_prob(x)
            + model.prior.log_prob(z, model.prior.log_partition().float())[:, None]
        )
    assert result.likelihood.nll == pytest.approx(-float(log_p.logsumexp(0).mean()), abs=0.02)
    assert result.likelihood_raise is not None
    raised = result.likelihood_raise
    assert abs(raised.difference) < LIMIT * raised.difference_standard_error + 0.05


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_residual_step_in_colour_reaches_every_parameter(device, precision, set_fast_bfloat16):
    set_fast_bfloat16(True)
    config = ModelConfig(
        network="resnet", maps=(4, 8), repeats=1, latent=6, hidden=5, components=2, precision=precision
    )
    form = Form(3, 8, 8, 256)
    model = build(config, form, torch.Generator().manual_seed(0))
    assert isinstance(model, LatentModel)
    model = model.to(device)
    x = torch.randint(0, 256, (5, 192), generator=generator(device, 11), device=device, dtype=torch.uint8)
    x = distort(
        shift(x, Form(3, 8, 8, 256), 0.5, generator(device, 12)), Form(3, 8, 8, 256), 1.0, generator(device, 13)
    )
    z = bernoulli(torch.zeros(30, 6, device=device), generator(device, 14))
    losses = joint_losses(model, x.float(), z, "vimco", 8, 3, 0.0, generator(device, 15))
    (losses.decoder + losses.encoder + losses.prior).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.sample(3, 2, generator(device, 16)).shape == (3, 192)


def test_a_gan_draws_and_is_judged(device):
    model = build(ModelConfig(network="dcgan", maps=(4, 8), latent=3, prior="normal"), Form(3, 8, 8, 256))
    assert isinstance(model, WGAN)
    model = model.to(device)
    loss = generator_loss(model, model.prior.sample(6, generator(device, 17)))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.generator.parameters())
    assert model.eval().sample(3, generator(device, 18)).shape == (3, 192)
