"""A likelihood of one's own: scikit-learn's digits with all of their 17 grey levels, as binomial counts.

A likelihood is what a model's ``family`` makes of the decoder's output: an object with ``log_prob``, ``sample`` and
``mean``. The data are one's own too, so their form says how many levels they have.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

import latentbits as lb

COUNT = 16


class Binomial:
    """Pixels from 0 to 16, each the number of successes in 16 trials with log-odds (*, D)."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @property
    def mean(self) -> Tensor:
        """Mean number of successes, with shape (*, D)."""
        return COUNT * torch.sigmoid(self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        """Of images (B, D) under the log-odds (*, B, D), in nats, with shape (*, B)."""
        x = value.to(self.logits)
        ways = torch.lgamma(torch.tensor(COUNT + 1.0)) - torch.lgamma(x + 1) - torch.lgamma(COUNT - x + 1)
        return (ways + x * self.logits - COUNT * F.softplus(self.logits)).sum(-1)

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Images, with shape (*sample_shape, *, D)."""
        p = torch.sigmoid(self.logits).expand(*sample_shape, *self.logits.shape)
        return torch.binomial(torch.full_like(p, COUNT), p, generator=generator)


def make_model() -> lb.LatentModel:
    """The model with random weights."""
    return lb.LatentModel(lb.MLP([64, 128, 64, 32]), lb.MLP([32, 64, 128, 64]), lb.RBM(32, 16), family=Binomial)


def main(run: Path = Path("runs/own-likelihood")) -> lb.Evaluation:
    """Train for some seconds, load what validation chose, and evaluate it."""
    pixels = load_digits().data.astype("uint8")
    splits = lb.make_splits(
        "digits, 17 levels", [pixels[:1197], pixels[1197:1497], pixels[1497:]], lb.Form(1, 8, 8, 17)
    )
    config = lb.recipes.digits().vary(
        "own-likelihood",
        autoencoder={"epochs": 20, "scales": (2.0,)},
        rbm={"cd_epochs": 4, "pcd_epochs": 4},
        joint={"epochs": 20},
    )
    model = make_model()
    model.decoder.set_offset(torch.logit((splits.train.float().mean(0) / COUNT).clamp(0.01, 0.99)))
    lb.train(config, run, model=model, splits=splits)
    evaluation = lb.evaluate(
        lb.load(run, model=make_model()), splits.test, "test", lb.Counts(samples=100, raise_images=0)
    )
    print(f"NLL {evaluation.likelihood.nll:.2f} nats, {evaluation.likelihood.bits_per_dimension:.3f} bits a pixel")
    return evaluation


if __name__ == "__main__":
    main()
