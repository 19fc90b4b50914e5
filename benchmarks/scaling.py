"""Cost against size: chains, temperatures, K, batch, latent bits."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from side_by_side import random_rbm

from latentbits import LatentModel, ais, random_bits
from latentbits.config import ModelConfig
from latentbits.gibbs import bfloat16_products
from latentbits.model import build
from latentbits.objectives import joint_losses
from latentbits.recipes import mnist_mlp
from latentbits.splits import Form

LATENT = "AIS against latent bits M (H = 2 M)"

Costs = dict[str, dict[str, float]]
"""Seconds by title and size."""


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds, after a first, untimed call."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def step(model: LatentModel, batch: int, samples: int) -> Callable[[], None]:
    """A VIMCO step: scoring and gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.bernoulli(torch.full((batch, 784), 0.13), generator=generator)
    z = random_bits(1000, model.prior, generator)

    def work() -> None:
        losses = joint_losses(model, x, z, "vimco", samples, 4, 0.0, generator, bfloat16_products)
        (losses.decoder + losses.encoder + losses.prior).backward()

    return work


def network(config: ModelConfig) -> LatentModel:
    """A model with random weights."""
    model = build(config, Form(1, 28, 28), torch.Generator().manual_seed(0))
    assert isinstance(model, LatentModel)
    return model


def scaling() -> Costs:
    """Seconds of one call, for doubling sizes of one thing at a time."""
    generator = torch.Generator().manual_seed(0)
    rbm, mlp = random_rbm(200, 400), network(mnist_mlp().model)
    x = torch.bernoulli(torch.full((100, 784), 0.13), generator=generator)
    sizes = (100, 200, 400, 800, 1600)
    return {
        "AIS against chains (100 temperatures)": {
            str(n): seconds(partial(ais, rbm, n, 100, generator)) for n in (625, 1250, 2500, 5000, 10_000)
        },
        "AIS against temperatures (2,500 chains)": {
            str(n): seconds(partial(ais, rbm, 2500, n, generator)) for n in (25, 50, 100, 200, 400)
        },
        LATENT: {str(n): seconds(partial(ais, random_rbm(n, 2 * n), 1000, 20, generator)) for n in sizes},
        "L_K against K (100 images)": {
            str(n): seconds(partial(mlp.log_prob, x, n, 0.0, generator)) for n in (125, 250, 500, 1000, 2000)
        },
        "VIMCO step against K (batch 100)": {str(n): seconds(step(mlp, 100, n)) for n in (12, 25, 50, 100, 200)},
        "VIMCO step against batch (K = 50)": {str(n): seconds(step(mlp, n, 50)) for n in (25, 50, 100, 200, 400)},
    }


def draw(costs: Costs, path: Path) -> None:
    """Plot each cost on logarithmic axes beside what theory says, through its last point."""
    matplotlib.use("Agg")
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    for axes, (title, cost) in zip(figure.subplots(2, 3).flat, costs.items(), strict=True):
        x, y = [int(size) for size in cost], list(cost.values())
        axes.loglog(x, y, "o-", label="measured")
        power = 2 if title == LATENT else 1  # the matrices have 2 M^2 elements
        label = "proportional" if power == 1 else "quadratic"
        axes.loglog(x, [y[-1] * (size / x[-1]) ** power for size in x], "--", color="gray", label=label)
        axes.set_title(title, fontsize=9)
        axes.set_ylabel("seconds")
        axes.set_xticks(x, [f"{size:,}" for size in x])
        axes.minorticks_off()
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
