r"""Gibbs sampling in an RBM: chains, CD and PCD negatives.

One step of block Gibbs sampling at inverse temperature :math:`\beta` is

.. math::
    h & \sim \sigma(\beta (z^\top W + c)) \\
    z & \sim \sigma((1 - \beta) b_A + \beta b + \beta W h)

which leaves :math:`p_\beta` of :mod:`latentbits.anneal` invariant; plain sampling has
:math:`\beta = 1`. On the CPU, chains advance in blocks of rows that stay in cache, one block a thread,
with random bits fused into the element-wise pass; no matrix is allocated inside a step. Where the
processor has bfloat16 matrix units, a product with binary operand runs there in two terms,
:math:`W \approx W_{hi} + W_{lo}`, accumulated in float32.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import distributed, kernels
from .fused import Key, bernoulli, default_generator, draw_key, fork, is_on_cpu, map_blocks
from .rbm import RBM, Prior, check_bits, check_count, exactly

FEWEST_ROWS_PER_BLOCK, ROWS_PER_BLOCK, MOST_ROWS_PER_BLOCK = 64, 500, 1250
FEWEST_CHAINS_FOR_TWO_TERMS = 250
LARGEST_LOGIT_ERROR = 1e-4
_EMPTY = np.empty(0, np.float32)


@cache
def has_bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices several times faster than float32 (AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False)) and torch.backends.mkldnn.is_available()


def _products() -> Any:
    """PyTorch's setting for float32 products on the CPU."""
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


class _Precision:
    """PyTorch's setting is the process's: the first to enter remembers it, and the last to leave puts it back."""

    lock, entered, before = threading.Lock(), 0, ""


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let float32 products on the CPU round their operands to bfloat16; sums stay in float32.

    The setting is the process's, so another thread's products are rounded too meanwhile.
    """
    with _Precision.lock:
        if _Precision.entered == 0:
            _Precision.before = _products().fp32_precision
        _Precision.entered += 1
        _products().fp32_precision = "bf16"
    try:
        yield
    finally:
        with _Precision.lock:
            _Precision.entered -= 1
            if _Precision.entered == 0:
                _products().fp32_precision = _Precision.before


class TwoTerms(NamedTuple):
    """A matrix W (M, H) as the sum of two that bfloat16 holds exactly, nearly.

    Attributes:
        high: W rounded to bfloat16, with shape (M, H).
        low: The rest, rounded to bfloat16, with shape (M, H).
        error: The largest error that this can make in any logit of either layer, over all binary inputs.
    """

    high: Tensor
    low: Tensor
    error: float


def two_terms(W: Tensor) -> TwoTerms:
    """Split W (M, H) into two bfloat16 terms, held as float32."""
    high = W.bfloat16().float()
    rest = W - high
    low = rest.bfloat16().float()
    residual = rest - low
    above = residual.clamp(min=0)
    below = above - residual
    worst = max(part.sum(dim).max() for part in (above, below) for dim in (0, 1))
    return TwoTerms(high, low, float(worst))


class Weights:
    """An RBM's parameters, laid out once for many steps of many blocks."""

    def __init__(self, rbm: RBM, chains: int, base_bias: Tensor | None = None) -> None:
        W = rbm.weight.detach()
        self.b, self.c = rbm.visible_bias.detach(), rbm.hidden_bias.detach()
        self.base_bias = self.b if base_bias is None else base_bias.to(self.b)
        self.M, self.H = W.shape
        self.fused = is_on_cpu(W, self.b, self.c)
        self.W, self.WT, self.two_terms = W, W.T.contiguous(), False
        # with few rows, converting W for each product costs more than the product
        if self.fused and chains >= FEWEST_CHAINS_FOR_TWO_TERMS and has_bfloat16_units():
            terms = two_terms(W)
            if terms.error <= LARGEST_LOGIT_ERROR:
                self.two_terms = True
                # [z z] @ [high; low] = zW and h @ [high.T low.T] = [Wh in two terms]: the smaller layer is doubled
                doubled = 0 if self.M <= self.H else 1
                self.W, self.WT = (
                    torch.cat([terms.high, terms.low], doubled),
                    torch.cat([terms.high.T, terms.low.T], 1 - doubled),
                )

    @property
    def visible_width(self) -> int:
        """Columns of the matrices for the visible layer: M, or 2 M if it is doubled."""
        return len(self.W)

    @property
    def hidden_width(self) -> int:
        """Columns of the matrices for the hidden layer: H, or 2 H if it is doubled."""
        return len(self.WT)

    def products(self) -> AbstractContextManager[None]:
        """The matrix-product precision that these weights are laid out for."""
        return bfloat16_products() if self.two_terms else nullcontext()


def refuse_to_go_on(stop: threading.Event) -> None:
    """End a block's steps where the caller was interrupted."""
    if stop.is_set():
        raise InterruptedError("the caller was interrupted")


class FusedBlock:
    """Rows of chains on the CPU: the matrices are made here, and none while stepping."""

    def __init__(self, weights: Weights, z: Tensor, key: Key, block: int, stop: threading.Event) -> None:
        n, w = z.shape[0], weights
        self.stop = stop
        self.weights, self.key, self.block, self.calls = w, key, np.uint32(block), 0
        self.z_wide, self.d = w.b.new_empty(2, n, w.visible_width).unbind()
        self.h_wide, self.a = w.b.new_empty(2, n, w.hidden_width).unbind()
        self.z_wide.view(n, -1, w.M).copy_(z[:, None])
        self._b, self._c, self._base = w.b.numpy(), w.c.numpy(), w.base_bias.numpy()
        self._a, self._d, self._z, self._h = (t.numpy() for t in (self.a, self.d, self.z_wide, self.h_wide))
        slope = w.b - w.base_bias
        self._score = (self.z * slope).sum(1).numpy()  # as a product it could be bfloat16's; draw_visible goes on
        self._slope = slope.numpy() if slope.any() else _EMPTY  # equal biases leave nothing to add up

    @property
    def z(self) -> Tensor:
        """Visible bits, with shape (n, M)."""
        return self.z_wide[:, : self.weights.M]

    @property
    def position(self) -> Tensor:
        """Where the block stands: its number of draws, and the product of z and b - b_A, with shape (1 + n,)."""
        return torch.cat([torch.tensor([self.calls], dtype=torch.float64), torch.from_numpy(self._score).double()])

    def move(self, z: Tensor, position: Tensor) -> None:
        """Go on from bits z (n, M) and a position."""
        self.z_wide.view(len(z), -1, self.weights.M).copy_(z[:, None])
        self.calls, self._score[:] = int(position[0]), position[1:].numpy()

    def project(self) -> None:
        """a = zW, without the hidden bias."""
        refuse_to_go_on(self.stop)
        torch.mm(self.z_wide, self.weights.W, out=self.a)

    def _place(self) -> tuple[Key, np.uint32, np.uint32]:
        """Key, step and block of the next draw."""
        self.calls += 1
        return self.key, np.uint32(self.calls), self.block

    def draw_hidden(self, beta: float) -> None:
        """h ~ sigmoid(beta (a + c)), from the last :meth:`project`."""
        scale = np.float32(beta)
        kernels.draw_rows(self._a, scale * self._c, scale, *self._place(), self._h, _EMPTY, _EMPTY)

    def draw_visible(self, beta: float) -> None:
        """z ~ sigmoid((1 - beta) b_A + beta (b + Wh))."""
        torch.mm(self.h_wide, self.weights.WT, out=self.d)
        bias = np.float32(1 - beta) * self._base + np.float32(beta) * self._b
        kernels.draw_rows(self._d, bias, np.float32(beta), *self._place(), self._z, self._slope, self._score)

    def anneal_hidden(self, beta_to: float, beta_from: float, log_w: Tensor) -> None:
        """log_w (n,) += log f_to(z) - log f_from(z) and h ~ p_to(h | z), from the last :meth:`project`."""
        to, since, difference = np.float32(beta_to), np.float32(beta_from), np.float32(beta_to - beta_from)
        sums = log_w.numpy()
        sums += (beta_to - beta_from) * self._score
        kernels.anneal_rows(self._a, self._c, to, since, difference, *self._place(), self._h, sums)


class PlainBlock:
    """The same steps by plain PyTorch operations: a GPU, or float64. Each row may have its own beta, (n, 1)."""

    def __init__(self, weights: Weights, z: Tensor, generator: torch.Generator, stop: threading.Event) -> None:
        self.weights, self.generator, self.z, self.stop = weights, generator, z.to(weights.b), stop

    @property
    def position(self) -> Tensor:
        return self.generator.get_state()

    def move(self, z: Tensor, position: Tensor) -> None:
        self.z = z.to(self.weights.b)
        self.generator.set_state(position)

    def project(self) -> None:
        refuse_to_go_on(self.stop)
        self.a = self.z @ self.weights.W

    def draw_hidden(self, beta: float | Tensor) -> None:
        self.h = bernoulli(beta * (self.a + self.weights.c), self.generator)

    def draw_visible(self, beta: float | Tensor) -> None:
        w = self.weights
        self.z = bernoulli((1 - beta) * w.base_bias + beta * (w.b + self.h @ w.WT), self.generator)

    def anneal_hidden(self, beta_to: float | Tensor, beta_from: float | Tensor, log_w: Tensor) -> None:
        x = self.a + self.weights.c
        slope = (self.weights.b - self.weights.base_bias).double()
        log_w += ((beta_to - beta_from) * (self.z.double() @ slope)[:, None]).squeeze(1)
        log_w += (F.softplus(beta_to * x) - F.softplus(beta_from * x)).double().sum(-1)
        self.draw_hidden(beta_to)


Block = FusedBlock | PlainBlock


def rows_per_block(chains: int) -> int:
    """Rows of a block: a power of two of blocks for as many threads or processes, two at least.

    Up to eight have 500 rows or more; more there are only of 1,250. With fewer, threads wait for each other between
    calls. A function of the number of chains alone, so that streams do not depend on the machine.
    """
    blocks = 2
    while chains >= 2 * blocks * ROWS_PER_BLOCK and (blocks < 8 or chains > blocks * MOST_ROWS_PER_BLOCK):
        blocks *= 2
    return max(FEWEST_ROWS_PER_BLOCK, -(-chains // blocks))


def blocks_of_chains(weights: Weights, chains: int, processes: int) -> list[slice]:
    """The rows of each block: many small ones on the CPU, elsewhere one for each process."""
    size = rows_per_block(chains) if weights.b.device.type == "cpu" else max(1, -(-chains // processes))
    return [slice(first, min(chains, first + size)) for first in range(0, chains, size)]


def run_blocks(
    weights: Weights,
    z: Tensor,
    generator: torch.Generator | None,
    advance: Callable[[Block, slice], None],
    shared: bool = False,
    blocks: list[slice] | None = None,
) -> None:
    """Advance the chains z (N, M) in blocks; ``advance(block, rows)`` does the steps of one block.

    A block's random stream is its own, so blocks may run in any order, on any thread and in any process.

    Arguments:
        weights: The RBM.
        z: Where the chains start, with shape (N, M).
        generator: Source of the randomness; the default generator if None.
        advance: Does the steps of one block, and writes down what the caller wants of it.
        shared: Whether processes share the blocks out, or each runs all of its own.
        blocks: Rows of each block, where it matters to the caller which are together.
    """
    rank, processes = distributed.world() if shared else distributed.World(0, 1)
    blocks = blocks or blocks_of_chains(weights, len(z), processes)
    device = weights.b.device
    key = draw_key(generator) if device.type == "cpu" or len(blocks) > 1 or processes > 1 else None
    stop = threading.Event()

    def run(number: int) -> None:
        rows = blocks[number]
        with torch.no_grad(), exactly(weights.b):  # of which a thread of one's own knows nothing
            if weights.fused:
                assert key is not None
                advance(FusedBlock(weights, z[rows], key, number, stop), rows)
            else:
                own = (generator or default_generator(device)) if key is None else fork(key, number, device)
                advance(PlainBlock(weights, z[rows], own, stop), rows)

    numbers = range(rank, len(blocks), processes)
    if device.type != "cpu":  # whose streams belong to this thread
        for number in numbers:
            run(number)
        return
    with weights.products():
        # Ctrl-C reaches this thread only, and the others would go on for minutes
        map_blocks(run, numbers, on_error=stop.set)


def gibbs(prior: Prior, z: Tensor, steps: int, generator: torch.Generator | None = None) -> Tensor:
    """Advance chains by block Gibbs steps.

    Arguments:
        prior: An RBM; a Bernoulli prior is sampled exactly, whatever z is.
        z: Visible bits, with shape (N, M).
        steps: Number of steps, each of which draws h given z and then z given h.
        generator: Source of the randomness; the default generator if None.

    Returns:
        Visible bits after the last step, with shape (N, M).

    Raises:
        TypeError: If z is no tensor, or steps no whole number.
        ValueError: If z is not bits of this shape, or steps is negative.
    """
    check_count("gibbs: steps", steps, 0)
    if not isinstance(prior, RBM):
        return prior.sample(z.shape[0], generator) if steps else z
    check_bits("gibbs: z", z, prior.visible)
    out = torch.empty_like(z, dtype=prior.weight.dtype)

    def advance(block: Block, rows: slice) -> None:
        for _ in range(steps):
            block.project()
            block.draw_hidden(1.0)
            block.draw_visible(1.0)
        out[rows] = block.z

    run_blocks(Weights(prior, z.shape[0]), z, generator, advance)
    return out


def random_bits(n: int, prior: Prior, generator: torch.Generator | None = None) -> Tensor:
    """Fair coin flips to start chains from, with shape (n, M)."""
    check_count("random_bits: n", n, 0)
    logits = torch.zeros(n, prior.visible, dtype=torch.float32, device=prior.visible_bias.device)
    return bernoulli(logits, generator)
