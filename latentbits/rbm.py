r"""Priors over latents: the restricted Boltzmann machine; for comparison those that can be drawn from exactly.

An RBM over visible bits :math:`z \in \{0, 1\}^M` and hidden bits :math:`h \in \{0, 1\}^H` has

.. math::
    E(z, h) & = -z^\top b - h^\top c - z^\top W h \\
    F(z) & = -z^\top b - \sum_j \log(1 + e^{c_j + (z^\top W)_j}) \\
    p(z) & = e^{-F(z)} / Z

with free energy :math:`F` and partition function :math:`Z`. Its conditionals factorize:
:math:`p(h_j = 1 | z) = \sigma(c_j + (z^\top W)_j)` and
:math:`p(z_i = 1 | h) = \sigma(b_i + (W h)_i)`.
"""

import math
import operator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .distributions import Bits
from .fused import bernoulli, softplus_sum, standard_normal

MOST_UNITS_TO_ENUMERATE = 25
_STATES_PER_CHUNK = 2**14


def not_finite(module: nn.Module) -> list[str]:
    """Names of the parameters that hold a value that is not finite."""
    return [name for name, parameter in module.named_parameters() if not parameter.isfinite().all()]


def check_finite(argument: str, module: nn.Module) -> None:
    """Refuse a module with parameters that are not finite.

    Raises:
        ValueError: If it has any.
    """
    if found := not_finite(module):
        raise ValueError(f"{argument}: expected finite parameters, got others in {', '.join(found)}")


def clamp_means(means: Tensor, count: int) -> Tensor:
    """Keep bit means (*) over ``count`` data within [1/(N+2), 1 - 1/(N+2)], so that logits are finite."""
    return means.clamp(1 / (count + 2), 1 - 1 / (count + 2))


def all_states(units: int, first: int, last: int, like: Tensor) -> Tensor:
    """States number ``first`` to ``last - 1`` of ``units`` bits, with shape (last - first, units)."""
    index = torch.arange(first, last, device=like.device)
    return ((index[:, None] >> torch.arange(units, device=like.device)) & 1).to(like.dtype)


def exactly(z: Tensor) -> torch.autocast:
    """A context in which autocast rounds nothing: energies in bfloat16 are off by nats."""
    return torch.autocast(z.device.type, enabled=False)


class Energy(nn.Module):
    """A density known by its free energy, p(z) = exp(-F(z)) / Z."""

    def free_energy(self, z: Tensor) -> Tensor:
        """F(z) of latents z (*, M), in nats, with shape (*)."""
        raise NotImplementedError

    def log_prob(self, z: Tensor, log_partition: Tensor | float) -> Tensor:
        """log p(z) = -F(z) - log Z of latents z (*, M), in nats, with shape (*)."""
        free_energy = self.free_energy(z)
        return (-free_energy.double() - log_partition).to(free_energy)  # the difference may be small, and they large


class Ising(NamedTuple):
    r"""The same machine over spins s = 2 z - 1 and t = 2 h - 1 in {-1, 1}.

    .. math:: E(s, t) = -s^T J t - s^T f - t^T g + e

    This is the physicists' sign. Interfaces of annealers often minimise :math:`+s^T J t + s^T f + t^T g`: they want -J,
    -f and -g, and give them.

    Attributes:
        couplings: J, with shape (M, H).
        visible_field: f, with shape (M,).
        hidden_field: g, with shape (H,).
        offset: e, which makes the energies of both forms equal; a scalar.
    """

    couplings: Tensor
    visible_field: Tensor
    hidden_field: Tensor
    offset: Tensor


def check_shape(argument: str, given: Tensor, width: int | None, leading: str = "B", hint: str = "") -> None:
    """Refuse a tensor of another shape than (leading, width).

    Arguments:
        argument: Its name.
        given: The tensor.
        width: Length of the last axis; None for any.
        leading: "B" for one axis before the last, "*" for any number.
        hint: What else to say.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If the shape is another.
    """
    if not isinstance(given, Tensor):
        raise TypeError(f"{argument}: expected a torch.Tensor, got {type(given).__name__}; torch.as_tensor makes one")
    axes = given.dim() == 2 if leading == "B" else given.dim() > 0
    if not axes or (width is not None and given.shape[-1] != width):
        raise ValueError(f"{argument}: expected shape ({leading}, {width or 'D'}), got {tuple(given.shape)}{hint}")


def check_count(argument: str, given: int, least: int = 1) -> None:
    """Refuse what is no whole number, as 1e4 is not, or a smaller one than ``least``.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is smaller.
    """
    try:
        enough = operator.index(given) >= least
    except TypeError:
        raise TypeError(f"{argument}: expected a whole number of at least {least}, got {given!r}") from None
    if not enough:
        raise ValueError(f"{argument}: expected a whole number of at least {least}, got {given}")


def check_bits(argument: str, given: Tensor, width: int, leading: str = "B") -> None:
    """Refuse what is not bits of shape (leading, width), as :func:`check_shape` does.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If the shape is another, or a value is neither 0 nor 1.
    """
    check_shape(argument, given, width, leading)
    if not ((given == 0) | (given == 1)).all():
        raise ValueError(
            f"{argument}: expected 0s and 1s, got other values; spins s in -1 and 1 are bits (s + 1) / 2, and grey "
            "levels become bits at a threshold"
        )


class RBM(Energy):
    r"""A restricted Boltzmann machine.

    Arguments:
        visible: Number of visible bits M.
        hidden: Number of hidden bits H.
        scale: Standard deviation of the initial weights.
        generator: Source of the initial weights; the default generator if None.

    Attributes:
        weight: W, with shape (M, H).
        visible_bias: b, with shape (M,).
        hidden_bias: c, with shape (H,).
        base_bias: Biases :math:`b_A` of the factorized distribution at which annealing starts, with
            shape (M,), or None; see :meth:`fit_base`.
    """

    def __init__(
        self, visible: int, hidden: int, scale: float = 0.01, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        for name, value in (("visible", visible), ("hidden", hidden)):
            check_count(f"RBM: {name}", value)
        device = None if generator is None else generator.device
        self.weight = nn.Parameter(scale * torch.randn(visible, hidden, generator=generator, device=device))
        self.visible_bias = nn.Parameter(torch.zeros(visible, device=device))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden, device=device))
        self.base_bias: Tensor | None
        self.register_buffer("base_bias", None)

    @classmethod
    def from_arrays(cls, weight: Any, visible_bias: Any, hidden_bias: Any) -> "RBM":
        """An RBM from parameters trained elsewhere: arrays of shape (M, H), (M,) and (H,), rounded to float32.

        Raises:
            ValueError: If these are no numbers, the shapes do not fit together or a value is not finite.
        """
        given = {"weight": weight, "visible_bias": visible_bias, "hidden_bias": hidden_bias}
        W, b, c = (torch.from_numpy(_numbers(f"RBM.from_arrays: {name}", a)).float() for name, a in given.items())
        if W.dim() != 2 or b.shape != W.shape[:1] or c.shape != W.shape[1:]:
            raise ValueError(
                "RBM.from_arrays: expected weight (M, H), visible_bias (M,) and hidden_bias (H,), got "
                f"{tuple(W.shape)}, {tuple(b.shape)} and {tuple(c.shape)}; transpose weight if it is (H, M)"
            )
        for name, values in (("weight", W), ("visible_bias", b), ("hidden_bias", c)):
            if not values.isfinite().all():
                raise ValueError(f"RBM.from_arrays: {name} holds values that are not finite")
        rbm = cls(*W.shape)
        with torch.no_grad():
            rbm.weight.copy_(W)
            rbm.visible_bias.copy_(b)
            rbm.hidden_bias.copy_(c)
        return rbm

    def to_ising(self) -> Ising:
        """Couplings and fields over spins, in float64; energies are the same, with the offset."""
        W, b, c = (p.detach().double() for p in (self.weight, self.visible_bias, self.hidden_bias))
        offset = -(W.sum() / 4 + b.sum() / 2 + c.sum() / 2)
        return Ising(W / 4, b / 2 + W.sum(1) / 4, c / 2 + W.sum(0) / 4, offset)

    @classmethod
    def from_ising(cls, couplings: Any, visible_field: Any, hidden_field: Any, offset: Any = 0.0) -> "RBM":
        """An RBM from couplings J (M, H) and fields f (M,) and g (H,) over spins, with the signs of :class:`Ising`.

        Its probabilities are those of the spins. Its energies are not: log Z of the spins without an offset is
        ``rbm.log_partition() + rbm.to_ising().offset``.

        Arguments:
            couplings: J, with shape (M, H); visible spins in rows.
            visible_field: f, with shape (M,).
            hidden_field: g, with shape (H,).
            offset: Not used, for it changes no probability; so ``RBM.from_ising(*rbm.to_ising())`` is the same machine.

        Raises:
            ValueError: If these are no numbers, the shapes do not fit together or a value is not finite.
        """
        given = {"couplings": couplings, "visible_field": visible_field, "hidden_field": hidden_field}
        J, f, g = (_numbers(f"RBM.from_ising: {name}", a) for name, a in given.items())
        if J.ndim != 2 or f.shape != J.shape[:1] or g.shape != J.shape[1:]:
            raise ValueError(
                "RBM.from_ising: expected couplings (M, H), visible_field (M,) and hidden_field (H,), got "
                f"{J.shape}, {f.shape} and {g.shape}; transpose couplings if they are (H, M)"
            )
        return cls.from_arrays(4 * J, 2 * f - 2 * J.sum(1), 2 * g - 2 * J.sum(0))

    @property
    def visible(self) -> int:
        return self.weight.shape[0]

    @property
    def hidden(self) -> int:
        return self.weight.shape[1]

    def extra_repr(self) -> str:
        return f"visible={self.visible}, hidden={self.hidden}"

    def energy(self, z: Tensor, h: Tensor) -> Tensor:
        """E(z, h) of bits z (*, M) and h (*, H), with shape (*)."""
        with exactly(z):
            z, h = z.to(self.weight.dtype), h.to(self.weight.dtype)
            return -(z @ self.visible_bias) - (h @ self.hidden_bias) - ((z @ self.weight) * h).sum(-1)

    def log_prob(self, z: Tensor, log_partition: Tensor | float) -> Tensor:
        """log p(z) = -F(z) - log Z of bits z (*, M) of any number format, in nats, with shape (*).

        Raises:
            TypeError: If z is no tensor.
            ValueError: If z is not bits, or its shape is another.
        """
        check_bits("z", z, self.visible, "*")
        return super().log_prob(z.to(self.weight), log_partition)

    def free_energy(self, z: Tensor) -> Tensor:
        """F(z) = -log sum_h exp(-E(z, h)) of bits z (*, M), in nats, with shape (*); of relaxed bits too, unchecked."""
        with exactly(z):
            z = z.to(self.weight.dtype)
            return -(z @ self.visible_bias) - softplus_sum(self.hidden_logits(z))

    def hidden_logits(self, z: Tensor) -> Tensor:
        """Log-odds of the hidden bits given z (*, M), with shape (*, H)."""
        with exactly(z):
            return F.linear(z.to(self.weight.dtype), self.weight.T, self.hidden_bias)

    def visible_logits(self, h: Tensor) -> Tensor:
        """Log-odds of the visible bits given h (*, H), with shape (*, M)."""
        with exactly(h):
            return F.linear(h.to(self.weight.dtype), self.weight, self.visible_bias)

    def hidden_given_visible(self, z: Tensor) -> Bits:
        """p(h | z) for z (*, M), a distribution over (*, H)."""
        return Bits(self.hidden_logits(z))

    def visible_given_hidden(self, h: Tensor) -> Bits:
        """p(z | h) for h (*, H), a distribution over (*, M)."""
        return Bits(self.visible_logits(h))

    def log_partition(self) -> Tensor:
        """Exact log Z, in nats, by enumerating the smaller layer; a float64 scalar, with its gradient.

        Raises:
            ValueError: If both layers have more than 25 units.
        """
        W, b, c = (p.double() for p in (self.weight, self.visible_bias, self.hidden_bias))
        if self.hidden < self.visible:
            W, b, c = W.T, c, b
        units = W.shape[0]
        if units > MOST_UNITS_TO_ENUMERATE:
            raise ValueError(
                f"RBM.log_partition: the smaller layer has {units} units, and enumeration is for at most "
                f"{MOST_UNITS_TO_ENUMERATE}; estimate log Z with latentbits.ais instead"
            )

        def chunk(first: int) -> Tensor:
            s = all_states(units, first, min(first + _STATES_PER_CHUNK, 2**units), W)
            total: Tensor = (s @ b + softplus_sum(c + s @ W)).logsumexp(0)
            return total

        def again(first: int) -> Tensor:
            """Summed once more by backward, as the states of all chunks would not fit into memory."""
            total: Tensor = checkpoint(chunk, first, use_reentrant=False, preserve_rng_state=False)
            return total

        with exactly(W):
            sums = map(again if torch.is_grad_enabled() else chunk, range(0, 2**units, _STATES_PER_CHUNK))
            return torch.stack(list(sums)).logsumexp(0)

    def log_partition_surrogate(self, z_negative: Tensor) -> Tensor:
        """A scalar whose gradient estimates that of log Z from model samples z (N, M) (Eq. 5)."""
        return -self.free_energy(z_negative).mean()

    @torch.no_grad()
    def center_gradient(self, mu: Tensor, nu: Tensor) -> None:
        r"""Turn the parameters' gradient into that of the centered RBM, in place.

        With offsets :math:`\mu, \nu` the energy is
        :math:`-(z - \mu)^\top b' - (h - \nu)^\top c' - (z - \mu)^\top W (h - \nu)`, the same family with
        :math:`b = b' - W \nu` and :math:`c = c' - W^\top \mu`; a step in the primed parameters is this step in ours.

        Arguments:
            mu: Offsets of the visible bits, with shape (M,).
            nu: Offsets of the hidden bits, with shape (H,).

        Raises:
            ValueError: If there is no gradient yet.

        References:
            | How to center binary deep Boltzmann machines (Melchior, Fischer & Wiskott 2016)
        """
        g_W, g_b, g_c = (_gradient(p) for p in (self.weight, self.visible_bias, self.hidden_bias))
        g_W -= torch.outer(g_b, nu) + torch.outer(mu, g_c)
        g_b -= g_W @ nu
        g_c -= mu @ g_W

    def fit_base(self, means: Tensor, count: int) -> None:
        """Start annealing from the factorized distribution with the bit means (M,) of ``count`` data.

        Raises:
            ValueError: If they are not so many numbers between 0 and 1, or of no data.
        """
        check_count("fit_base: count", count)
        if means.shape != (self.visible,) or not ((means >= 0) & (means <= 1)).all():
            raise ValueError(
                f"fit_base: expected means between 0 and 1 with shape ({self.visible},), got shape {tuple(means.shape)}"
                f" and values from {means.min():g} to {means.max():g}"
            )
        self.base_bias = torch.logit(clamp_means(means.detach().double(), count)).to(self.weight.detach())

    def annealing_base(self, base_bias: Tensor | None = None) -> Tensor:
        """Biases b_A (M,) at which annealing and tempering start: as given, else as fitted, else the visible bias.

        Raises:
            ValueError: If the shape does not fit, or a value is not finite.
        """
        if base_bias is None:
            base_bias = self.visible_bias if self.base_bias is None else self.base_bias
        if base_bias.shape != (self.visible,):
            raise ValueError(f"base_bias: expected shape ({self.visible},), got {tuple(base_bias.shape)}")
        if not base_bias.isfinite().all():
            raise ValueError("base_bias: holds values that are not finite")
        return base_bias.detach().to(self.visible_bias)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # A buffer that is None takes no value by itself, and one that is not wants one.
        fitted = prefix + "base_bias" in state_dict
        self.base_bias = torch.empty_like(self.visible_bias.detach()) if fitted else None
        super()._load_from_state_dict(state_dict, prefix, *args)


def _numbers(argument: str, given: Any) -> np.ndarray:
    """An array of real numbers, as float64; of a tensor's values, whatever its type and device."""
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = given.double().numpy() if given.is_floating_point() else given.numpy()
    try:
        array = np.asarray(given)
    except ValueError as error:  # lists of different lengths
        raise ValueError(
            f"{argument}: expected an array of real numbers, got {type(given).__name__} ({error})"
        ) from error
    if array.dtype.kind not in "buif":
        raise ValueError(f"{argument}: expected an array of real numbers, got {type(given).__name__} of {array.dtype}")
    return array.astype(np.float64)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise ValueError("RBM.center_gradient: the parameters have no gradient yet; call backward first")
    return parameter.grad


class TractablePrior(Energy):
    """A prior that can be drawn from exactly: the base of those here, and of one's own.

    One's own needs :meth:`free_energy` and :meth:`sample`; if exp(-F) is not normalised, :meth:`log_partition` and
    :meth:`log_partition_surrogate` too. Its parameters are trained by SGD with the prior's learning rate.

    Arguments:
        visible: Number of latents M.

    Attributes:
        visible_bias: Zeros, with shape (M,), which tell device and number format; or, in a subclass, a parameter.
    """

    visible_bias: Tensor

    def __init__(self, visible: int) -> None:
        super().__init__()
        self.register_buffer("visible_bias", torch.zeros(visible), persistent=False)

    @property
    def visible(self) -> int:
        return self.visible_bias.shape[0]

    @property
    def hidden(self) -> int:
        """0: there are no hidden units."""
        return 0

    def log_partition(self) -> Tensor:
        """Exact log Z, in nats; a float64 scalar, 0 unless a subclass says otherwise."""
        return self.visible_bias.new_zeros((), dtype=torch.float64)

    def log_partition_surrogate(self, z_negative: Tensor) -> Tensor:
        """A scalar whose gradient is that of log Z, given samples (N, M); 0 unless a subclass says otherwise."""
        return z_negative.new_zeros(())

    def fit_means(self, means: Tensor, count: int) -> None:
        """Begin stage 2 from the latents' means (M,) over ``count`` data; does nothing unless a subclass does."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent samples, with shape (n, M)."""
        raise NotImplementedError


class BernoulliPrior(TractablePrior):
    """Independent bits with the interface of an RBM: what is the RBM worth?

    Attributes:
        visible_bias: b, with shape (M,). F(z) = -z·b and log Z = sum_i softplus(b_i), exactly.
    """

    def __init__(self, visible: int) -> None:
        super().__init__(visible)
        self.visible_bias = nn.Parameter(torch.zeros(visible))

    def free_energy(self, z: Tensor) -> Tensor:
        """F(z) = -z·b of bits z (*, M), in nats, with shape (*)."""
        with exactly(z):
            return -(z.to(self.visible_bias.dtype) @ self.visible_bias)

    def log_partition(self) -> Tensor:
        """Exact log Z, in nats; a float64 scalar, with its gradient."""
        return F.softplus(self.visible_bias.double()).sum()

    def log_partition_surrogate(self, z_negative: Tensor) -> Tensor:
        """log Z itself, a scalar with the exact gradient; samples (N, M) are not needed."""
        return F.softplus(self.visible_bias).sum()

    def fit_means(self, means: Tensor, count: int) -> None:
        """Set the bits' means (M,) to those of ``count`` data."""
        with torch.no_grad():
            self.visible_bias.copy_(torch.logit(clamp_means(means.double(), count)))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent samples, with shape (n, M)."""
        return bernoulli(self.visible_bias.expand(n, -1), generator)


class NormalPrior(TractablePrior):
    """A standard normal over continuous latents, with the interface of an RBM: IWAE's prior.

    Attributes:
        visible_bias: Zeros, with shape (M,), not trained. F(z) = z·z / 2 and log Z = M log(2 pi) / 2.
    """

    def free_energy(self, z: Tensor) -> Tensor:
        """F(z) = z·z / 2 of latents z (*, M), in nats, with shape (*)."""
        return z.square().sum(-1) / 2

    def log_partition(self) -> Tensor:
        """Exact log Z, in nats; a float64 scalar."""
        return self.visible_bias.new_tensor(self.visible * math.log(2 * math.pi) / 2, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent samples, with shape (n, M)."""
        return standard_normal((n, self.visible), self.visible_bias, generator)


Prior = RBM | TractablePrior
