"""The run folder: what is written comes back, whole or not at all."""

import errno
import json
import os
from pathlib import Path

import children
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import latentbits as lb
from latentbits.config import Config
from latentbits.files import FileError, flatten, load_state, save_state, sealed, unflatten, write_atomically
from latentbits.runs import Run, RunError, load, pretrained_path


def test_the_same_state_is_the_same_file():
    """Whatever order safetensors gives the metadata."""
    tensors = {"é": torch.arange(5.0), "b": torch.zeros(0, 2), "a": torch.ones(2, 3, dtype=torch.bfloat16)}
    metadata = {f'{n} ü"\\': "x" * n for n in range(8)}
    files = {sealed(tensors, dict(sorted(metadata.items(), reverse=reverse))) for reverse in (False, True) * 4}
    assert len(files) == 1


numbers = st.integers(-5, 5) | st.floats(allow_nan=False) | st.booleans() | st.none() | st.text(max_size=4)
nested = st.recursive(
    numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(nested)
def test_nested_state_comes_back(value):
    tensors = {}
    assert unflatten(flatten(value, "state", tensors), tensors) == value


def test_tensors_and_optimizer_state_come_back(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "none": None, "shared": [layer.weight, layer.weight]}
    save_state(tmp_path / "state", state)
    loaded = load_state(tmp_path / "state")
    assert torch.equal(loaded["shared"][1], layer.weight)
    other = torch.optim.Adam(layer.parameters())
    other.load_state_dict(loaded["optimizer"])
    assert torch.equal(other.state[layer.weight]["exp_avg"], optimizer.state[layer.weight]["exp_avg"])


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_state_is_named(tmp_path, keep):
    path = tmp_path / "state"
    save_state(path, {"x": torch.arange(100.0)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileError, match="expected a whole safetensors file"):
        load_state(path)


def test_state_of_another_format_or_missing_is_named(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "new", metadata={"format": "99", "skeleton": "{}"})
    with pytest.raises(FileError, match="expected format 3, found 99"):
        load_state(tmp_path / "new")
    with pytest.raises(FileError, match="not found"):
        load_state(tmp_path / "absent")


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_place_of_the_scratch_file_is_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_text("theirs")
    (tmp_path / f".value.{os.getpid()}.part").symlink_to(other)
    write_atomically(tmp_path / "value", b"ours")
    assert other.read_text() == "theirs"
    assert not (tmp_path / "value").is_symlink()
    assert (tmp_path / "value").read_bytes() == b"ours"


def test_weights_that_are_tied_are_saved_and_come_back(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    net[1].weight = net[0].weight
    run = Run.create(tmp_path / "run", Config())
    run.save_weights("tied", net)
    kept = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.zero_()
    run.load_weights("tied", net)
    assert torch.equal(net[1].weight, kept)


def test_a_run_is_not_overwritten(tmp_path):
    Run.create(tmp_path / "run", Config())
    with pytest.raises(RunError, match="nothing is overwritten; go on with --resume"):
        Run.create(tmp_path / "run", Config())


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(RunError, match=r"expected a run folder with config.json, found none"):
        load(tmp_path)
    Run.create(tmp_path, Config())
    with pytest.raises(RunError, match=r"model.safetensors: not found; the run has not got that far"):
        load(tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="does not hold the weights of this run's model"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": "x"}')
    with pytest.raises(RunError, match="not a configuration that this version can read"):
        load(tmp_path)


def test_configuration_comes_back(tmp_path):
    config = Config(seed=3)
    assert Run.create(tmp_path, config).config == config


def test_a_torn_last_line_of_metrics_is_dropped(tmp_path):
    run = Run.create(tmp_path / "run", Config())
    run.append_metrics({"stage": "rbm", "epoch": 1})
    run.append_metrics({"stage": "rbm", "epoch": 2})
    path = run.path / "metrics.jsonl"
    path.write_text(path.read_text()[:-4])
    assert run.metrics() == [{"stage": "rbm", "epoch": 1}]
    assert run.truncate_metrics(2) == 1
    run.append_metrics({"stage": "rbm", "epoch": 2})
    assert run.metrics() == [{"stage": "rbm", "epoch": 1}, {"stage": "rbm", "epoch": 2}]


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    run = Run.create(tmp_path / "run", Config())
    with run.lock(), pytest.raises(RunError, match="another process is training here"), Run(run.path).lock():
        pass
    with run.lock():
        pass


def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run", Config())

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(RunError, match=r"cannot be locked \(No locks available\); name a folder on another"),
        run.lock(),
    ):
        pass


def test_kept_weights_are_those_of_epochs_by_number(tmp_path):
    run = Run.create(tmp_path / "run", Config())
    for name in ("joint-0100", "joint-9999", "joint-10000", "joint-best", "joint-0100-copy"):
        (run.path / f"{name}.safetensors").touch()
    assert run.kept() == ["joint-0100", "joint-9999", "joint-10000"]


@pytest.mark.parametrize("name", lb.pretrained_names())
def test_models_of_the_package_load_and_say_how_good_they_are(name):
    model = lb.load_pretrained(name)
    assert not model.training
    record = json.loads((pretrained_path(name) / "evaluation.json").read_text())
    assert record["config"]["recipe"] == Run.open(pretrained_path(name)).config.recipe
    # samples have as much ink as digits have: MNIST's mean is 0.13
    images = model.sample(50, 100, torch.Generator().manual_seed(0))
    assert images.shape == (50, record["evaluation"]["dimensions"])
    assert 0.08 < float(images.mean()) < 0.2


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    """The header comes from one version and the bytes from the next: not damage, if the file is another by then."""
    path, read = tmp_path / "state.safetensors", Path.read_bytes
    save_state(path, {"step": 1})

    def replaced_first(self):
        monkeypatch.setattr(Path, "read_bytes", read)
        save_state(path, {"step": 2})
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", replaced_first)
    assert load_state(path) == {"step": 2}
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(FileError, match="damaged"):
        load_state(path)


def test_reading_beside_one_who_writes_gets_one_state_or_the_other(tmp_path, processes):
    """States of two sizes in turn: the file under a name is now longer, now shorter than its header was just now."""
    path = tmp_path / "state.safetensors"
    save_state(path, {"x": torch.arange(3.0)})
    writer = processes.Process(target=children.write_in_turn, args=(path, (3, 300)))
    writer.start()
    sizes = set()
    try:
        while len(sizes) < 2:  # until it has begun
            assert writer.is_alive()
            sizes.add(len(load_state(path)["x"]))
        sizes |= {len(load_state(path)["x"]) for _ in range(3000)}
        assert writer.is_alive()
    finally:
        writer.kill()
        writer.join()
    assert sizes == {3, 300}
