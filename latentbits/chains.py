"""The persistent chains of training, whose states are the negatives: plain, tempered, or from an outside sampler."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import distributed
from .gibbs import gibbs
from .rbm import RBM, Prior, check_bits
from .splits import evenly_spaced
from .tempering import Swaps, parallel_tempering, respace, tempering_schedule

Sampler = Callable[[RBM, Tensor, int, torch.Generator | None], Tensor]
"""Source of the negatives, called as :func:`latentbits.gibbs` is: with the prior, the last negatives (N, M) of this
process, a number of steps and a generator; returns N new ones. An annealer may ignore the last three."""


class Tempering(NamedTuple):
    """What tempered chains have besides their bits.

    Attributes:
        betas: Inverse temperatures, the same in all processes, with shape (R,).
        base_bias: Biases of the base, which stays as it was when the chains began, with shape (M,).
        swaps: In this process since the temperatures were placed.
    """

    betas: Tensor
    base_bias: Tensor
    swaps: Swaps

    @classmethod
    def place(cls, rbm: RBM, temperatures: int, generator: torch.Generator | None) -> "Tempering":
        """At temperatures placed by pilot runs, which all processes share."""
        base_bias = rbm.annealing_base().clone()
        betas = tempering_schedule(rbm, temperatures, generator, base_bias)
        return cls(distributed.total(betas) / distributed.world().size, base_bias, Swaps.none(temperatures))


def checked_bits(z: Tensor, last: Tensor) -> Tensor:
    """Bits from an outside sampler, as float on the last ones' device.

    Raises:
        TypeError: If they are no array.
        ValueError: If they are not bits of the last ones' shape (N, M).
    """
    try:
        z = torch.as_tensor(z).to(last)
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"sampler: expected bits of shape {tuple(last.shape)}, got {type(z).__name__} ({error})"
        ) from error
    if z.shape != last.shape:
        raise ValueError(f"sampler: expected bits of shape {tuple(last.shape)}, got {tuple(z.shape)}")
    check_bits("sampler", z, last.shape[1])
    return z


class Chains:
    """Persistent chains of a prior: plain, or tempered where there are several temperatures.

    Attributes:
        z: Bits, with shape (N, M); or (N, R, M) if tempered, of which the last of the R are the model's.
        tempering: None for plain chains.
    """

    def __init__(self, z: Tensor, tempering: Tempering | None = None) -> None:
        self.z, self.tempering = z, tempering

    @classmethod
    def begin(cls, prior: Prior, z: Tensor, temperatures: int, generator: torch.Generator | None) -> "Chains":
        """Chains at bits z (N, M), at every temperature if there are several."""
        if temperatures == 1 or not isinstance(prior, RBM):
            return cls(z)
        return cls(z[:, None].repeat(1, temperatures, 1), Tempering.place(prior, temperatures, generator))

    @classmethod
    def at_data(
        cls,
        prior: Prior,
        x: Tensor,
        count: int,
        draw: Callable[[Tensor], Tensor],
        temperatures: int,
        generator: torch.Generator | None,
    ) -> "Chains":
        """This process's share of ``count`` chains that begin at ``draw`` (N, M) of data x, evenly spaced.

        Data may be sorted, and chains at the first of them all in the same mode.
        """
        rows = distributed.share(evenly_spaced(len(x), count))
        return cls.begin(prior, draw(x[rows]), temperatures, generator)

    @property
    def bits(self) -> Tensor:
        """The model's bits, with shape (N, M)."""
        return self.z if self.tempering is None else self.z[:, -1]

    def advance(
        self, prior: Prior, steps: int, generator: torch.Generator | None, sampler: Sampler | None = None
    ) -> Tensor:
        """The model's bits (N, M) after some Gibbs steps, or rounds, or from a sampler of one's own."""
        if sampler is not None and isinstance(prior, RBM):
            self.z = checked_bits(sampler(prior, self.z, steps, generator), self.z)
            return self.z
        if self.tempering is None:
            self.z = gibbs(prior, self.z, steps, generator)
            return self.z
        assert isinstance(prior, RBM)
        betas, base_bias, before = self.tempering
        z, swaps = parallel_tempering(prior, self.z.transpose(0, 1), betas, steps, generator, base_bias)
        self.z = z.transpose(0, 1)
        self.tempering = Tempering(betas, base_bias, before.plus(swaps))
        return z[-1]

    def respace(self) -> None:
        """Place the temperatures anew, by the swaps since the last time in all processes."""
        if self.tempering is not None:
            betas, base_bias, swaps = self.tempering
            seen = Swaps(*(distributed.total(count) for count in swaps))
            self.tempering = Tempering(respace(betas, seen), base_bias, Swaps.none(len(betas)))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the chains and swaps of all processes."""
        state: dict[str, Any] = {"z": distributed.gather(self.z)}
        if self.tempering is not None:
            betas, base_bias, swaps = self.tempering
            state["tempering"] = [betas, base_bias, [distributed.total(count) for count in swaps]]
        return state

    @classmethod
    def restore(cls, state: dict[str, Any], device: torch.device) -> "Chains":
        """This process's share of the chains in a checkpoint."""
        chains = cls(distributed.share(state["z"]).to(device))
        if "tempering" in state:
            betas, base_bias, swaps = state["tempering"]
            mine = Swaps(*swaps) if distributed.world().is_first else Swaps.none(len(betas))  # the first counts for all
            chains.tempering = Tempering(betas, base_bias.to(device), mine)
        return chains
