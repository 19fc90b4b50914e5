"""A prior of one's own: a mixture of independent bits in place of the RBM.

A prior that can be drawn from exactly needs its free energy, here -log p(z), and samples. It is normalised, so log Z is
0 and gradients need no negatives.
"""

from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import latentbits as lb


class MixturePrior(lb.TractablePrior):
    """p(z) = sum_c pi_c prod_i Bernoulli(z_i | sigmoid(a_ci)) over M bits."""

    def __init__(self, visible: int, components: int, generator: torch.Generator | None = None) -> None:
        super().__init__(visible)
        self.share = nn.Parameter(torch.zeros(components))
        self.logits = nn.Parameter(torch.randn(components, visible, generator=generator))

    def free_energy(self, z: Tensor) -> Tensor:
        """-log p(z) of bits z (*, M), in nats, with shape (*)."""
        log_p = z @ self.logits.T - F.softplus(self.logits).sum(1)
        return -(log_p + self.share.log_softmax(0)).logsumexp(-1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent samples, with shape (n, M)."""
        component = torch.multinomial(self.share.softmax(0), n, replacement=True, generator=generator)
        return lb.bernoulli(self.logits[component], generator)


def make_model() -> lb.LatentModel:
    """The model with random weights."""
    prior = MixturePrior(24, 20, torch.Generator().manual_seed(0))
    return lb.LatentModel(lb.MLP([64, 128, 64, 24]), lb.MLP([24, 64, 128, 64]), prior)


def main(run: Path = Path("runs/own-prior")) -> lb.Evaluation:
    """Train for some seconds, load what validation chose, and evaluate it."""
    config = lb.recipes.digits().vary(
        "own-prior",
        autoencoder={"epochs": 20, "scales": (2.0,)},
        rbm={"cd_epochs": 8, "pcd_epochs": 0},
        joint={"epochs": 20},
    )
    model, splits = make_model(), lb.load_data("digits")
    model.decoder.set_offset(splits.mean_logits())
    lb.train(config, run, model=model)
    evaluation = lb.evaluate(lb.load(run, model=make_model()), splits.test, "test", lb.Counts(samples=100))
    print(f"NLL {evaluation.likelihood.nll:.2f} nats, log Z {evaluation.log_partition.value}")
    return evaluation


if __name__ == "__main__":
    main()
