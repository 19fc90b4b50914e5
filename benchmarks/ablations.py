"""One change at a time: short trainings of a recipe from the same weights, by validation and training images.

``python benchmarks/ablations.py --weights FILE --data-dir DIR [NAME …]`` trains every variation below, or those named,
from the weights at stage 2's end of a run (those of stages 1 and 2 from random weights), two at once with one thread
each, and adds a line for each to ``results/ablations.json``; ``--recipe mnist-resnet`` those of that recipe, to
``results/ablations-mnist-resnet.json``. Epochs are chosen so that all take about as long as the baseline of their
stage; the time that each took stands in its line. What is there already is skipped.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from latentbits.files import write_json
from latentbits.runs import Run

console = Console(highlight=False)

STAGE_3 = "--autoencoder.epochs 0 --rbm.cd-epochs 0 --rbm.pcd-epochs 0"
STAGES_1_AND_2 = "--weights '' --joint.epochs 0 --rbm.cd-epochs 4 --rbm.pcd-epochs 4 --autoencoder.scales 1.0"
# what the recipe had when these were run
RESNET_STAGE_3 = (
    "--warm-start.epochs 0 --joint.samples 10 --joint.first-samples 4 --joint.decay 0.5 --joint.augmentation-decay 0.3 "
    "--joint.encoder-learning-rate 5e-4 --joint.decoder-learning-rate 5e-4"
)
RESNET_STAGES_1_AND_2 = (
    "--weights '' --warm-start.epochs 0 --joint.epochs 0 --autoencoder.epochs 5 --autoencoder.distort 0"
)
RELAXED = "--joint.objective relaxed --joint.samples 1 --joint.products float32 --joint.epochs 60"
MNIST_MLP = {
    "VIMCO, K = 50": "--joint.epochs 9",
    "VIMCO, K = 50, seed 1": "--joint.epochs 9 --seed 1",  # how much is chance
    "VIMCO, K = 10": "--joint.epochs 20 --joint.samples 10",
    "VIMCO, K = 200": "--joint.epochs 3 --joint.samples 200",
    "VIMCO, K from 5 to 50": "--joint.epochs 13 --joint.first-samples 5",
    "VIMCO, K from 10 to 200": "--joint.epochs 4 --joint.samples 200 --joint.first-samples 10",
    "VIMCO, full backward": "--joint.epochs 5 --joint.backward-samples 0",
    "VIMCO, centered RBM": "--joint.epochs 9 --joint.centered",
    "VIMCO, sleep 0.5": "--joint.epochs 9 --joint.sleep 0.5 --joint.dreams 100",
    "CRWS, K = 50": "--joint.epochs 9 --joint.objective crws --joint.dreams 100",
    "VIMCO, float32 products": "--joint.epochs 9 --joint.products float32",
    "VIMCO, tempered chains": "--joint.epochs 8 --joint.chains 200 --joint.temperatures 5",
    "VIMCO, RBM rate 1e-3": "--joint.epochs 9 --joint.prior-learning-rate 1e-3",
    "VIMCO, RBM rate 1e-2": "--joint.epochs 9 --joint.prior-learning-rate 1e-2",
    "VIMCO, shift 0.5": "--joint.epochs 9 --joint.shift 0.5",
    "VIMCO, distort 1.5": "--joint.epochs 9 --joint.distort 1.5",
    "VIMCO, no moving average": "--joint.epochs 9 --joint.average 0",
    "VIMCO, half of the networks' rates": "--joint.epochs 9 --joint.encoder-learning-rate 5e-4 "
    "--joint.decoder-learning-rate 5e-4",
    "VIMCO, encoder dropout 0.1": "--joint.epochs 9 --joint.dropout 0.1",
    "VIMCO, weight decay 1e-5": "--joint.epochs 9 --joint.weight-decay 1e-5",
    "relaxed": RELAXED,
    "relaxed, temperature 0.5": f"{RELAXED} --joint.relaxation 0.5",
    "relaxed, temperature 0.1": f"{RELAXED} --joint.relaxation 0.1",
    "relaxed, encoder dropout 0.2": f"{RELAXED} --joint.dropout 0.2",
    "relaxed, weight decay 1e-5": f"{RELAXED} --joint.weight-decay 1e-5",
    "relaxed, weight decay 1e-4": f"{RELAXED} --joint.weight-decay 1e-4",
    "relaxed, RBM rate 2e-2": f"{RELAXED} --joint.prior-learning-rate 2e-2",
    "relaxed, then VIMCO": "--warm-start.epochs 30 --warm-start.encoder-learning-rate 1e-3 "
    "--warm-start.decoder-learning-rate 1e-3 --warm-start.prior-learning-rate 5e-3 --warm-start.decay 0 "
    "--joint.epochs 5",
    "stages 1 and 2": STAGES_1_AND_2,
    "stages 1 and 2, shift 0.5": f"{STAGES_1_AND_2} --autoencoder.shift 0.5",
    "stages 1 and 2, distort 1.5": f"{STAGES_1_AND_2} --autoencoder.distort 1.5",
    "stages 1 and 2, dropout 0.1": f"{STAGES_1_AND_2} --autoencoder.dropout 0.1",
    "stages 1 and 2, input dropout 0.2": f"{STAGES_1_AND_2} --autoencoder.input-dropout 0.2",
    "stages 1 and 2, weight decay 1e-5": f"{STAGES_1_AND_2} --autoencoder.weight-decay 1e-5",
    "stages 1 and 2, ReLU": f"{STAGES_1_AND_2} --model.activation relu",
    "stages 1 and 2, LeakyReLU": f"{STAGES_1_AND_2} --model.activation leaky-relu",
    "stages 1 and 2, literal conversion": f"{STAGES_1_AND_2} --autoencoder.conversion literal",
    # these begin with random weights, and have the minutes of stages 1 and 2 as well
    "relaxed from random weights": f"{RELAXED} --weights ''",
    "VIMCO from random weights": "--joint.epochs 24 --weights ''",
    "VIMCO from random weights, a fifth of the rates": "--joint.epochs 24 --weights '' "
    "--joint.encoder-learning-rate 2e-4 --joint.decoder-learning-rate 2e-4 --joint.prior-learning-rate 1e-3",
    "VIMCO from random weights, sleep 0.5": "--joint.epochs 18 --weights '' --joint.sleep 0.5 --joint.dreams 100",
}
MNIST_RESNET = {
    "VIMCO, K = 10": f"{RESNET_STAGE_3} --joint.epochs 4 --joint.sleep 0",
    "VIMCO, K = 10, sleep 0.5": f"{RESNET_STAGE_3} --joint.epochs 4",
    "CRWS, K = 10": f"{RESNET_STAGE_3} --joint.epochs 4 --joint.sleep 0 --joint.objective crws",
    "relaxed": f"{RESNET_STAGE_3} --joint.epochs 12 --joint.sleep 0 --joint.objective relaxed --joint.samples 1 "
    "--joint.first-samples 0",
    "stages 1 and 2": RESNET_STAGES_1_AND_2,
    "stages 1 and 2, batch normalization": f"{RESNET_STAGES_1_AND_2} --model.norm batch",
    "stages 1 and 2, no normalization": f"{RESNET_STAGES_1_AND_2} --model.norm none",
    "stages 1 and 2, float32": f"{RESNET_STAGES_1_AND_2} --model.precision float32",
    "stages 1 and 2, scale 1": f"{RESNET_STAGES_1_AND_2} --autoencoder.scales 1",
}


class Study(NamedTuple):
    """The variations of a recipe.

    Attributes:
        variations: Options of each, by what it is called.
        images: So many of each split's images that it is evaluated on.
        samples: K.
        out: Where the lines are kept, in ``results``.
    """

    variations: dict[str, str]
    images: int
    samples: int
    out: str


STUDIES = {
    "mnist-mlp": Study(MNIST_MLP, 2000, 500, "ablations.json"),
    "mnist-resnet": Study(MNIST_RESNET, 1000, 200, "ablations-mnist-resnet.json"),
}


def train_and_evaluate(recipe: str, name: str, weights: Path, data_dir: Path, runs: Path) -> dict[str, Any]:
    """Train one variation and evaluate it on some validation and training images."""
    study = STUDIES[recipe]
    run = runs / name.replace(" ", "-").replace(",", "").replace("=", "")
    options = shlex.split(study.variations[name])
    if "--weights" not in options:
        options += ["--weights", str(weights)]
    skipped = [] if name.startswith("stages 1 and 2") else shlex.split(STAGE_3)
    resume = ["--resume"] if (run / "config.json").is_file() else [*skipped, *options]
    validation = [] if resume == ["--resume"] else ["--validation.every", "3"]
    latentbits("train", recipe, "--run", str(run), *resume, *validation, "--data-dir", str(data_dir))
    line: dict[str, Any] = {"options": options}
    for split in ("valid", "train"):
        counts = f"--images {study.images} --samples {study.samples} --temperatures 5000 --raise-images 0"
        latentbits("evaluate", str(run), "--split", split, *shlex.split(counts), "--data-dir", str(data_dir))
        line[split] = json.loads((run / "evaluation.json").read_text())
        line[split].pop("config")
    rows = [row for row in Run(run).metrics() if "seconds" in row]
    line["training_seconds"], line["epochs"] = rows[-1]["seconds"], len(rows)
    line["config"] = Run(run).config.model_dump()
    return line


def latentbits(*words: str) -> None:
    """Run a command with one thread; its output is shown where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "latentbits", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"latentbits {shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def show(results: dict[str, Any], study: Study) -> None:
    """Print the table, best first."""
    title = f"NLL, K = {study.samples}, nats"
    table = Table("", "valid", "± MC", "images", "train", "minutes", "epochs", title=title)
    for name, line in sorted(results.items(), key=lambda item: item[1]["valid"]["evaluation"]["likelihood"]["nll"]):
        valid, train = (line[split]["evaluation"]["likelihood"] for split in ("valid", "train"))
        error = f"{valid['standard_error_monte_carlo']:.3f}"
        minutes = f"{line['training_seconds'] / 60:.1f}"
        figures = f"{valid['nll']:.3f}", error, line["valid"]["images"], f"{train['nll']:.3f}"
        table.add_row(name, *figures, minutes, str(line["epochs"]))
    console.print(table)


def main() -> None:
    """Train, evaluate, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of the recipe's variations; all if none")
    parser.add_argument("--recipe", choices=STUDIES, default="mnist-mlp")
    parser.add_argument("--weights", type=Path, required=True, help="weights to begin with")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--runs", type=Path, help="folder of the runs; runs/ablations-RECIPE if not given")
    parser.add_argument("--out", type=Path, help="another file of lines, for other weights to begin with")
    parser.add_argument("--lanes", type=int, default=2, help="trainings at once")
    arguments = parser.parse_args()
    recipe, study = arguments.recipe, STUDIES[arguments.recipe]
    runs = arguments.runs or Path("runs") / f"ablations-{recipe}"
    out = arguments.out or Path("results") / study.out
    unknown = [name for name in arguments.names if name not in study.variations]
    if unknown:
        parser.error(f"names: expected some of {', '.join(study.variations)}, got {', '.join(unknown)}")
    lock = Lock()

    def found() -> dict[str, Any]:
        return json.loads(out.read_text()) if out.is_file() else {}

    def one(name: str) -> None:
        line = train_and_evaluate(recipe, name, arguments.weights, arguments.data_dir, runs)
        with lock:
            write_json(out, found() | {name: line})  # what another process of this script has added stays
            show(found(), study)

    there = found()
    with ThreadPoolExecutor(arguments.lanes) as lanes:
        list(lanes.map(one, [name for name in arguments.names or study.variations if name not in there]))
    show(found(), study)


if __name__ == "__main__":
    main()
