"""Deterministic networks between data and latents: multi-layer perceptrons and residual networks.

A residual network's blocks are pre-activated (He et al. 2016) with kernel 3 and weight normalization (Salimans &
Kingma 2016). The encoder's block i halves the image by stride 2 and may repeat itself with stride 1; the decoder
has the same blocks in reverse order, with stride 1, and enlarges by nearest neighbours before each, the shortcut
too, to the size that the encoder had there (28, 14, 7, 4 and back).
"""

import contextlib
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.parametrizations import weight_norm

from .fused import elu

# A trial on CIFAR-10 without a committed record: with 1 for both the autoencoder was still at the images' marginal
# distribution after 150 steps.
RESIDUAL_SPREAD, OUTPUT_SPREAD = 0.2, 0.1
CPU = torch.device("cpu")
LEAST_SPREAD = 1e-3  # below it outputs on a batch count as all the same


class ELU(nn.ELU):
    """x where it is positive, else exp(x) - 1; (*) -> (*)."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as above."""
        return elu(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": ELU, "relu": nn.ReLU, "leaky-relu": nn.LeakyReLU}


class MLP(nn.Sequential):
    """A multi-layer perceptron, (*, widths[0]) -> (*, widths[-1]), linear at its end.

    Arguments:
        widths: Input, hidden layers and output.
        activation: One of "elu", "relu" and "leaky-relu".
    """

    def __init__(self, widths: Sequence[int], activation: str = "elu") -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        super().__init__(*layers[:-1])
        self.inputs = widths[0]

    @property
    def last(self) -> nn.Linear:
        """The output layer."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiply the output by a factor, inside the last layer."""
        self.last.weight.mul_(factor)
        self.last.bias.mul_(factor)

    @torch.no_grad()
    def set_offset(self, offset: Tensor) -> None:
        """Let the last layer's bias be (D,)."""
        self.last.bias.copy_(offset)


class Scaled(nn.Module):
    """An encoder of one's own with a factor behind it, which stage 1's conversion sets: (*) -> (*).

    Arguments:
        net: Any network.
    """

    gain: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.inputs = getattr(net, "inputs", None)
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as the network's."""
        y: Tensor = self.net(x)
        return self.gain * y

    def scale_output(self, factor: float) -> None:
        """Multiply the output by a factor."""
        self.gain *= factor


class Network(Protocol):
    """What training asks of an encoder and of a decoder besides their outputs."""

    def scale_output(self, factor: float) -> None:
        """Multiply an encoder's output by a factor."""

    def set_offset(self, offset: Tensor) -> None:
        """Set the bias (D,) of a decoder's logits."""


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Let convolutions on a GPU have float32's precision, as on CPUs, whose likelihoods are to be the same."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Let batch normalization use its running statistics and leave them as they are, and nothing be dropped."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def weight_matrices(net: nn.Module) -> list[Tensor]:
    """The parameters of a network that are not biases; of normalized weights the lengths, not the directions."""
    return [p for name, p in net.named_parameters() if p.dim() > 1 and not name.endswith("original1")]


def halvings(size: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """Sizes of an image (H, W) halved so many times, rounded up, itself first."""
    sizes = [size]
    for _ in range(count):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


class ResidualBlock(nn.Module):
    """x + g(x) with g two convolutions, each after its activation: (N, C, H, W) -> (N, C', H', W').

    Arguments:
        maps_in: C.
        maps_out: C'.
        stride: Of the first convolution and the shortcut; the encoder's way to a smaller map.
        enlarge: Size (H', W') to which the input is enlarged first; the decoder's way to a larger one.
        norm: "weight", "batch" or "none".
        activation: One of "elu", "relu" and "leaky-relu".
        raw: Whether the input is an image, which is not activated.
    """

    def __init__(
        self,
        maps_in: int,
        maps_out: int,
        stride: int = 1,
        enlarge: tuple[int, int] | None = None,
        norm: str = "weight",
        activation: str = "elu",
        raw: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.enlarge = stride, enlarge
        act = ACTIVATIONS[activation]

        def batch(maps: int) -> nn.Module:
            return nn.BatchNorm2d(maps) if norm == "batch" else nn.Identity()

        self.before = nn.Sequential(*([] if raw else [batch(maps_in), act()]))
        self.residual = nn.Sequential(
            normalized(nn.Conv2d(maps_in, maps_out, 3, stride, 1), norm),
            batch(maps_out),
            act(),
            normalized(nn.Conv2d(maps_out, maps_out, 3, 1, 1), norm, RESIDUAL_SPREAD),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or maps_in != maps_out:
            self.shortcut = normalized(nn.Conv2d(maps_in, maps_out, 1), norm)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as above."""
        # Pixels are left out before the shortcut's convolution, not by a stride of it: the gradient of a strided 1x1
        # convolution of fewer than 16 maps writes past its memory in PyTorch's oneDNN (uxlfoundation/oneDNN #6035).
        activated, shortcut = self.before(x), self.shortcut(x[:, :, :: self.stride, :: self.stride])
        if self.enlarge is not None:  # what acts on each pixel alone costs a quarter before it
            activated, shortcut = (F.interpolate(maps, self.enlarge, mode="nearest") for maps in (activated, shortcut))
        y: Tensor = self.residual(activated) + shortcut
        return y


@cache
def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether layers are faster in bfloat16: with AMX, with AVX-512 BF16 but not Intel's, on GPUs from capability 8 on.

    Elsewhere residual decoders took longer than in float32: 1.5 to 1.7 times as long on an Intel processor of
    AVX-512 BF16 without AMX, and 7 to 13 times on one of AVX2, where PyTorch emulates bfloat16
    (``benchmarks/precision.py``).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    able = torch.cpu.get_capabilities()
    of_intel = able.get("cpu_name", "").startswith("Intel")
    return device.type != "cpu" or bool(able.get("amx_bf16") or (able.get("avx512_bf16") and not of_intel))


@cache
def processor() -> str:
    """This CPU's name, and which of its instructions PyTorch's operations and the networks' layers are made of."""
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}{' and bfloat16' * has_fast_bfloat16(CPU)}"


def works_in_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether layers of that precision work in bfloat16 on a device; in float32 where that is faster."""
    return precision == "bfloat16" and has_fast_bfloat16(device)


def in_precision(precision: str, device: torch.device) -> torch.autocast:
    """A context in which layers work in bfloat16, if that is the precision and faster on the device."""
    return torch.autocast(device.type, torch.bfloat16, enabled=works_in_bfloat16(precision, device))


def note_on_precision(precision: str, device: torch.device) -> str:
    """What to tell people where layers work in another precision than was asked for; empty where they do not."""
    if precision == "float32" or works_in_bfloat16(precision, device):
        return ""
    return (
        f"no fast bfloat16 arithmetic on {device.type} here (AMX, AMD's AVX-512 BF16 or a GPU from Ampere on), so "
        "networks work in float32: expect more time than the pages say, and values that differ by rounding"
    )


def normalized(layer: nn.Module, norm: str, first_spread: float = 1.0) -> nn.Module:
    """The layer, with its weights normalized if the norm is "weight", and the spread that its outputs begin with."""
    layer.__dict__["first_spread"] = first_spread  # for initialize_by_data
    return weight_norm(layer) if norm == "weight" else layer


class ResNetEncoder(nn.Module):
    """Data (*, D) to latents' parameters (*, outputs), by residual blocks with stride 2.

    Arguments:
        image: Channels, height and width of an image; D is their product.
        maps: Feature maps of each block.
        outputs: Number of outputs; without a fully connected layer it must be that of the last map's elements.
        repeats: How often each block stands, the first with stride 2 and the others with stride 1.
        fully_connected: Whether a linear layer follows the blocks.
        norm: "weight", "batch" or "none".
        activation: One of "elu", "relu" and "leaky-relu".
        precision: "float32", or "bfloat16" for all layers' inputs, weights and outputs, where that is faster.
        levels: Of the data: they are scaled from [0, levels - 1] to [-1, 1].
    """

    def __init__(
        self,
        image: tuple[int, int, int],
        maps: Sequence[int],
        outputs: int,
        repeats: int = 2,
        fully_connected: bool = True,
        norm: str = "weight",
        activation: str = "elu",
        precision: str = "float32",
        levels: int = 2,
    ) -> None:
        super().__init__()
        channels, height, width = image
        features = check_last_map(image, maps, outputs, fully_connected)
        self.image, self.precision, self.levels = image, precision, levels
        self.inputs = channels * height * width
        blocks: list[nn.Module] = []
        for before, after in pairwise((channels, *maps)):
            for i in range(repeats):
                first = i == 0
                blocks.append(
                    ResidualBlock(
                        before if first else after, after, 2 if first else 1, None, norm, activation, raw=not blocks
                    )
                )
        end: list[nn.Module] = [nn.Flatten(1)]
        if fully_connected:
            end = [ACTIVATIONS[activation](), *end, normalized(nn.Linear(features, outputs), norm)]
        self.layers = nn.Sequential(*blocks, *end)
        self.gain: Tensor
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as above."""
        images = x.reshape(-1, *self.image) * (2 / (self.levels - 1)) - 1
        with in_precision(self.precision, x.device):
            out: Tensor = self.layers(images.contiguous(memory_format=torch.channels_last))
        out = self.gain * out.to(images.dtype)
        return out.reshape(*x.shape[:-1], *out.shape[1:])

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiply the output by a factor."""
        self.gain.mul_(factor)


class ResNetDecoder(nn.Module):
    """Latents (*, M) to the data's parameters: logits (*, D), or those of a mixture (*, P, H, W).

    Arguments:
        image: Channels, height and width of an image; D is their product.
        maps: Feature maps of the encoder's blocks, which are used from the last to the first.
        inputs: M; without a fully connected layer it must be the number of the last map's elements.
        parameters: P, of each pixel; 0 for one logit for each of D, with a bias of its own.
        repeats: How often each block stands; the first enlarges.
        fully_connected: Whether a linear layer comes before the blocks.
        norm: "weight", "batch" or "none".
        activation: One of "elu", "relu" and "leaky-relu".
        precision: "float32", or "bfloat16" for all layers' inputs, weights and outputs, where that is faster.

    Attributes:
        elements: Size of the largest tensor that it makes for one of the latents' rows, about.
        elements_at_once: Size of that tensor for as many rows as are fastest where samples are scored on a CPU: four
            times an mlp's, for a convolution of few images costs more for each.
    """

    elements_at_once = 2**23

    def __init__(
        self,
        image: tuple[int, int, int],
        maps: Sequence[int],
        inputs: int,
        parameters: int = 0,
        repeats: int = 2,
        fully_connected: bool = True,
        norm: str = "weight",
        activation: str = "elu",
        precision: str = "float32",
    ) -> None:
        super().__init__()
        channels, height, width = image
        self.precision = precision
        sizes = halvings((height, width), len(maps))
        final = sizes[-1]
        features = check_last_map(image, maps, inputs, fully_connected)
        self.first: nn.Module = normalized(nn.Linear(inputs, features), norm) if fully_connected else nn.Identity()
        self.shape = (maps[-1], *final)
        down = list(reversed(maps))
        blocks: list[nn.Module] = []
        for (before, after), size in zip(pairwise((down[0], *down)), reversed(sizes[:-1]), strict=True):
            for i in range(repeats):
                first = i == 0
                blocks.append(
                    ResidualBlock(before if first else after, after, 1, size if first else None, norm, activation)
                )
        self.blocks = nn.Sequential(*blocks, ACTIVATIONS[activation]())
        self.last = normalized(nn.Conv2d(maps[0], parameters or channels, 3, 1, 1), norm, OUTPUT_SPREAD)
        # a mixture's log-probability makes a dozen tensors of a third of its parameters' size
        largest = max(m * h * w for m, (h, w) in zip(maps, sizes, strict=False))
        self.elements = max(2 * largest, 4 * parameters * height * width)
        self.offset = None if parameters else nn.Parameter(torch.zeros(channels * height * width))

    def forward(self, z: Tensor) -> Tensor:
        """Shapes as above."""
        with in_precision(self.precision, z.device):
            maps = self.first(z.reshape(-1, z.shape[-1])).unflatten(1, self.shape)
            out: Tensor = self.last(self.blocks(maps.contiguous(memory_format=torch.channels_last)))
        # In one pass from bfloat16 in channels-last to planes of single precision, which the mixture's loops need
        out = out.to(z.dtype, memory_format=torch.contiguous_format)
        if self.offset is not None:
            out = out.flatten(1) + self.offset
        return out.reshape(*z.shape[:-1], *out.shape[1:])

    @torch.no_grad()
    def set_offset(self, offset: Tensor) -> None:
        """Let the logits' own biases be (D,)."""
        assert self.offset is not None
        self.offset.copy_(offset)


class _ToMaps(nn.Unflatten):
    """Features (N, C * H * W) to maps (N, C, H, W), laid out as convolutions are fastest."""

    def __init__(self, maps: Sequence[int]) -> None:
        super().__init__(1, tuple(maps))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as above."""
        return super().forward(x).contiguous(memory_format=torch.channels_last)


class DCGenerator(nn.Sequential):
    """Latents (N, M) to images (N, D) in [-1, 1] by transposed convolutions (Radford et al. 2016).

    Arguments:
        image: Channels, height and width; D is their product.
        maps: Feature maps of the critic's layers, which are used from the last to the first.
        inputs: M.
        precision: "float32", or "bfloat16" for all layers' inputs, weights and outputs, where that is faster.
    """

    def __init__(
        self, image: tuple[int, int, int], maps: Sequence[int], inputs: int, precision: str = "float32"
    ) -> None:
        channels, height, width = image
        final = _quarters((height, width), len(maps))
        first = nn.Linear(inputs, maps[-1] * final[0] * final[1])
        layers: list[nn.Module] = [first, _ToMaps((maps[-1], *final))]
        for before, after in pairwise((*reversed(maps), channels)):
            layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1)]
        super().__init__(*layers, nn.Tanh(), nn.Flatten(1))
        self.precision = precision

    def forward(self, z: Tensor) -> Tensor:
        """Shapes as above."""
        with in_precision(self.precision, z.device):
            images: Tensor = super().forward(z)
        return images.to(z.dtype)


class DCCritic(nn.Sequential):
    """Images (N, D) in [-1, 1] to a number each, (N, 1), by strided convolutions (Radford et al. 2016).

    Arguments:
        image: Channels, height and width; D is their product.
        maps: Feature maps of the layers, each of which halves the image.
        precision: "float32", or "bfloat16" for all layers' inputs, weights and outputs, where that is faster.
    """

    def __init__(self, image: tuple[int, int, int], maps: Sequence[int], precision: str = "float32") -> None:
        channels, height, width = image
        final = _quarters((height, width), len(maps))
        layers: list[nn.Module] = [_ToMaps(image)]
        for before, after in pairwise((channels, *maps)):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Flatten(1), nn.Linear(maps[-1] * final[0] * final[1], 1))
        self.precision = precision

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as above."""
        with in_precision(self.precision, x.device):
            value: Tensor = super().forward(x)
        return value.to(x.dtype)


def _quarters(size: tuple[int, int], count: int) -> tuple[int, int]:
    """An image's size (H, W) after so many layers that halve it exactly."""
    if any(length % 2**count for length in size):
        raise ValueError(
            f"model.maps: expected few enough that each can halve {size[0]}x{size[1]} exactly, got {count} of them"
        )
    return size[0] // 2**count, size[1] // 2**count


def check_last_map(image: tuple[int, int, int], maps: Sequence[int], latents: int, fully_connected: bool) -> int:
    """The elements of the last feature map, which latents have to fit if no fully connected layer makes them.

    Raises:
        ValueError: If they do not.
    """
    height, width = halvings(image[1:], len(maps))[-1]
    features, last_map = maps[-1] * height * width, f"{maps[-1]}x{height}x{width}"
    if not fully_connected and features != latents:
        raise ValueError(
            f"model.latent: expected {features}, the elements of the last feature map ({last_map}), got {latents}; "
            "change it or the maps, or set model.fully_connected"
        )
    return features


@torch.no_grad()
def initialize_by_data(net: nn.Module, x: Tensor) -> Tensor:
    """Scale and shift each weight-normalized layer so that its outputs on a batch have mean 0 and a stated spread.

    The layers are set one after another, each on what the earlier ones give by then (Salimans & Kingma
    2016, section 3). The spread is 1, but less for what is added to a shortcut and for a decoder's output: blocks
    begin near the identity, and parameters of the data's distribution near the same for all.

    Arguments:
        net: A network with weight normalization; others are left as they are.
        x: A batch of its input, with shape (B, *).

    Returns:
        The network's output on the batch.
    """
    hooks = [
        module.register_forward_hook(_standardize)
        for module in net.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and hasattr(module, "parametrizations")
    ]
    try:
        return net(x)  # type: ignore[no-any-return]
    finally:
        for hook in hooks:
            hook.remove()


def _standardize(layer: Any, inputs: Any, output: Tensor) -> Tensor:
    across = (0, *range(2, output.dim()))
    output = output.float()
    spread = output.std(across, correction=0)
    spread = torch.where(spread > LEAST_SPREAD, spread, 1) / layer.first_spread  # one image, or the same again
    mean = output.mean(across)
    per_map: Callable[[Tensor], Tensor] = lambda t: t.view(-1, *[1] * (output.dim() - 2))  # noqa: E731
    layer.parametrizations.weight.original0.div_(spread.view_as(layer.parametrizations.weight.original0))
    layer.bias.copy_((layer.bias - mean) / spread)
    return (output - per_map(mean)) / per_map(spread)
