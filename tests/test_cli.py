"""The command line: the whole way on a tiny run, and every refusal in a line with status 2."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import tiny, weights

import latentbits as lb
from latentbits import data, pretrain, train
from latentbits.cli import COMMANDS, main
from latentbits.codes_cli import picture as single
from latentbits.config import Config, DataConfig, different, without_effect
from latentbits.facts import Standing, commands, comparison_table, highlights, not_comparable, standing
from latentbits.figures import NLL, Evaluation, LogPartition
from latentbits.files import load_state, save_state
from latentbits.folders import square_form
from latentbits.recipes import RECIPES
from latentbits.records import Record, last_evaluation, of_other_weights, provenance, which_images
from latentbits.report import grid, learning_curves, nearest, over, present, validation_by_time
from latentbits.runs import Run, labels
from latentbits.splits import Form, make_splits
from latentbits.train_cli import parse_train

TINY = (
    "--model.layers 16 --model.latent 8 --model.hidden 6 --autoencoder.epochs 2 --autoencoder.scales 1 2 "
    "--rbm.cd-epochs 1 --rbm.pcd-epochs 1 --joint.epochs 2 --joint.samples 5 --validation.every 1 "
    "--validation.images 50 --validation.samples 5"
).split()
QUICK = "--samples 20 --chains 50 --temperatures 50 --raise-images 10 --raise-temperatures 20".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "digits", "--run", str(path), *TINY]) == 0
    return path


def test_overrides_and_defaults():
    config, options = parse_train(["digits", "--joint.samples", "7", "--model.layers", "5", "6", "--max-minutes", "3"])
    assert config.joint.samples == 7
    assert config.model.layers == (5, 6)
    assert options.max_minutes == 3
    assert config.rbm == RECIPES["digits"].make().rbm


def test_evaluate_writes_a_record_and_a_table(run, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert main(["evaluate", str(run), "--split", "valid", "--images", "40", "--out", str(out), *QUICK]) == 0
    record = json.loads(out.read_text())
    assert record == json.loads((run / "evaluation.json").read_text())
    likelihood = record["evaluation"]["likelihood"]
    assert likelihood["images"] == 40
    assert 10 < likelihood["nll"] < 64
    assert likelihood["standard_error_monte_carlo"] > 0
    assert record["images"] == "40 evenly spaced of 300"
    assert {"seed", "command", "commit", "data_checksum", "wall_seconds", "machine", "versions"} <= record.keys()
    assert "negative log-likelihood, valid split" in capsys.readouterr().out
    # nothing is overwritten without being asked
    assert main(["evaluate", str(run), "--out", str(out), *QUICK]) == 2
    assert "add --overwrite" in capsys.readouterr().err


def test_an_evaluation_is_kept_whatever_becomes_of_the_terminal(run, monkeypatch):
    """And figures are not cut where it is narrow."""
    arguments = ["evaluate", str(run), "--split", "valid", "--images", "31", *QUICK]
    command = [sys.executable, "-m", "latentbits", *arguments]
    environment = os.environ | {"COLUMNS": "40", "PYTHONIOENCODING": "ascii"}
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    evaluation = json.loads((run / "evaluation.json").read_text())["evaluation"]
    assert f"{evaluation['likelihood']['nll']:.3f}" in told
    assert f"{evaluation['likelihood']['bits_per_dimension']:.4f}" in told

    def closed(*arguments, **options):
        raise BrokenPipeError

    (run / "evaluation.json").unlink()
    monkeypatch.setattr("latentbits.cli.print_evaluation", closed)
    assert main(arguments) == 2
    assert json.loads((run / "evaluation.json").read_text())["evaluation"] == evaluation


def test_a_place_that_cannot_be_written_to_leaves_the_evaluation_before(run, tmp_path):
    assert main(["evaluate", str(run), *QUICK]) == 0
    files = [run / "evaluation.json", run / "evaluations.jsonl"]
    before = [file.read_bytes() for file in files]
    (tmp_path / "file").touch()
    assert main(["evaluate", str(run), "--seed", "5", "--out", str(tmp_path / "file" / "x.json"), *QUICK]) == 2
    assert [file.read_bytes() for file in files] == before


def test_an_evaluation_of_other_weights_says_so_where_it_stands(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    assert main(["evaluate", str(other), *QUICK]) == 0
    whole = Run(other)
    assert of_other_weights(whole, last_evaluation(whole)) == ""
    assert not_comparable([whole], [last_evaluation(whole)]) == []
    origin = whole.weights_origin("model")
    assert main(["evaluate", str(other), "--weights", origin["stage"], *QUICK]) == 0
    at_its_end = whole.weights_origin(origin["stage"]).get("step") == origin["step"]
    assert (of_other_weights(whole, last_evaluation(whole)) == "") == at_its_end
    assert main(["evaluate", str(other), "--weights", "autoencoder", *QUICK]) == 0
    record = last_evaluation(whole)
    assert of_other_weights(whole, record).startswith("autoencoder")
    (first, *_) = highlights(whole, data.load("digits").form, standing(whole), record)
    assert "of other weights than the run's own now: autoencoder" in first[2]
    assert "of other weights than its run's own now" in not_comparable([whole], [record])[0]


def test_more_samples_than_memory_holds_are_refused(run, tmp_path, capsys):
    out = ["--out", str(tmp_path / "grid.png")]
    assert main(["sample", str(run), "--count", "100000000", "--gibbs-steps", "0", *out]) == 2
    assert "--count: expected up to 8,388,608 of this model at once, got 100,000,000" in capsys.readouterr().err
    assert main(["sample", str(run), "--count", "3", "--gibbs-steps", "1", "--frames", "5", *out]) == 0
    assert "--frames: has no effect without --gif" in capsys.readouterr().err


def test_a_run_of_two_processes_is_repeated_by_two(run):
    alone = commands(Run(run), None, None, standing(Run(run)))
    assert alone[0][1].startswith("latentbits train digits ")
    two = Standing("finished", 1.0, {"rounding": "torch 2, 1 threads, 2 processes, cpu"})
    (_, line), *_ = commands(Run(run), None, None, two)
    assert line == f"torchrun --standalone --nproc-per-node 2 -m -- {alone[0][1]}"


def test_a_configuration_that_is_not_there_is_not_taken_for_a_recipe(tmp_path, capsys):
    (tmp_path / "X.JSON").write_text("{}")
    assert main(["train", str(tmp_path / "nothing.json")]) == 2
    assert main(["train", str(tmp_path / "X.JSON")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "expected a recipe's name or a .json file that is there, found nothing there" in first
    assert "found one of another ending" in second


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "..", ""])
def test_a_configurations_name_leads_to_no_other_folder(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(Config(recipe=name).model_dump_json())
    assert main(["train", "config.json"]) == 2
    assert f"--run: got none, and no folder can be named after the recipe {name!r}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_evaluation_of_an_exported_folder_is_not_lost(run, tmp_path):
    assert main(["evaluate", str(run), *QUICK]) == 0
    assert main(["export", str(run), str(tmp_path / "shared")]) == 0
    first = json.loads((tmp_path / "shared" / "evaluation.json").read_text())
    assert main(["evaluate", str(tmp_path / "shared"), "--seed", "7", *QUICK]) == 0
    lines = (tmp_path / "shared" / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [first["seed"], 7]
    (tmp_path / "shared" / "evaluations.jsonl").unlink()
    (tmp_path / "shared" / "evaluation.json").write_text("damaged")
    assert main(["evaluate", str(tmp_path / "shared"), *QUICK]) == 0
    assert len((tmp_path / "shared" / "evaluations.jsonl").read_text().splitlines()) == 1


def test_evaluating_does_not_change_the_run(run):
    before = {path.name: path.read_bytes() for path in run.glob("*.safetensors")}
    assert main(["evaluate", str(run), *QUICK]) == 0
    assert {path.name: path.read_bytes() for path in run.glob("*.safetensors")} == before


def test_sample_draws_a_grid_and_overwrites_only_if_asked(run, tmp_path, capsys):
    path = tmp_path / "grid.png"
    arguments = ["sample", str(run), "--count", "12", "--gibbs-steps", "5", "--out", str(path)]
    assert main(arguments) == 0
    with Image.open(path) as picture:
        assert picture.width / picture.height == pytest.approx(10 / 2)
        assert picture.getextrema()[0] < 100 < 200 < picture.getextrema()[1]
    content = path.read_bytes()
    assert main(arguments) == 2
    assert "exists; add --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert path.read_bytes() == content  # the same seed, the same picture
    assert main([*arguments, "--overwrite", "--temperatures", "3"]) == 0
    assert path.read_bytes() != content
    assert main([*arguments, "--overwrite", "--temperatures", "0"]) == 2
    assert "--temperatures: expected at least 1, got 0" in capsys.readouterr().err


def test_only_ink_is_drawn_dark_on_white():
    """Digits are ink on paper; in pictures of one's own the lighter level is light, in grids as in single files."""
    x = torch.tensor([[1.0] * 6 + [0.0] * 2])
    for form, light in ((data.form_of(DataConfig(name="digits")), False), (square_form(8, "black-and-white"), True)):
        form = form._replace(height=2, width=4)
        pixels = np.asarray(grid(x, form, columns=1, zoom=1))[1:-1, 1:-1]
        assert (pixels[0] == (255 if light else 0)).all()
        assert pixels[1].tolist() == ([255, 255, 0, 0] if light else [0, 0, 255, 255])
        assert np.array_equal(np.asarray(single(x[0], form)), pixels if light else 255 - pixels)


def test_the_walk_is_a_gif_from_noise_to_samples(run, tmp_path, capsys):
    path = tmp_path / "walk.gif"
    arguments = ["sample", str(run), "--gif", "--count", "20", "--gibbs-steps", "40", "--out", str(path)]
    assert main([*arguments, "--frames", "5"]) == 0
    with Image.open(path) as picture:
        assert picture.n_frames == 5
        frames = []
        for number in range(5):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("L"), float))
    assert all(np.abs(one - other).max() > 0 for one, other in pairwise(frames))
    assert main([*arguments, "--overwrite", "--frames", "42"]) == 2
    assert main([*arguments, "--overwrite", "--temperatures", "2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "--frames: expected at most" in lines[0]
    assert "--gif: is the walk of plain chains" in lines[1]


def test_report_draws_every_stage(run, capsys):
    assert main(["report", str(run), "--gibbs-steps", "5", "--diagnostics-seconds", "0"]) == 0
    pictures = {path.stem for path in (run / "report").glob("*.png")}
    assert pictures == {
        "curve-autoencoder",
        "curve-rbm",
        "curve-joint",
        "samples",
        "samples-over-nearest-training-images",
        "reconstructions",
        "reconstructions-pretrained",
        "encoder-output",
        "encoder-output-pretrained",
    }
    for path in (run / "report").glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 50


def test_recipes_data_and_help_are_listed(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)
    assert main(["data"]) == 0
    assert "binarized_mnist_train.amat" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "usage: latentbits COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0


def test_who_names_a_run_instead_of_a_recipe_is_told_how_to_go_on_with_it(run, capsys):
    assert main(["train", str(run), "--resume"]) == 2
    assert f"latentbits train {Run(run).config.recipe} --run {run} --resume" in capsys.readouterr().err


def test_a_stopped_run_says_how_to_go_on(tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["train", "digits", "--run", str(path), "--max-minutes", "1e-9", *TINY]) == 0
    assert f"next: latentbits train digits --run {path} --resume" in capsys.readouterr().out
    # the overrides of the start need not be given again
    assert main(["train", "digits", "--run", str(path), "--resume"]) == 0
    assert "finished:" in capsys.readouterr().out
    assert Run(path).config.model.latent == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_a_signal_stops_ends_with_its_own_status(tmp_path, monkeypatch, capsys, number):
    path, soft_binarize = tmp_path / "run", pretrain.soft_binarize

    def interrupted(*arguments):
        signal.raise_signal(number)
        return soft_binarize(*arguments)

    monkeypatch.setattr(pretrain, "soft_binarize", interrupted)
    assert main(["train", "digits", "--run", str(path), "--max-minutes", "9", *TINY]) == 130
    assert f"stopped: {path}" in capsys.readouterr().out


def test_the_minutes_of_a_run_are_those_after_its_data_are_loaded(tmp_path, monkeypatch):
    """A signal soon after is not in time, however long looking at the data took."""
    passed, real, usual, soft_binarize = [0.0], time.monotonic, data.load, pretrain.soft_binarize

    def slowly(*arguments):
        passed[0] += 3600
        return usual(*arguments)

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return soft_binarize(*arguments)

    monkeypatch.setattr(time, "monotonic", lambda: real() + passed[0])
    monkeypatch.setattr(data, "load", slowly)
    monkeypatch.setattr(pretrain, "soft_binarize", interrupted)
    assert main(["train", "digits", "--run", str(tmp_path / "run"), "--max-minutes", "9", *TINY]) == 130
    assert passed[0]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["trian"], ["command: expected one of train,", "did you mean train"]),
        (["train", "digit"], ["recipe: expected one of digits,", "did you mean digits?"]),
        (
            ["train", "digits", "--joint.samples", "1", "--rbm.momentum", "2", "--seed", "-1"],
            [
                "--joint.samples: expected at least 2 for objective vimco, got 1",
                "--rbm.momentum: Input",
                "--seed: Input",
                "got -1",
            ],
        ),
        (["train", "digits", "--model.layers", "0"], ["layers: widths must be at least 1, got (0,)"]),
        (["train", "digits", "--model.prior", "normal"], ["model.prior=normal has no bits to pretrain"]),
        (["train", "digits", "--joint.objective", "iwae"], ["joint.objective: expected iwae with model.prior=normal"]),
        (
            ["train", "digits", "--joint.first-samples", "90"],
            ["--joint.first-samples: expected 0, or between 2 and samples=20"],
        ),
        (["train", "digits", "--weights", "/nowhere/rbm.safetensors"], ["/nowhere/rbm.safetensors: not found"]),
        (["train", "digits", "--model.network", "none"], ["nothing to train in stages 1 and 3"]),
        (
            ["train", "digits", "--joint.sleep", "0.5", "--joint.objective", "relaxed", "--joint.first-samples", "90"],
            [
                "--joint.samples: expected 1 for objective relaxed, got 20",
                "--joint.sleep: objective relaxed has no sleep phase; expected 0, got 0.5",
                "--joint.first-samples: expected 0, or between 2 and samples=20, got 90",
            ],
        ),
        (
            ["train", "digits", "--adversarial.epochs", "3", "--model.prior", "bernoulli", "--joint.centered"],
            [
                "--adversarial.epochs: is for model.network=dcgan, got mlp",
                "--joint.centered: is for model.prior=rbm, got bernoulli",
            ],
        ),
        (["train", "digits", "--model.prior", "given"], ["model.prior=given: is for a model that is given in Python"]),
        (["train", "digits", "--max-minutes", "-1"], ["--max-minutes: expected a positive number, got -1"]),
        (["train", "mnist-mlp", "--data-dir", "/nowhere"], ["binarized_mnist_train.amat", "--data-dir"]),
        (["train", "digits", "--device", "abacus"], ["--device: expected one that PyTorch has here, got 'abacus'"]),
        (["train", "digits", "--resume", "--run", "/nowhere"], ["expected a run folder with config.json"]),
        (
            ["evaluate", "/nowhere", "--samples", "0", "--raise-resampled", "0", "--images", "0"],
            ["--samples: expected a whole number of at least 1, got 0", "--raise-resampled: exp", "--images: exp"],
        ),
        (["evaluate", "/nowhere"], ["/nowhere: expected a run folder"]),
        (["sample", "/nowhere"], ["/nowhere: expected a run folder"]),
        (["report", "/nowhere"], ["/nowhere: expected a run folder"]),
    ],
)
def test_refusals_name_every_problem(arguments, lines, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert all(line in errors for line in lines)
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []  # refused before anything is made


@pytest.mark.parametrize("arguments", [["train", "digits", "--joint.sample", "4"], ["evaluate"], ["sample", "x", "-y"]])
def test_the_parsers_own_refusals_have_status_2(arguments):
    with pytest.raises(SystemExit) as refusal:
        main(arguments)
    assert refusal.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "digits", "--joint.samples", "abc"], "--joint.samples: expected a whole number, got 'abc'"),
        (["train", "digits", "--rbm.momentum", "much"], "--rbm.momentum: expected a number, got 'much'"),
        (["train", "digits", "--max-minutes", "None"], "--max-minutes: expected a number, got 'None'"),
        (["evaluate", "x", "--images", "1.5"], "--images: expected a whole number, got '1.5'"),
        (["encode"], "RUN A run folder, or"),
        (["decode", "x"], "CODES An npz file"),
    ],
)
def test_the_parsers_lines_name_what_is_missing_or_wrong(arguments, said, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"] + ["train digits"])
def test_help_calls_words_by_what_they_are(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert "usage: latentbits" in text
    assert not [word for word in ("None", "STR", "PATH", "(default: )") if word in text]


def test_a_run_of_no_recipes_name_goes_on_as_it_says(tmp_path, capsys):
    """And a configuration in a file is trained as a recipe is, with options."""
    folder = tmp_path / "run"
    config = tiny().vary("mine")
    train(config, folder, max_minutes=1e-9, quiet=True)
    assert main(["train", "digits", "--run", str(folder), "--resume"]) == 2
    command = f"latentbits train {folder}/config.json --run {folder} --resume"
    assert command in " ".join(capsys.readouterr().err.split())
    assert main([*command.split()[1:], "--max-minutes", "1e-9"]) == 0
    assert command in " ".join(capsys.readouterr().out.replace("\n", "").split())
    assert main(command.split()[1:]) == 0
    assert Run(folder).finished
    again = ["train", str(folder / "config.json"), "--run", str(tmp_path / "again"), "--seed", "1"]
    assert main([*again, "--max-minutes", "1e-9"]) == 0
    assert Run(tmp_path / "again").config == config.vary(seed=1)


def test_options_without_effect_are_named(capsys):
    """Those that are given; not what a recipe leaves at its default."""
    config, _ = parse_train(["digits", "--model.maps", "8", "16", "--joint.relaxation", "0.5", "--seed", "3"])
    assert config.model.maps == (8, 16)
    said = " ".join(capsys.readouterr().err.split())
    assert "--model.maps: has no effect with model.network=mlp" in said
    assert "--joint.relaxation: has no effect with joint.objective=vimco" in said
    assert said.count("no effect") == 2
    parse_train(["digits", "--model.prior", "bernoulli", "--model.hidden", "9", "--warm-start.chains", "7"])
    said = " ".join(capsys.readouterr().err.split())
    assert "--model.hidden: has no effect with model.prior=bernoulli" in said
    assert "--warm-start.chains: has no effect with warm_start.epochs=0" in said
    assert said.count("no effect") == 2
    parse_train(["cifar10-small", "--joint.backward-samples", "3", "--joint.dreams", "5", "--rbm.pcd-steps", "3"])
    said = " ".join(capsys.readouterr().err.split())
    assert "--joint.backward-samples: has no effect with joint.objective=relaxed" in said
    assert "--joint.dreams: has no effect with joint.objective=relaxed" in said
    assert "--rbm.pcd-steps: has no effect with rbm.pcd_epochs=0" in said
    parse_train(["mnist-rbm", "--model.activation", "relu", "--validation.samples", "7", "--validation.keep", "3"])
    said = " ".join(capsys.readouterr().err.split())
    assert "--validation.samples: has no effect with model.network=none" in said
    assert said.count("no effect") == 3
    parse_train(["cifar10-wgan", "--model.activation", "relu", "--validation.every", "7"])
    parse_train(["mnist-mlp-iwae", "--joint.chains", "7"])
    assert capsys.readouterr().err.count("no effect") == 3


def test_what_has_no_effect_has_none(tmp_path):
    """Weights after training are the same whatever such a setting is; those of a setting that counts are not."""
    config = tiny()
    trained = weights(train(config, tmp_path / "run", quiet=True))
    idle = {
        "model": {"maps": (3,), "norm": "batch"},
        "joint": {"relaxation": 0.9, "dreams": 7},
        "warm_start": {"chains": 3},
    }
    assert not set(different(config, config.vary(**idle))) - set(without_effect(config))
    same = weights(train(config.vary(**idle), tmp_path / "idle", quiet=True))
    assert all(torch.equal(same[name], value) for name, value in trained.items())
    other = weights(train(config.vary(joint={"gibbs_steps": 2}), tmp_path / "other", quiet=True))
    assert not all(torch.equal(other[name], value) for name, value in trained.items())


def test_a_picture_is_not_written_under_another_kinds_name(run, tmp_path, capsys):
    assert main(["sample", str(run), "--out", str(tmp_path / "a.jpg")]) == 2
    assert "--out: expected a name that ends in .png" in " ".join(capsys.readouterr().err.split())


def test_posteriors_are_refined_where_that_is_asked(run, tmp_path):
    assert main(["evaluate", str(run), *QUICK, "--refine-steps", "3"]) == 0
    assert last_evaluation(Run(run)).evaluation.refine_steps == 3
    scores = []
    for steps in ("0", "20"):
        out = tmp_path / f"{steps}.csv"
        options = ["--samples", "2", "--chains", "20", "--temperatures", "10", "--refine-steps", steps]
        assert main(["score", str(run), "--out", str(out), *options]) == 0
        scores.append(np.loadtxt(out, delimiter=",", skiprows=1, usecols=1).mean())
    assert scores[0] < scores[1]


def test_another_configurations_file_does_not_resume_a_run(tmp_path, capsys):
    folder, file = tmp_path / "run", tmp_path / "edited.json"
    run = train(tiny().vary("mine"), folder, max_minutes=1e-9, quiet=True)
    file.write_text(run.config.vary(joint={"epochs": 77}).model_dump_json())
    assert main(["train", str(file), "--run", str(folder), "--resume"]) == 2
    assert "joint.epochs" in capsys.readouterr().err


def test_digits_are_in_no_folder(tmp_path, capsys):
    assert main(["train", "digits", "--run", str(tmp_path / "run"), "--data-dir", str(tmp_path)]) == 2
    assert "digits come with scikit-learn" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_resuming_another_recipe_is_refused(run, capsys):
    assert main(["train", "mnist-rbm", "--run", str(run), "--resume"]) == 2
    assert "holds a run of digits, and mnist-rbm was asked for" in capsys.readouterr().err


def test_evaluating_works_without_git(run, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(["evaluate", str(run), *QUICK]) == 0
    assert json.loads((run / "evaluation.json").read_text())["commit"] is None


def test_an_evaluation_without_an_error_bar_is_still_json(run):
    assert main(["evaluate", str(run), *QUICK, "--chains", "1", "--images", "1", "--samples", "1"]) == 0

    def refuse(name):
        raise AssertionError(name)

    record = json.loads((run / "evaluation.json").read_text(), parse_constant=refuse)
    assert "standard_error_images" not in record["evaluation"]["likelihood"]
    assert last_evaluation(Run(run)).evaluation.likelihood.standard_error_images is None


def test_a_folder_with_other_things_is_not_taken_over(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["train", "digits", "--run", str(tmp_path), *TINY]) == 2
    assert "expected a new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_second_start_in_the_same_folder_is_refused(run, capsys):
    assert main(["train", "digits", "--run", str(run), *TINY]) == 2
    assert "nothing is overwritten; go on with --resume" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_are_whole(name):
    config = RECIPES[name].make()
    assert config.recipe == name
    assert RECIPES[name].summary.endswith(".")
    assert type(config).model_validate_json(config.model_dump_json()) == config


def test_a_curve_of_kept_weights_is_evaluated_once_and_drawn(tmp_path, capsys):
    runs = [tmp_path / name for name in ("one", "two")]
    for run, keep in zip(runs, ("1", "2"), strict=True):
        assert main(["train", "digits", "--run", str(run), "--validation.keep", keep, *TINY]) == 0
        counts = "--images 40 --samples 20 --chains 50 --temperatures 50".split()
        assert main(["curve", str(run), "--split", "test", *counts]) == 0
    assert [row["epoch"] for row in Run(runs[0]).curve("test")] == [1, 2]
    row = Run(runs[0]).curve("test")[1]
    assert row["weights"]["file"] == "joint-0002"
    assert row["images"] == "40 evenly spaced of 300"
    assert row["seconds"] == Run(runs[0]).metrics()[-1]["seconds"]
    assert 10 < row["evaluation"]["likelihood"]["nll"] < 64
    before = Run(runs[0]).curve_path("test").read_bytes()
    assert main(["curve", str(runs[0]), "--split", "test", *counts]) == 0  # all have a line
    assert Run(runs[0]).curve_path("test").read_bytes() == before
    assert main(["report", str(runs[0]), str(runs[1]), "--gibbs-steps", "2", "--diagnostics-seconds", "0"]) == 0
    printed = capsys.readouterr().out
    for name in ("validation-against-time.png", "test-nll-against-epochs.png", "test-nll-against-hours.png"):
        with Image.open(runs[0] / "report" / name) as picture:
            assert picture.width > 500
        assert name in printed
    assert not (runs[0] / "report" / "valid-nll-against-epochs.png").exists()
    counts[counts.index("--images") + 1] = "30"
    assert main(["curve", str(runs[0]), "--split", "test", *counts]) == 2  # other settings
    assert "--images 40 --samples 20 --chains 50 --temperatures 50 --seed 0" in capsys.readouterr().err
    assert Run(runs[0]).curve_path("test").read_bytes() == before
    assert main(["curve", str(runs[0]), "--split", "test", *counts, "--overwrite"]) == 0
    assert [row["settings"]["images"] for row in Run(runs[0]).curve("test")] == [30, 30]


def test_figures_of_colour_are_in_bits_for_a_dimension(tmp_path):
    run = Run.create(tmp_path / "run", RECIPES["cifar10-small"].make())
    scale = 3 * 32 * 32 * math.log(2)  # nats of 1 bit/dim
    figures = {"nll": 4.5 * scale, "standard_error_images": 0.02 * scale, "bits_per_dimension": 4.5}
    likelihood = NLL(**figures, images=1000, samples=100)
    log_z = LogPartition(value=1.0, method="exact")
    evaluation = Evaluation(split="test", dimensions=3072, log_partition=log_z, likelihood=likelihood)
    record = Record(evaluation, {"weights": {"file": "model"}, "data_checksum": "", "images": "all 1,000"})
    (_, value, of), *_ = highlights(run, data.form_of(run.config.data), standing(run), record)
    assert value == "4.500 ± 0.020 bits/dim"
    assert "9,582.07 nats; ± 43 nats over images" in of
    rows = {row[0]: row[1:] for row in comparison_table([run, run], [record, None], 256).rows}
    assert rows["NLL, bits/dim"] == ["4.500 ± 0.020", "–"]
    assert "NLL, bits/dim" not in [row[0] for row in comparison_table([run, run], [record, None], 2).rows]


def test_a_part_of_the_published_test_images_is_said_to_be_one():
    images = np.zeros((3, 3072), np.uint8)
    form = Form(3, 32, 32, 256)
    said = "images: 3 / 3 / 3 images of 32 by 32, 256 levels"
    assert make_splits("images", [images] * 3, form).summary() == said
    part = make_splits("cifar10", [images] * 3, form).summary()
    assert part == f"{said.replace('images', 'cifar10', 1)}; test images: 3 present, of 10,000 published"
    splits = make_splits("cifar10", [images] * 3, form)
    assert which_images(3, splits, "test") == "all 3 present, of 10,000 published"
    assert which_images(2, splits, "test") == "2 evenly spaced of 3 present, of 10,000 published"
    assert which_images(2, splits, "valid") == "2 evenly spaced of 3"
    assert make_splits("natural64", [images] * 3, form).of_published("test") == ""


def test_validations_of_runs_are_in_the_units_of_each_ones_images(tmp_path):
    """In bits/dim of its own dimensions; a run of bits does not stand beside one of 256 levels."""
    runs = []
    for recipe, dimensions in (("cifar10-small", 3 * 32 * 32), ("natural64-small", 3 * 64 * 64), ("digits", 64)):
        runs.append(Run.create(tmp_path / recipe, RECIPES[recipe].make()))
        row = {"stage": "joint", "epoch": 1, "seconds": 60.0, "valid_nll": 5.0 * dimensions * math.log(2)}
        runs[-1].append_metrics(row)
    lines = validation_by_time(runs, data.form_of(runs[0].config.data)).axes[0].lines
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([5.0, 5.0])
    lines = validation_by_time(runs, data.form_of(runs[2].config.data)).axes[0].lines
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([5.0 * 64 * math.log(2)])


def test_a_result_names_the_device_that_was_used(monkeypatch):
    """Not a GPU that was there and idle."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"the GPU at {device}")
    assert provenance()["machine"]["accelerator"] is None
    assert provenance("cuda")["machine"]["accelerator"] == "the GPU at cuda"


def test_a_curve_needs_kept_weights(run, capsys):
    assert main(["curve", str(run)]) == 2
    assert "train with --validation.keep EPOCHS" in capsys.readouterr().err
    assert main(["curve", str(run), "--samples", "0", "--chains", "0", "--images", "0"]) == 2
    assert "--samples: expected a whole number of at least 1, got 0\nerror: --images:" in capsys.readouterr().err


def test_an_evaluation_that_replaces_another_says_where_that_stays(tmp_path, run, capsys):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    for name in ("evaluation.json", "evaluations.jsonl"):
        (other / name).unlink(missing_ok=True)
    assert main(["evaluate", str(other), *QUICK]) == 0
    assert "stays in" not in capsys.readouterr().out
    assert main(["evaluate", str(other), *QUICK, "--seed", "1"]) == 0
    assert f"the evaluation before it stays in {other / 'evaluations.jsonl'}" in capsys.readouterr().out
    seeds = [json.loads(line)["seed"] for line in (other / "evaluations.jsonl").read_text().splitlines()]
    assert seeds == [0, 1]
    assert json.loads((other / "evaluation.json").read_text())["seed"] == 1


def test_a_stopped_evaluation_outlives_others_until_it_is_done(tmp_path, run, monkeypatch):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    unfinished = other / "unfinished-evaluation"
    monkeypatch.setattr("latentbits.files.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr("latentbits.cli.evaluation_record", lambda *_: {}["stopped"])
        with pytest.raises(KeyError, match="stopped"):
            main(["evaluate", str(other), *QUICK])
    written = {path: path.read_bytes() for path in unfinished.rglob("*.safetensors")}
    assert written
    assert main(["evaluate", str(other), *QUICK, "--seed", "1"]) == 0
    assert {path: path.read_bytes() for path in unfinished.rglob("*.safetensors")} == written
    (sittings,) = unfinished.rglob("sittings.safetensors")
    before = load_state(sittings)["seconds"]
    assert 0 < before < 600
    save_state(sittings, {"seconds": before + 1e5})
    assert main(["evaluate", str(other), *QUICK]) == 0
    assert not unfinished.exists()
    assert 1e5 < json.loads((other / "evaluation.json").read_text())["wall_seconds"] < 1e5 + 1200


def test_a_stopped_evaluation_is_not_mixed_with_another_arithmetic(tmp_path, run, monkeypatch, set_fast_bfloat16):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    config["model"]["precision"] = "bfloat16"
    (other / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("latentbits.files.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    set_fast_bfloat16(True)
    with monkeypatch.context() as patch:
        patch.setattr("latentbits.cli.evaluation_record", lambda *_: {}["stopped"])
        with pytest.raises(KeyError, match="stopped"):
            main(["evaluate", str(other), *QUICK])
    written = set((other / "unfinished-evaluation").rglob("*.safetensors"))
    assert written
    set_fast_bfloat16(False)
    assert main(["evaluate", str(other), *QUICK]) == 0
    assert set((other / "unfinished-evaluation").rglob("*.safetensors")) == written
    set_fast_bfloat16(True)
    assert main(["evaluate", str(other), *QUICK]) == 0
    assert not (other / "unfinished-evaluation").exists()


def test_each_count_of_an_evaluation_arrives(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    words = (
        "--samples 21 --chains 22 --temperatures 23 --raise-images 12 --raise-resampled 3 --raise-temperatures 24 "
        "--schedule linear --refine-steps 2"
    ).split()
    assert main(["evaluate", str(other), *words]) == 0
    found = last_evaluation(Run(other)).evaluation
    annealed, raised = found.log_partition_ais, found.likelihood_raise
    assert (found.likelihood.samples, annealed.chains, annealed.temperatures) == (21, 22, 23)
    assert (raised.images, raised.resampled, raised.temperatures) == (12, 3, 24)
    assert (annealed.schedule, raised.schedule, found.refine_steps) == ("linear", "linear", 2)


def test_seed_and_weights_of_samples_count(run, tmp_path):
    made = []
    for number, more in enumerate(([], ["--seed", "0"], ["--seed", "1"], ["--weights", "autoencoder"])):
        out = tmp_path / f"{number}.png"
        assert main(["sample", str(run), "--count", "4", "--gibbs-steps", "3", "--out", str(out), *more]) == 0
        made.append(out.read_bytes())
    assert made[0] == made[1]
    assert made[0] not in made[2:]


def test_samples_become_a_picture_each(run, tmp_path, capsys):
    path, one = tmp_path / "samples", tmp_path / "one.png"
    assert main(["sample", str(run), "--no-grid", "--count", "12", "--gibbs-steps", "3", "--out", str(path)]) == 0
    assert f"written: {path}, 12 pictures" in capsys.readouterr().out
    assert [each.name for each in sorted(path.iterdir())] == [f"{i:06}.png" for i in range(12)]
    with Image.open(path / "000011.png") as last:
        assert last.size == (8, 8)
        ink = 255 - np.asarray(last).astype(int)  # a grid is ink on white, a picture white on black
    assert main(["sample", str(run), "--count", "12", "--gibbs-steps", "3", "--out", str(one)]) == 0
    with Image.open(one) as sheet:
        tile = np.asarray(sheet.resize((sheet.width // 6, sheet.height // 6), Image.Resampling.NEAREST)).astype(int)
    assert abs(tile[11:19, 11:19] - ink).max() <= 1
    assert main(["sample", str(run), "--no-grid", "--out", str(path)]) == 2
    assert "--out: expected a new or an empty folder" in capsys.readouterr().err
    assert main(["sample", str(run), "--no-grid", "--gif"]) == 2


def test_a_pretrained_model_is_sampled_by_its_name(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("latentbits.runs.PRETRAINED_FOLDER", run.parent)
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--pretrained", run.name, "--count", "5", "--gibbs-steps", "2"]) == 0
    assert (tmp_path / f"{run.name}-samples.png").is_file()
    assert lb.load_pretrained(run.name).encode(torch.zeros(1, 64)).shape == (1, 8)
    assert main(["sample", "--pretrained", "tinny"]) == 2
    assert "--pretrained: expected one of tiny, got 'tinny'; did you mean tiny?" in capsys.readouterr().err
    assert main(["sample"]) == 2
    assert "sample: expected RUN or --pretrained MODEL, got neither" in capsys.readouterr().err
    with pytest.raises(lb.RunError, match="expected one of tiny, got 'none'"):
        lb.load_pretrained("none")


def test_runs_are_told_apart_by_their_folders():
    assert labels([Run("a/run"), Run("b/other")]) == ["run", "other"]
    assert labels([Run("a/run"), Run("b/run"), Run("c")]) == ["a/run", "b/run", "c"]


def test_rows_of_ten_are_filled_up():
    above, below = torch.ones(13, 4), torch.full((13, 4), 2.0)
    sheet = over(above, below)
    rows = sheet.view(4, 10, 4)[..., 0]
    assert rows.nansum(1).tolist() == [10.0, 20.0, 3.0, 6.0]
    assert rows.isnan().sum(1).tolist() == [0, 0, 7, 7]
    assert present(sheet) == 26


@pytest.mark.parametrize("form", [Form(1, 3, 3), Form(1, 3, 3, ink=True), Form(1, 3, 3, 256), Form(3, 3, 3, 256)])
def test_missing_images_look_like_the_sheet(form):
    dark = torch.zeros(13, form.dimensions)
    picture = grid(over(dark, dark + form.levels - 1), form, zoom=1)
    pixels = np.asarray(picture.convert("L"))
    assert pixels.shape == (4 * 5, 10 * 5)
    tone = 255 if form.ink else 191
    assert (pixels[10:, 15:] == tone).all()  # right of the three in the last two rows
    assert (pixels[10:, :15] != tone).any()
    assert {0, 255} <= set(pixels.flat)  # the images themselves, of either tone


def test_axes_of_large_values_have_no_offset():
    rows = [{"stage": "rbm", "epoch": epoch, "valid_nll": 18817 + 0.1 * epoch} for epoch in range(5)]
    axes = learning_curves(rows)["curve-rbm"].axes[0]
    axes.figure.draw_without_rendering()
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert any("18817" in label.get_text() for label in axes.get_yticklabels())


def test_nearest_images_are_found_over_all_parts():
    x = torch.randint(0, 2, (2500, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = torch.rand(30, 9, generator=torch.Generator().manual_seed(1))
    distances = ((images[:, None].double() - x[None].double()) ** 2).sum(-1)
    assert torch.equal(nearest(images, x), x[distances.argmin(1)].float())
