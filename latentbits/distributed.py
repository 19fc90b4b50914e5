"""Several processes: which one this is, and what all of them agree on.

``torchrun`` starts the processes and says so in the environment; :func:`processes` joins them (gloo on CPUs,
NCCL on GPUs). Everything here works in one process too, where it does nothing, so no caller asks how many
there are. Training splits batches and persistent chains, and averages gradients. Annealing and evaluation split
chains and images, each of which has a random stream of its own: on CPUs the merged result is that of one process,
bit for bit.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor

T = TypeVar("T")
_ranges = itertools.count()


class World(NamedTuple):
    """This process among all.

    Attributes:
        rank: From 0 to size - 1; 0 writes files and talks.
        size: Number of processes.
    """

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def world() -> World:
    """This process's place; (0, 1) where it is alone."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(0, 1)


@contextmanager
def processes(device: str = "cpu") -> Iterator[None]:
    """Join the processes that ``torchrun`` started, for the length of the context.

    Arguments:
        device: Where the tensors are: cpu, or cuda, of which each process of a machine takes one of its own.

    Raises:
        ValueError: If a GPU is named by number, which would be the same one for all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or world().size > 1:
        yield
        return
    if ":" in device:
        raise ValueError(f"device: several processes take a GPU each; expected cpu or cuda, got {device}")
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # a process may wait for another's share of an evaluation for hours
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(days=7))
    try:
        yield
    finally:
        dist.destroy_process_group()
        # gloo's threads drop their last tensors a moment later, which aborts a Python that is shutting down by then
        time.sleep(0.2)


def share(rows: Tensor) -> Tensor:
    """This process's part of rows (N, *), with shape (N / size, *).

    Raises:
        ValueError: If the rows cannot be shared out equally.
    """
    rank, size = world()
    if len(rows) % size:
        raise ValueError(f"{len(rows)} rows cannot be shared out equally to {size} processes")
    return rows.chunk(size)[rank]


def _communicable(values: Tensor) -> Tensor:
    """A contiguous copy (*) where the backend wants it: NCCL has no CPU tensors."""
    return (values.cuda() if dist.get_backend() == "nccl" else values).clone(memory_format=torch.contiguous_format)


def total(values: Tensor) -> Tensor:
    """Sum over processes of tensors of one shape (*), with that shape."""
    if world().size == 1:
        return values
    summed = _communicable(values)
    dist.all_reduce(summed)
    return summed.to(values.device)


def share_dynamically(count: int) -> Iterator[int]:
    """Numbers from 0 to count - 1, each in one process only: the one that asks for it first.

    So a process that is slowed by other work gets fewer. All have to go through theirs to the end, and in the same
    order if they go through several such ranges.
    """
    if world().size == 1:
        yield from range(count)
        return
    # the store by which the processes found each other counts for all of them; PyTorch has no public name for it
    store, name = dist.distributed_c10d._get_default_store(), f"latentbits-range-{next(_ranges)}"
    while (number := store.add(name, 1) - 1) < count:
        yield number


def gather(rows: Tensor) -> Tensor:
    """All processes' rows (N, *), in order of rank, with shape (size N, *)."""
    size = world().size
    if size == 1:
        return rows
    sent = _communicable(rows)
    parts = [torch.empty_like(sent) for _ in range(size)]
    dist.all_gather(parts, sent)
    return torch.cat(parts).to(rows.device)


def any_of(*flags: bool) -> list[bool]:
    """Whether each flag is set in any process."""
    return total(torch.tensor(flags, dtype=torch.int32)).bool().tolist()


def of_first(value: float) -> float:
    """The first process's value."""
    return float(total(torch.tensor(value if world().is_first else 0.0, dtype=torch.float64)))


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give each tensor (*) the values that it has in the first process."""
    if world().size == 1:
        return
    for tensor in tensors:
        sent = _communicable(tensor)
        dist.broadcast(sent, 0)
        tensor.copy_(sent)


def in_first(work: Callable[[], T]) -> T | None:
    """Do some work in the first process, and end all of them where it fails.

    Returns:
        Its result; None in the others.

    Raises:
        Exception: What the work raised, in the first process.
        SystemExit: In the others then.
    """
    result, failure = None, None
    if world().is_first:
        try:
            result = work()
        except Exception as error:
            failure = error
    if any_of(failure is not None)[0]:
        raise failure or SystemExit(2)
    return result


def wait() -> None:
    """Go on when all processes have come here."""
    any_of(False)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes, in one message."""
    if world().size == 1:
        return
    _average([p.grad for p in parameters if p.grad is not None])


def average_statistics(net: nn.Module) -> None:
    """Replace batch normalization's running means and variances by those over processes, in one message.

    Each process normalizes by the statistics of its own share of a batch, and weights are evaluated with the running
    ones, of which there may be only one version.
    """
    if world().size == 1:
        return
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d  # networks of one's own may have any
    norms = [module for module in net.modules() if isinstance(module, kinds)]
    if statistics := [each for norm in norms for each in (norm.running_mean, norm.running_var) if each is not None]:
        _average(statistics)


@torch.no_grad()
def _average(tensors: list[Tensor]) -> None:
    """Replace each tensor (*) by its mean over processes."""
    mean = total(torch.cat([t.flatten() for t in tensors])) / world().size
    for tensor, part in zip(tensors, mean.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
