r"""Fused CPU loops: random bits, Bernoulli draws, row sums of softplus, ELU, and mixtures of logistics.

Everything the samplers do besides matrix products is element-wise, and on a CPU those passes
cost more than the products unless they are fused. The loops here are compiled by numba, release
the interpreter lock, and run on one thread each; :mod:`latentbits.gibbs` hands them blocks of rows
that stay in cache.

**Random bits.** A draw is a function of a 64-bit key and of its position (element, step, block), by
Philox4x32-10 (Salmon et al. 2011), so a stream does not depend on the number of threads. One call of
the generator gives eight 16-bit integers :math:`r`. With :math:`t = 2^{16} p`, a draw is 1 if
:math:`r < \lfloor t \rfloor`, 0 if :math:`r > \lfloor t \rfloor`, and on a tie (one draw in 65,536)
1 with probability :math:`t - \lfloor t \rfloor`, decided by 32 more bits. The probability of a one is
therefore :math:`p` to float32 resolution, not to 16 bits.

All arrays are C-contiguous float32 unless said otherwise; ``key`` is a pair of uint32.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_f32 = np.float32
_i32 = np.int32
_u32 = np.uint32
_u64 = np.uint64

# Philox4x32 multipliers and key increments (Salmon et al. 2011, table 2).
_PHILOX_M0, _PHILOX_M1 = _u64(0xD2511F53), _u64(0xCD9E8D57)
_PHILOX_W0, _PHILOX_W1 = _u32(0x9E3779B9), _u32(0xBB67AE85)
_LOW16, _SHIFT16, _SHIFT32 = _u32(0xFFFF), _u32(16), _u64(32)

# exp by 2^n times a Taylor polynomial on [-ln2/2, ln2/2]; ln 2 in two parts keeps the reduction exact.
_LOG2_E = _f32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = _f32(0.693359375), _f32(-2.12194440e-4)
_E2, _E3, _E4, _E5, _E6 = (_f32(1 / math.factorial(n)) for n in (2, 3, 4, 5, 6))
_ZERO, _HALF, _ONE, _LIMIT = _f32(0), _f32(0.5), _f32(1), _f32(80)
_SMALL, _TINY = _f32(1 / 256), _f32(1e-18)

# log(1 + e) = 2 atanh(e / (2 + e)), odd series in s = e / (2 + e) <= 1/3; s^15 / 15 < 5e-9.
_A1, _A3, _A5, _A7, _A9, _A11, _A13 = (_f32(2 / n) for n in (1, 3, 5, 7, 9, 11, 13))

_LANES = 16
_STEPS = _f32(65536)
# The quadratic of least relative error for 1 / w on [1, 2], 1/99; two Newton steps square it twice.
_R0, _R1, _R2 = _f32(70 / 33), _f32(-16 / 11), _f32(32 / 99)
_SIXTH, _QUARTER, _SIX = _f32(1 / 6), _f32(0.25), _f32(6)
_LARGEST_IN_SERIES = _f32(1 / 16)  # the first term left out is 1.3e-7 of the increment there, at most
# What lets the loops vectorize. Not "reassoc", which would undo the two-part reduction in _exp.
# numba inlines "always" functions into the caller's flags, so only the loops carry them.
_FAST = {"contract", "nsz", "nnan"}
_KEEPS_NAN = {"contract", "nsz"}  # where a broken network has to show


@intrinsic
def _bits_to_float(typingctx, bits):
    """Reinterpret an int32 as float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def _float_to_bits(typingctx, x):
    """Reinterpret a float32 as int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def _wide_vectors(typingctx: Any) -> Any:
    """Let the calling function have 512-bit vectors; LLVM's 256, a choice for older processors, cost a third more."""

    def codegen(context, builder, signature, args):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own add knows few names
        return context.get_dummy_value()

    return types.none(), codegen


@njit(inline="always")
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: counter (c0, c1, c2, c3), key (k0, k1) -> four uint32."""
    for _ in range(10):
        p0 = _PHILOX_M0 * _u64(c0)
        p1 = _PHILOX_M1 * _u64(c2)
        c0, c1, c2, c3 = (
            _u32(p1 >> _SHIFT32) ^ c1 ^ k0,
            _u32(p1),
            _u32(p0 >> _SHIFT32) ^ c3 ^ k1,
            _u32(p0),
        )
        k0 = _u32(k0 + _PHILOX_W0)
        k1 = _u32(k1 + _PHILOX_W1)
    return c0, c1, c2, c3


@njit(inline="always")
def _exp(x):
    """exp(x) for |x| <= 80, relative error below 3e-7."""
    n = np.floor(x * _LOG2_E + _HALF)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = ((((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r * r + r + _ONE
    return p * _bits_to_float((_i32(n) + _i32(127)) << _i32(23))


@njit(inline="always")
def _softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""
    e = _exp(-min(abs(x), _LIMIT))
    s = e / (_ONE + _ONE + e)
    s2 = max(s, _TINY) ** 2  # a square that underflows takes ten times as long
    series = (((((_A13 * s2 + _A11) * s2 + _A9) * s2 + _A7) * s2 + _A5) * s2 + _A3) * s2 + _A1
    return max(x, _ZERO) + s * series


@njit(nogil=True)
def _random16(bits, row, lanes, step, block, key0, key1):
    """Fill ``bits[:8 * lanes]`` with the 16-bit integers of one row."""
    _wide_vectors()
    first = _u32(row * lanes)
    for lane in range(lanes):
        w0, w1, w2, w3 = _philox(first + _u32(lane), step, block, _u32(0), key0, key1)
        bits[lane] = _i32(w0 & _LOW16)
        bits[lanes + lane] = _i32(w0 >> _SHIFT16)
        bits[2 * lanes + lane] = _i32(w1 & _LOW16)
        bits[3 * lanes + lane] = _i32(w1 >> _SHIFT16)
        bits[4 * lanes + lane] = _i32(w2 & _LOW16)
        bits[5 * lanes + lane] = _i32(w2 >> _SHIFT16)
        bits[6 * lanes + lane] = _i32(w3 & _LOW16)
        bits[7 * lanes + lane] = _i32(w3 >> _SHIFT16)


@njit(inline="always")
def _reciprocal(w):
    """1 / w for w in [1, 2], by two Newton steps: a division takes as long as all the rest of a draw."""
    y = (_R2 * w + _R1) * w + _R0
    y = y * (_ONE + (_ONE - w * y))
    return y * (_ONE + (_ONE - w * y))


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _draw_span(a, bias, scale, bits, out):
    """Draw one span of a row; returns whether any draw was a tie.

    With w = 1 + exp(-x), r < floor(65536 / w) is (r + 1) w <= 65536, which needs no division.
    """
    _wide_vectors()
    tie = _i32(0)
    for j in range(a.size):
        x = min(max(a[j] * scale + bias[j], -_LIMIT), _LIMIT)
        w = _ONE + _exp(-x)
        low = _f32(bits[j]) * w
        high = low + w
        out[j] = _ONE if high <= _STEPS else _ZERO
        tie = _i32(tie | _i32((low <= _STEPS) & (high > _STEPS)))  # int64, numba's choice, would halve the lanes
    return tie


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _anneal_span(a, bias, to, difference, bits, out, terms):
    """Draw one span of a row at inverse temperature ``to``, and put its increments of log f in ``terms``.

    The sigmoid and the increment share their exponential. With y = to x, d = difference x and p = sigmoid(y),
    softplus(y) - softplus(y - d) is the series d p - d^2 / 2 p(1-p) + ..., to d^4.

    Returns:
        1 if any draw was a tie, and 2 more if any d is too large for the series.
    """
    _wide_vectors()
    flags = _i32(0)
    for j in range(a.size):
        x = a[j] + bias[j]
        y, d = x * to, x * difference
        e = _exp(-min(abs(y), _LIMIT))
        r = _reciprocal(_ONE + e)
        q = e * r * r  # p (1 - p)
        p = r if y >= _ZERO else e * r
        third = d * _SIXTH * (_ONE - p - p - d * _QUARTER * (_ONE - _SIX * q))
        terms[j] = d * (p - d * q * (_HALF - third))
        threshold, bit = _STEPS * p, _f32(bits[j])
        out[j] = _ONE if bit + _ONE <= threshold else _ZERO
        flags = _i32(flags | _i32((bit <= threshold) & (bit + _ONE > threshold)))
        flags = _i32(flags | (_i32(abs(d) > _LARGEST_IN_SERIES) << _i32(1)))
    return flags


@njit(nogil=True, error_model="numpy")
def _settle_ties(a, bias, scale, bits, out, row, step, block, key0, key1):
    """Decide the draws whose 16 bits equal the threshold's integer part, by 32 more bits each."""
    for j in range(a.size):
        x = min(max(np.float64(a[j] * scale + bias[j]), -80.0), 80.0)
        t = 65536 / (1 + math.exp(-x))
        if abs(t - np.float64(bits[j]) - 0.5) < 0.52:  # a little wider than a tie, for the rounding of the other loop
            w0, _, _, _ = _philox(_u32(row), step, block, _u32(1 + j), key0, key1)
            out[j] = _ONE if np.float64(w0) < (t - np.float64(bits[j])) * 4294967296.0 else _ZERO


@njit(nogil=True, fastmath=_FAST)
def _fold(total, rest):
    """Add ``rest`` and set it to zero, so that folding again changes nothing."""
    _wide_vectors()
    for j in range(total.size):
        total[j] += rest[j]
        rest[j] = _ZERO


@njit(nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _dot(x, y):
    _wide_vectors()
    total = _ZERO
    for j in range(x.size):
        total += x[j] * y[j]
    return total


@njit(nogil=True)
def _copy(values, to):
    _wide_vectors()
    for j in range(values.size):
        to[j] = values[j]


@njit(nogil=True, cache=True, error_model="numpy")
def draw_rows(a, bias, scale, key, step, block, out, slope, score):
    r"""Draw ``out[i, j]`` ~ Bernoulli(sigmoid(scale * a[i, j] + bias[j])).

    Arguments:
        a: Logits before scale and bias, with shape (N, D); or the two terms of them side by side, with shape
            (N, 2 D), which are then added up in the first.
        bias: Added to each row, with shape (D,).
        scale: A float32.
        key: Two uint32.
        step: Position in the stream, a uint32.
        block: Position in the stream, a uint32.
        out: Bits as 0.0 or 1.0, with shape (N, D); or each row twice, side by side, with shape (N, 2 D).
        slope: Whose product with each row is wanted while the row is at hand, with shape (D,); or empty.
        score: These products, with shape (N,); or empty.
    """
    n, d = a.shape[0], bias.size
    lanes = (d + 8 * _LANES - 1) // (8 * _LANES) * _LANES
    bits = np.empty(8 * lanes, _i32)
    for i in range(n):
        _random16(bits, i, lanes, step, block, key[0], key[1])
        logits, row = a[i, :d], out[i, :d]
        if a.shape[1] > d:
            _fold(logits, a[i, d:])
        if _draw_span(logits, bias, scale, bits, row):
            _settle_ties(logits, bias, scale, bits, row, i, step, block, key[0], key[1])
        if slope.size:
            score[i] = _dot(row, slope)
        if out.shape[1] > d:
            _copy(row, out[i, d:])


@njit(nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _sum(values):
    _wide_vectors()
    total = _ZERO
    for j in range(values.size):
        total += values[j]
    return np.float64(total)


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _softplus_row(a, terms):
    _wide_vectors()
    for j in range(a.size):
        terms[j] = _softplus(a[j])


@njit(nogil=True, cache=True, error_model="numpy")
def softplus_sum(a, out):
    """``out[i] = sum_j softplus(a[i, j])``; a (N, D), out (N,) float64."""
    _wide_vectors()
    terms = np.empty(a.shape[1], _f32)
    for i in range(a.shape[0]):
        _softplus_row(a[i], terms)
        out[i] = _sum(terms)


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _softplus_difference_row(a, bias, to, since, terms):
    _wide_vectors()
    for j in range(a.size):
        x = a[j] + bias[j]
        terms[j] = _softplus(to * x) - _softplus(since * x)


@njit(nogil=True, cache=True, error_model="numpy")
def anneal_rows(a, bias, to, since, difference, key, step, block, out, log_w):
    r"""Reweigh chains to inverse temperature ``to`` and draw their hidden bits there, in one pass.

    ``log_w[i] += sum_j softplus(to * x[i, j]) - softplus(since * x[i, j])`` and ``out[i, j]`` ~
    Bernoulli(sigmoid(to * x[i, j])) with x = a + bias. The difference is taken for each element before the sum, so the
    rounding error is relative to the small increment and not to the two large sums. Small increments go by
    ``difference``, in which nothing has cancelled; large ones by ``since``, the step before's ``to``, for steps whose
    ends are rounded alike add up to the whole way.

    Arguments:
        a: Hidden logits without bias, with shape (N, D) or (N, 2 D), as in :func:`draw_rows`.
        bias: With shape (D,).
        to: A float32.
        since: The inverse temperature that the chains are weighed for, a float32.
        difference: The first minus the second, rounded by itself, a float32 of either sign.
        key: Two uint32.
        step: Position in the stream, a uint32.
        block: Position in the stream, a uint32.
        out: Bits, with shape (N, D) or (N, 2 D), as in :func:`draw_rows`.
        log_w: Log-weights, float64, with shape (N,).
    """
    _wide_vectors()
    n, d = a.shape[0], bias.size
    lanes = (d + 8 * _LANES - 1) // (8 * _LANES) * _LANES
    bits, terms, scaled = np.empty(8 * lanes, _i32), np.empty(d, _f32), bias * to
    for i in range(n):
        _random16(bits, i, lanes, step, block, key[0], key[1])
        logits, row = a[i, :d], out[i, :d]
        if a.shape[1] > d:
            _fold(logits, a[i, d:])
        flags = _anneal_span(logits, bias, to, difference, bits, row, terms)
        if flags & 1:
            _settle_ties(logits, scaled, to, bits, row, i, step, block, key[0], key[1])
        if flags & 2:
            _softplus_difference_row(logits, bias, to, since, terms)
        log_w[i] += _sum(terms)
        if out.shape[1] > d:
            _copy(row, out[i, d:])


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _bernoulli_row(x, a, terms):
    _wide_vectors()
    for j in range(a.size):
        terms[j] = x[j] * a[j] - _softplus(a[j])


@njit(nogil=True, cache=True, error_model="numpy")
def bernoulli_log_prob(x, a, first, out):
    r"""``out[i] = sum_d x[(first + i) % B, d] * a[i, d] - softplus(a[i, d])``, in nats.

    Row ``i`` of the logits belongs to datum ``(first + i) % B``: that is (K, B, D) logits, flattened.

    Arguments:
        x: Data in {0, 1}, with shape (B, D).
        a: Logits, with shape (N, D).
        first: Position of the first row in the flattened (K, B) layout.
        out: Log-probabilities, with shape (N,), float64.
    """
    _wide_vectors()
    terms = np.empty(a.shape[1], _f32)
    for i in range(a.shape[0]):
        _bernoulli_row(x[(first + i) % x.shape[0]], a[i], terms)
        out[i] = _sum(terms)


@njit(inline="always")
def _sigmoid(x):
    return _ONE / (_ONE + _exp(-min(max(x, -_LIMIT), _LIMIT)))


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _sigmoid_row(a, g, out):
    _wide_vectors()
    for j in range(a.size):
        out[j] = g * _sigmoid(a[j])


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _residual_row(x, a, g, out):
    _wide_vectors()
    for j in range(a.size):
        out[j] = g * (x[j] - _sigmoid(a[j]))


@njit(nogil=True, cache=True, error_model="numpy")
def softplus_sum_gradient(a, g, out):
    """``out[i, j] = g[i] * sigmoid(a[i, j])``; a (N, D), g (N,), out (N, D)."""
    _wide_vectors()
    for i in range(a.shape[0]):
        _sigmoid_row(a[i], g[i], out[i])


@njit(nogil=True, cache=True, error_model="numpy")
def bernoulli_log_prob_gradient(x, a, first, g, out):
    """``out[i, d] = g[i] * (x[(first + i) % B, d] - sigmoid(a[i, d]))``; x (B, D), a (N, D), g (N,), out (N, D)."""
    _wide_vectors()
    for i in range(a.shape[0]):
        _residual_row(x[(first + i) % x.shape[0]], a[i], g[i], out[i])


@njit(inline="always")
def _from_bfloat16(bits):
    """A bfloat16, held in an int16, as float32: it is the upper half."""
    return _bits_to_float(_i32(bits) << _i32(16))


@njit(inline="always")
def _to_bfloat16(x):
    """A finite float32 as bfloat16, held in an int16, rounded to nearest, ties to even."""
    bits: Any = _float_to_bits(x)
    odd = (bits >> _i32(16)) & _i32(1)
    return np.int16((bits + _i32(0x7FFF) + odd) >> _i32(16))


@njit(nogil=True, cache=True, fastmath=_KEEPS_NAN, error_model="numpy")
def elu(x, out):
    """``out = x`` where x > 0, else exp(x) - 1; x and out (N,), bfloat16 held in int16."""
    _wide_vectors()
    for i in range(x.size):
        value = _from_bfloat16(x[i])
        below = _exp(-_LIMIT if value < -_LIMIT else value) - _ONE
        if value > -_SMALL:  # where the difference would lose its digits
            below = value * (_ONE + _HALF * value)
        out[i] = _to_bfloat16(value if value > _ZERO else below)


@njit(nogil=True, cache=True, fastmath=_KEEPS_NAN, error_model="numpy")
def elu_gradient(y, g, out):
    """``out = g`` where y > 0, else g (y + 1), with y the function's value; all (N,), bfloat16 held in int16."""
    _wide_vectors()
    for i in range(y.size):
        value, slope = _from_bfloat16(y[i]), _from_bfloat16(g[i])
        out[i] = _to_bfloat16(slope if value > _ZERO else slope * (value + _ONE))


# log(2 / 255), of which the width of a level is made
_LOG_LEVEL = _f32(math.log(2 / 255))
_LEVEL = _f32(1 / 127.5)
LEAST_LOG_SCALE, MOST_LOG_SCALE = _f32(-7), _f32(7)  # beyond them a logistic is one level, or as good as flat
_THIRD_SHARE, _FOURTH_SHARE = _f32(1 / 6), _f32(1 / 24)
_PIXELS_AT_ONCE, _NO_SHARE = 128, _f32(60)
_SQRT_HALF_BITS = _i32(0x3F3504F3)
_EDGE, _TWO, _TANH_LIMIT = _f32(0.999), _f32(2), _f32(20)


@njit(inline="always")
def _log(w):
    """log(w) for normal w > 0, relative error of w below 1e-7; NaN of NaN."""
    bits: Any = _float_to_bits(w)
    k = (bits - _SQRT_HALF_BITS) >> _i32(23)
    m = _bits_to_float(bits - (k << _i32(23)))  # between sqrt(1/2) and sqrt(2)
    s = (m - _ONE) / (m + _ONE)
    s2 = s * s
    series = (((_A9 * s2 + _A7) * s2 + _A5) * s2 + _A3) * s2 + _A1
    return _f32(k) * _LN2_HIGH + (_f32(k) * _LN2_LOW + s * series) + _ZERO * w


@njit(inline="always")
def _tanh(x):
    return _ONE - _TWO / (_ONE + _exp(_TWO * min(max(x, -_TANH_LIMIT), _TANH_LIMIT)))


@njit(inline="always")
def _log_level_width(log_scale, t):
    """log(1 - exp(-t)) where t = 2 exp(-log_scale) / 255, up to 8.6: the log of t, and of what is left."""
    left = (_ONE - _exp(-t)) / t
    if t < _LARGEST_IN_SERIES:
        left = _ONE - t * (_HALF - t * (_THIRD_SHARE - t * _FOURTH_SHARE))
    return _LOG_LEVEL - log_scale + _log(left)


@njit(inline="always")
def _clamped(log_scale):
    """Between the least and the largest log scale; NaN stays NaN, which min and max do not promise."""
    raised = LEAST_LOG_SCALE if log_scale < LEAST_LOG_SCALE else log_scale
    return MOST_LOG_SCALE if raised > MOST_LOG_SCALE else raised


@njit(inline="always")
def _level_log_prob(x, mean, log_scale):
    """log P of a level x, scaled to [-1, 1], under a discretized logistic; NaN where a parameter is."""
    clamped = _clamped(log_scale)
    inverse = _exp(-clamped)
    centered, half = (x - mean) * inverse, inverse * _LEVEL * _HALF
    below, above = -_softplus(-centered - half), -_softplus(centered - half)
    if x < -_EDGE:
        above = _ZERO
    if x > _EDGE:
        below = _ZERO
    width = _log_level_width(clamped, _TWO * half) if abs(x) < _EDGE else _ZERO
    return below + above + width + _ZERO * (mean + log_scale)


@njit(inline="always")
def _level_gradient(x, mean, log_scale):
    """Derivatives of the above by mean and log scale."""
    clamped = _clamped(log_scale)
    inverse = _exp(-clamped)
    centered, half = (x - mean) * inverse, inverse * _LEVEL * _HALF
    down, up = _sigmoid(-centered - half), _sigmoid(centered - half)
    if x < -_EDGE:
        up = _ZERO
    if x > _EDGE:
        down = _ZERO
    t = _TWO * half
    # t / (exp(t) - 1), by its series where the difference would lose its digits
    width = t * _exp(-t) / (_ONE - _exp(-t))
    if t < _LARGEST_IN_SERIES:
        width = _ONE - t * (_HALF - t * _f32(1 / 12))
    if abs(x) > _EDGE:
        width = _ZERO
    slope = up * (half - centered) + down * (centered + half) + width
    if log_scale < LEAST_LOG_SCALE or log_scale > MOST_LOG_SCALE:
        slope = _ZERO
    return inverse * (up - down), -slope


@njit(nogil=True, fastmath=_KEEPS_NAN, error_model="numpy")
def _add_level(x, mean, log_scale, to):
    """Add the log-probability of one channel's levels."""
    _wide_vectors()
    for j in range(to.size):
        to[j] += _level_log_prob(x[j], mean[j], log_scale[j])


@njit(nogil=True, fastmath=_KEEPS_NAN, error_model="numpy")
def _gradient_of_level(x, mean, log_scale, share, by_mean, by_scale):
    """A share of the derivatives of the log-probability of one channel's levels."""
    _wide_vectors()
    for j in range(share.size):
        by, scale = _level_gradient(x[j], mean[j], log_scale[j])
        by_mean[j] = share[j] * by
        by_scale[j] = share[j] * scale


@njit(nogil=True, fastmath=_KEEPS_NAN, error_model="numpy")
def _moved_means(loc, coefficient, x, out):
    """``out = loc + tanh(coefficient) * x``."""
    _wide_vectors()
    for j in range(out.size):
        out[j] = loc[j] + _tanh(coefficient[j]) * x[j] + _ZERO * coefficient[j]


@njit(nogil=True, fastmath=_KEEPS_NAN, error_model="numpy")
def _gradient_of_coefficient(coefficient, x, by_mean, out):
    """The derivative by a coefficient, given that by the mean."""
    _wide_vectors()
    for j in range(out.size):
        slope = _tanh(coefficient[j])
        out[j] = by_mean[j] * x[j] * (_ONE - slope * slope)


@njit(nogil=True, fastmath=_KEEPS_NAN, error_model="numpy")
def _raise_to(largest, terms):
    _wide_vectors()
    for j in range(largest.size):
        largest[j] = largest[j] if terms[j] <= largest[j] else terms[j]


@njit(nogil=True, fastmath=_KEEPS_NAN, error_model="numpy")
def _add_exp(total, terms, largest):
    _wide_vectors()
    for j in range(total.size):
        below = terms[j] - largest[j]
        total[j] += _exp(-_NO_SHARE if below < -_NO_SHARE else below)


@njit(nogil=True, fastmath=_KEEPS_NAN, error_model="numpy")
def _add_log(largest, total):
    _wide_vectors()
    for j in range(largest.size):
        largest[j] += _log(total[j])


@njit(nogil=True)
def _log_sum_exp(terms, count, begin, end, total, out):
    """``out = log sum_c exp(terms[c, begin:end])`` over the rows c < count; total is scratch."""
    _copy(terms[0][begin:end], out)
    for c in range(1, count):
        _raise_to(out, terms[c][begin:end])
    total[:] = _ZERO
    for c in range(count):
        _add_exp(total, terms[c][begin:end], out)
    _add_log(out, total)


@njit(nogil=True, fastmath=_KEEPS_NAN, error_model="numpy")
def _add_shares(terms, sums, g, out):
    """Add ``g * exp(terms - sums)``."""
    _wide_vectors()
    for j in range(out.size):
        below = terms[j] - sums[j]
        out[j] += g * _exp(-_NO_SHARE if below < -_NO_SHARE else below)


@njit(nogil=True)
def _component(x, own, c, begin, end, green, blue, out):
    """Log of component c's weight, not normalised, and probability, at pixels begin to end; and two channels' means.

    Data x (3, pixels), one row's parameters own (10 C, pixels); the others have shape (end - begin,).
    """
    C = len(own) // 10
    at_red, at_green, at_blue = x[0][begin:end], x[1][begin:end], x[2][begin:end]
    _moved_means(own[2 * C + c][begin:end], own[7 * C + c][begin:end], at_red, green)
    _moved_means(own[3 * C + c][begin:end], own[8 * C + c][begin:end], at_red, blue)
    _moved_means(blue, own[9 * C + c][begin:end], at_green, blue)
    _copy(own[c][begin:end], out)
    _add_level(at_red, own[C + c][begin:end], own[4 * C + c][begin:end], out)
    _add_level(at_green, green, own[5 * C + c][begin:end], out)
    _add_level(at_blue, blue, own[6 * C + c][begin:end], out)


@njit(nogil=True)
def _component_gradient(x, own, c, begin, end, green, blue, share, to):
    """A share (end - begin,) of the gradient of the above by component c's means, scales and coefficients."""
    C = len(own) // 10
    at_red, at_green, at_blue = x[0][begin:end], x[1][begin:end], x[2][begin:end]
    by_green, by_blue = to[2 * C + c][begin:end], to[3 * C + c][begin:end]
    red = own[C + c][begin:end]
    _gradient_of_level(at_red, red, own[4 * C + c][begin:end], share, to[C + c][begin:end], to[4 * C + c][begin:end])
    _gradient_of_level(at_green, green, own[5 * C + c][begin:end], share, by_green, to[5 * C + c][begin:end])
    _gradient_of_level(at_blue, blue, own[6 * C + c][begin:end], share, by_blue, to[6 * C + c][begin:end])
    _gradient_of_coefficient(own[7 * C + c][begin:end], at_red, by_green, to[7 * C + c][begin:end])
    _gradient_of_coefficient(own[8 * C + c][begin:end], at_red, by_blue, to[8 * C + c][begin:end])
    _gradient_of_coefficient(own[9 * C + c][begin:end], at_green, by_blue, to[9 * C + c][begin:end])


@njit(nogil=True, cache=True, error_model="numpy")
def mixture_log_prob(x, parameters, first, out):
    """Log-probabilities of colour images under discretized mixtures of C logistics, in nats.

    Row ``i`` of the parameters belongs to datum ``(first + i) % B``.

    Arguments:
        x: Levels scaled to [-1, 1], with shape (B, 3, pixels).
        parameters: As of ``LogisticMixture``, with shape (N, 10 * C, pixels).
        first: Position of the first row in the flattened (K, B) layout.
        out: Log-probabilities, with shape (N,), float64.
    """
    _wide_vectors()
    C, pixels = parameters.shape[1] // 10, x.shape[2]
    terms, scratch = np.empty((C, _PIXELS_AT_ONCE), _f32), np.empty((4, _PIXELS_AT_ONCE), _f32)
    for i in range(len(parameters)):
        image, own, total = x[(first + i) % len(x)], parameters[i], 0.0
        for begin in range(0, pixels, _PIXELS_AT_ONCE):
            end = min(begin + _PIXELS_AT_ONCE, pixels)
            n = end - begin
            spent, sums, green, blue = scratch[0][:n], scratch[1][:n], scratch[2][:n], scratch[3][:n]
            for c in range(C):
                _component(image, own, c, begin, end, green, blue, terms[c][:n])
            _log_sum_exp(terms, C, 0, n, spent, sums)
            total += _sum(sums)
            _log_sum_exp(own, C, begin, end, spent, sums)
            total -= _sum(sums)
        out[i] = total


@njit(nogil=True, cache=True, error_model="numpy")
def mixture_log_prob_gradient(x, parameters, first, g, out):
    """The gradient of the above by the parameters, times ``g[i]``; out as the parameters."""
    _wide_vectors()
    C, pixels = parameters.shape[1] // 10, x.shape[2]
    terms, scratch = np.empty((C, _PIXELS_AT_ONCE), _f32), np.empty((4, _PIXELS_AT_ONCE), _f32)
    greens, blues = np.empty((C, _PIXELS_AT_ONCE), _f32), np.empty((C, _PIXELS_AT_ONCE), _f32)
    for i in range(len(parameters)):
        image, own, to = x[(first + i) % len(x)], parameters[i], out[i]
        for begin in range(0, pixels, _PIXELS_AT_ONCE):
            end = min(begin + _PIXELS_AT_ONCE, pixels)
            n = end - begin
            spent, sums, weights, share = scratch[0][:n], scratch[1][:n], scratch[2][:n], scratch[3][:n]
            for c in range(C):
                _component(image, own, c, begin, end, greens[c][:n], blues[c][:n], terms[c][:n])
            _log_sum_exp(terms, C, 0, n, spent, sums)
            _log_sum_exp(own, C, begin, end, spent, weights)
            for c in range(C):
                share[:] = _ZERO
                _add_shares(terms[c][:n], sums, g[i], share)
                _copy(share, to[c][begin:end])
                _add_shares(own[c][begin:end], weights, -g[i], to[c][begin:end])
                _component_gradient(image, own, c, begin, end, greens[c][:n], blues[c][:n], share, to)
