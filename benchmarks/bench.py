"""Contenders side by side in one process, alternating: ratios, not seconds, are what carries over.

``make bench`` runs this and writes ``results/benchmarks.json``. Each contender of a group does the same work; a
round times each of them once, in turn, so that a slow minute of the machine slows them all. What is reported is
the median over rounds of the ratio to the group's reference, with its quartiles.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from plain import PlainVimco, plain_ais, plain_gibbs
from rich.console import Console
from rich.table import Table

from latentbits import RBM, LatentModel, ais, gibbs, random_bits
from latentbits.cli import provenance
from latentbits.gibbs import bfloat16_products
from latentbits.model import build
from latentbits.objectives import joint_losses
from latentbits.recipes import mnist_mlp

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
    contenders: Contenders = {
        "two products alone, float32": two_products(rbm, chains, temperatures),
        "latentbits.ais": lambda: ais(rbm, chains, temperatures, generator),
        "plain PyTorch": lambda: plain_ais(rbm, chains, temperatures),
    }
    return contenders, temperatures


def vimco_group(samples: int, batch: int) -> tuple[Contenders, int]:
    """One step of stage 3 but for chains and optimizers: scoring and gradients."""
    generator = torch.Generator().manual_seed(0)
    model = build(mnist_mlp().model, 784, generator)
    assert isinstance(model, LatentModel)
    x = torch.bernoulli(torch.full((batch, 784), 0.13), generator=generator)
    z_negative = random_bits(1000, model.prior, generator)
    plain = PlainVimco(model)

    def step(backward_samples: int, products: Callable[[], object]) -> None:
        losses = joint_losses(
            model, x, z_negative, "vimco", samples, backward_samples, 0.0, generator, products
        )  # fmt: skip
        model.zero_grad()
        with products():
            (losses.decoder + losses.encoder).backward()
        losses.prior.backward()

    from contextlib import nullcontext

    return {
        "autograd over all K, plainly": lambda: plain.step(x, z_negative, samples),
        "latentbits, S = 4, bfloat16": lambda: step(4, bfloat16_products),
        "latentbits, S = 4": lambda: step(4, nullcontext),
        "latentbits, all K": lambda: step(0, nullcontext),
    }, 1


def main() -> None:
    """Run every group and write the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks.json"))
    options = parser.parse_args()
    groups = {
        "Gibbs step, 5,000 chains, 200x400": gibbs_group(200, 400, 5000, 20),
        "Gibbs step, 1,000 chains, 1024x2048": gibbs_group(1024, 2048, 1000, 5),
        "AIS temperature, 5,000 chains, 200x400": ais_group(200, 400, 5000, 20),
        "VIMCO step, MLP, K = 50, batch 100": vimco_group(50, 100),
    }
    results, console = {}, Console()
    for title, (contenders, units) in groups.items():
        rows = summarize(alternate(contenders, options.rounds), next(iter(contenders)), units)
        results[title] = rows
        table = Table("", "ms", "ratio", "quartiles", title=title, title_justify="left")
        for name, row in rows.items():
            quartiles = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
            table.add_row(name, f"{row['milliseconds']:.2f}", f"{row['ratio']:.2f}", quartiles)
        console.print(table)
    versions = {name: metadata.version(name) for name in ("torch", "numba", "numpy")}
    record = {
        "groups": results,
        "rounds": options.rounds,
        "versions": versions,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx_bf16": bool(torch.cpu.get_capabilities().get("amx_bf16", False)),
        "system": platform.platform(),
        **{key: value for key, value in provenance().items() if key in ("commit", "machine", "finished")},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
