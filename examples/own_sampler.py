"""Negatives from an outside sampler: an annealer over spins in place of the persistent Gibbs chains.

A sampler is called as ``latentbits.gibbs`` is: with the RBM, the last negatives (N, M), a number of steps and a
generator. One that starts afresh each time, as an annealer does, needs the RBM and N only. The annealer here is NumPy's
random numbers and an Ising model; a device or another library goes in its place. Its samples should follow
exp(-E) at temperature 1: a device with another effective temperature needs its couplings scaled by that.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import latentbits as lb


def anneal(J: np.ndarray, f: np.ndarray, g: np.ndarray, reads: int, sweeps: int, seed: int) -> np.ndarray:
    """Spins s (reads, M) of E(s, t) = -s J t - s f - t g, from temperature 5 down to 1."""
    rng = np.random.default_rng(seed)
    s = rng.choice([-1.0, 1.0], (reads, len(f)))
    for beta in np.linspace(0.2, 1, sweeps):
        t = np.where(rng.random((reads, len(g))) < 1 / (1 + np.exp(-2 * beta * (s @ J + g))), 1.0, -1.0)
        s = np.where(rng.random((reads, len(f))) < 1 / (1 + np.exp(-2 * beta * (t @ J.T + f))), 1.0, -1.0)
    return s


def from_annealer(rbm: lb.RBM, z: Tensor, steps: int, generator: torch.Generator | None) -> Tensor:
    """The sampler: couplings and fields go out, spins come back and become bits (N, M)."""
    J, f, g, _ = (part.cpu().numpy() for part in rbm.to_ising())
    seed = int(torch.randint(2**31, (), generator=generator))  # the run's own randomness, so that it repeats
    spins = anneal(J, f, g, reads=len(z), sweeps=20, seed=seed)
    return torch.from_numpy((spins + 1) / 2)


def main(run: Path = Path("runs/own-sampler")) -> lb.Evaluation:
    """Train for some seconds, load what validation chose, and evaluate it."""
    config = lb.recipes.digits().vary(
        "own-sampler",
        autoencoder={"epochs": 20, "scales": (2.0,)},
        rbm={"cd_epochs": 5, "pcd_epochs": 3, "chains": 50},
        joint={"epochs": 10, "chains": 50},
    )
    lb.train(config, run, sampler=from_annealer)
    evaluation = lb.evaluate(lb.load(run), lb.load_data("digits").test, "test", lb.Counts(samples=100, raise_images=0))
    print(f"NLL {evaluation.likelihood.nll:.2f} nats")
    return evaluation


if __name__ == "__main__":
    main()
