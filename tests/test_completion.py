"""Completion in a real bash: the words that Tab offers."""

import contextlib
import shutil
import subprocess

import pytest

from latentbits import cli

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    """A function from words typed so far to the words that are offered for the last."""
    if BASH is None:
        pytest.skip("no bash here")
    path = tmp_path_factory.mktemp("completion") / "script"
    with open(path, "w") as stream, contextlib.redirect_stdout(stream):
        assert cli.main(["completion", "bash"]) == 0

    def ask(*words):
        ask = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _latentbits; echo "${COMPREPLY[@]}"'
        typed = [BASH, "-c", ask, "bash", path, "latentbits", *words]
        return subprocess.run(typed, capture_output=True, text=True, check=True).stdout.split()

    return ask


def test_commands_and_recipes(offered):
    assert offered("sa") == ["sample"]
    assert set(offered("")) == set(cli.COMMANDS)
    assert offered("train", "mnist-r") == ["mnist-resnet", "mnist-resnet-iwae", "mnist-rbm"]
    assert offered("encode", "mnist") == ["mnist-mlp", "mnist-mlp-best"]


def test_options_and_their_choices(offered):
    assert offered("sample", "runs/x", "--gib") == ["--gibbs-steps"]
    assert offered("train", "digits", "--joint.ob") == ["--joint.objective"]
    assert offered("train", "digits", "--joint.objective", "") == ["vimco", "crws", "relaxed", "iwae"]
    assert offered("train", "digits", "--max") == ["--max-minutes"]
    assert offered("evaluate", "runs/x", "--schedule", "l") == ["linear"]
    assert offered("train", "digits", "--sampler") == []  # for Python only
    assert offered("train", "my-images", "--si") == ["--size"]
    assert {"--data", "--data-dir"} < set(offered("train", "my-images", "--da"))
    assert "--data" not in offered("train", "digits", "--da")
    assert offered("train", "my-images", "--data.kind", "g") == ["grey"]


def test_what_follows_an_option_is_its_value(offered):
    """No words where the value is free: then bash offers files."""
    assert offered("train", "digits", "--run", "") == []
    assert offered("train", "my-images", "--data", "") == []
    assert offered("train", "digits", "--resume", "--max") == ["--max-minutes"]  # a switch has no value
    assert offered("inpaint", "runs/x", "--means", "--st") == ["--steps"]
    assert offered("sample", "--pretrained", "mnist") == ["mnist-mlp", "mnist-mlp-best"]
    assert offered("train", "digits", "mnist") == []  # a recipe stands first
    assert offered("encode", "mnist-mlp", "mnist") == []


def test_every_option_is_one_that_the_command_knows(offered, capsys):
    """Against the command's own help."""
    for name in ("sample", "evaluate", "export", "inpaint"):
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        text = capsys.readouterr().out
        assert "examples:" in text
        for option in offered(name, "--"):
            assert option in text


def test_zsh_gets_bashs_way(capsys):
    assert cli.main(["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out
