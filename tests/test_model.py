"""The hybrid model's densities and bounds against enumeration."""

import math

import exact_latent
import numpy as np
import pytest
import torch
from checks import LIMIT, chi_square_score, mean_scores, seeded
from test_objectives import D, M, exact_tables, small_model

import latentbits.model
from latentbits import RBM, BernoulliPrior, Config, LatentModel
from latentbits.config import ModelConfig
from latentbits.model import GaussianModel, build
from latentbits.nets import MLP, Scaled
from latentbits.rbm import NormalPrior
from latentbits.refine import refine
from latentbits.splits import Form


@pytest.fixture
def model():
    return small_model(1)


@pytest.fixture
def x():
    return torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])


def test_log_weights_are_the_enumerated_ones(model, x):
    _, tables = exact_tables(model, x)
    z = tables.z.float()[:, None].expand(-1, len(x), -1)  # (V, B, M): every state as a sample
    log_w = model.log_weight(x, z) - model.prior.log_partition().item()
    np.testing.assert_allclose(log_w.detach().T, tables.weights().log().detach(), atol=2e-5)


def test_log_weight_draws_as_many_samples_as_asked(model, x):
    assert model.log_weight(x, 5, seeded(0)).shape == (5, 2)
    assert torch.equal(model.log_weight(x, 5, seeded(0)), model.log_weight(x, 5, seeded(0)))


def test_bound_is_the_enumerated_one_below_log_prob_and_rises(model, x):
    _, tables = exact_tables(model, x)
    log_z = model.prior.log_partition()
    n = 20_000
    means = []
    for K in (1, 2, 4):
        values = model.log_prob(x.repeat(n, 1), K, log_z, seeded(K)).view(n, len(x)).numpy()
        assert np.abs(mean_scores(values, tables.bound(K).detach().numpy())).max() < LIMIT
        means.append(values.mean(0))
    exact = tables.log_prob().detach().numpy()
    assert (means[0] < means[1]).all()
    assert (means[1] < means[2]).all()
    assert (means[2] < exact).all()


def test_a_prior_over_another_number_of_latents_is_refused():
    """Of independent latents the free energy takes any number, and log Z would be of another."""
    model = GaussianModel(MLP([4, 8]), MLP([4, 4]), NormalPrior(7))
    with pytest.raises(ValueError, match="expected one over the encoder's 4 latents, got one over 7"):
        model.log_prob(torch.ones(2, 4), 5, 0.0)


def test_no_images_are_named(model):
    none = torch.ones(0, 4)
    for ask in (
        lambda: model.log_prob(none, 5, 0.0),
        lambda: model.inpaint(none, torch.ones(4, dtype=torch.bool)),
        lambda: refine(model, none, 5),
    ):
        with pytest.raises(ValueError, match="x: expected one row or more, got none"):
            ask()


def test_many_samples_reach_log_prob(model, x):
    _, tables = exact_tables(model, x)
    sums = model.importance_sums(x, 100_000, generator=seeded(0))
    difference = sums.log_mean - model.prior.log_partition() - tables.log_prob().detach()
    assert (difference.abs() < LIMIT * sums.variance.sqrt()).all()
    assert (sums.variance.sqrt() < 0.02).all()
    second = (tables.q * tables.weights() ** 2).sum(1)
    share = (tables.log_prob().exp() ** 2 / second).detach()
    torch.testing.assert_close(sums.effective_sample_size / 100_000, share, rtol=0.05, atol=0)


def test_monte_carlo_variance_is_the_spread_of_repeated_estimates(model, x):
    sums = model.importance_sums(x.repeat(2000, 1), 400, generator=seeded(0))
    observed = sums.log_mean.view(2000, 2).std(0)
    claimed = sums.variance.view(2000, 2).mean(0).sqrt()
    # 2,000 repeats give a standard deviation to 1.6 %; the jackknife is good to a few per cent here
    torch.testing.assert_close(observed, claimed, rtol=0.12, atol=0)


def test_kept_samples_follow_the_true_posterior(model, x, monkeypatch):
    """Chunks of 40 samples, so that the draws between chunks matter as much as those within one."""
    monkeypatch.setattr(latentbits.model, "ELEMENTS_PER_CHUNK", 40 * x.shape[1])
    _, tables = exact_tables(model, x)
    posterior = (tables.likelihood * tables.prior).detach()
    posterior = posterior / posterior.sum(1, keepdim=True)
    for b in range(len(x)):
        z = torch.cat([model.importance_sums(x[b : b + 1], 400, 4, seeded(s)).z[:, 0] for s in range(300)])
        index = (z.double() @ (2.0 ** torch.arange(M - 1, -1, -1, dtype=torch.float64))).long()
        counts = torch.bincount(index, minlength=2**M).numpy()
        assert chi_square_score(counts, posterior[b].numpy()) < LIMIT


def test_chunks_do_not_change_what_is_estimated(model, x, monkeypatch):
    whole = model.importance_sums(x, 60_000, generator=seeded(0))
    monkeypatch.setattr(latentbits.model, "ELEMENTS_PER_CHUNK", 1000)
    chunked = model.importance_sums(x, 60_000, generator=seeded(1))
    spread = (whole.variance + chunked.variance).sqrt()
    assert ((whole.log_mean - chunked.log_mean).abs() < LIMIT * spread).all()
    torch.testing.assert_close(whole.effective_sample_size, chunked.effective_sample_size, rtol=0.05, atol=0)


@pytest.mark.parametrize("chunk", [7, 15, 1000])
def test_sums_of_the_first_samples_are_those_of_as_many(model, x, monkeypatch, chunk):
    """Wherever a chunk ends; of one datum, for the next draws from where this one ended."""
    monkeypatch.setattr(latentbits.model, "ELEMENTS_PER_CHUNK", chunk * model._elements(x))
    x = x[:1]
    few = model.importance_sums(x, 30, generator=seeded(0))
    both = model.importance_sums(x, 300, generator=seeded(0), fewer=30)
    assert (few.fewer, both.samples, both.fewer.samples) == (None, 300, 30)
    for ours, theirs in zip(both.fewer[1:4], few[1:4], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (both.log_sum > few.log_sum).all()
    kept = model.importance_sums(x, 300, 2, seeded(0), fewer=30)
    assert (kept.z.shape, kept.fewer.z.shape) == ((2, 1, M), (0, 1, M))
    for wrong in (301, -1):
        with pytest.raises(ValueError, match="fewer: expected"):
            model.importance_sums(x, 300, fewer=wrong)


def test_progress_is_told_after_each_chunk_of_data_and_of_samples(model, x, monkeypatch):
    told, data = [], x[:1].expand(3, -1)
    monkeypatch.setattr(latentbits.model, "ELEMENTS_PER_CHUNK", 64 * model._elements(x))
    model.importance_sums(data, 100, generator=seeded(0), progress=told.append)
    assert told == sorted(told)
    assert len(told) == 6  # each datum alone, in two chunks of samples
    assert told[-1] == 1.0
    quiet = model.importance_sums(data, 100, generator=seeded(0))
    assert torch.equal(quiet.log_sum, model.importance_sums(data, 100, 0, seeded(0), told.append).log_sum)


def test_no_tensor_exceeds_the_chunk_whatever_k(model, x, monkeypatch):
    monkeypatch.setattr(latentbits.model, "ELEMENTS_PER_CHUNK", 5000)
    sizes = []
    hook = model.decoder.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    model.log_prob(x.repeat(40, 1), 3000, 0.0, seeded(0))
    hook.remove()
    assert max(sizes) <= 5000
    assert sum(sizes) == 3000 * 80 * D


def test_a_decoder_may_say_how_large_tensors_it_scores_at_once(model, x):
    sizes = []
    hook = model.decoder.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    z = model.posterior(x).sample((30,), seeded(0))
    with torch.no_grad():
        whole = model.log_joint(x, z)
        model.decoder.elements_at_once = 4 * len(x) * D
        parts = model.log_joint(x, z)
    hook.remove()
    assert sizes == [30 * len(x) * D, *[4 * len(x) * D] * 7, 2 * len(x) * D]
    torch.testing.assert_close(parts, whole)


def test_encode_and_decode_are_the_most_probable_bits_and_the_mean(model, x):
    bits = model.encode(x)
    p = model.posterior(x).mean
    assert torch.equal(bits, (p > 0.5).float())
    torch.testing.assert_close(model.decode(bits), torch.sigmoid(model.decoder(bits)).detach())


def test_samples_have_the_models_means(model):
    rbm = tuple(p.detach().double() for p in (model.prior.weight, model.prior.visible_bias, model.prior.hidden_bias))
    p = exact_latent.prior_table(*rbm)
    expected = p @ torch.sigmoid(model.decoder(exact_latent.states(M).float())).double().detach()
    samples = model.sample(20_000, gibbs_steps=60, generator=seeded(0))
    assert samples.shape == (20_000, D)
    assert np.abs(mean_scores(samples.numpy(), expected.numpy())).max() < LIMIT


def test_fewer_than_one_sample_is_refused(model, x):
    with pytest.raises(ValueError, match="samples: expected a whole number of at least 1, got 0"):
        model.log_prob(x, 0, 0.0)
    with pytest.raises(TypeError, match=r"samples: expected a whole number of at least 1, got 500\.0"):
        model.log_weight(x, 500.0)


def test_build_is_a_function_of_its_generator():
    config = ModelConfig(layers=(6,), latent=5, hidden=4)
    torch.manual_seed(1)
    first = build(config, Form(1, 3, 3), seeded(3))
    torch.manual_seed(2)
    second = build(config, Form(1, 3, 3), seeded(3))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    other = build(config, Form(1, 3, 3), seeded(4))
    assert not torch.equal(first.prior.weight, other.prior.weight)


def test_build_has_the_papers_shapes():
    model = build(Config().model, Form(1, 28, 28), seeded(0))
    assert isinstance(model, LatentModel)
    widths = [layer.weight.shape[::-1] for layer in model.encoder if isinstance(layer, torch.nn.Linear)]
    assert widths == [(784, 200), (200, 200), (200, 100), (100, 100), (100, 200)]
    mirror = [layer.weight.shape for layer in model.decoder if isinstance(layer, torch.nn.Linear)]
    assert mirror == widths[::-1]
    assert (model.prior.visible, model.prior.hidden) == (200, 400)


def test_build_of_the_ablations():
    assert isinstance(build(ModelConfig(prior="bernoulli"), Form(1, 3, 3)).prior, BernoulliPrior)
    rbm = build(ModelConfig(network="none", hidden=7), Form(1, 3, 3))
    assert isinstance(rbm, RBM)
    assert (rbm.visible, rbm.hidden) == (9, 7)


@pytest.mark.parametrize("samples", [2, 7])
def test_unknown_pixels_are_drawn_given_the_known_ones(model, samples):
    """Against p(x) by enumeration over all images that have the known pixels; both where all share them and not."""
    every = exact_latent.states(D)
    _, tables = exact_tables(model, every.float())
    p = tables.log_prob().exp().detach()
    n = 40_000
    known = torch.tensor([True, False, False, True])
    start = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(n, -1)
    found = model.inpaint(start, known, 12, samples, seeded(7), starts=0)
    fits = ((every == start[0]) | ~known).all(1)
    expected = torch.where(fits, p, 0) / p[fits].sum()
    places = (found.double() @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long()
    counts = torch.bincount(places, minlength=16).numpy()
    assert counts[~fits.numpy()].sum() == 0
    assert chi_square_score(counts[fits.numpy()], expected[fits].numpy()) < LIMIT
    own = torch.stack([known, ~known]).repeat_interleave(n // 2, 0)
    mixed = model.inpaint(start, own, 12, samples, seeded(8))
    assert torch.equal(mixed[own], start[own])
    half = torch.bincount((mixed[: n // 2].double() @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long(), minlength=16)
    assert chi_square_score(half.numpy()[fits.numpy()], expected[fits].numpy()) < LIMIT


def test_inpainting_does_not_look_at_what_is_hidden(model, x):
    known = torch.tensor([True, False, False, True])
    given = [torch.where(known, x, hidden) for hidden in (0.0, 1.0, 0.3, math.nan)]
    found = [model.inpaint(each, known, 1, 2, seeded(0)) for each in given]
    assert all(torch.equal(found[0], each) for each in found[1:])


def test_inpainting_begins_near():
    """Two modes, all pixels on or off, between which no walk crosses: it has to begin in the right one."""
    decoder = torch.nn.Linear(1, 20)
    encoder = torch.nn.Linear(20, 1)
    with torch.no_grad():
        decoder.weight.fill_(20.0)
        decoder.bias.fill_(-10.0)
        encoder.weight.fill_(5.0)
        encoder.bias.fill_(-50.0)
    model = LatentModel(encoder, decoder, BernoulliPrior(1))
    x = torch.tensor([[0.0], [1.0]]).expand(2, 20).repeat(30, 1)
    found = model.inpaint(x, torch.arange(20) < 4, 1, 2, seeded(0))
    assert (found - x).abs().mean() < 0.01
    wrong = torch.where(torch.arange(20) < 4, x, 1 - x)
    assert (model.inpaint(wrong, torch.arange(20) < 4, 9, 2, seeded(0), starts=0) - x).abs().mean() > 0.5


def test_a_colour_pixel_is_known_as_a_whole_or_not():
    """Green is drawn given red, so a known red under a drawn green would be another distribution."""
    form = Form(3, 4, 4, 256)
    config = ModelConfig(network="resnet", maps=(4,), repeats=1, fully_connected=True, latent=3, hidden=2, norm="none")
    model, x = build(config, form, seeded(0)), torch.full((2, 48), 100.0)
    whole = (torch.arange(16) < 5).repeat(3)
    found = model.inpaint(x, whole, 1, 2, seeded(0))
    assert (found[:, whole] == 100).all()
    red = torch.arange(48) < 16
    with pytest.raises(ValueError, match="known: expected all 3 channels of a pixel or none, got a mask that splits"):
        model.inpaint(x, red, 1, 2, seeded(0))
    own = torch.stack([whole, red])
    with pytest.raises(ValueError, match="splits some"):
        model.inpaint(x, own, 1, 2, seeded(0))


def test_inpainting_refuses_what_does_not_fit(model, x):
    for known in (torch.ones(4), torch.ones(3).bool()):
        with pytest.raises(ValueError, match=r"known: expected bool with shape \(2, 4\) or \(4,\)"):
            model.inpaint(x, known, 1, 2)
    for name, least in (("steps", 1), ("samples", 2), ("starts", 0)):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number of at least {least}, got {least - 1}"):
            model.inpaint(x, torch.ones(4).bool(), **{"steps": 1, "samples": 2, name: least - 1})
    known = torch.tensor([True, False, True, True])
    with pytest.raises(ValueError, match="x where known: expected bits, 0 or 1, got values from 0 to 2"):
        model.inpaint(2 * x, known, 1, 2)
    strange = torch.tensor([[1.0, 7.5, 0.0, 1.0]])
    assert model.inpaint(strange, known, 1, 2, seeded(0))[0, known].tolist() == [1.0, 0.0, 1.0]


def test_what_there_is_nothing_of_is_refused(model, x):
    with pytest.raises(ValueError, match="x: expected one row or more, got none"):
        model.log_prob(x[:0], 5, 0.0)
    with pytest.raises(ValueError, match="n: expected a whole number of at least 0, got -1"):
        model.sample(-1)
    assert model.sample(0, 1).shape == (0, 4)


@pytest.mark.parametrize("prior", ["rbm", "normal"])
def test_a_posterior_of_data_of_another_shape_is_refused(prior):
    model = build(ModelConfig(layers=(6,), latent=5, hidden=4, prior=prior), Form(1, 8, 8))
    with pytest.raises(ValueError, match=r"x: expected shape \(\*, 64\), got \(2, 1, 8, 8\)"):
        model.posterior(torch.zeros(2, 1, 8, 8))


def test_scores_have_the_spread_that_they_state(model, x):
    """Over repetitions, with a mean near the enumerated bound's and errors that shrink with K."""
    log_z, n = model.prior.log_partition(), 1000
    errors = []
    for K in (1000, 4000):
        scores = model.score(x.repeat(n, 1), K, log_z, seeded(9))
        values, own = scores.log_prob.view(n, 2), scores.standard_error.view(n, 2)
        spread = values.std(0)
        errors.append(spread)
        torch.testing.assert_close(own.mean(0), spread, rtol=0.1, atol=0)
        _, tables = exact_tables(model, x)
        assert ((values.mean(0) - tables.log_prob().detach()).abs() < LIMIT * spread / n**0.5 + spread**2).all()
    torch.testing.assert_close(errors[0] / errors[1], torch.full((2,), 2.0, dtype=torch.float64), rtol=0.15, atol=0)


def test_a_scaled_networks_output_is_scaled():
    net, x = Scaled(torch.nn.Linear(3, 2)), torch.randn(4, 3, generator=seeded(0))
    y = net(x).detach()
    net.scale_output(2.5)
    net.scale_output(2.0)
    torch.testing.assert_close(net(x).detach(), 5 * y)


@pytest.mark.parametrize(("name", "kind"), [("relu", torch.nn.ReLU), ("leaky-relu", torch.nn.LeakyReLU)])
@pytest.mark.parametrize("shape", [{"layers": (6,)}, {"network": "resnet", "maps": (2,)}])
def test_the_activation_is_the_one_that_is_asked_for(name, kind, shape):
    model = build(ModelConfig(latent=5, hidden=4, activation=name, **shape), IMAGE)
    every = (torch.nn.ELU, torch.nn.ReLU, torch.nn.LeakyReLU)
    for net in (model.encoder, model.decoder):
        assert {type(module) for module in net.modules() if isinstance(module, every)} == {kind}


IMAGE = Form(1, 8, 8)
SHAPES = {
    "mlp": {"network": "mlp", "layers": (6,), "latent": 5, "hidden": 4},
    "resnet": {"network": "resnet", "maps": (2,), "latent": 5, "hidden": 4},
    "normal": {"network": "mlp", "layers": (6,), "latent": 5, "prior": "normal"},
}


@pytest.mark.parametrize("name", SHAPES)
def test_data_and_codes_of_another_shape_are_refused_by_name(name):
    model = build(ModelConfig(**SHAPES[name]), IMAGE)
    known = torch.zeros(64, dtype=torch.bool)
    expected = r"x: expected shape \((B|\*), 64\), got "
    for x, came in (
        (torch.ones(5, 10), r"\(5, 10\)"),
        (torch.ones(5, 8, 8), r"\(5, 8, 8\)"),
        (torch.ones(()), r"\(\)"),
    ):
        for method in (
            model.encode,
            lambda x: model.log_prob(x, 3, 0.0),
            lambda x: model.score(x, 3, 0.0),
            lambda x: model.inpaint(x, known, 2, 2),
        ):
            with pytest.raises(ValueError, match=expected + came):
                method(x)
    with pytest.raises(ValueError, match=r"z: expected shape \(\*, 5\), got \(3, 6\)"):
        model.decode(torch.ones(3, 6))
    assert model.decode(torch.ones(2, 3, 5)).shape == (2, 3, 64)
    assert model.encode(torch.ones(7, 64)).shape == (7, 5)


def test_an_encoder_of_ones_own_need_not_say_its_width():
    encoder = torch.nn.Sequential(torch.nn.Linear(64, 5))
    model = LatentModel(encoder, torch.nn.Linear(5, 64), RBM(5, 4))
    assert model.encode(torch.ones(7, 64)).shape == (7, 5)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, D\), got \(64,\)"):
        model.log_prob(torch.ones(64), 3, 0.0)
