"""Signals against direct loops; gradients in expectation against autograd through enumerated objectives."""

import copy
import math
from contextlib import contextmanager, nullcontext

import exact_latent
import numpy as np
import pytest
import torch
from checks import LIMIT, mean_scores, random_rbm, seeded

from latentbits import LatentModel, resample, vimco, wake
from latentbits.config import JointConfig, ModelConfig
from latentbits.distributions import Bits
from latentbits.joint import stage_losses
from latentbits.model import build
from latentbits.nets import MLP
from latentbits.objectives import (
    drop,
    effective_sample_size,
    joint_losses,
    losses_of_samples,
    relaxed_losses,
    sleep,
)
from latentbits.session import Parts
from latentbits.splits import Form

D, M, H, K = 4, 3, 2, 3


def small_model(seed=0):
    """A model with weights large enough that posterior, bound and exact log p(x) differ visibly."""
    torch.manual_seed(seed)
    model = LatentModel(MLP([D, 5, M]), MLP([M, 5, D]), random_rbm(M, H, seed, scale=1.0))
    with torch.no_grad():
        for net in (model.encoder, model.decoder):
            for p in net.parameters():
                p.mul_(2.5)
    return model


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def x():
    return torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])


def exact_tables(model, x):
    """The oracle's tables over float64 copies of the model's parameters; the copies carry the gradients."""
    twin = copy.deepcopy(model).double()
    rbm = (twin.prior.weight, twin.prior.visible_bias, twin.prior.hidden_bias)
    return twin, exact_latent.Tables(twin.encoder, twin.decoder, rbm, x.double())


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients]).numpy()


def direct_vimco(log_w):
    """Algorithm 2 for one datum, in Python floats: bound, weights and signals of K log-weights."""
    n = len(log_w)
    w = [math.exp(value) for value in log_w]
    bound = math.log(sum(w) / n)
    signals = []
    for i in range(n):
        rest = [w[j] for j in range(n) if j != i]
        geometric = math.prod(rest) ** (1 / (n - 1))
        signals.append(bound - math.log((geometric + sum(rest)) / n) - w[i] / sum(w))
    return bound, [value / sum(w) for value in w], signals


@pytest.mark.parametrize("samples", [2, 3, 7])
def test_vimco_equals_direct_double_loop(samples):
    log_w = 2 * torch.randn(samples, 6, generator=seeded(samples), dtype=torch.float64)
    signal = vimco(log_w)
    for b in range(6):
        bound, weights, signals = direct_vimco(log_w[:, b].tolist())
        assert float(signal.bound[b]) == pytest.approx(bound, abs=1e-12)
        assert signal.weights[:, b].tolist() == pytest.approx(weights, abs=1e-12)
        assert signal.encoder_signal[:, b].tolist() == pytest.approx(signals, abs=1e-12)


def test_vimco_with_one_dominant_weight_is_finite():
    """Leaving the dominant one out by subtraction would give log 0."""
    signal = vimco(torch.tensor([[-10_000.0], [-10_400.0], [-10_500.0]]))
    assert all(part.isfinite().all() for part in signal)
    assert float(signal.bound) == pytest.approx(-10_000 - math.log(3))
    # the baseline is what the two others leave: log((w_2 + w_3 + sqrt(w_2 w_3)) / 3)
    assert float(signal.encoder_signal[0]) == pytest.approx(400 - 1, abs=1e-2)


def test_vimco_does_not_change_with_the_scale_of_the_weights():
    log_w = torch.randn(5, 4, generator=seeded(0), dtype=torch.float64)
    shifted = vimco(log_w + 1000)
    torch.testing.assert_close(shifted.encoder_signal, vimco(log_w).encoder_signal)
    torch.testing.assert_close(shifted.bound - 1000, vimco(log_w).bound)


@pytest.mark.parametrize("signal", [vimco, wake])
@pytest.mark.parametrize("shape", [(1, 3), (3,), (2, 3, 4)])
def test_one_sample_or_a_wrong_shape_is_refused(signal, shape):
    with pytest.raises(ValueError, match=r"log_w: expected shape \(K, B\) with K of 2 or more, got"):
        signal(torch.zeros(shape))


def test_signals_in_expectation_are_the_gradients_of_the_enumerated_bound(model, x):
    """Sum over all K-tuples: encoder by VIMCO's signals, decoder and prior by the weights."""
    twin, tables = exact_tables(model, x)
    tuples = tables.tuples(K)
    for b in range(len(x)):
        log_w = tables.weights().log()[b, tuples].detach()  # (V^K, K)
        signal = vimco(log_w.T)
        p = tables.tuple_probabilities(K)[b].detach()
        log_q = tables.q.log()[b, tuples]
        log_joint = (tables.likelihood * tables.prior).log()[b, tuples]
        surrogate = (p[:, None] * signal.encoder_signal.T * log_q).sum()
        surrogate = surrogate + (p[:, None] * signal.weights.T * log_joint).sum()
        parameters = list(twin.parameters())
        expected = torch.autograd.grad(tables.bound(K)[b], parameters, retain_graph=True)
        actual = torch.autograd.grad(surrogate, parameters, retain_graph=True)
        np.testing.assert_allclose(flat(actual), flat(expected), atol=1e-10)


def sampled_gradients(model, x, objective, backward_samples, groups=40, batch=2500):
    """Gradients (groups, P) of the summed losses, each over a large batch of the same data and exact negatives."""
    generator = seeded(1)
    rbm = (model.prior.weight, model.prior.visible_bias, model.prior.hidden_bias)
    p = exact_latent.prior_table(*(q.detach().double() for q in rbm))
    z_all = exact_latent.states(M).float()
    rows = []
    for _ in range(groups):
        z_negative = z_all[torch.multinomial(p, batch, replacement=True, generator=generator)]
        losses = joint_losses(
            model, x.repeat(batch, 1), z_negative, objective, K, backward_samples, generator=generator
        )
        total = losses.decoder + losses.encoder + losses.prior
        rows.append(flat(torch.autograd.grad(total, list(model.parameters()))))
    return np.stack(rows)


@pytest.mark.parametrize("backward_samples", [0, 1, 2])
def test_vimco_losses_sampled(model, x, backward_samples):
    """The whole step, samples, sparse backward and negative phase included, against minus grad L_K."""
    twin, tables = exact_tables(model, x)
    expected = -flat(torch.autograd.grad(tables.bound(K).mean(), list(twin.parameters())))
    scores = mean_scores(sampled_gradients(model, x, "vimco", backward_samples), expected)
    assert np.abs(scores).max() < LIMIT


@pytest.mark.parametrize("backward_samples", [0, 2])
def test_wake_sleep_losses_sampled(model, x, backward_samples):
    """Decoder and prior as before; the encoder has the wake and the sleep expectation, and no objective."""
    twin, tables = exact_tables(model, x)
    generative = [*twin.decoder.parameters(), *twin.prior.parameters()]
    of_bound = torch.autograd.grad(tables.bound(K).mean(), generative, retain_graph=True)
    rbm = (twin.prior.weight, twin.prior.visible_bias, twin.prior.hidden_bias)
    phases = tables.wake(K).mean() + exact_latent.sleep(twin.encoder, twin.decoder, rbm, D)
    of_encoder = torch.autograd.grad(phases, list(twin.encoder.parameters()))
    expected = -np.concatenate([flat(of_encoder), flat(of_bound)])
    scores = mean_scores(sampled_gradients(model, x, "crws", backward_samples), expected)
    assert np.abs(scores).max() < LIMIT


def test_the_two_objectives_move_the_encoder_differently(model, x):
    """What the tests above tell apart: at K = 3 the two encoder updates are far from each other."""
    twin, tables = exact_tables(model, x)
    encoder = list(twin.encoder.parameters())
    of_bound = flat(torch.autograd.grad(tables.bound(K).mean(), encoder, retain_graph=True))
    of_wake = flat(torch.autograd.grad(tables.wake(K).mean(), encoder))
    assert np.linalg.norm(of_bound - of_wake) > 0.1 * np.linalg.norm(of_bound)


def test_each_loss_reaches_its_own_part_only(model, x):
    a = model.encoder(x)
    z = Bits(a.detach()).sample((K,), seeded(0))
    losses = losses_of_samples(model, x, a, z, torch.ones(4, M), "crws")
    parts = {"encoder": model.encoder, "decoder": model.decoder, "prior": model.prior}
    for name, part in parts.items():
        others = [p for other, module in parts.items() if other != name for p in module.parameters()]
        loss = getattr(losses, name)
        own = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True)
        assert any(float(g.abs().max()) > 0 for g in own)
        reached = torch.autograd.grad(loss, others, retain_graph=True, allow_unused=True)
        assert all(g is None for g in reached)


def colour_model():
    """Residual networks of 12 bits and a mixture of logistics, and two images of 4x4."""
    config = ModelConfig(
        network="resnet", maps=(3,), repeats=2, fully_connected=False, latent=12, hidden=2, components=2
    )
    model = build(config, Form(3, 4, 4, 256), seeded(0))
    with torch.no_grad():  # so that a few of the K samples share the weight
        for name, p in model.decoder.named_parameters():
            if name.endswith("original0"):
                p.mul_(0.3)
    return model, torch.randint(256, (2, 48), generator=seeded(1)).float()


@pytest.mark.parametrize("colour", [False, True])
def test_sparse_and_full_backward_agree_given_the_samples(model, x, colour):
    """Averaged over the resampling alone, with everything else held: unbiased, and sharper with more."""
    if colour:
        model, x = colour_model()
    a = model.encoder(x)
    z = Bits(a.detach()).sample((8,), seeded(0))
    z_negative = torch.ones(4, z.shape[-1])
    parameters = [*model.decoder.parameters(), *model.prior.parameters()]

    def gradient(backward_samples, generator=None):
        losses = losses_of_samples(model, x, a, z, z_negative, "vimco", backward_samples, generator)
        return flat(torch.autograd.grad(losses.decoder + losses.prior, parameters))

    full = gradient(0)
    generator = seeded(3)
    spread = []
    for backward_samples in (1, 4):
        rows = np.stack([gradient(backward_samples, generator) for _ in range(600)])
        varied = rows.std(0) > 1e-6
        assert np.abs(mean_scores(rows[:, varied], full[varied])).max() < LIMIT
        np.testing.assert_allclose(rows[:, ~varied].mean(0), full[~varied], atol=1e-4)
        spread.append(rows.var(0).sum())
    assert spread[1] < 0.5 * spread[0]


def test_wake_has_the_bound_and_the_weights_for_signals():
    log_w = torch.randn(4, 3, generator=seeded(6), dtype=torch.float64)
    signal = wake(log_w)
    w = log_w.exp()
    torch.testing.assert_close(signal.bound, w.mean(0).log())
    torch.testing.assert_close(signal.weights, w / w.sum(0))
    assert torch.equal(signal.encoder_signal, signal.weights)


def test_all_randomness_comes_from_the_generator(model, x):
    """Dropout, posterior samples, resampling and dreams: the global generator has no say in any loss."""

    def losses(seed, global_seed):
        torch.manual_seed(global_seed)
        return joint_losses(model, x.repeat(20, 1), torch.ones(30, M), "crws", 8, 2, 0.3, seeded(seed))

    for one, same, other in zip(losses(1, 1), losses(1, 2), losses(2, 1), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_each_draw_has_its_own_randomness(model, x):
    """The same, one draw at a time."""

    def repeat(function):
        results = []
        for global_seed in (1, 2):
            torch.manual_seed(global_seed)
            results.append(function(seeded(5)))
        return results

    weights = torch.full((6, 40), 1 / 6)
    ones, z = torch.ones(30, 20), torch.ones(50, M)
    a = model.encoder(x).detach()
    samples = Bits(a).sample((8,), seeded(0))
    for function in (
        lambda g: resample(weights, 3, g),
        lambda g: drop(ones, 0.5, g),
        lambda g: sleep(model, z, g),
        lambda g: losses_of_samples(model, x, a, samples, z, "vimco", 1, g).decoder,
    ):
        assert torch.equal(*repeat(function))


def test_all_k_are_carried_backward_unless_asked_otherwise(model, x):
    arguments = (model, x, torch.ones(4, M), "vimco", K)
    assert torch.equal(
        joint_losses(*arguments, generator=seeded(7)).decoder, joint_losses(*arguments, 0, 0.0, seeded(7)).decoder
    )
    a = model.encoder(x).detach()
    z = Bits(a).sample((K,), seeded(0))
    plain = losses_of_samples(model, x, a, z, torch.ones(4, M), "vimco")
    assert torch.equal(plain.decoder, losses_of_samples(model, x, a, z, torch.ones(4, M), "vimco", 0).decoder)


def test_the_networks_run_in_the_context_of_their_products(model, x):
    inside, calls = [False], []

    @contextmanager
    def products():
        inside[0] = True
        yield
        inside[0] = False

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: calls.append((name, inside[0])))
        for name, module in (("encoder", model.encoder), ("decoder", model.decoder))
    ]
    joint_losses(model, x, torch.ones(4, M), "vimco", K, 2, generator=seeded(0), products=products)
    joint_losses(model, x, torch.ones(4, M), "vimco", K, generator=seeded(0), products=products)  # all K go backward
    for hook in hooks:
        hook.remove()
    assert calls[:3] == [("encoder", True), ("decoder", True), ("decoder", True)]
    assert calls[3:] == [("encoder", True), ("decoder", True)]


def test_log_weights_are_not_resampled():
    with pytest.raises(ValueError, match="resample: expected weights of 0 or more, got some down to -1"):
        resample(torch.tensor([[0.5, 0.0], [0.5, -1.0]]), 2, seeded(0))


def test_resampling_takes_each_sample_in_proportion():
    weights = torch.tensor([[0.5, 0.05], [0.3, 0.9], [0.2, 0.05]])
    generator = seeded(0)
    count = 4
    index = torch.stack([resample(weights, count, generator) for _ in range(4000)])  # (4000, S, B)
    assert index.shape == (4000, count, 2)
    for b in range(2):
        counts = torch.stack([(index[:, :, b] == i).sum(1) for i in range(3)], 1).double().numpy()
        expected = count * weights[:, b].double().numpy()
        # systematic: the number of times is the expectation rounded down or up, and right on average
        assert (np.abs(counts - expected) < 1).all()
        varied = counts.std(0) > 0
        assert np.abs(mean_scores(counts[:, varied], expected[varied])).max() < LIMIT


def test_effective_sample_size_of_equal_and_of_single_weights():
    weights = torch.tensor([[0.25, 1.0], [0.25, 0.0], [0.25, 0.0], [0.25, 0.0]])
    assert effective_sample_size(weights).tolist() == [4.0, 1.0]


def test_drop_keeps_the_mean_and_the_share():
    x = torch.ones(2000, 50)
    dropped = drop(x, 0.2, seeded(0))
    values = dropped.unique().tolist()
    assert values == pytest.approx([0.0, 1.25])
    share = float((dropped == 0).float().mean())
    assert abs(share - 0.2) < LIMIT * math.sqrt(0.2 * 0.8 / x.numel())
    assert drop(x, 0.0, None) is x


@pytest.mark.parametrize("dreams", [0, 700])
def test_sleep_adds_its_gradient_to_vimcos(model, x, dreams):
    """Averaged over dreams: weight times the enumerated sleep expectation, and nothing in the other parts."""
    twin, _ = exact_tables(model, x)
    rbm = (twin.prior.weight, twin.prior.visible_bias, twin.prior.hidden_bias)
    phase = exact_latent.sleep(twin.encoder, twin.decoder, rbm, D)
    expected = -0.3 * flat(torch.autograd.grad(phase, list(twin.encoder.parameters())))
    p = exact_latent.prior_table(*(q.detach().double() for q in rbm))
    a = model.encoder(x)
    z = Bits(a.detach()).sample((K,), seeded(0))
    generator, rows = seeded(1), []
    for _ in range(40):
        z_negative = exact_latent.states(M).float()[torch.multinomial(p, 5000, replacement=True, generator=generator)]
        plain, slept = (
            losses_of_samples(
                model, x, a, z, z_negative, "vimco", generator=generator, sleep_weight=weight, dreams=dreams
            )
            for weight in (0.0, 0.3)
        )
        assert torch.equal(plain.decoder, slept.decoder)
        assert torch.equal(plain.prior, slept.prior)
        difference = slept.encoder - plain.encoder
        rows.append(flat(torch.autograd.grad(difference, list(model.encoder.parameters()), retain_graph=True)))
    assert np.abs(mean_scores(np.stack(rows), expected)).max() < LIMIT


def test_each_option_of_a_step_is_passed_on(model, x):
    """Sparse backward, dropout and sleep change what they are for, with the same random numbers."""
    arguments = (model, x.repeat(10, 1), torch.ones(4, M), "vimco", 6)
    plain = joint_losses(*arguments, 0, 0.0, seeded(7))
    assert not torch.equal(joint_losses(*arguments, 2, 0.0, seeded(7)).decoder, plain.decoder)
    assert not torch.equal(joint_losses(*arguments, 0, 0.0, seeded(7), sleep_weight=0.5).encoder, plain.encoder)
    inputs = []
    hook = model.encoder.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    joint_losses(*arguments, 0, 0.5, seeded(7))
    hook.remove()
    assert sorted(inputs[0].unique().tolist()) == [0.0, 2.0]
    a = model.encoder(x)
    z = Bits(a.detach()).sample((K,), seeded(0))
    given = (model, x, a, z, torch.ones(4, M), "vimco")
    assert torch.equal(losses_of_samples(*given).encoder, losses_of_samples(*given, sleep_weight=0.0).encoder)


@pytest.mark.parametrize("objective", ["vimco", "crws", "relaxed"])
def test_a_stages_settings_reach_its_losses(model, x, objective):
    x, z, soft = x.repeat(20, 1), exact_latent.states(M).float(), objective == "relaxed"
    config = JointConfig(
        objective=objective, samples=1 if soft else 6, backward_samples=2, dropout=0.3, sleep=0.0 if soft else 0.7,
        dreams=5, relaxation=0.9,
    )  # fmt: skip
    found = stage_losses(model, x, z, config, config.samples, seeded(1), nullcontext, Parts())
    if soft:
        expected = relaxed_losses(model, x, z, 0.9, dropout=0.3, generator=seeded(1))
    else:
        expected = joint_losses(
            model, x, z, objective, samples=6, backward_samples=2, dropout=0.3, generator=seeded(1), sleep_weight=0.7,
            dreams=5,
        )  # fmt: skip
    assert all(torch.equal(one, same) for one, same in zip(found, expected, strict=True))


@pytest.mark.parametrize("backward_samples", [0, 2, None])
def test_the_likelihood_has_the_data_undropped(model, x, backward_samples):
    seen = []

    class Seen(Bits):
        def log_prob(self, value):
            seen.append(value)
            return super().log_prob(value)

    model.family, x = Seen, x.repeat(10, 1)
    if backward_samples is None:
        relaxed_losses(model, x, torch.ones(4, M), 0.5, dropout=0.5, generator=seeded(7))
    else:
        joint_losses(model, x, torch.ones(4, M), "vimco", 6, backward_samples, 0.5, seeded(7))
    assert seen
    assert all(torch.equal(value, x) for value in seen)


def test_what_a_step_reports_is_enumerated(model, x):
    _, tables = exact_tables(model, x)
    log_z, z_negative = model.prior.log_partition().item(), exact_latent.states(M).float()
    w, p = tables.weights().detach()[:, tables.tuples(K)], tables.tuple_probabilities(K).detach()
    share, free_energy = w / w.sum(-1, keepdim=True), -tables.prior.detach().log() - log_z
    of_data = (p[..., None] * share * free_energy[tables.tuples(K)]).sum((1, 2))
    expected = {
        "bound": tables.bound(K).mean().item() + log_z,
        "effective_sample_size": (p / share.square().sum(-1)).sum(1).mean().item(),
        "gap": (of_data.mean() - free_energy.mean()).item(),
    }
    steps = [joint_losses(model, x.repeat(2500, 1), z_negative, "vimco", K, generator=seeded(s)) for s in range(40)]
    for name, value in expected.items():
        assert abs(mean_scores([float(getattr(each, name)) for each in steps], value)) < LIMIT, name


def test_as_many_dream_as_are_asked_to(model):
    """Rows of the prior's samples, drawn from the generator; all of them, once each, if none is asked for."""
    z = exact_latent.states(M).float()
    seen = []
    hook = model.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        sleep(model, z, seeded(3), 100)
    sleep(model, z, seeded(3))
    hook.remove()
    assert torch.equal(seen[0], seen[1])
    assert seen[0].shape == (100, M)
    assert len(seen[0].unique(dim=0)) == len(z)
    assert torch.equal(seen[2], z)
    x = torch.ones(2, D)
    few, all_of_them = (
        joint_losses(model, x, z, "crws", K, generator=seeded(4), dreams=dreams).encoder for dreams in (1, 0)
    )
    assert not torch.equal(few, all_of_them)


def test_without_a_generator_the_default_one_serves(model, x):
    weights, z = torch.full((6, 40), 1 / 6), torch.ones(50, M)
    for function in (
        lambda: resample(weights, 3),
        lambda: sleep(model, z, dreams=20),
        lambda: joint_losses(model, x.repeat(20, 1), z, "vimco", 4, 2).decoder,
    ):
        results = []
        for global_seed in (1, 1, 2):
            torch.manual_seed(global_seed)
            results.append(function())
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])


def test_an_unknown_objective_is_refused(model, x):
    with pytest.raises(ValueError, match="objective: expected vimco, crws or a function of log-weights, got elbo"):
        joint_losses(model, x, torch.ones(4, M), "elbo", K)


def test_all_chains_dream_unless_asked_otherwise(model, x):
    arguments = (model, x, torch.rand(30, M, generator=seeded(2)).round(), "crws", K)
    by_default = joint_losses(*arguments, generator=seeded(4)).encoder
    assert torch.equal(by_default, joint_losses(*arguments, generator=seeded(4), dreams=0).encoder)
    a = model.encoder(x)
    z = Bits(a.detach()).sample((K,), seeded(0))
    given = (model, x, a, z, arguments[2], "crws")
    by_default = losses_of_samples(*given, generator=seeded(4)).encoder
    assert torch.equal(by_default, losses_of_samples(*given, generator=seeded(4), dreams=0).encoder)


@pytest.mark.parametrize("count", [K, K + 3])
def test_no_less_than_all_are_not_drawn(model, x, count):
    arguments = (model, x, torch.ones(4, M), "vimco", K)
    all_of_them = joint_losses(*arguments, 0, generator=seeded(7)).decoder
    assert torch.equal(joint_losses(*arguments, count, generator=seeded(7)).decoder, all_of_them)
    assert not torch.equal(joint_losses(*arguments, K - 1, generator=seeded(7)).decoder, all_of_them)
