"""What is shown while something runs: the time that is left, and what the figures of a line are."""

import pytest

from latentbits import progress
from latentbits.progress import Display


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def end_epoch(display, epoch, **figures):
    display.advance(10 * epoch)
    display.epoch({"stage": "joint", "epoch": epoch, "step": 10 * epoch, **figures})


def test_the_time_left_follows_a_machine_that_slows_down(clock):
    display = Display(quiet=True)
    display.phase("stage 3, joint training", 400)
    for epoch in range(1, 31):  # fast
        clock.now += 5
        end_epoch(display, epoch)
    assert display.seconds_left() == pytest.approx(10 * 5)
    for epoch in range(31, 34):  # ten times slower
        clock.now += 50
        end_epoch(display, epoch)
    assert display.seconds_left() == pytest.approx(7 * 50)


def test_the_time_left_of_long_epochs_is_judged_by_the_last(clock):
    display = Display(quiet=True)
    display.phase("stage 3, joint training", 100, done=10)  # resumed
    for epoch, seconds in ((2, 100), (3, 100), (4, 300)):
        clock.now += seconds
        end_epoch(display, epoch)
    assert display.seconds_left() == pytest.approx(6 * 300)


def test_a_phase_without_epochs_is_judged_by_all_of_it(clock):
    display = Display(quiet=True)
    display.phase("scoring", 4)
    assert display.seconds_left() == float("inf")
    clock.now += 90
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
