"""Losses of one's own for stage 3: the ELBO by DisARM (Dong et al. 2020), whose pairs of samples share their noise.

Where an estimator needs more than log-weights, such as the noise behind the bits or another forward pass, give the
losses themselves. They are surrogates, of which only gradients matter: here each reaches its own network alone.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import latentbits as lb


def disarm(model: lb.LatentModel, x: Tensor, z_negative: Tensor, samples: int, generator: torch.Generator) -> lb.Losses:
    r"""Losses from K / 2 pairs of a sample and its antithesis, K even; x (B, D), z_negative (N, M).

    With u uniform, z = [u < q] and z' = [1 - u < q], the gradient by a bit's log-odds a is the mean over pairs of
    (f(z) - f(z')) (z - z') sigmoid(|a|) / 2, where f = log p*(x, z); the entropy's is exact.
    """
    a = model.encoder(x)
    with torch.no_grad():
        u = torch.rand(samples // 2, *a.shape, generator=generator)
        q = a.sigmoid()
        one, other = (u < q).float(), (1 - u < q).float()
    z = torch.cat([one, other])
    log_p, free_energy = model.likelihood(z).log_prob(x), model.prior.free_energy(z)
    with torch.no_grad():
        f_one, f_other = (log_p - free_energy).chunk(2)
        slope = ((f_one - f_other)[..., None] * (one - other) * a.abs().sigmoid() / 2).mean(0)
    entropy = (F.softplus(a) - a * a.sigmoid()).sum(-1)
    log_partition = model.prior.log_partition_surrogate(z_negative)
    prior = free_energy.mean() + log_partition
    return lb.Losses(
        decoder=-log_p.mean(),
        encoder=-((slope * a).sum(-1) + entropy).mean(),
        prior=prior,
        gap=prior.detach(),
        bound=((log_p - free_energy).mean(0) + entropy).mean().detach(),
        effective_sample_size=torch.tensor(float(samples)),
    )


def main(run: Path = Path("runs/own-losses")) -> lb.Evaluation:
    """Train for some seconds, load what validation chose, and evaluate it."""
    config = lb.recipes.digits().vary(
        "own-losses",
        autoencoder={"epochs": 20, "scales": (2.0,)},
        rbm={"cd_epochs": 4, "pcd_epochs": 4},
        joint={"epochs": 20, "samples": 4},
    )
    lb.train(config, run, losses=disarm)
    evaluation = lb.evaluate(lb.load(run), lb.load_data("digits").test, "test", lb.Counts(samples=100, raise_images=0))
    print(f"NLL {evaluation.likelihood.nll:.2f} nats")
    return evaluation


if __name__ == "__main__":
    main()
