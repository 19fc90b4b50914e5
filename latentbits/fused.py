"""Bernoulli draws, row sums, ELU and mixtures of logistics for tensors on any device.

On the CPU in float32 (:func:`elu`: in bfloat16) these run the fused loops of :mod:`latentbits.kernels`, in blocks of
rows spread over :func:`torch.get_num_threads` threads. Elsewhere (a GPU, or float64) plain PyTorch operations, a
mixture's in :mod:`latentbits.distributions`, do the same; the two agree in distribution and to rounding, not in their
random streams. Where a gradient is to be differentiated again (``create_graph``), it is made by plain operations too.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels

T = TypeVar("T")
Key = tuple[np.uint32, np.uint32]

_ROW = 512
_EMPTY = np.empty(0, np.float32)
_ELEMENTS_PER_BLOCK = 128 * 1024


def is_on_cpu(*tensors: Tensor) -> bool:
    """Whether the compiled loops can serve tensors of any shape: float32 on the CPU."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def check_generator(generator: object) -> None:
    """Refuse what is no generator, such as a seed.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(
            f"generator: expected a torch.Generator or None, got {type(generator).__name__}; "
            "torch.Generator().manual_seed(0) makes one of a seed"
        )


def draw_key(generator: torch.Generator | None) -> Key:
    """Take one 64-bit key from a generator; all draws of a call are functions of it."""
    check_generator(generator)
    device = "cpu" if generator is None else generator.device
    key = torch.empty((), dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    bits = int(key) & (2**64 - 1)
    return np.uint32(bits & 0xFFFFFFFF), np.uint32(bits >> 32)


def default_generator(device: torch.device) -> torch.Generator:
    """PyTorch's own generator for a device."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator


def fork(key: Key, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for part ``number`` of some work; a function of key and number alone."""
    low, high = (int(word) for word in key)
    return torch.Generator(device).manual_seed(((high << 32 | low) + number * 0x9E3779B97F4A7C15) % 2**63)


_worker = threading.local()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose own tensor operations are serial, so that blocks and not operations run in parallel."""
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread's first question sets its number, and would undo what is set before it
        torch.set_num_threads(1)
        _worker.is_one = True
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="latentbits", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)  # the call above also sets the default for threads yet to come
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def map_blocks(
    function: Callable[[int], T], blocks: Sequence[int], on_error: Callable[[], None] = lambda: None
) -> list[T]:
    """Run ``function(block)`` for each block index on all threads; results in order.

    Tensor operations inside ``function`` are serial; ones that ran on several threads would spin in each
    other's way. After an error ``on_error`` is called, and what has begun is waited for.
    """
    threads = torch.get_num_threads()
    if threads == 1 or getattr(_worker, "is_one", False):  # a worker that waited for workers would wait forever
        return [function(block) for block in blocks]
    futures = [_pool(threads).submit(function, block) for block in blocks]
    try:
        # waited for in order, one that fails would be noticed only when those before it end
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
        return [future.result() for future in futures]
    except BaseException:
        on_error()
        for future in futures:
            future.cancel()
        wait(futures)
        raise


def _over_rows(loop: Callable[[slice], None], count: int, width: int = 1) -> None:
    """Run a compiled loop over ``count`` rows of so many elements, in spans that stay in cache, on all threads."""
    size = max(1, _ELEMENTS_PER_BLOCK // max(1, width))
    spans = [slice(i, min(count, i + size)) for i in range(0, count, size)]
    if len(spans) > 1:
        map_blocks(lambda i: loop(spans[i]), range(len(spans)))
    elif spans:  # no tensor operation inside, so nothing is gained elsewhere
        loop(spans[0])


def bernoulli(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw bits from their logits.

    The stream of a CPU generator does not depend on the number of threads.

    Arguments:
        logits: Log-odds of a one, with shape (*).
        generator: Source of the key; the default generator if None.

    Returns:
        Bits as 0.0 or 1.0, with shape (*).
    """
    if not is_on_cpu(logits):
        precise = logits.dtype if logits.dtype == torch.float64 else torch.float32  # half rounds small p away
        p = torch.sigmoid(logits.detach().to(precise))
        device = p.device if generator is None else generator.device
        u = torch.rand(p.shape, dtype=precise, device=device, generator=generator)
        return (u.to(p.device) < p).to(logits.dtype)

    a = logits.detach().contiguous().view(-1)
    out, key, bias = torch.empty_like(a), draw_key(generator), np.zeros(_ROW, np.float32)
    count, at_once = a.numel() // _ROW, _ELEMENTS_PER_BLOCK // _ROW
    rows, out_rows = (each[: count * _ROW].view(count, _ROW).numpy() for each in (a, out))
    rest, out_rest = (each[None, count * _ROW :].numpy() for each in (a, out))

    def draw(a: np.ndarray, out: np.ndarray, step: int, block: int) -> None:
        place = key, np.uint32(step), np.uint32(block)
        kernels.draw_rows(a, bias[: a.shape[1]], np.float32(1), *place, out, _EMPTY, _EMPTY)

    _over_rows(lambda span: draw(rows[span], out_rows[span], 0, span.start // at_once), count, _ROW)
    if rest.size:
        draw(rest, out_rest, 1, 0)
    return out.view(logits.shape)


def _rows(a: Tensor) -> np.ndarray:
    """A tensor (*, D) as an array (N, D)."""
    return a.detach().contiguous().view(-1, a.shape[-1]).numpy()


class _SoftplusSum(torch.autograd.Function):
    """The sum, its gradient g σ(a), and no more passes than these two."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        rows = _rows(a)
        out = np.empty(len(rows))
        _over_rows(lambda span: kernels.softplus_sum(rows[span], out[span]), *rows.shape)
        return torch.from_numpy(out).to(a.dtype).view(a.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return cast(Tensor, gradient[..., None] * a.sigmoid())
        rows, out, g = (
            _rows(a),
            torch.empty_like(a, memory_format=torch.contiguous_format),
            gradient.contiguous().view(-1).numpy(),
        )
        to = _rows(out)
        _over_rows(lambda span: kernels.softplus_sum_gradient(rows[span], g[span], to[span]), *rows.shape)
        return out


def softplus_sum(a: Tensor) -> Tensor:
    """``sum_j log(1 + exp(a_j))`` over the last dimension: (*, D) -> (*)."""
    if not is_on_cpu(a):
        return F.softplus(a).sum(-1)
    return cast(Tensor, _SoftplusSum.apply(a))


class _BernoulliLogProb(torch.autograd.Function):
    """The log-probability of x (B, D) under logits (*, B, D), and its gradient g (x - σ(a))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(x, logits)
        data, rows = _rows(x), _rows(logits)
        out = np.empty(len(rows))
        _over_rows(lambda span: kernels.bernoulli_log_prob(data, rows[span], span.start, out[span]), *rows.shape)
        return torch.from_numpy(out).to(logits.dtype).view(logits.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        x, logits = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, gradient[..., None] * (x - logits.sigmoid())
        data, rows, g = _rows(x), _rows(logits), gradient.contiguous().view(-1).numpy()
        out = torch.empty_like(logits, memory_format=torch.contiguous_format)
        to = _rows(out)
        _over_rows(lambda s: kernels.bernoulli_log_prob_gradient(data, rows[s], s.start, g[s], to[s]), *rows.shape)
        return None, out


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Log-probability of bits under their logits, summed over the last dimension, in nats.

    Arguments:
        x: Bits, with shape (B, D).
        logits: Log-odds, with shape (K, B, D) or (B, D).

    Returns:
        Log-probabilities, with shape (K, B) or (B,).

    Raises:
        ValueError: If the shapes do not fit.
    """
    if x.dim() != 2 or logits.shape[-2:] != x.shape or logits.dim() > 3:
        raise ValueError(
            f"bernoulli_log_prob: expected x (B, D) and logits (B, D) or (K, B, D), got {tuple(x.shape)} and "
            f"{tuple(logits.shape)}"
        )
    if not is_on_cpu(x, logits) or x.requires_grad:
        return (x * logits).sum(-1) - F.softplus(logits).sum(-1)
    return cast(Tensor, _BernoulliLogProb.apply(x, logits))


class _ELU(torch.autograd.Function):
    """The function, and its gradient by its value, which the next layer keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        y = torch.empty_like(x)
        ctx.save_for_backward(y)
        values, out = _halves(x), _halves(y)
        _over_rows(lambda span: kernels.elu(values[span], out[span]), len(out))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradient * torch.where(y > 0, torch.ones_like(y), y + 1)
        gradient = gradient.contiguous(memory_format=_layout(y))
        out = torch.empty_like(y)
        values, g, to = _halves(y), _halves(gradient), _halves(out)
        _over_rows(lambda span: kernels.elu_gradient(values[span], g[span], to[span]), len(to))
        return out


def _layout(x: Tensor) -> torch.memory_format:
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _halves(x: Tensor) -> np.ndarray:
    """The elements of a bfloat16 tensor (*), in the order in which they lie, as int16 with shape (N,)."""
    return x.detach().as_strided((x.numel(),), (1,), x.storage_offset()).view(torch.int16).numpy()


def elu(x: Tensor) -> Tensor:
    """x where it is positive, else exp(x) - 1, of the same shape (*); in bfloat16 on the CPU a compiled loop."""
    if x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return F.elu(x)
    return cast(Tensor, _ELU.apply(x))


class _MixtureLogProb(torch.autograd.Function):
    """The log-probability of x (B, 3 H W) under mixtures (*, B, P, H, W), and its gradient by their parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, parameters)
        data, rows = _planes(x), parameters.detach().flatten(-2).flatten(0, -3).contiguous().numpy()
        out = np.empty(len(rows))
        _over_rows(lambda s: kernels.mixture_log_prob(data, rows[s], s.start, out[s]), len(rows), rows[:1].size)
        return torch.from_numpy(out).to(parameters.dtype).view(parameters.shape[:-3])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        x, parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "the gradient of a mixture of logistics is by compiled loops and cannot be differentiated again in "
                "float32 on the CPU; take parameters in float64, or create_graph=False"
            )
        data, rows = _planes(x), parameters.detach().flatten(-2).flatten(0, -3).contiguous().numpy()
        g, out = gradient.contiguous().view(-1).numpy(), torch.empty(rows.shape, dtype=torch.float32)
        to = out.numpy()
        _over_rows(
            lambda s: kernels.mixture_log_prob_gradient(data, rows[s], s.start, g[s], to[s]), len(rows), rows[:1].size
        )
        return None, out.view(parameters.shape)


def _planes(x: Tensor) -> np.ndarray:
    """Colour images of 256 levels (B, 3 P) as an array (B, 3, P) scaled to [-1, 1]."""
    planes: np.ndarray = (x.detach().float() / 127.5 - 1).unflatten(-1, (3, -1)).contiguous().numpy()
    return planes


def mixture_log_prob(x: Tensor, parameters: Tensor) -> Tensor:
    """Log-probability of colour images under discretized mixtures of logistics, in nats, by compiled loops.

    Arguments:
        x: Levels 0 to 255, with shape (B, 3 H W).
        parameters: As of ``LogisticMixture``, float32 on the CPU, with shape (K, B, P, H, W) or (B, P, H, W).

    Returns:
        Log-probabilities, with shape (K, B) or (B,).

    Raises:
        ValueError: If the shapes do not fit.
    """
    *_, B, P, H, W = parameters.shape
    if P % 10 or x.shape != (B, 3 * H * W):
        raise ValueError(
            f"mixture_log_prob: expected x (B, 3 H W) and parameters (*, B, P, H, W) with P a multiple of 10, got "
            f"{tuple(x.shape)} and {tuple(parameters.shape)}"
        )
    return cast(Tensor, _MixtureLogProb.apply(x, parameters))


def generator_device(generator: torch.Generator | None, like: Tensor) -> torch.device:
    """Where a generator draws: its own device, or that of a tensor (*) if it is None and the default one serves."""
    check_generator(generator)
    return like.device if generator is None else generator.device


def uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Numbers uniform on [0, 1), with the given shape, of the type and on the device of another tensor (*)."""
    return torch.rand(tuple(shape), generator=generator, device=generator_device(generator, like)).to(like)


def standard_normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers, with the given shape, of the type and on the device of another tensor (*)."""
    return torch.randn(tuple(shape), generator=generator, device=generator_device(generator, like)).to(like)
