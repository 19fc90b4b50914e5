"""What is shown where the output is no terminal: lines, neither none nor too many."""

from types import SimpleNamespace

import pytest
from PIL import Image

from latentbits.cli import main
from latentbits.progress import Display


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("latentbits.progress.time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def lines(clock, capsys, steps, seconds_each, quiet=False):
    with Display(quiet) as display:
        display.phase("walking", steps)
        for step in range(steps):
            clock.seconds += seconds_each
            display.advance(step + 1)
    return capsys.readouterr().err.splitlines()


def test_long_work_says_how_far_it_is(clock, capsys):
    told = lines(clock, capsys, steps=1000, seconds_each=0.5)
    assert told[0] == "walking: 2%, about 8 min left"
    assert [int(line.split(": ")[1].split("%")[0]) for line in told] == [2, 12, 22, 32, 42, 52, 63, 73, 83, 93]
    assert told[-1] == "walking: 93%, about 36 s left"


def test_a_line_at_most_each_ten_seconds(clock, capsys):
    told = lines(clock, capsys, steps=38, seconds_each=1.0)
    assert [line.split(",")[0] for line in told] == ["walking: 26%", "walking: 53%", "walking: 79%"]


def test_short_and_quiet_work_says_nothing(clock, capsys):
    assert lines(clock, capsys, steps=100, seconds_each=0.09) == []
    assert lines(clock, capsys, steps=100, seconds_each=60.0, quiet=True) == []


def test_shares_of_named_phases_are_told_too(clock, capsys):
    with Display() as display:
        for title in ("AIS", "RAISE"):
            for share in range(101):
                display.share(title, share / 100)
                clock.seconds += 4
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "AIS: 3%, about 6 min left"
    titles = [line.split(":")[0] for line in told]
    assert titles == sorted(titles)
    assert 8 <= titles.count("AIS") == titles.count("RAISE") <= 10


def test_an_epochs_line_counts_as_one(clock, capsys):
    """Training prints a line for each epoch; others come between only where epochs are long."""
    with Display() as display:
        display.phase("stage 1, autoencoder", 40)
        for step in range(1, 41):
            clock.seconds += 6
            display.advance(step)
            if step % 4 == 0:
                display.epoch({"stage": "autoencoder", "epoch": step // 4, "step": step})
    told = capsys.readouterr().err.splitlines()
    assert sum("epoch" in line for line in told) == 10
    assert [line for line in told if "%" in line] == ["stage 1, autoencoder: 5%, about 4 min left"]


def test_scoring_and_inpainting_are_told(clock, capsys, tmp_path, monkeypatch):
    """By the commands, whose every look at the clock finds it a minute later."""
    passing = SimpleNamespace(monotonic=lambda: setattr(clock, "seconds", clock.seconds + 60) or clock.seconds)
    monkeypatch.setattr("latentbits.progress.time", passing)
    monkeypatch.setattr("latentbits.codes_cli.IMAGES_SCORED_AT_ONCE", 2)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        Image.new("L", (28, 28), 255 * (number % 2)).save(folder / f"{number}.png")
    score = ["score", "mnist-mlp-best", str(folder), "--samples", "2", "--chains", "10", "--temperatures", "900"]
    assert main([*score, "--out", str(tmp_path / "scores.csv")]) == 0
    told = capsys.readouterr().err
    assert "log Z by AIS: " in told
    assert "scoring: 50%, about " in told
    inpaint = ["inpaint", "mnist-mlp-best", str(folder), "--count", "2", "--steps", "5"]
    assert main([*inpaint, "--out", str(tmp_path / "inpainted.png")]) == 0
    assert "inpainting: 40%, about " in capsys.readouterr().err
