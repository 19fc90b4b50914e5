"""Two processes against one: the same estimates bit for bit, the same gradients, and runs that change hands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes
from safetensors.torch import load_file

from latentbits import distributed
from latentbits.config import Config, JointConfig
from latentbits.files import load_state
from latentbits.runs import Run, RunError
from latentbits.train import check_shares

QUICK = ["--autoencoder.epochs", "2", "--autoencoder.scales", "1.0", "--rbm.cd-epochs", "1", "--rbm.pcd-epochs", "2"]
QUICK += ["--joint.epochs", "3", "--validation.every", "1", "--validation.ais-temperatures", "50"]


def run_processes(count, *arguments):
    """Run a script or module in ``count`` processes of one thread each; returns its output.

    Without the two dashes torchrun takes our --run for an abbreviation of its own --run-path.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "--"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *(launcher if count > 1 else []), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes computed."""
    folder = tmp_path_factory.mktemp("two")
    run_processes(2, str(Path(__file__).parent / "two_processes.py"), str(folder))
    return [load_file(folder / f"{rank}.safetensors") for rank in (0, 1)]


def test_there_are_two(both):
    assert [result["world"].tolist() for result in both] == [[0, 2], [1, 2]]


@pytest.mark.parametrize("name", ["schedule", "ais", "raise", "evaluation"])
def test_merged_estimates_are_those_of_one_process(both, name):
    expected = (two_processes.annealed() | two_processes.evaluated())[name]
    for result in both:
        assert torch.equal(result[name], expected)


def test_averaged_gradients_are_those_of_one_process(both):
    expected = two_processes.gradients("vimco")
    for result in both:
        torch.testing.assert_close(result["gradient"], expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 0.01


def test_processes_agree(both):
    for result in both:
        assert result["gathered"].tolist() == [[0, 10], [1, 11]]
        assert result["any"].tolist() == [True, False]
        assert float(result["of_first"]) == 5.0


def test_alone_everything_is_as_it_was():
    rows = torch.arange(6.0)
    assert distributed.world() == (0, 1)
    assert torch.equal(distributed.share(rows), rows)
    assert distributed.total(rows) is rows
    assert distributed.gather(rows) is rows
    assert (distributed.any_of(True), distributed.any_of(False), distributed.of_first(2.5)) == (True, False, 2.5)
    with distributed.processes():
        assert distributed.world().size == 1


def test_shares_that_do_not_come_out_even_are_named(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: distributed.World(0, 3))
    with pytest.raises(ValueError, match="4 rows cannot be shared out equally to 3 processes"):
        distributed.share(torch.zeros(4))
    with pytest.raises(RunError, match=r"joint.batch_size: expected a multiple of 3, .* got 50"):
        check_shares(Config(joint=JointConfig(epochs=1, batch_size=50, chains=9)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run begun by one process, and gone on with by two; the output of the second."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train = ["-m", "latentbits", "train", "digits", "--run", str(folder)]
    run_processes(1, *train, *QUICK, "--max-minutes", "0.02")
    begun = load_state(Run(folder).checkpoint)
    return folder, begun, run_processes(2, *train, "--resume")


def test_a_run_of_one_process_goes_on_with_two(trained):
    folder, begun, output = trained
    assert len(begun["generators"]) == 1
    assert "2 processes; before" in output
    assert "not bit-identical" in output
    assert output.count("finished:") == 1
    run = Run(folder)
    saved = load_state(run.checkpoint)
    assert run.finished
    assert len(saved["generators"]) == 2
    assert not torch.equal(*saved["generators"])
    assert len(saved["chains"]) == run.config.joint.chains
    epochs = [(row["stage"], row["epoch"]) for row in run.metrics() if "epoch" in row]
    expected = (("autoencoder", 2), ("rbm", 3), ("joint", 3))
    assert epochs == [(stage, epoch) for stage, count in expected for epoch in range(1, count + 1)]


def test_an_evaluation_by_two_processes_is_that_of_one(trained, tmp_path):
    folder = trained[0]
    evaluations = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        options = ["--samples", "50", "--chains", "200", "--temperatures", "100", "--raise-images", "20"]
        run_processes(count, "-m", "latentbits", "evaluate", str(folder), *options, "--out", str(out))
        record = json.loads(out.read_text())
        assert record["machine"]["processes"] == count
        evaluations.append(record["evaluation"])
    assert evaluations[0] == evaluations[1]


def test_two_processes_stop_and_go_on_to_the_same_weights(tmp_path):
    """With the same number of processes a resumed run is bit-identical to one that was never stopped."""
    runs = [tmp_path / name for name in ("whole", "parts")]
    train = ["-m", "latentbits", "train", "digits"]
    run_processes(2, *train, *QUICK, "--run", str(runs[0]))
    run_processes(2, *train, *QUICK, "--run", str(runs[1]), "--max-minutes", "0.02")
    assert load_state(Run(runs[1]).checkpoint)["stage"] != "finished"
    output = run_processes(2, *train, "--run", str(runs[1]), "--resume")
    assert "not bit-identical" not in output
    whole, parts = (load_file(run / "joint.safetensors") for run in runs)
    for name, weights in whole.items():
        assert torch.equal(weights, parts[name]), name
