"""An encoder and a decoder of one's own: convolutions on the 8x8 digits, between them 24 bits and an RBM.

An encoder maps data (B, D) to the posterior's log-odds (B, M), a decoder bits (*, M) to what the likelihood takes,
here log-odds of the pixels (*, D). Stage 1 ends by scaling the encoder's output, which ``Scaled`` makes possible.
"""

from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

import latentbits as lb


class Decoder(nn.Module):
    """Bits (*, 24) to log-odds of pixels (*, 64), which begin at an offset (64,)."""

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.offset = nn.Parameter(offset)
        self.start = nn.Linear(24, 32 * 4)
        self.up = nn.Sequential(
            *(nn.ELU(), nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1)),
            *(nn.ELU(), nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1)),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Shapes as above; the samples' dimension joins the batch's for the convolutions."""
        maps = self.start(z.reshape(-1, 24)).view(-1, 32, 2, 2)
        return self.up(maps).view(*z.shape[:-1], 64) + self.offset


def make_model(offset: Tensor) -> lb.LatentModel:
    """The model with random weights; an offset at the data's mean log-odds saves the first epochs."""
    encoder = nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ELU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ELU(), nn.Flatten(), nn.Linear(128, 24)),
    )
    return lb.LatentModel(lb.Scaled(encoder), Decoder(offset), lb.RBM(24, 16))


def main(run: Path = Path("runs/own-networks")) -> lb.Evaluation:
    """Train for some seconds, load what validation chose, and evaluate it."""
    config = lb.recipes.digits().vary(
        "own-networks",
        autoencoder={"epochs": 20, "scales": (2.0,)},
        rbm={"cd_epochs": 4, "pcd_epochs": 4},
        joint={"epochs": 8, "samples": 10},
    )
    splits = lb.load_data("digits")
    lb.train(config, run, model=make_model(splits.mean_logits()))
    model = lb.load(run, model=make_model(torch.zeros(64)))
    evaluation = lb.evaluate(model, splits.test, "test", lb.Counts(samples=100, raise_images=0))
    print(f"NLL {evaluation.likelihood.nll:.2f} nats, log Z {evaluation.log_partition.method}")
    return evaluation


if __name__ == "__main__":
    main()
