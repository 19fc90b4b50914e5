"""Random bits against their distribution, and fused sums against float64."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from checks import LIMIT, chi_square_score, correlation_score, seeded

from latentbits import kernels
from latentbits.distributions import LogisticMixture
from latentbits.fused import bernoulli, bernoulli_log_prob, draw_key, elu, is_on_cpu, map_blocks, softplus_sum

SIZES = [0, 1, 511, 512, 513, 128 * 1024, 128 * 1024 + 7]
KEY = (np.uint32(0x12345678), np.uint32(0x9ABCDEF0))


def draw(logits, key=KEY, step=0, block=0, scale=1.0, bias=None, copies=1):
    """``kernels.draw_rows`` for logits (N, D)."""
    n, d = logits.shape
    out = np.empty((n, copies * d), np.float32)
    bias = np.zeros(d, np.float32) if bias is None else bias.astype(np.float32)
    place, empty = (key, np.uint32(step), np.uint32(block)), np.empty(0, np.float32)
    kernels.draw_rows(logits.astype(np.float32), bias, np.float32(scale), *place, out, empty, empty)
    return out


def logit(p):
    return np.log(p) - np.log1p(-p)


# ----------------------------------------------------------------------------- Philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    """Random123's kat_vectors for philox4x32-10."""
    words = kernels._philox(*(np.uint32(word) for word in (*counter, *key)))
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_sixteen_bit_integers_are_uniform_and_never_repeat_in_order():
    """Chi-square over all 65,536 values, one-bit balance, and no block of four integers twice."""
    lanes, rows = 64, 8000
    bits = np.empty((rows, 8 * lanes), np.int32)
    for row in range(rows):
        kernels._random16(bits[row], row, lanes, np.uint32(3), np.uint32(5), *KEY)
    assert 0 <= bits.min() <= bits.max() < 65536
    values = bits.ravel()
    assert abs(chi_square_score(np.bincount(values, minlength=65536), np.full(65536, 1 / 65536))) < LIMIT
    for position in range(16):
        ones = ((values >> position) & 1).mean()
        assert abs(ones - 0.5) * 2 * np.sqrt(values.size) < LIMIT
    quads = values.astype(np.uint64).reshape(-1, 4) << np.array([0, 16, 32, 48], np.uint64)
    assert len(np.unique(quads.sum(1))) == len(quads)  # 1e6 of 2^64: a collision has probability 3e-8


# ----------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize(
    ("p", "draws"),
    [
        (1e-6, 2**27),
        (1e-4, 2**27),
        (0.01, 2**23),
        (0.3, 2**23),
        (0.5, 2**23),
        (0.9, 2**23),
        (1 - 1e-4, 2**27),
        (1 - 1e-6, 2**27),
    ],
)
def test_frequency_of_ones(p, draws):
    """Counts within 4.5 standard errors; at the extremes 16 bits without ties would be off by 7 or more.

    Near p = 1 the threshold has float32 resolution, 2^-24 of probability: 0.4 standard errors at 1 - 1e-6.
    """
    chunk = 2**23
    logits, generator = torch.full((chunk,), float(logit(p))), seeded(1)
    common = 0 if p < 0.5 else 1
    counts = [int((bernoulli(logits, generator) != common).sum()) for _ in range(draws // chunk)]
    q = min(p, 1 - p)
    score = (sum(counts) - draws * q) / np.sqrt(draws * q * (1 - q))
    assert abs(score) < LIMIT
    if q <= 1e-4:  # thresholds rounded to 16 bits, down or up, lie far outside
        for rounded in (np.floor(q * 65536), np.ceil(q * 65536)):
            assert abs(draws * (rounded / 65536 - q)) / np.sqrt(draws * q) > 7
    dispersion = sum((n - chunk * q) ** 2 for n in counts) / (chunk * q * (1 - q))
    df = len(counts)
    assert abs(((dispersion / df) ** (1 / 3) - (1 - 2 / (9 * df))) / np.sqrt(2 / (9 * df))) < LIMIT


@pytest.mark.parametrize("columns", [1, 7, 512])
def test_ties_are_settled_in_every_column(columns):
    """p = 2^-18: a one needs a tie, r = 0, and then one of four; each column has its own share."""
    draws, generator = 2**25, seeded(2)
    logits = torch.full((2**21 // columns, columns), float(logit(2.0**-18)))
    rounds = draws // logits.numel()
    counts = sum(bernoulli(logits, generator).sum(0).double().numpy() for _ in range(rounds))
    expected = rounds * len(logits) * 2.0**-18
    assert abs(counts.sum() - columns * expected) / np.sqrt(columns * expected) < LIMIT
    assert counts.max() < expected + LIMIT * np.sqrt(expected) + 8  # Poisson, and skewed where rare


def test_probability_of_each_logit_of_a_row():
    """Logits, biases and a scale differ by element; frequencies follow sigmoid(scale * a + bias)."""
    rng, n = np.random.default_rng(3), 40_000
    a, bias = rng.normal(0, 2, 37), rng.normal(0, 1, 37)
    p = 1 / (1 + np.exp(-(0.4 * a + bias)))
    counts = draw(np.tile(a, (n, 1)), scale=0.4, bias=bias).sum(0)
    assert np.abs((counts - n * p) / np.sqrt(n * p * (1 - p))).max() < LIMIT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_keep_their_probability(dtype):
    """sigmoid(-8) = 3.4e-4 is far below the spacing of uniforms in bfloat16; logits of -8 are exact."""
    n, p = 2**21, 1 / (1 + np.exp(8))
    bits = bernoulli(torch.full((n,), -8.0, dtype=dtype), seeded(4))
    assert bits.dtype == dtype
    assert abs(float(bits.double().sum()) - n * p) / np.sqrt(n * p) < LIMIT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_bits(dtype):
    logits = torch.tensor([-torch.inf, -300.0, 300.0, torch.inf], dtype=dtype).repeat(1000)
    assert torch.equal(bernoulli(logits, seeded(4)), (logits > 0).to(dtype))


def test_plain_path_has_the_same_distribution():
    logits = torch.linspace(-6, 6, 25, dtype=torch.float64).expand(40_000, 25)
    p = 1 / (1 + np.exp(-logits[0].numpy()))
    for a in (logits, logits.float()):
        bits = bernoulli(a, seeded(5))
        assert bits.dtype == a.dtype
        scores = (bits.double().mean(0).numpy() - p) / np.sqrt(p * (1 - p) / 40_000)
        assert np.abs(scores).max() < LIMIT


# ----------------------------------------------------------------------------- independence


def test_serial_correlation():
    bits = bernoulli(torch.zeros(2**22), seeded(6)).numpy()
    for lag in [*range(1, 18), 64, 128, 256, 511, 512, 513, 1024, 128 * 1024, 256 * 1024]:
        assert abs(correlation_score(bits[lag:], bits[:-lag])) < LIMIT


def test_runs_of_sixteen_bits_are_uniform():
    bits = bernoulli(torch.zeros(2**24), seeded(7)).numpy().astype(np.int64).reshape(-1, 16)
    counts = np.bincount(bits @ 2 ** np.arange(16), minlength=65536)
    assert abs(chi_square_score(counts, np.full(65536, 1 / 65536))) < LIMIT


@pytest.mark.parametrize("width", [64, 100, 200, 512])
def test_rows_are_uncorrelated(width):
    """Every pair of 1,000 rows, and of columns; 500,000 pairs, so 6.5 standard errors."""
    signs = 2 * draw(np.zeros((1000, width)), block=9) - 1
    rows = signs @ signs.T / np.sqrt(width)
    np.fill_diagonal(rows, 0)
    assert np.square(rows).mean() == pytest.approx(1, abs=0.02)
    assert np.abs(rows).max() < 6.5  # equal or opposite rows reach sqrt(width)
    columns = signs.T @ signs / np.sqrt(1000)
    np.fill_diagonal(columns, 0)
    assert np.abs(columns).max() < 6.5


@pytest.mark.parametrize(
    "other",
    [
        {"key": (KEY[0] ^ np.uint32(1), KEY[1])},
        {"key": (KEY[0], KEY[1] ^ np.uint32(1))},
        {"key": (KEY[1], KEY[0])},
        {"step": 1},
        {"block": 1},
    ],
    ids=["low key", "high key", "keys swapped", "step", "block"],
)
def test_streams_are_uncorrelated(other):
    logits = np.zeros((1000, 512))
    x, y = draw(logits), draw(logits, **other)
    assert abs(correlation_score(x, y)) < LIMIT
    for shift in (1, 128, 512, 64 * 512):
        assert abs(correlation_score(x.ravel()[shift:], y.ravel()[:-shift])) < LIMIT


def test_blocks_of_one_call_are_uncorrelated():
    """A call over several blocks of rows and a tail."""
    bits = bernoulli(torch.zeros(4 * 128 * 1024 + 511), seeded(8)).numpy()
    blocks = bits[: 4 * 128 * 1024].reshape(4, -1)
    for i in range(4):
        for j in range(i):
            assert abs(correlation_score(blocks[i], blocks[j])) < LIMIT
        assert abs(correlation_score(blocks[i, :511], bits[-511:])) < LIMIT


def test_copies_repeat_the_row():
    logits = np.random.default_rng(9).normal(size=(50, 37))
    assert np.array_equal(draw(logits, copies=2), np.tile(draw(logits), (1, 2)))


# ----------------------------------------------------------------------------- the stream


@pytest.mark.parametrize("size", SIZES)
def test_stream_depends_on_the_generator_and_not_on_threads(with_threads, size):
    logits = torch.zeros(size)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        results.append(bernoulli(logits, seeded(10)))
    assert torch.equal(*results)
    assert results[0].shape == (size,)
    assert set(results[0].tolist()) <= {0.0, 1.0}
    if size > 100:
        assert abs(results[0].mean() - 0.5) * 2 * size**0.5 < LIMIT
        assert not torch.equal(results[0], bernoulli(logits, seeded(11)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_generator_state_determines_the_stream_and_advances(dtype):
    generator, logits = seeded(12), torch.zeros(1000, dtype=dtype)
    bernoulli(logits, generator)
    state = generator.get_state()
    first, second = bernoulli(logits, generator), bernoulli(logits, generator)
    assert abs(correlation_score(first, second)) < LIMIT
    generator.set_state(state)
    assert torch.equal(bernoulli(logits, generator), first)
    assert torch.equal(bernoulli(logits, generator), second)


def test_default_generator():
    torch.manual_seed(3)
    first = bernoulli(torch.zeros(1000))
    assert not torch.equal(first, bernoulli(torch.zeros(1000)))
    torch.manual_seed(3)
    assert torch.equal(first, bernoulli(torch.zeros(1000)))


def test_keys_use_all_64_bits():
    generator = seeded(13)
    keys = np.array([draw_key(generator) for _ in range(4000)])
    assert keys.dtype == np.uint32
    ones = np.unpackbits(keys.view(np.uint8), axis=1).mean(0)
    assert np.abs(ones - 0.5).max() * 2 * np.sqrt(4000) < LIMIT
    assert len(np.unique(keys, axis=0)) == 4000


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (7, 11), (2, 3, 5), (1, 512), (513, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_is_kept(shape, dtype):
    bits = bernoulli(torch.full(shape, 100.0, dtype=dtype), seeded(14))
    assert bits.shape == shape
    assert bits.dtype == dtype
    assert torch.equal(bits, torch.ones(shape, dtype=dtype))


def test_layout_does_not_matter():
    logits = torch.randn(700, 33, generator=seeded(15))
    expected = bernoulli(logits, seeded(16))
    assert torch.equal(bernoulli(logits.T.contiguous().T, seeded(16)), expected)
    row = logits[:1]
    assert torch.equal(bernoulli(row.expand(50, 33), seeded(16)), bernoulli(row.repeat(50, 1), seeded(16)))


def test_logits_that_require_grad_are_drawn_by_the_same_stream():
    logits = torch.randn(1000, generator=seeded(17))
    bits = bernoulli(logits.clone().requires_grad_(), seeded(18))
    assert not bits.requires_grad
    assert torch.equal(bits, bernoulli(logits, seeded(18)))


def test_map_blocks_keeps_order_and_raises(with_threads):
    def fail(block):
        raise RuntimeError(f"of block {block}")

    for threads in (1, 2):
        with_threads(threads)
        assert list(map_blocks(lambda block: block**2, range(7))) == [0, 1, 4, 9, 16, 25, 36]
        assert list(map_blocks(lambda block: block**2, range(0))) == []
        with pytest.raises(RuntimeError, match="of block"):
            map_blocks(fail, range(3))


# ----------------------------------------------------------------------------- sums

# A float32 term is off by less than 2 units in its last place, and a vectorized sum of up to a few
# thousand terms of one sign by less than 1e-6 of itself.
SUM = {"rtol": 2e-6, "atol": 1e-6}


def softplus64(a):
    return np.logaddexp(0, np.asarray(a, dtype=np.float64))


@pytest.mark.parametrize("shape", [(1,), (3, 1), (5, 17), (2, 3, 4), (1000, 200), (3, 5000), (0, 4)])
def test_softplus_sum(shape):
    a = 8 * torch.randn(shape, generator=seeded(19))
    got = softplus_sum(a)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, softplus64(a).sum(-1), **SUM)


def test_softplus_is_accurate_at_every_magnitude():
    """Terms alone, so that small values are not hidden: relative error below 1e-6, from e^-80 to 200."""
    a = torch.cat([torch.linspace(-80, 80, 20_001), torch.tensor([0.0, -1e-7, 1e-7, 200.0])])
    np.testing.assert_allclose(softplus_sum(a[:, None]), softplus64(a), rtol=1e-6)
    assert float(softplus_sum(torch.tensor([-200.0]))) < 1e-30
    assert float(softplus_sum(torch.tensor([-torch.inf]))) < 1e-30
    assert float(softplus_sum(torch.tensor([torch.inf]))) == torch.inf


def test_softplus_sum_of_a_layout():
    a = torch.randn(40, 30, generator=seeded(20))
    assert torch.equal(softplus_sum(a.T), softplus_sum(a.T.contiguous()))


def reweigh(a, bias, to, difference, copies=1, key=KEY, step=0, block=0):
    """Bits and log-weights (from 7) by ``kernels.anneal_rows``."""
    n, d = a.shape
    out, log_w = np.empty((n, copies * d), np.float32), np.full(n, 7.0)
    step, block = np.uint32(step), np.uint32(block)
    to, since, difference = np.float32(to), np.float32(to - difference), np.float32(difference)
    kernels.anneal_rows(a, bias, to, since, difference, key, step, block, out, log_w)
    return out, log_w


@pytest.mark.parametrize("difference", [1e-5, -1e-5, 1e-3, -1e-3, 3e-3, 0.02, -0.02, 0.4, -0.4])
def test_increments_are_accurate_whatever_their_size(difference):
    """Small steps by the series, large ones by two softplus, rows with both; none off by the size of the sums."""
    rng = np.random.default_rng(22)
    a, bias = rng.normal(0, 6, (50, 1000)).astype(np.float32), rng.normal(0, 3, 1000).astype(np.float32)
    to = np.float32(0.5)
    difference = np.float64(to) - np.float64(np.float32(to - difference))  # so that both ends are float32
    _, log_w = reweigh(a, bias, to, difference)
    x = (a + bias).astype(np.float64)
    terms = softplus64(np.float64(to) * x) - softplus64((np.float64(to) - np.float64(difference)) * x)
    # 4e-7 of each term (the exponential's error, and the series'), which may all have one sign; where two
    # softplus are subtracted, half a unit in the last place of values up to 15, as a random walk
    largest = 4e-7 * np.abs(terms).sum(1)
    if np.abs(difference * x).max() > 1 / 16:
        largest += LIMIT * np.sqrt(1000) * 2**-21
    assert (np.abs(log_w - 7 - terms.sum(1)) < largest).all()
    assert np.abs(log_w - 7).min() > 100 * largest.max()


def test_annealed_bits_are_those_of_the_scaled_logits():
    """Same stream, same thresholds as drawing from ``to * (a + bias)``, but for rounding at a threshold."""
    rng = np.random.default_rng(23)
    a, bias = rng.normal(0, 4, (300, 700)).astype(np.float32), rng.normal(0, 2, 700).astype(np.float32)
    for to in (0.0, 0.3, 1.0):
        bits, _ = reweigh(a, bias, to, 1e-3, copies=2, step=5, block=6)
        expected = draw(a, step=5, block=6, scale=to, bias=to * bias, copies=2)
        assert np.isin(bits, (0, 1)).all()
        assert (bits != expected).mean() < 1e-6
        assert np.array_equal(bits[:, :700], bits[:, 700:])


@pytest.mark.parametrize("p", [1e-6, 1e-4, 1 - 1e-4, 1 - 1e-6])
def test_frequency_of_annealed_ones_where_one_value_is_rare(p):
    """Ties decide here; counts within 4.5 standard errors, and thresholds of 16 bits would be off by 7."""
    a, bias, count = np.full((2**14, 512), 2 * logit(p), np.float32), np.zeros(512, np.float32), 0
    for block in range(16):
        bits, _ = reweigh(a, bias, 0.5, 1e-3, block=block)
        count += int((bits != (p > 0.5)).sum())
    q, draws = min(p, 1 - p), 16 * a.size
    assert abs(count - draws * q) / np.sqrt(draws * q) < LIMIT
    assert draws * abs(q - np.floor(q * 65536) / 65536) / np.sqrt(draws * q) > 7


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (3, 4, 5), (50, 20, 784), (2, 1, 9), (1, 0, 9)])
def test_bernoulli_log_prob(shape):
    logits = 4 * torch.randn(shape, generator=seeded(23))
    x = bernoulli(torch.zeros(shape[-2:]), seeded(24))
    a, bits = logits.double().numpy(), x.double().numpy()
    expected = np.where(bits == 1, -softplus64(-a), -softplus64(a)).sum(-1)
    got = bernoulli_log_prob(x, logits)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(bernoulli_log_prob(x.double(), logits.double()), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_log_prob_at_extreme_logits(dtype):
    a = torch.tensor([[200.0], [200.0], [-200.0], [-200.0]], dtype=dtype)
    x = torch.tensor([[1.0], [0.0], [1.0], [0.0]], dtype=dtype)
    np.testing.assert_allclose(bernoulli_log_prob(x, a), [0, -200, -200, 0], atol=1e-30)
    np.testing.assert_allclose(softplus_sum(a), [200, 200, 0, 0], atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_the_sums(dtype):
    """d/da is sigmoid(a), and x - sigmoid(a); values agree with those without gradient."""
    a = (3 * torch.randn(4, 6, 9, generator=seeded(25))).to(dtype).requires_grad_()
    x = bernoulli(torch.zeros(6, 9), seeded(26)).to(dtype)
    sigmoid = 1 / (1 + np.exp(-a.detach().double().numpy()))

    total = softplus_sum(a)
    np.testing.assert_allclose(total.detach(), softplus_sum(a.detach()), rtol=2e-6)
    g = torch.randn(4, 6, generator=seeded(27), dtype=dtype)  # another factor for each row
    (gradient,) = torch.autograd.grad((g * total).sum(), a)
    np.testing.assert_allclose(gradient, g.double().numpy()[..., None] * sigmoid, rtol=1e-5)

    log_p = bernoulli_log_prob(x, a)
    np.testing.assert_allclose(log_p.detach(), bernoulli_log_prob(x, a.detach()), rtol=1e-5)
    (gradient,) = torch.autograd.grad((g * log_p).sum(), a)
    expected = g.double().numpy()[..., None] * (x.double().numpy() - sigmoid)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", ["softplus_sum", "bernoulli_log_prob", "elu"])
def test_gradients_can_be_differentiated_again(function):
    """A penalty on the gradient, against the same in float64 by plain operations."""
    x = bernoulli(torch.zeros(6, 9), seeded(26))
    results = []
    for dtype in (torch.float64, torch.bfloat16 if function == "elu" else torch.float32):
        a = (2 * torch.randn(6, 9, generator=seeded(25))).bfloat16().to(dtype).requires_grad_()
        y = {"softplus_sum": softplus_sum, "elu": elu}.get(function, lambda a: bernoulli_log_prob(x.to(a), a))(a)
        (slope,) = torch.autograd.grad(y.sum(), a, create_graph=True)
        (again,) = torch.autograd.grad(slope.square().sum(), a)
        results.append(again.double())
    assert results[0].abs().max() > 0.1
    torch.testing.assert_close(*results, rtol=0, atol=0.03 if function == "elu" else 1e-5)


def test_a_mixtures_gradient_cannot_be_differentiated_again_and_says_so():
    parameters = torch.randn(2, 10, 2, 2, generator=seeded(1), requires_grad=True)
    (slope,) = torch.autograd.grad(LogisticMixture(parameters).log_prob(torch.zeros(2, 12)).sum(), parameters)
    assert slope.abs().max() > 0
    with pytest.raises(NotImplementedError, match="take parameters in float64"):
        torch.autograd.grad(
            LogisticMixture(parameters).log_prob(torch.zeros(2, 12)).sum(), parameters, create_graph=True
        )


def test_sums_do_not_depend_on_threads(with_threads):
    a = torch.randn(3000, 300, generator=seeded(27))
    x = bernoulli(torch.zeros(1000, 300), seeded(28))
    results = []
    for threads in (1, 2):
        with_threads(threads)
        results.append((softplus_sum(a), bernoulli_log_prob(x, a.view(3, 1000, 300))))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_what_is_fused():
    a = torch.zeros(3)
    assert is_on_cpu(a, a)
    assert not is_on_cpu(a.double())
    assert not is_on_cpu(a, a.bfloat16())
    assert not is_on_cpu(torch.zeros(3, device="meta"))


def test_a_gradient_to_the_data_is_the_logits():
    x = torch.rand(2, 3, requires_grad=True)
    a = torch.randn(2, 3, generator=seeded(29))
    (gradient,) = torch.autograd.grad(bernoulli_log_prob(x, a).sum(), x)
    assert torch.equal(gradient, a)


@pytest.mark.parametrize(
    ("x_shape", "logits_shape"),
    [
        ((1, 2), (1, 200)),
        ((3, 5), (4, 5)),
        ((2, 2), (2, 1, 2)),
    ],
)
def test_bernoulli_log_prob_refuses_shapes_that_do_not_fit(x_shape, logits_shape):
    with pytest.raises((ValueError, RuntimeError)):
        bernoulli_log_prob(torch.zeros(x_shape), torch.zeros(logits_shape))


def test_threads_work_in_a_forked_process(with_threads):
    with_threads(2)
    a = torch.randn(3000, 300, generator=seeded(30))
    expected = softplus_sum(a)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = int(not torch.equal(softplus_sum(a), expected))
        finally:
            os._exit(status)
    for _ in range(1200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done
    assert os.waitstatus_to_exitcode(status) == 0


def test_blocks_within_blocks_do_not_wait_for_each_other(with_threads):
    with_threads(2)
    inner = list(map_blocks(lambda block: list(map_blocks(lambda i: (block, i), range(3))), range(4)))
    assert inner == [[(block, i) for i in range(3)] for block in range(4)]
    assert list(map_blocks(lambda block: torch.get_num_threads(), range(4))) == [1] * 4
    assert torch.get_num_threads() == 2


# ----------------------------------------------------------------------------- ELU in bfloat16


def every_bfloat16():
    """All finite numbers of the type, in float64."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    return values[values.isfinite()]


def test_elu_of_every_bfloat16_is_within_rounding():
    x = every_bfloat16()
    exact = torch.where(x > 0, x.double(), x.double().expm1())
    error = (elu(x).double() - exact).abs() / exact.abs().clamp(min=1e-30)
    assert float(error.max()) <= 2**-8  # half a unit in the last of 8 bits


@pytest.mark.parametrize("number", [1, 0.5, -0.5, -3.0])
def test_slope_of_elu_for_every_bfloat16(number):
    x = every_bfloat16()
    x = x[x.abs() > 1e-30].requires_grad_()
    (slope,) = torch.autograd.grad(elu(x), x, torch.full_like(x, number))
    exact = number * x.detach().double().clamp(max=0).exp()
    # the gradient goes by the rounded value, and is rounded itself
    assert float((slope.double() - exact).abs().max()) < abs(number) * 2**-7


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(0,), (7,), (3, 5), (2, 3, 4, 5), (300, 1000)])
def test_elu_in_any_layout(shape, threads, with_threads):
    with_threads(threads)
    x = torch.randn(shape, generator=seeded(31)).bfloat16()
    layouts = [x, x.transpose(0, -1)]
    if x.dim() == 4:
        layouts += [x.contiguous(memory_format=torch.channels_last), x[:, :, ::2]]
    for layout in layouts:
        own = layout.detach().requires_grad_()
        y = elu(own)
        g = torch.randn(y.shape, generator=seeded(32)).bfloat16()
        (slope,) = torch.autograd.grad(y, own, g)
        torch.testing.assert_close(y.detach(), torch.nn.functional.elu(own.detach().float()).bfloat16())
        by_hand = g.double() * own.detach().double().clamp(max=0).exp()
        torch.testing.assert_close(slope.double(), by_hand, rtol=0.02, atol=0.02)


def test_elu_keeps_what_is_not_a_number():
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0], dtype=torch.bfloat16, requires_grad=True)
    y = elu(x)
    assert y[0].isnan()
    assert y[1:].tolist() == [float("inf"), -1.0, 1.0]
    (slope,) = torch.autograd.grad(y, x, torch.tensor([1.0, 1.0, 1.0, float("nan")], dtype=torch.bfloat16))
    assert slope.isnan().tolist() == [True, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elu_of_other_types_is_pytorchs(dtype):
    x = torch.randn(50, generator=seeded(33), dtype=dtype)
    assert torch.equal(elu(x), torch.nn.functional.elu(x))
