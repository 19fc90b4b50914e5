"""The discretized mixture of logistics against an evaluation in NumPy, one sub-pixel at a time."""

import numpy as np
import pytest
import torch
from checks import LIMIT, chi_square_score, mean_scores, seeded

from latentbits.distributions import Bits, LogisticMixture

COMPONENTS = 3


def sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


def oracle_table(m, log_s):
    """Probabilities (256,) of a sub-pixel's levels under one logistic, from differences of its distribution."""
    edges = (2 * np.arange(256) + 1) / 255 - 1  # between a level and the next
    upper = sigmoid((edges - m) / np.exp(max(log_s, -7.0)))
    upper[-1] = 1.0
    return np.diff(np.concatenate([[0.0], upper]))


def oracle(parameters, pixel, channels):
    """Joint probability of one pixel's levels, and for each channel the table (256,) given the earlier ones."""
    each = 1 + 2 * channels + (3 if channels == 3 else 0)
    p = np.asarray(parameters, np.float64).reshape(each, COMPONENTS)
    weight = np.exp(p[0]) / np.exp(p[0]).sum()
    c = np.tanh(p[1 + 2 * channels :])
    x = np.asarray(pixel) / 127.5 - 1
    tables = []
    for channel in range(channels):
        rows = []
        for k in range(COMPONENTS):
            m = p[1 + channel, k]
            if channel == 1:
                m += c[0, k] * x[0]
            if channel == 2:
                m += c[1, k] * x[0] + c[2, k] * x[1]
            rows.append(oracle_table(m, p[1 + channels + channel, k]))
        joint = weight @ np.stack(rows)
        tables.append(joint / joint.sum())
        weight = weight * np.stack(rows)[:, int(pixel[channel])]
    return weight.sum(), tables


def random_parameters(channels, batch=(), size=(1, 1), seed=0, log_scale=-2.0):
    each = 1 + 2 * channels + (3 if channels == 3 else 0)
    p = torch.randn(*batch, each, COMPONENTS, *size, generator=seeded(seed))
    p[..., 1 : 1 + channels, :, :, :] *= 0.6
    p[..., 1 + channels : 1 + 2 * channels, :, :, :] += log_scale
    return p.flatten(-4, -3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_log_prob_is_the_oracles(channels, seed):
    parameters = random_parameters(channels, (4,), seed=seed)
    levels = torch.randint(0, 256, (4, channels), generator=seeded(seed)).float()
    levels[0], levels[1] = 0.0, 255.0
    found = LogisticMixture(parameters, channels).log_prob(levels)
    expected = [np.log(oracle(p.flatten(), x.numpy(), channels)[0]) for p, x in zip(parameters, levels, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("log_scale", [-9.0, -5.0, -1.0, 3.0])
@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("path", ["compiled", "float32", "float64"])
@pytest.mark.parametrize("seed", range(7, 12))
def test_each_conditional_sums_to_one(channel, log_scale, path, seed):
    """The 256 levels of a sub-pixel with the pixel's earlier ones, over the probability of these alone."""
    parameters = random_parameters(3, log_scale=log_scale, seed=seed)
    pixel = LogisticMixture(parameters).sample(generator=seeded(seed))
    pixel[channel:] = 0.0
    levels = pixel.expand(256, -1).clone()
    levels[:, channel] = torch.arange(256.0)
    joint = log_prob_by(path, later_at_zero(parameters, channel + 1), levels)
    earlier = log_prob_by(path, later_at_zero(parameters, channel), pixel.expand(2, -1))[0]
    total = float((joint.double().logsumexp(0) - earlier.double()).exp())
    assert total == pytest.approx(1.0, rel=1e-9 if path == "float64" else 1e-5)
    if channel == 0:
        assert float(earlier) == pytest.approx(0.0, abs=1e-9)


def later_at_zero(parameters, channel):
    """The same distribution of the channels before, with this one and those after it certain to be at level 0."""
    table = parameters.clone().view(10, COMPONENTS)
    table[1 + channel : 4] = -50.0
    table[4 + channel : 7] = 0.0
    return table.view(parameters.shape)


def log_prob_by(path, parameters, levels):
    """In float32 by the compiled loops, which take an image a row with parameters of its own, or by plain tensors."""
    if path == "compiled":
        return LogisticMixture(parameters.expand(len(levels), -1, -1, -1)).log_prob(levels)
    dtype = torch.float64 if path == "float64" else torch.float32
    return LogisticMixture(parameters.to(dtype)).log_prob(levels.to(dtype))


@pytest.mark.parametrize("compiled", [True, False])
def test_extreme_parameters_stay_finite_with_gradients(compiled):
    levels = torch.tensor([[0.0, 128.0, 255.0], [255.0, 0.0, 3.0]])
    for loc in (-50.0, 0.0, 50.0):
        for log_scale in (-20.0, 0.0, 20.0):
            parameters = random_parameters(3, (2,), seed=1)
            parameters.view(2, 10, COMPONENTS)[:, 1:4] = loc
            parameters.view(2, 10, COMPONENTS)[:, 4:7] = log_scale
            parameters.requires_grad_()
            # an image that wants a gradient goes the plain way
            log_p = LogisticMixture(parameters).log_prob(levels if compiled else levels.clone().requires_grad_())
            assert log_p.isfinite().all()
            log_p.sum().backward()
            assert parameters.grad.isfinite().all()


@pytest.mark.parametrize("component", range(COMPONENTS))
def test_a_parameter_that_is_not_a_number_shows(component):
    levels = torch.randint(0, 256, (2, 3 * 7), generator=seeded(13)).float()
    for kind in range(10):
        parameters = random_parameters(3, (2,), (1, 7), seed=14)
        parameters.view(2, 10, COMPONENTS, 7)[0, kind, component, 3] = torch.nan
        log_p = LogisticMixture(parameters).log_prob(levels)
        assert log_p.isnan().tolist() == [True, False], kind


def test_shapes_that_do_not_fit_the_compiled_loops_are_refused():
    for size, dimensions in (((2, 2), 192), ((2, 2), 3), ((8, 8), 12)):
        with pytest.raises(ValueError, match=r"mixture_log_prob: expected x \(B, 3 H W\)"):
            LogisticMixture(random_parameters(3, (2,), size)).log_prob(torch.zeros(2, dimensions))
    assert LogisticMixture(random_parameters(3, (0,), (2, 2))).log_prob(torch.zeros(0, 12)).shape == (0,)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (11, 12), (16, 17)])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_compiled_loops_agree_with_float64(size, spread, threads, with_threads):
    """Values and gradients of (K, B) rows, at both edges, inside, and where the scale is held at its least."""
    with_threads(threads)
    K, B = 3, 5
    parameters = random_parameters(3, (K, B), size, seed=8) * spread
    parameters.view(K, B, 10, COMPONENTS, *size)[0, :, 4:7, 0] = -9.0
    levels = torch.randint(0, 256, (B, 3 * size[0] * size[1]), generator=seeded(9)).float()
    levels[0], levels[1], levels[2, ::2] = 0.0, 255.0, 255.0
    g = torch.randn(K, B, generator=seeded(10))
    found = []
    for dtype in (torch.float32, torch.float64):
        own = parameters.to(dtype).requires_grad_()
        log_p = LogisticMixture(own).log_prob(levels.to(dtype))
        found.append((log_p.detach().double(), torch.autograd.grad(log_p, own, g.to(dtype))[0].double()))
    (value, slope), (exact, exact_slope) = found
    assert value.shape == (K, B)
    torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-3)
    held = slope.view(K, B, 10, COMPONENTS, -1)[0, :, 4:7, 0]
    assert not held.any()
    # a level far from a sharp mean has a share of e^-10 of the pixel, known to 1e-3 of itself in float32
    torch.testing.assert_close(slope, exact_slope, rtol=2e-2, atol=2e-3 * float(exact_slope.abs().mean()))


def test_images_of_other_shapes_go_the_plain_way():
    """One image under many mixtures, many under one."""
    parameters = random_parameters(3, (4,), (2, 2), seed=11)
    levels = torch.randint(0, 256, (6, 12), generator=seeded(12)).float()
    for i in range(4):
        one = LogisticMixture(parameters[i])
        several = one.log_prob(levels)
        assert several.shape == (6,)
        rows = LogisticMixture(parameters[i].expand(6, -1, -1, -1)).log_prob(levels)
        torch.testing.assert_close(several, rows, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(one.log_prob(levels[0]), several[0])


def test_gradient_by_finite_differences():
    parameters = random_parameters(3, (2,), (2, 1), seed=3).double().requires_grad_()
    levels = torch.randint(0, 256, (2, 6), generator=seeded(4)).double()
    assert torch.autograd.gradcheck(lambda p: LogisticMixture(p).log_prob(levels), (parameters,))


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_follow_the_oracles_tables(channels):
    """Red by its table; green given two of red's levels, and blue given those of both, in bins."""
    parameters = random_parameters(channels, seed=11, log_scale=-1.0)
    n = 200_000
    x = LogisticMixture(parameters, channels).sample((n,), seeded(12)).numpy()
    assert x.shape == (n, channels)
    assert set(np.unique(x)) <= set(range(256))
    _, tables = oracle(parameters.flatten(), [0] * channels, channels)
    assert abs(chi_square_score(np.bincount(x[:, 0].astype(int), minlength=256), tables[0])) < LIMIT
    if channels == 3:
        for edge in (0, 255):
            some = x[x[:, 0] == edge]
            _, tables = oracle(parameters.flatten(), [edge, 0, 0], 3)
            assert len(some) > 500
            assert abs(chi_square_score(np.bincount(some[:, 1].astype(int), minlength=256), tables[1])) < LIMIT
            both = some[some[:, 1] == 255]
            _, tables = oracle(parameters.flatten(), [edge, 255, 0], 3)
            assert len(both) > 100
            assert abs(chi_square_score(np.bincount(both[:, 2].astype(int), minlength=256), tables[2])) < LIMIT


def test_mean_is_that_of_samples_away_from_the_edges():
    parameters = random_parameters(3, size=(2, 2), seed=5, log_scale=-5.0)
    each = parameters.view(10, COMPONENTS, 2, 2)
    each[1:4] *= 0.3
    each[7:] *= 0.3
    mixture = LogisticMixture(parameters)
    samples = mixture.sample((20_000,), seeded(6)).numpy()
    assert np.abs(mean_scores(samples, mixture.mean.numpy())).max() < LIMIT


def test_pixels_add_up_and_leading_dimensions_broadcast():
    parameters = random_parameters(3, (2, 4), (2, 3), seed=8)
    levels = torch.randint(0, 256, (4, 18), generator=seeded(9)).float()
    found = LogisticMixture(parameters).log_prob(levels)
    assert found.shape == (2, 4)
    pixels = levels.view(4, 3, 2, 3)
    total = sum(
        LogisticMixture(parameters[..., i : i + 1, j : j + 1]).log_prob(pixels[:, :, i, j])
        for i in range(2)
        for j in range(3)
    )
    torch.testing.assert_close(found, total, rtol=1e-5, atol=1e-4)


def test_all_randomness_comes_from_the_generator():
    mixture = LogisticMixture(random_parameters(3, (2,), (2, 2)))
    assert torch.equal(mixture.sample((3,), seeded(1)), mixture.sample((3,), seeded(1)))
    assert not torch.equal(mixture.sample((3,), seeded(1)), mixture.sample((3,), seeded(2)))
    assert mixture.sample((3,), seeded(1)).shape == (3, 2, 12)


@pytest.mark.parametrize(("shape", "channels"), [((99, 2, 2), 3), ((30, 2, 2), 2), ((31, 1, 1), 1)])
def test_parameters_that_do_not_fit_are_refused(shape, channels):
    with pytest.raises(ValueError, match="LogisticMixture: expected 1 or 3 channels and parameters"):
        LogisticMixture(torch.zeros(shape), channels)


def test_parameters_of_half_precision_are_summed_in_single():
    """Of 12,288 terms in bfloat16 the sum would be off by nats."""
    for distribution, x in (
        (Bits, torch.bernoulli(torch.full((3, 12_288), 0.5), generator=seeded(1))),
        (LogisticMixture, torch.randint(256, (3, 12_288), generator=seeded(2)).float()),
    ):
        shape = (3, 12_288) if distribution is Bits else (3, 20, 64, 64)
        parameters = torch.randn(shape, generator=seeded(3)).bfloat16()
        found, exact = distribution(parameters).log_prob(x), distribution(parameters.double()).log_prob(x)
        torch.testing.assert_close(found.double(), exact.double(), rtol=1e-5, atol=0.0)
