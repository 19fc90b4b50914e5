"""Contenders that do the same work, timed in turn: each round times each of them once."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from plain import PlainVimco, plain_ais, plain_gibbs, plain_mixture
from rbms.bernoulli_bernoulli.classes import BBRBM
from rbms.partition_function.ais import compute_partition_function_ais

from latentbits import RBM, LatentModel, ais, gibbs, random_bits
from latentbits.distributions import LogisticMixture
from latentbits.gibbs import bfloat16_products
from latentbits.model import build
from latentbits.objectives import joint_losses
from latentbits.recipes import mnist_mlp
from latentbits.splits import Form

Contenders = dict[str, Callable[[], object]]


def alternate(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; a first, untimed round compiles and warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def summarize(seconds: dict[str, list[float]], reference: str, units: int) -> dict[str, dict[str, float]]:
    """Median milliseconds for each unit of work, and median and quartiles of the ratio to the reference."""
    rows = {}
    for name, times in seconds.items():
        ratios = [t / r for t, r in zip(times, seconds[reference], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        rows[name] = {
            "milliseconds": 1e3 * statistics.median(times) / units,
            "ratio": statistics.median(ratios),
            "ratio_low": low,
            "ratio_high": high,
        }
    return rows


def random_rbm(visible: int, hidden: int) -> RBM:
    """An RBM with weights as large as trained ones (standard deviation 0.1)."""
    return RBM(visible, hidden, scale=0.1, generator=torch.Generator().manual_seed(0))


def of_rbms(rbm: RBM) -> BBRBM:
    """The same parameters for the package rbms."""
    return BBRBM(*(p.detach().clone() for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias)))


def two_products(rbm: RBM, chains: int, steps: int) -> Callable[[], None]:
    """The two float32 matrix products of a Gibbs step, and nothing else."""
    W, WT = rbm.weight.detach(), rbm.weight.detach().T.contiguous()
    z = torch.bernoulli(torch.full((chains, rbm.visible), 0.5))
    h, out = torch.empty(chains, rbm.hidden), torch.empty(chains, rbm.visible)

    def work() -> None:
        for _ in range(steps):
            torch.mm(z, W, out=h)
            torch.mm(h, WT, out=out)

    return work


def gibbs_group(visible: int, hidden: int, chains: int, steps: int) -> tuple[Contenders, int]:
    """One Gibbs step of many chains."""
    rbm, generator = random_rbm(visible, hidden), torch.Generator().manual_seed(0)
    z = random_bits(chains, rbm, generator)
    return {
        "two products alone, float32": two_products(rbm, chains, steps),
        "latentbits.gibbs": lambda: gibbs(rbm, z, steps, generator),
        "plain PyTorch": lambda: plain_gibbs(rbm, z, steps),
    }, steps


def ais_group(visible: int, hidden: int, chains: int, temperatures: int) -> tuple[Contenders, int]:
    """One temperature of annealed importance sampling."""
    rbm, generator = random_rbm(visible, hidden), torch.Generator().manual_seed(0)
    peer = of_rbms(rbm)
    contenders: Contenders = {
        "two products alone, float32": two_products(rbm, chains, temperatures),
        "latentbits.ais": lambda: ais(rbm, chains, temperatures, generator),
        "plain PyTorch": lambda: plain_ais(rbm, chains, temperatures),
        "rbms": lambda: compute_partition_function_ais(chains, temperatures + 1, peer),
    }
    return contenders, temperatures


def ais_agreement(repeats: int = 8, chains: int = 500, temperatures: int = 400) -> dict[str, Any]:
    """log Z of the same RBM by both packages: mean and standard error over repeated runs."""
    rbm, generator = random_rbm(200, 400), torch.Generator().manual_seed(1)
    peer = of_rbms(rbm)
    estimates = {
        "latentbits": [ais(rbm, chains, temperatures, generator).log_z for _ in range(repeats)],
        "rbms": [float(compute_partition_function_ais(chains, temperatures + 1, peer)) for _ in range(repeats)],
    }
    agreement: dict[str, Any] = {
        name: {"mean": statistics.mean(values), "standard_error": statistics.stdev(values) / repeats**0.5}
        for name, values in estimates.items()
    }
    return {**agreement, "chains": chains, "temperatures": temperatures, "repeats": repeats}


def vimco_group(samples: int, batch: int) -> tuple[Contenders, int]:
    """One step of stage 3 but for chains and optimizers: scoring and gradients."""
    generator = torch.Generator().manual_seed(0)
    model = build(mnist_mlp().model, Form(1, 28, 28), generator)
    assert isinstance(model, LatentModel)
    x = torch.bernoulli(torch.full((batch, 784), 0.13), generator=generator)
    z_negative = random_bits(1000, model.prior, generator)
    plain = PlainVimco(model)

    def step(backward_samples: int, products: Callable[[], Any]) -> None:
        losses = joint_losses(model, x, z_negative, "vimco", samples, backward_samples, 0.0, generator, products)
        model.zero_grad()
        with products():
            (losses.decoder + losses.encoder).backward()
        losses.prior.backward()

    return {
        "autograd over all K, plainly": lambda: plain.step(x, z_negative, samples),
        "latentbits, S = 4, bfloat16": lambda: step(4, bfloat16_products),
        "latentbits, S = 4": lambda: step(4, nullcontext),
        "latentbits, all K": lambda: step(0, nullcontext),
    }, 1


def mixture_group(images: int) -> tuple[Contenders, int]:
    """Log-probability of colour images of 32x32 under mixtures of ten logistics, and its gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (images, 3072), generator=generator).float()
    parameters = torch.randn(images, 100, 32, 32, generator=generator)
    parameters[:, 40:70] -= 2
    parameters.requires_grad_()

    def step(log_prob: Callable[[], torch.Tensor]) -> None:
        parameters.grad = None
        log_prob().sum().backward()

    return {
        "plain PyTorch": lambda: step(lambda: plain_mixture(x, parameters)),
        "latentbits": lambda: step(lambda: LogisticMixture(parameters).log_prob(x)),
    }, images
