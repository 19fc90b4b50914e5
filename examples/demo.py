"""The whole job on the embedded digits: train three stages, evaluate from both sides, sample, draw.

Run by ``make demo``; a run folder that exists already is used as it is.
"""

from pathlib import Path

from latentbits.cli import main
from latentbits.runs import Run

run = Path("runs/demo")
resume = ["--resume"] if Run(run).exists() else []
for command in (
    ["train", "digits", "--run", str(run), *resume],
    ["evaluate", str(run), "--raise-images", "300"],
    ["sample", str(run), "--overwrite"],
    ["report", str(run)],
):
    if status := main(command):
        raise SystemExit(status)
