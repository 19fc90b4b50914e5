"""The same work in plain PyTorch, as one would write it first: what the engine is measured against."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from latentbits import RBM, LatentModel


@torch.no_grad()
def plain_gibbs(rbm: RBM, z: Tensor, steps: int) -> Tensor:
    """Block Gibbs steps from z (N, M) by torch.bernoulli."""
    for _ in range(steps):
        h = torch.bernoulli(torch.sigmoid(z @ rbm.weight + rbm.hidden_bias))
        z = torch.bernoulli(torch.sigmoid(h @ rbm.weight.T + rbm.visible_bias))
    return z


@torch.no_grad()
def plain_ais(rbm: RBM, chains: int, temperatures: int) -> Tensor:
    """Log-weights (chains,) from a uniform base, hidden units summed out."""
    W, b, c = rbm.weight, rbm.visible_bias, rbm.hidden_bias
    z = torch.bernoulli(torch.full((chains, rbm.visible), 0.5))
    log_w = torch.full((chains,), (rbm.visible + rbm.hidden) * math.log(2), dtype=torch.float64)
    for k in range(1, temperatures + 1):
        to, back = k / temperatures, (k - 1) / temperatures
        a = z @ W + c
        log_w += (to - back) * (z @ b).double()
        log_w += (F.softplus(to * a) - F.softplus(back * a)).double().sum(1)
        h = torch.bernoulli(torch.sigmoid(to * a))
        z = torch.bernoulli(torch.sigmoid(to * (h @ W.T + b)))
    return log_w


class PlainVimco:
    """VIMCO by autograd through all K samples.

    Arguments:
        model: Whose parameters get the gradients.
    """

    def __init__(self, model: LatentModel) -> None:
        self.model = model

    def step(self, x: Tensor, z_negative: Tensor, K: int) -> None:
        """Gradients for data x (B, D) with K samples and negatives (N, M)."""
        model = self.model
        a = model.encoder(x)
        z = torch.bernoulli(torch.sigmoid(a.detach()).expand(K, -1, -1))
        log_q = -F.binary_cross_entropy_with_logits(a.expand_as(z), z, reduction="none").sum(-1)
        logits = model.decoder(z)
        log_p = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_joint = log_p - self.free_energy(z)
        log_w = (log_joint - log_q).detach()
        others = 1 - torch.eye(K)
        rest = torch.where(others[:, :, None] > 0, log_w[None], (others @ log_w / (K - 1))[:, None])
        bound, bound_rest = (w.logsumexp(-2) - math.log(K) for w in (log_w, rest))
        weights = log_w.softmax(0)
        signal = bound - bound_rest - weights
        log_z = -self.free_energy(z_negative).mean()
        loss = log_z - (weights * log_joint + signal * log_q).sum(0).mean()
        model.zero_grad()
        loss.backward()

    def free_energy(self, z: Tensor) -> Tensor:
        """F(z) of bits (*, M), with shape (*)."""
        rbm = self.model.prior
        return -(z @ rbm.visible_bias) - F.softplus(z @ rbm.weight + rbm.hidden_bias).sum(-1)


def plain_mixture(x: Tensor, parameters: Tensor) -> Tensor:
    """Log-probabilities (N,) of colour images x (N, 3 H W) under mixtures of logistics (N, 10 C, H, W)."""
    x = (x / 127.5 - 1).unflatten(1, (3, 1, *parameters.shape[2:]))
    logits, red, green, blue, *rest = parameters.unflatten(1, (10, -1)).unbind(1)
    scales, (on_red, blue_on_red, blue_on_green) = torch.stack(rest[:3], 1).clamp(min=-7), rest[3:]
    green = green + on_red.tanh() * x[:, 0]
    blue = blue + blue_on_red.tanh() * x[:, 0] + blue_on_green.tanh() * x[:, 1]
    centered = x - torch.stack([red, green, blue], 1)
    above, below = (centered + 1 / 255) * (-scales).exp(), (centered - 1 / 255) * (-scales).exp()
    inside = (above.sigmoid() - below.sigmoid()).clamp(min=1e-12).log()
    log_p = torch.where(x < -0.999, F.logsigmoid(above), torch.where(x > 0.999, F.logsigmoid(-below), inside)).sum(1)
    return (log_p + logits.log_softmax(1)).logsumexp(1).sum((1, 2))
