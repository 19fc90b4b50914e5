"""Deterministic networks between data and bits."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn as nn
from torch import Tensor

ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "relu": nn.ReLU, "leaky-relu": nn.LeakyReLU}


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

    @property
    def last(self) -> nn.Linear:
        """The output layer."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer


def weight_matrices(net: nn.Module) -> list[Tensor]:
    """The parameters of a network that are not biases."""
    return [p for p in net.parameters() if p.dim() > 1]
