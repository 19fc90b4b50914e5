"""A disk that is full or read-only, and files that are torn or have flipped bits: a line that says so, or the last
good checkpoint, and never a silently wrong model.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import children
import faults
import pytest
import torch
from test_faults_kill import assert_same_end, finish, operations, said, started
from test_train import assert_same_run, tiny, weights

import latentbits as lb
from latentbits import files, report, session
from latentbits.cli import main
from latentbits.files import FileError, load_state
from latentbits.runs import STAGES, Run


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert finish(started(processes, children.train_small, folder / "run", folder / "log")) == 0
    return Run(folder / "run"), folder / "log"


def test_a_disk_that_is_full_at_any_operation(processes, whole, tmp_path):
    """Each operation on files in turn finds the disk full: the command says where, and the run can go on."""
    run, log = whole
    numbers = [number for _, _, number in operations(log)]
    chosen = numbers if faults.FULL else random.Random(0).sample(numbers, 8)
    for i, at in enumerate(chosen):
        folder, mine = tmp_path / str(at), tmp_path / f"{at}.log"
        status = finish(started(processes, children.command, ["train", "small", "--run", folder], mine, at, "full"))
        kind = next(kind for _, kind, number in operations(mine) if number == at)
        errors = [line for line in said(mine).splitlines() if line.startswith("error:")]
        if kind in ("link", "unlink"):  # then there is no checkpoint before the last, and nothing else is lost
            assert (status, errors) == (0, [])
        else:
            assert status == 2
            assert len(errors) == 1
            assert "cannot be written (No space left on device)" in errors[0]
            assert str(folder) in errors[0]
        assert "Traceback" not in said(mine)
        assert not list(folder.glob(".*.part"))
        finished = started(processes, children.train_small, folder, tmp_path / "again.log", Run(folder).exists())
        assert finish(finished) == 0
        assert_same_end(run, Run(folder))
        shutil.rmtree(folder)
        faults.progress("full disk", i + 1, len(chosen))
    faults.ran("disk full at an operation on files", len(chosen))


@contextlib.contextmanager
def small_disk(size):
    """A folder on a file system of so many bytes; None where one may not be mounted."""
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def test_a_disk_that_is_really_full(processes, whole, tmp_path):
    """A file system that is too small for the run, then large enough; where none can be mounted, files that are."""
    run, _ = whole
    sizes = faults.form([200], [30, 60, 100, 130, 160, 190, 220, 250])
    for size in sizes:
        with small_disk(size << 10) as disk:
            folder = (disk or tmp_path / str(size)) / "run"
            command, log = ["train", "small", "--run", folder], tmp_path / f"{size}.log"
            most = None if disk else (size << 10) // 10
            assert finish(started(processes, children.limited_command, command, log, most)) == 2
            assert "cannot be written" in said(log)
            if disk:
                larger = ["mount", "-o", "remount,size=20m", str(disk)]
                subprocess.run(larger, check=True)
            resume = Run(folder).exists()
            assert finish(started(processes, children.train_small, folder, tmp_path / "again.log", resume)) == 0
            assert_same_end(run, Run(folder))
    faults.ran("disk really full", len(sizes))


@pytest.fixture
def open_folder():
    """A folder that everybody can enter, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A finished run with everything that commands read, and its codes."""
    folder = tmp_path_factory.mktemp("tiny")
    run = lb.train(tiny(validation={"keep": 1}).model_copy(update={"recipe": "digits"}), folder / "run", quiet=True)
    counts = "--samples 5 --chains 10 --temperatures 5 --images 5".split()
    assert main(["evaluate", str(run.path), *counts, "--raise-images", "0"]) == 0
    assert main(["curve", str(run.path), *counts]) == 0
    assert main(["encode", str(run.path), "--out", str(folder / "codes.npz")]) == 0
    return run, folder / "codes.npz"


def writing_commands(run, codes, out):
    """Every command that writes, with what it would write elsewhere in a folder."""
    counts = "--samples 5 --chains 10 --temperatures 5".split()
    return {
        "train": ["train", "digits", "--run", run, "--resume"],
        "evaluate": ["evaluate", run, *counts, "--images", "5", "--raise-images", "0"],
        "curve": ["curve", run, *counts, "--images", "4"],
        "sample": ["sample", run, "--gibbs-steps", "1", "--out", out / "samples.png"],
        "report": ["report", run, "--gibbs-steps", "1", "--diagnostics-seconds", "0"],
        "encode": ["encode", run, "--out", out / "encoded.npz"],
        "decode": ["decode", run, codes, "--out", out / "decoded"],
        "score": ["score", run, *counts, "--out", out / "scores.csv"],
        "inpaint": ["inpaint", run, "--steps", "1", "--count", "1", "--out", out / "inpainted.png"],
    }


def test_a_folder_that_is_read_only(processes, tiny_run, open_folder, tmp_path):
    """Every command that writes says so before it computes, and leaves the folder as it was."""
    run, codes = tiny_run
    folder = open_folder / "run"
    shutil.copytree(run.path, folder)
    shutil.copy(codes, open_folder / "codes.npz")
    (folder / "samples.png").unlink(missing_ok=True)
    for path in [open_folder, *open_folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = faults.snapshot(open_folder)
    commands = writing_commands(folder, open_folder / "codes.npz", open_folder)
    commands["new run"] = ["train", "small", "--run", open_folder / "new"]
    for name, command in commands.items():
        log = tmp_path / f"{name}.log"
        assert finish(started(processes, children.unprivileged_command, command, log)) == 2, name
        assert ("cannot be written" in said(log)) or ("cannot be made" in said(log)), name
        assert "Traceback" not in said(log)
    assert faults.snapshot(open_folder) == before
    faults.ran("read-only folder", len(commands))


def test_a_disk_that_is_full_when_a_result_is_written(tiny_run, tmp_path, monkeypatch, capsys):
    run, codes = tiny_run
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    (folder / "curve-valid.jsonl").unlink()
    commands = writing_commands(folder, codes, tmp_path)
    before = faults.snapshot(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    for name, command in commands.items():
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            assert main([str(word) for word in command]) == 2, name
        assert "cannot be written (No space left on device)" in capsys.readouterr().err
        after = {path: what for path, what in faults.snapshot(tmp_path).items() if what != "folder"}
        assert after == {path: what for path, what in before.items() if what != "folder"} | {
            path: what for path, what in after.items() if path.name in (".lock", "evaluation.json", "evaluations.jsonl")
        }, name
    faults.ran("disk full when a result is written", len(commands))


# ----------------------------------------------------------------------------- torn files, flipped bits


def places(path, count, seed=0):
    """The contents of a file with one bit flipped, or cut short, at random places; one in five is cut."""
    content, generator = path.read_bytes(), random.Random(seed)
    for i in range(count):
        at = generator.randrange(len(content))
        if i % 5 == 4:
            yield content[:at]
        else:
            yield content[:at] + bytes([content[at] ^ 1 << generator.randrange(8)]) + content[at + 1 :]


@pytest.fixture
def copy(tiny_run, tmp_path):
    shutil.copytree(tiny_run[0].path, tmp_path / "run")
    return Run(tmp_path / "run")


PLACES = faults.form(10, 100)


def refusal_of(function):
    """What a function returns and None, or None and the line by which it refuses."""
    try:
        return function(), None
    except FileError as error:
        return None, str(error)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, monkeypatch, capsys):
    """A run that was stopped goes on from the checkpoint before the damaged one, to the same bits."""
    monkeypatch.setattr(session, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    whole = lb.train(tiny(), tmp_path / "whole", quiet=True)
    stopped = stopped_run(tmp_path / "stopped", 7)
    monkeypatch.setattr(session, "SECONDS_BETWEEN_CHECKPOINTS", 60.0)
    for i, content in enumerate(places(stopped.checkpoint, PLACES)):
        run = Run(tmp_path / f"{i}")
        shutil.copytree(stopped.path, run.path)
        run.checkpoint.write_bytes(content)
        with pytest.raises(FileError):
            load_state(run.checkpoint)
        lb.train(tiny(), run.path, resume=True)
        assert "Going on from the checkpoint before it" in " ".join(capsys.readouterr().err.split())
        (run.path / "checkpoint-damaged.safetensors").unlink()
        assert_same_run(whole, run)
        shutil.rmtree(run.path)
        faults.progress("damaged checkpoints", i + 1, PLACES)
    faults.ran("damaged checkpoint.safetensors", PLACES)


def stopped_run(path, steps):
    """A run that was stopped after some checkpoints."""
    made, write = iter(range(steps)), Run.write_checkpoint

    def stops(self, state):
        write(self, state)
        if next(made, None) is None:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "write_checkpoint", stops)
        with pytest.raises(KeyboardInterrupt):
            lb.train(tiny(), path, quiet=True)
    return Run(path)


def test_two_damaged_checkpoints_are_an_error_and_a_missing_one_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    whole = lb.train(tiny(), tmp_path / "whole", quiet=True)
    run = stopped_run(tmp_path / "run", 7)
    content = run.checkpoint.read_bytes()
    run.checkpoint.unlink()  # as between the two renames of a repair
    shutil.copytree(run.path, tmp_path / "other")
    lb.train(tiny(), tmp_path / "other", resume=True, quiet=True)
    assert_same_run(whole, Run(tmp_path / "other"))
    before = faults.snapshot(tmp_path)
    for damaged in ("checkpoint.safetensors", "checkpoint-previous.safetensors"):
        (run.path / damaged).write_bytes(content[:-1])
    with pytest.raises(lb.RunError, match=r"damaged .*; nor is there a whole one before it .*start a new run"):
        lb.train(tiny(), run.path, resume=True, quiet=True)
    for damaged in ("checkpoint.safetensors", "checkpoint-previous.safetensors"):
        (run.path / damaged).unlink()
    with pytest.raises(lb.RunError, match=r"to go on from, found only autoencoder\.safetensors"):
        lb.train(tiny(), run.path, resume=True, quiet=True)
    after = faults.snapshot(tmp_path)
    assert {path: what for path, what in before.items() if path in after} == after
    faults.ran("no whole checkpoint", 3)


def test_weights_before_the_first_minute_are_no_obstacle(tmp_path):
    """The first weights are kept before a minute has passed: a run that dies then has a checkpoint all the same."""
    config = tiny(autoencoder={"epochs": 0}, rbm={"cd_epochs": 0, "pcd_epochs": 0}, joint={"epochs": 3})
    whole = lb.train(config, tmp_path / "whole", quiet=True)
    save = Run.save_weights

    def dies(self, *arguments):
        save(self, *arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_weights", dies)
        with pytest.raises(KeyboardInterrupt):
            lb.train(config, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert_same_run(whole, lb.train(config, tmp_path / "run", resume=True, quiet=True))


def answers(run):
    """What a run's model says of an image, to compare by."""
    model = lb.load(run.path)
    x = torch.linspace(0, 1, 64).round()[None]
    return torch.cat([model.encoder(x).flatten(), model.decode(model.encode(x)).flatten()]).detach()


def test_damaged_weights_are_never_loaded(copy):
    path = copy.path / "model.safetensors"
    for content in list(places(path, PLACES)):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"model\.safetensors"):
            lb.load(copy.path)
    faults.ran("damaged model.safetensors", PLACES)


def test_a_damaged_configuration_is_refused_or_gives_the_same_model(copy):
    expected, path = answers(copy), copy.path / "config.json"
    config, refused = copy.config, 0
    for content in list(places(path, PLACES)):
        path.write_bytes(content)
        found, refusal = refusal_of(lambda: answers(copy))
        assert refusal is None or "config.json" in refusal or "model.safetensors" in refusal
        assert refusal or torch.equal(found, expected)
        if not refusal and copy.config != config:  # what the run was trained with is in its checkpoint too
            with pytest.raises(lb.RunError, match="checkpoint is of another configuration"):
                lb.train(copy.config, copy.path, resume=True, quiet=True)
        refused += refusal is not None
    assert refused > PLACES / 2
    faults.ran("damaged config.json", PLACES)


def test_damaged_metrics_are_named_and_stop_no_run(copy):
    path, refused = copy.path / "metrics.jsonl", 0
    before = weights(copy)
    for content in list(places(path, PLACES)):
        path.write_bytes(content)
        drawn, refusal = refusal_of(lambda: report.learning_curves(copy.metrics()))
        assert refusal is None or "metrics.jsonl" in refusal
        assert refusal or drawn.keys() <= {f"curve-{stage}" for stage in STAGES}
        refused += refusal is not None
        lb.train(copy.config, copy.path, resume=True, quiet=True)
    assert refused > PLACES / 4
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(copy).items())
    faults.ran("damaged metrics.jsonl", PLACES)


def test_a_damaged_evaluation_is_named(copy, monkeypatch, capsys):
    """Or drawn as it stands, if it is still a valid one: a text file has no checksum."""
    monkeypatch.setattr(report, "write_figures", lambda *arguments: [])
    monkeypatch.setattr(report, "write_comparison", lambda *arguments: [])
    path, refused = copy.path / "evaluation.json", 0
    for content in list(places(path, PLACES)):
        path.write_bytes(content)
        status = main(["report", str(copy.path), "--gibbs-steps", "1", "--diagnostics-seconds", "0"])
        assert status in (0, 2)
        if status == 2:
            assert "evaluation.json" in capsys.readouterr().err
            refused += 1
    assert refused > PLACES / 4
    faults.ran("damaged evaluation.json", PLACES)


def test_damaged_codes_are_refused_or_the_same(tiny_run, tmp_path):
    path, refused = tmp_path / "codes.npz", 0
    shutil.copy(tiny_run[1], path)
    expected = lb.load_codes(path)
    for content in list(places(path, PLACES)):
        path.write_bytes(content)
        found, refusal = refusal_of(lambda: lb.load_codes(path))
        assert refusal is None or "codes.npz" in refusal
        assert refusal or (found.names == expected.names and torch.equal(found.z, expected.z))
        refused += refusal is not None
    assert refused > PLACES / 2
    faults.ran("damaged codes.npz", PLACES)


def test_files_without_a_checksum_still_load(copy, tmp_path, monkeypatch):
    """Of formats 1 and 2: weights and checkpoints from before there was one."""
    sealed = files.sealed
    model = lb.load(copy.path)

    def older(tensors, metadata):
        return files.save(tensors, metadata={"format": "2", **metadata})

    with monkeypatch.context() as patch:
        patch.setattr(files, "sealed", older)
        patch.setattr("latentbits.runs.sealed", older)
        run = lb.train(tiny(), tmp_path / "older", max_minutes=1e-9, quiet=True)
        run.save_weights("model", model)
    assert files.sealed is sealed
    assert torch.equal(lb.load(run.path).prior.weight, model.prior.weight)
    assert lb.train(tiny(), run.path, resume=True, quiet=True).finished


def test_a_torn_line_is_not_gone_on_with(tmp_path):
    path = tmp_path / "lines"
    files.append_line(path, {"a": 1})
    path.write_bytes(path.read_bytes() + b'{"b": ')
    files.append_line(path, {"c": 3})
    assert path.read_text() == '{"a": 1}\n{"b": \n{"c": 3}\n'
    assert json.loads(path.read_text().splitlines()[2]) == {"c": 3}
