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
from latentbits.console import UsageError, check_device
from latentbits.files import load_state
from latentbits.runs import Run, RunError
from latentbits.train import check_shares

SCRIPT = str(Path(__file__).parent / "two_processes.py")


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
    run_processes(2, SCRIPT, str(folder))
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
    assert [int(result["ended_by"]) for result in both] == [1, 2]


def test_a_model_of_ones_own_begins_with_the_same_weights_in_all_processes(both):
    assert torch.equal(both[0]["own_model"], both[1]["own_model"])
    assert torch.equal(both[0]["own_model"], two_processes.own_weights(0))


def test_each_number_falls_to_one_process_and_fewer_to_a_slow_one(both):
    of_fast, of_slow = (result["numbers"].tolist() for result in both)
    assert sorted(of_fast + of_slow) == list(range(40))
    assert len(of_slow) < 10


def test_what_one_process_has_done_no_other_does_again(both):
    assert sorted(both[0]["parts"].tolist() + both[1]["parts"].tolist()) == [2, 3]


def test_alone_everything_is_as_it_was():
    rows = torch.arange(6.0)
    assert distributed.world() == (0, 1)
    assert torch.equal(distributed.share(rows), rows)
    assert distributed.total(rows) is rows
    assert distributed.gather(rows) is rows
    assert (distributed.any_of(True, False), distributed.of_first(2.5)) == ([True, False], 2.5)
    with distributed.processes():
        assert distributed.world().size == 1


def test_shares_that_do_not_come_out_even_are_named(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: distributed.World(0, 3))
    with pytest.raises(ValueError, match="4 rows cannot be shared out equally to 3 processes"):
        distributed.share(torch.zeros(4))
    with pytest.raises(RunError, match=r"joint.batch_size: expected a multiple of 3, .* got 50"):
        check_shares(Config(joint=JointConfig(epochs=1, batch_size=50, chains=9)))
    stages = {"autoencoder": {"epochs": 0}, "rbm": {"cd_epochs": 0, "pcd_epochs": 0}}
    config = Config().vary(**stages, joint={"batch_size": 60, "chains": 9})
    check_shares(config, 60)
    check_shares(config, 61)  # a whole batch; the rest of an epoch is left out
    with pytest.raises(RunError, match=r"multiple of 3, .* or no less than a batch, 60, got 50"):
        check_shares(config, 50)


def test_each_process_asks_for_a_gpu_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch, "ones", lambda *shape, device: asked.append(device) or torch.zeros(1))
    for device in ("cuda", "cuda:1", "cpu"):
        check_device(device)
    assert asked == ["cuda:3", "cuda:1", "cpu"]


def test_a_numbered_gpu_is_refused_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="expected cpu or cuda, got cuda:0"), distributed.processes("cuda:0"):
        pass
    with pytest.raises(UsageError, match="several processes take a GPU each"):
        check_device("cpu:0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run begun by one process, and gone on with by two; its checkpoint in between, and the output of the second."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    run_processes(1, SCRIPT, str(folder), "joint", "2", "start")
    begun = load_state(Run(folder).checkpoint)
    return folder, begun, run_processes(2, SCRIPT, str(folder), "none", "0", "resume")


def test_a_run_of_one_process_goes_on_with_two(trained):
    folder, begun, output = trained
    assert (begun["stage"], begun["step"], len(begun["generators"])) == ("joint", 2, 1)
    assert "2 processes, cpu; before" in output
    assert output.count("not bit-identical") == 1
    run = Run(folder)
    saved = load_state(run.checkpoint)
    assert run.finished
    assert len(saved["generators"]) == 2
    assert not torch.equal(*saved["generators"])
    assert saved["chains"]["z"].shape == (20, 3, 8)
    epochs = [(row["stage"], row["epoch"]) for row in run.metrics() if "epoch" in row]
    assert epochs == [("autoencoder", 1), ("rbm", 1), ("rbm", 2), ("joint", 1), ("joint", 2)]


def test_a_run_of_two_processes_goes_on_with_one(tmp_path):
    run = Run(tmp_path / "digits")
    run_processes(2, SCRIPT, str(run.path), "joint", "2", "start")
    assert len(load_state(run.checkpoint)["generators"]) == 2
    assert "1 processes, cpu; before" in run_processes(1, SCRIPT, str(run.path), "none", "0", "resume")
    saved = load_state(run.checkpoint)
    assert run.finished
    assert len(saved["generators"]) == 1
    assert saved["chains"]["z"].shape == (20, 3, 8)


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
    assert not (folder / "unfinished-evaluation").exists()


def test_running_statistics_are_the_means_over_processes(both):
    """They are linear in what each batch adds, so the means of two that ran alone are expected."""
    norms = [torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)]
    for rank, norm in enumerate(norms):
        for step in range(2):
            norm(torch.randn(20, 3, 2, 2, generator=two_processes.seeded(10 * step + rank)) * (1 + rank))
    alone = [torch.cat([norm.running_mean, norm.running_var]) for norm in norms]
    assert (alone[0] - alone[1]).abs().max() > 0.1
    for result in both:
        torch.testing.assert_close(result["statistics"], (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize(
    ("kind", "stage", "step"),
    [("all", "rbm", 5), ("all", "joint", 4), ("gan", "adversarial", 3), ("batch", "autoencoder", 4)],
)
def test_two_processes_stop_and_go_on_to_the_same_weights(tmp_path, kind, stage, step):
    """With the same number of processes a resumed run is bit-identical to one that was never stopped.

    The script also finds weights and statistics the same in both processes wherever they are saved.
    """
    whole, parts = (Run(tmp_path / kind / name) for name in ("whole", "parts"))
    run_processes(2, SCRIPT, str(whole.path), "none", "0", "start")
    run_processes(2, SCRIPT, str(parts.path), stage, str(step), "start")
    stopped = load_state(parts.checkpoint)
    assert (stopped["stage"], stopped["step"]) == (stage, step)
    if kind == "all":
        assert stopped["chains"]["tempering"][2][0].sum() > 0  # swaps since the temperatures were placed
    output = run_processes(2, SCRIPT, str(parts.path), "none", "0", "resume")
    assert "not bit-identical" not in output
    assert whole.finished
    assert parts.finished
    for path in whole.path.glob("*.safetensors"):
        if not path.name.startswith("checkpoint"):
            one, other = load_file(path), load_file(parts.path / path.name)
            assert one.keys() == other.keys()
            for name, weights in one.items():
                assert torch.equal(weights, other[name]), (path.name, name)
