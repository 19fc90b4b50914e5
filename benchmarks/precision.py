"""Whether residual networks are faster in float32 or in bfloat16 on this processor.

``python benchmarks/precision.py`` writes ``results/precision.json``, a record for each processor that it has run on:
for the decoders of two recipes the milliseconds for a row of latents, forward alone as in evaluation and with the
backward pass as in training, both precisions in turn in each of 7 rounds, and their ratio. bfloat16 is bfloat16 here
even where the library would work in float32. Networks have random weights, which cost what trained ones do.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from side_by_side import Contenders, alternate, summarize

from latentbits import LatentModel, nets
from latentbits.data import form_of
from latentbits.files import write_json
from latentbits.model import build
from latentbits.recipes import RECIPES
from latentbits.records import provenance

FILE = Path(__file__).parents[1] / "results" / "precision.json"
RECIPES_AND_ROWS = {"mnist-resnet": 128, "cifar10-small": 64}
ROUNDS = 7


def work(name: str, precision: str, rows: int, *, training: bool) -> Callable[[], None]:
    """A recipe's decoder applied to some rows of latents, and its backward pass in training."""
    config = RECIPES[name].make()
    settings = config.model.model_copy(update={"precision": precision})
    model = build(settings, form_of(config.data), torch.Generator().manual_seed(0))
    assert isinstance(model, LatentModel)
    z = torch.bernoulli(torch.full((rows, settings.latent), 0.5), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        with torch.set_grad_enabled(training):
            out = model.decoder(z)
        if training:
            model.zero_grad()
            out.sum().backward()

    return step


def main() -> None:
    """Measure, show and write down."""
    torch.set_num_threads(os.cpu_count() or 1)
    console, found = Console(highlight=False), {}
    for name, rows in RECIPES_AND_ROWS.items():
        for training in (False, True):
            title = f"{name}'s decoder, {'forward and backward' if training else 'forward'}"
            both: Contenders = {
                precision: work(name, precision, rows, training=training) for precision in ("float32", "bfloat16")
            }
            with mock.patch.object(nets, "has_fast_bfloat16", return_value=True):
                found[title] = summarize(alternate(both, ROUNDS), "float32", rows)
            table = Table("", "ms a row", "ratio", title=title, title_justify="left")
            for precision, row in found[title].items():
                table.add_row(precision, f"{row['milliseconds']:.2f}", f"{row['ratio']:.2f}")
            console.print(table)
    made = provenance() | {"command": "python benchmarks/precision.py"}
    record = json.loads(FILE.read_text()) if FILE.is_file() else {}
    write_json(FILE, record | {made["machine"]["processor"]: {"groups": found, "rounds": ROUNDS, "made": made}})


if __name__ == "__main__":
    main()
