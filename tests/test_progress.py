"""What is shown while something runs: how far it is, the time that is left, what a line's figures are."""

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
    assert told[0] == "walking: 2%, about 8 minutes left"
    assert [int(line.split(": ")[1].split("%")[0]) for line in told] == [2, 12, 22, 32, 42, 52, 63, 73, 83, 93]
    assert told[-1] == "walking: 93%, about 36 s left"


def test_a_line_at_most_each_ten_seconds(clock, capsys):
    told = lines(clock, capsys, steps=38, seconds_each=1.0)
    assert [line.split(",")[0] for line in told] == ["walking: 26%", "walking: 53%", "walking: 79%"]


def test_work_of_hours_is_not_silent_for_longer_than_ten_minutes(clock, capsys):
    with Display() as display:
        display.phase("scoring", 10_000)
        for done in range(1, 1200):  # of which a tenth takes five hours
            clock.seconds += 18
            display.advance(done)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 36  # in six hours, the first after 18 seconds
    assert told[-1].startswith("scoring: 12%, about 44.")


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
    assert told[0] == "AIS: 3%, about 6 minutes left"
    titles = [line.split(":")[0] for line in told]
    assert titles == sorted(titles)
    assert 8 <= titles.count("AIS") == titles.count("RAISE") <= 10


def test_what_a_resumed_phase_begins_with_took_no_time(clock):
    display = Display(quiet=True)
    display.share("bound", 0.4)
    clock.seconds += 30
    display.share("bound", 0.5)
    assert display.seconds_left() == pytest.approx(150)


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
    assert [line for line in told if "%" in line] == ["stage 1, autoencoder: 5%, about 4 minutes left"]


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


def end_epoch(display, epoch, **figures):
    display.advance(10 * epoch)
    display.epoch({"stage": "joint", "epoch": epoch, "step": 10 * epoch, **figures})


def test_the_time_left_follows_a_machine_that_slows_down(clock):
    display = Display(quiet=True)
    display.phase("stage 3, joint training", 400)
    for epoch in range(1, 31):  # fast
        clock.seconds += 5
        end_epoch(display, epoch)
    assert display.seconds_left() == pytest.approx(10 * 5)
    for epoch in range(31, 34):  # ten times slower
        clock.seconds += 50
        end_epoch(display, epoch)
    assert display.seconds_left() == pytest.approx(7 * 50)


def test_the_time_left_of_long_epochs_is_judged_by_the_last(clock):
    display = Display(quiet=True)
    display.phase("stage 3, joint training", 100, done=10)  # resumed
    for epoch, seconds in ((2, 100), (3, 100), (4, 300)):
        clock.seconds += seconds
        end_epoch(display, epoch)
    assert display.seconds_left() == pytest.approx(6 * 300)


def test_a_phase_without_epochs_is_judged_by_all_of_it(clock):
    display = Display(quiet=True)
    display.phase("scoring", 4)
    assert display.seconds_left() == float("inf")
    clock.seconds += 90
    display.advance(1)
    assert display.seconds_left() == pytest.approx(270)


def test_figures_are_explained_before_the_first_line_that_has_them(capsys):
    display = Display()
    display.phase("stage 3, joint training", 30)
    end_epoch(display, 1, bound=-18664.23, effective_sample_size=1.1)
    end_epoch(display, 2, bound=-18665.0, effective_sample_size=1.2, valid_nll=90.0)
    end_epoch(display, 3, bound=-18666.0, effective_sample_size=1.3, valid_nll=89.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert "log Z moves" in lines[0]
    assert "effective number of the K samples" in lines[0]
    assert lines[1].startswith("stage 3, joint training, epoch 1 of 3: L_K + log Z -18664.23, ESS 1.1")
    assert "valid NLL is" in lines[2]
    assert "log Z moves" not in lines[2]
    assert [line.split(":")[0][-12:] for line in lines[3:]] == ["epoch 2 of 3", "epoch 3 of 3"]
