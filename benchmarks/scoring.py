"""How many samples a decoder should score at once on a CPU: the time for one by the size of the largest tensor.

``python benchmarks/scoring.py`` writes ``results/scoring.json``: for each recipe the microseconds for a sample by the
size in elements, all sizes being taken in turn in every round. Networks have random weights, which cost what trained
ones do.
"""

import functools
import time
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from networks import stand_in
from rich.console import Console

from latentbits import LatentModel
from latentbits.data import form_of
from latentbits.files import write_json
from latentbits.recipes import RECIPES
from latentbits.records import provenance
from latentbits.train import new_state

RESULTS = Path(__file__).parents[1] / "results"
EXPONENTS = (20, 21, 22, 23, 24)
SAMPLES = {"mnist-mlp": (50, 500), "mnist-resnet": (12, 64), "cifar10-small": (8, 40)}
"""Images and K, so that every size is used."""
ROUNDS = 9


@torch.no_grad()
def microseconds(name: str) -> dict[str, dict[str, float]]:
    """Of a sample, by the exponent of two of the largest tensor's elements."""
    config, (images, K) = RECIPES[name].make(), SAMPLES[name]
    splits = stand_in(form_of(config.data), 500)
    model = new_state(config, splits).model.eval()
    assert isinstance(model, LatentModel)
    x = splits.train[:images].float()
    z = model.posterior(x).sample((K,), torch.Generator().manual_seed(0))
    model.log_joint(x, z)
    seconds: dict[int, list[float]] = {exponent: [] for exponent in EXPONENTS}
    for _ in range(ROUNDS):
        for exponent in EXPONENTS:
            with mock.patch.object(model.decoder, "elements_at_once", 2**exponent, create=True):
                started = time.perf_counter()
                model.log_joint(x, z)
                seconds[exponent].append(time.perf_counter() - started)
    each = 1e6 / (images * K)
    return {
        str(exponent): {"fastest": min(times) * each, "median": median(times) * each}
        for exponent, times in seconds.items()
    }


def main() -> None:
    """Measure, show and write down."""
    show = functools.partial(Console(highlight=False).print)
    found = {}
    for name in SAMPLES:
        found[name] = microseconds(name)
        show(f"{name}: " + ", ".join(f"2^{size} {row['median']:.0f} µs" for size, row in found[name].items()))
    made = provenance() | {"command": "python benchmarks/scoring.py"}
    write_json(RESULTS / "scoring.json", {"microseconds_for_a_sample": found, "made": made})


if __name__ == "__main__":
    main()
