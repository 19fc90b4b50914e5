r"""Fused CPU loops: counter-based random bits, Bernoulli draws and row sums of softplus.

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

# log(1 + e) = 2 atanh(e / (2 + e)), odd series in s = e / (2 + e) <= 1/3; s^15 / 15 < 5e-9.
_A1, _A3, _A5, _A7, _A9, _A11, _A13 = (_f32(2 / n) for n in (1, 3, 5, 7, 9, 11, 13))

_LANES = 16
_TILE = 512
# What lets the loops vectorize. Not "reassoc", which would undo the two-part reduction in _exp.
# numba inlines "always" functions into the caller's flags, so only the loops carry them.
_FAST = {"contract", "nsz", "nnan"}


@intrinsic
def _bits_to_float(typingctx, bits):
    """Reinterpret an int32 as float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


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
    s2 = s * s
    series = (((((_A13 * s2 + _A11) * s2 + _A9) * s2 + _A7) * s2 + _A5) * s2 + _A3) * s2 + _A1
    return max(x, _ZERO) + s * series


@njit(nogil=True)
def _random16(bits, row, lanes, step, block, key0, key1):
    """Fill ``bits[:8 * lanes]`` with the 16-bit integers of one row."""
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


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _draw_span(a, bias, scale, bits, out):
    """Draw one span of a row; returns whether any draw was a tie."""
    tie = _i32(0)
    for j in range(a.size):
        x = min(max(a[j] * scale + bias[j], -_LIMIT), _LIMIT)
        t = _f32(65536) / (_ONE + _exp(-x))
        floor = _i32(t)
        out[j] = _ONE if bits[j] < floor else _ZERO
        tie = _i32(tie | _i32(bits[j] == floor))  # numba widens int32 arithmetic; int64 halves the lanes
    return tie


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _settle_ties(a, bias, scale, bits, out, row, step, block, key0, key1):
    """Decide the draws whose 16 bits equal the threshold's integer part, by 32 more bits each."""
    for j in range(a.size):
        x = min(max(a[j] * scale + bias[j], -_LIMIT), _LIMIT)
        t = _f32(65536) / (_ONE + _exp(-x))
        floor = _i32(t)
        if bits[j] == floor:
            w0, _, _, _ = _philox(_u32(row), step, block, _u32(1 + j), key0, key1)
            out[j] = _ONE if _f32(w0) < (t - _f32(floor)) * _f32(4294967296.0) else _ZERO


@njit(nogil=True, cache=True, error_model="numpy")
def draw_rows(a, bias, scale, key, step, block, out):
    r"""Draw ``out[i, j]`` ~ Bernoulli(sigmoid(scale * a[i, j] + bias[j])).

    Arguments:
        a: Logits before scale and bias, with shape (N, D).
        bias: Added to each row, with shape (D,).
        scale: A float32.
        key: Two uint32.
        step: Position in the stream, a uint32.
        block: Position in the stream, a uint32.
        out: Bits as 0.0 or 1.0, with shape (N, copies * D). The row is written ``copies`` times side
            by side, which is the layout that a product in two bfloat16 terms wants.
    """
    n, d = a.shape
    copies = out.shape[1] // d
    lanes = (d + 8 * _LANES - 1) // (8 * _LANES) * _LANES
    bits = np.empty(8 * lanes, _i32)
    for i in range(n):
        _random16(bits, i, lanes, step, block, key[0], key[1])
        row = out[i, :d]
        if _draw_span(a[i], bias, scale, bits, row):
            _settle_ties(a[i], bias, scale, bits, row, i, step, block, key[0], key[1])
        for copy in range(1, copies):
            out[i, copy * d : (copy + 1) * d] = row


@njit(nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _sum(values):
    total = _ZERO
    for j in range(values.size):
        total += values[j]
    return np.float64(total)


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _softplus_row(a, terms):
    for j in range(a.size):
        terms[j] = _softplus(a[j])


@njit(nogil=True, cache=True, error_model="numpy")
def softplus_sum(a, out):
    """``out[i] = sum_j softplus(a[i, j])``; a (N, D), out (N,) float64."""
    terms = np.empty(a.shape[1], _f32)
    for i in range(a.shape[0]):
        _softplus_row(a[i], terms)
        out[i] = _sum(terms)


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _softplus_difference_row(a, bias, scale_to, scale_from, terms):
    for j in range(a.size):
        x = a[j] + bias[j]
        terms[j] = _softplus(scale_to * x) - _softplus(scale_from * x)


@njit(nogil=True, cache=True, error_model="numpy")
def add_softplus_difference(a, bias, scale_to, scale_from, out):
    r"""``out[i] += sum_j softplus(scale_to * (a + bias)[i, j]) - softplus(scale_from * (a + bias)[i, j])``.

    The difference is taken for each element before the sum, so the rounding error is relative to the
    small increment and not to the two large sums. a (N, D), bias (D,), out (N,) float64.
    """
    terms = np.empty(a.shape[1], _f32)
    for i in range(a.shape[0]):
        _softplus_difference_row(a[i], bias, scale_to, scale_from, terms)
        out[i] += _sum(terms)


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _bernoulli_row(x, a, terms):
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
    terms = np.empty(a.shape[1], _f32)
    for i in range(a.shape[0]):
        _bernoulli_row(x[(first + i) % x.shape[0]], a[i], terms)
        out[i] = _sum(terms)


@njit(inline="always")
def _sigmoid(x):
    return _ONE / (_ONE + _exp(-min(max(x, -_LIMIT), _LIMIT)))


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _sigmoid_row(a, g, out):
    for j in range(a.size):
        out[j] = g * _sigmoid(a[j])


@njit(nogil=True, fastmath=_FAST, error_model="numpy")
def _residual_row(x, a, g, out):
    for j in range(a.size):
        out[j] = g * (x[j] - _sigmoid(a[j]))


@njit(nogil=True, cache=True, error_model="numpy")
def softplus_sum_gradient(a, g, out):
    """``out[i, j] = g[i] * sigmoid(a[i, j])``; a (N, D), g (N,), out (N, D)."""
    for i in range(a.shape[0]):
        _sigmoid_row(a[i], g[i], out[i])


@njit(nogil=True, cache=True, error_model="numpy")
def bernoulli_log_prob_gradient(x, a, first, g, out):
    """``out[i, d] = g[i] * (x[(first + i) % B, d] - sigmoid(a[i, d]))``; x (B, D), a (N, D), g (N,), out (N, D)."""
    for i in range(a.shape[0]):
        _residual_row(x[(first + i) % x.shape[0]], a[i], g[i], out[i])
