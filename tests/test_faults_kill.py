"""Killed at any moment, a run goes on from its last checkpoint to the same bits; two processes never share a folder."""

import random
import time

import children
import faults
import pytest
from test_train import assert_same_run, without_seconds

from latentbits.files import flatten, load_state
from latentbits.runs import Run

KILLED = -9
STAGES = ("beginning", "autoencoder", "rbm", "warm_start", "joint")


def finish(process, seconds=120):
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"a process did not end in {seconds} seconds")
    return process.exitcode


def started(processes, function, *arguments):
    process = processes.Process(target=function, args=arguments)
    process.start()
    return process


def said(log):
    return log.with_name(f"{log.name}.err").read_text()


def operations(log):
    """Stage, kind and number of each operation on files in a log."""
    rows = [line.split() for line in log.read_text().splitlines()]
    return [(stage, kind, int(number[0])) for stage, _, kind, *number in rows if number]


def last_checkpoint(*logs):
    """Where the last checkpoint was made that was written whole, and one that may have been when a process died."""
    whole, begun = None, None
    for line in "".join(log.read_text() for log in logs).splitlines():
        stage, step, kind, *_ = line.split()
        if kind in ("saved", "resumed"):
            whole, begun = (stage, step), None
        elif kind == "saving":
            begun = (stage, step)
    return {whole, begun or whole}


def resumed_at(log):
    """Where a process took up a checkpoint; None if it began with the first step."""
    return next((tuple(line.split()[:2]) for line in log.read_text().splitlines() if line.endswith(" resumed")), None)


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory):
    """A run that nothing happened to, its log, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    assert finish(started(processes, children.train_small, folder / "run", folder / "log")) == 0
    return Run(folder / "run"), folder / "log", time.monotonic() - began


def assert_same_end(whole, run):
    """Tensors, metrics and checkpoint are the same to the bit; only times differ."""
    assert_same_run(whole, run)
    one, other = (load_state(each.checkpoint) | {"seconds": 0} for each in (whole, run))
    assert flatten(one, "", {}) == flatten(other, "", {})
    assert without_seconds(run.metrics())
    assert not list(run.path.glob("*.part")) + list(run.path.glob(".*.part"))


def moments(log, count, generator):
    """Operations to be killed at, from each stage in turn, and how: before, after, or half way through a write."""
    found = operations(log)
    for i in range(count):
        stage = STAGES[i % len(STAGES)]
        _, kind, number = generator.choice([each for each in found if each[0] == stage])
        yield number, generator.choice(["before", "after", "half"] if kind == "write" else ["before", "after"])


def kill_after(process, seconds):
    process.join(seconds)
    process.kill()
    process.join()


def killed_at(log):
    """The stage in which a process was killed."""
    found = operations(log) if log.is_file() else []
    return found[-1][0] if found else "beginning"


def test_a_run_that_is_killed_goes_on_to_the_same_bits(processes, whole, tmp_path):
    """Each run is killed twice: at an operation on files, and its second process at another, or after a time."""
    run, log, seconds = whole
    generator, kills, cases = random.Random(0), [], faults.form(10, 50)
    for number, (at, act) in enumerate(moments(log, cases, generator)):
        folder, logs = tmp_path / str(number), [tmp_path / f"{number}-{part}.log" for part in range(3)]
        process = started(processes, children.train_small, folder, logs[0], False, at, act)
        assert finish(process) == KILLED
        kills.append(killed_at(logs[0]))
        if Run(folder).exists() and len(kills) < cases:
            by_time = number % 2
            at = 0 if by_time else generator.randint(1, 150)
            process = started(processes, children.train_small, folder, logs[1], True, at, "before")
            kill_after(process, generator.uniform(0.02, 0.8 * seconds) if by_time else 120)
            kills += [killed_at(logs[1])] if process.exitcode == KILLED else []
        before = [each for each in logs[:2] if each.is_file()]
        assert finish(started(processes, children.train_small, folder, logs[2], Run(folder).exists())) == 0
        assert_same_end(run, Run(folder))
        assert resumed_at(logs[2]) in last_checkpoint(*before), folder
        faults.progress("killed", len(kills), cases)
        if len(kills) == cases:
            break
    assert set(kills) >= set(STAGES)
    faults.ran("killed while training or writing", len(kills))


def test_a_second_process_in_a_run_folder_is_refused(processes, whole, tmp_path):
    """While the first waits in the middle of each stage's checkpoint; it then ends as if it had been alone."""
    run, log, _ = whole
    folder, cases = tmp_path / "run", 0
    waits = [number for stage, kind, number in operations(log) if stage == "rbm" and kind == "replace"][:1]
    if faults.FULL:
        waits += [next(n for stage, kind, n in operations(log) if stage == name and kind == "fsync") for name in STAGES]
    for at in waits:
        folder, mine = tmp_path / f"{at}", tmp_path / f"{at}.log"
        first = started(processes, children.train_small, folder, mine, False, at, "wait")
        while not (tmp_path / f"{at}.log.waits").exists():
            assert first.is_alive()
            time.sleep(0.01)
        before = faults.snapshot(folder)
        for options, message in (
            (["--resume"], "another process is training here; wait for it or stop it"),
            ([], "another process is training here" if at < 8 else "holds a run already, and nothing is overwritten"),
        ):
            other = tmp_path / "other.log"
            second = started(processes, children.command, ["train", "small", "--run", folder, *options], other)
            if at < 4 and options:  # config.json is not there yet
                message = "expected a run folder with config.json"
            assert finish(second) == 2
            assert message in said(other)
            cases += 1
        assert faults.snapshot(folder) == before
        (tmp_path / f"{at}.log.go").touch()
        assert finish(first) == 0
        assert_same_end(run, Run(folder))
    faults.ran("two processes in one run folder", cases)


def test_two_processes_that_start_together_do_not_share_a_folder(processes, tmp_path):
    cases = faults.form(4, 30)
    for number in range(cases):
        folder, barrier = tmp_path / str(number), processes.Barrier(2)
        both = [
            started(processes, children.compete, folder, tmp_path / f"{number}-{seed}.log", barrier, seed, late)
            for seed, late in ((1, False), (2, bool(number % 2)))
        ]
        assert sorted(finish(process) for process in both) == [0, 2]
        winner = next(seed for seed, process in zip((1, 2), both, strict=True) if process.exitcode == 0)
        assert (Run(folder).config.seed, Run(folder).finished) == (winner, True)
        refusal = said(tmp_path / f"{number}-{3 - winner}.log")
        assert "another process is training here" in refusal or "holds a run already" in refusal
        faults.progress("two at once", number + 1, cases)
    faults.ran("two processes that start in one new folder", cases)
