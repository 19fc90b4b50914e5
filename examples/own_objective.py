"""An objective of one's own for stage 3: the ELBO by REINFORCE with a leave-one-out baseline (Kool et al. 2019).

An objective is a function of the log-weights of K posterior samples. It says by how much each sample's log p(x, z_i)
and log q(z_i | x) are to rise; backward passes, negatives and resampling are the package's.
"""

from pathlib import Path

import torch
from torch import Tensor

import latentbits as lb


def reinforce(log_w: Tensor) -> lb.Signal:
    """Signals whose expected gradient is the ELBO's: log_w (K, B), K of 2 or more."""
    K = len(log_w)
    baseline = (log_w.sum(0) - log_w) / (K - 1)  # the mean of the others, independent of sample i
    return lb.Signal(
        bound=log_w.mean(0),
        weights=torch.full_like(log_w, 1 / K),
        encoder_signal=(log_w - baseline) / K,
    )


def main(run: Path = Path("runs/own-objective")) -> lb.Evaluation:
    """Train for some seconds, load what validation chose, and evaluate it."""
    config = lb.recipes.digits().vary(
        "own-objective",
        autoencoder={"epochs": 20, "scales": (2.0,)},
        rbm={"cd_epochs": 4, "pcd_epochs": 4},
        joint={"epochs": 20, "samples": 4, "backward_samples": 0},
    )
    lb.train(config, run, objective=reinforce)
    evaluation = lb.evaluate(lb.load(run), lb.load_data("digits").test, "test", lb.Counts(samples=100, raise_images=0))
    print(f"NLL {evaluation.likelihood.nll:.2f} nats")
    return evaluation


if __name__ == "__main__":
    main()
