"""Training and annealing by as many processes as torchrun starts; the first prints its seconds as JSON."""

import json
import time
from collections.abc import Callable

import torch
from side_by_side import random_rbm

from latentbits import LatentModel, ais, distributed, gibbs, random_bits
from latentbits.gibbs import bfloat16_products
from latentbits.model import build
from latentbits.objectives import joint_losses
from latentbits.recipes import mnist_mlp
from latentbits.splits import Form


def seconds(work: Callable[[], object]) -> float:
    """Seconds of the slowest process, after a first, untimed call."""
    work()
    distributed.wait()
    started = time.perf_counter()
    work()
    distributed.wait()
    return time.perf_counter() - started


def training(steps: int = 30, batch: int = 100, chains: int = 1000) -> Callable[[], None]:
    """Steps of mnist-mlp's stage 3, of which each process has its share."""
    generator = torch.Generator().manual_seed(distributed.world().rank)
    model = build(mnist_mlp().model, Form(1, 28, 28), torch.Generator().manual_seed(0))
    assert isinstance(model, LatentModel)
    x = distributed.share(torch.bernoulli(torch.full((batch, 784), 0.13)))
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def work() -> None:
        z = distributed.share(random_bits(chains, model.prior, generator))
        for _ in range(steps):
            z = gibbs(model.prior, z, 5, generator)
            losses = joint_losses(model, x, z, "vimco", 50, 4, 0.0, generator, bfloat16_products)
            optimizer.zero_grad()
            with bfloat16_products():
                (losses.decoder + losses.encoder).backward()
            losses.prior.backward()
            distributed.average_gradients(model.parameters())
            optimizer.step()

    return work


def main() -> None:
    """Measure both."""
    with distributed.processes():
        rbm = random_rbm(200, 400)
        result = {
            "AIS, 5,000 chains, 100 temperatures": seconds(
                lambda: ais(rbm, 5000, 100, torch.Generator().manual_seed(0))
            ),
            "30 steps of stage 3": seconds(training()),
        }
        if distributed.world().is_first:
            print(json.dumps(result))


if __name__ == "__main__":
    main()
