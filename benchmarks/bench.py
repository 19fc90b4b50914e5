"""Everything that is measured about speed: tables, one JSON, one plot.

``make bench`` runs this and writes ``results/benchmarks.json`` and ``docs/images/scaling.png``. Contenders of a group
do the same work side by side in one process, in turn; the ratio to the group's reference is what carries over to
another machine, with its quartiles over rounds. The time of an epoch, the cost against sizes, and two processes
against one are seconds of this machine.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from epoch import parts_of_an_epoch
from rich.console import Console
from rich.table import Table
from scaling import draw, scaling
from side_by_side import (
    ais_agreement,
    ais_group,
    alternate,
    gibbs_group,
    mixture_group,
    summarize,
    vimco_group,
)

from latentbits.files import write_json
from latentbits.records import provenance

console = Console(highlight=False)


def side_by_side(rounds: int) -> dict[str, Any]:
    """Every group's rows, printed as they come."""
    groups = {
        "Gibbs step, 5,000 chains, 200x400": gibbs_group(200, 400, 5000, 20),
        "Gibbs step, 1,000 chains, 1024x2048": gibbs_group(1024, 2048, 1000, 5),
        "AIS temperature, 5,000 chains, 200x400": ais_group(200, 400, 5000, 100),
        "VIMCO step, MLP, K = 50, batch 100": vimco_group(50, 100),
        "Mixture of ten logistics, 32x32, value and gradient, an image": mixture_group(32),
    }
    results = {}
    for title, (contenders, units) in groups.items():
        results[title] = rows = summarize(alternate(contenders, rounds), next(iter(contenders)), units)
        table = Table("", "ms", "ratio", "quartiles", title=title, title_justify="left")
        for name, row in rows.items():
            quartiles = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
            table.add_row(name, f"{row['milliseconds']:.2f}", f"{row['ratio']:.2f}", quartiles)
        console.print(table)
    return results


def processes() -> dict[str, dict[str, float]]:
    """Seconds of the same training and annealing by one and by two processes of one thread each."""
    seconds = {}
    for count in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "--"]
        done = subprocess.run(
            [sys.executable, *launcher, str(Path(__file__).parent / "processes.py")],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds[f"{count}"] = json.loads(done.stdout.strip().splitlines()[-1])
    table = Table("", "one, s", "two, s", "ratio", title="Processes of one thread each", title_justify="left")
    for name in seconds["1"]:
        one, two = seconds["1"][name], seconds["2"][name]
        table.add_row(name, f"{one:.2f}", f"{two:.2f}", f"{two / one:.2f}")
    console.print(table)
    return seconds


def print_parts(parts: dict[str, float]) -> None:
    """Print the parts of an epoch in seconds."""
    table = Table("part", "s", "share", title="An epoch of mnist-mlp, stage 3", title_justify="left")
    for name, value in parts.items():
        table.add_row(name, f"{value:.1f}", f"{value / parts['epoch']:.0%}")
    console.print(table)


def main() -> None:
    """Measure everything, and write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--data-dir", type=Path, help="folder with binarized MNIST's files")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/scaling.png"))
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    groups = side_by_side(options.rounds)
    agreement = ais_agreement()
    console.print(f"log Z: {agreement}")
    parts = parts_of_an_epoch(options.data_dir)
    print_parts(parts)
    costs = scaling()
    draw(costs, options.plot)
    versions = {name: metadata.version(name) for name in ("torch", "numba", "numpy", "rbms")}
    record = {
        "groups": groups,
        "rounds": options.rounds,
        "log_z_agreement": agreement,
        "epoch_seconds": parts,
        "scaling_seconds": costs,
        "processes_seconds": processes(),
        "versions": versions,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx_bf16": bool(torch.cpu.get_capabilities().get("amx_bf16", False)),
        "system": platform.platform(),
        **{key: value for key, value in provenance().items() if key in ("commit", "machine", "finished")},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, record)
    console.print(f"written: {options.out}, {options.plot}")


if __name__ == "__main__":
    main()
