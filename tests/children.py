"""What the tests of faults do in processes of their own; forked from one that has imported this module."""

import errno
import itertools
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import faults
import torch
from test_train import tiny

import latentbits as lb
import latentbits.report
from latentbits import data, files, pretrain, runs, session
from latentbits.cli import main
from latentbits.evaluate import quick_nll
from latentbits.recipes import RECIPES, Recipe
from latentbits.splits import Splits

LOAD, DIGITS = data.load, data.load("digits")


def small():
    """All stages, with two epochs each, and weights kept along the way."""
    return tiny(
        autoencoder={"epochs": 2, "scales": (1.0, 2.0)},
        warm_start={"epochs": 1, "batch_size": 399, "chains": 30, "gibbs_steps": 1},
        joint={"epochs": 2},
        validation={"keep": 1},
    ).model_copy(update={"recipe": "small"})


class Operations:
    """Counts and writes down what is done to files, and does something at one of these operations.

    Arguments:
        log: File that gets a line for each operation, checkpoint and return to one.
        at: Number of the operation at which ``act`` is called; 0 for none.
        act: What happens there: "before", "half" (of a write) or "after" it the process is killed; "full": the disk is;
            "wait": for a file ``log.go``, after making ``log.waits``.
    """

    def __init__(self, log, at=0, act="full"):
        self.name, self.log = log, os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.at, self.act, self.count, self.state = at, act, itertools.count(1), None

    def note(self, *words):
        where = (self.state.stage, self.state.step) if self.state else ("beginning", 0)
        os.write(self.log, (" ".join(map(str, (*where, *words))) + "\n").encode())

    def operation(self, name, function):
        def counted(*arguments, **options):
            number = next(self.count)
            self.note(name, number)
            if number == self.at:
                if self.act == "full":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if self.act == "wait":
                    self.wait()
                    return function(*arguments, **options)
                if self.act == "half" and name == "write":
                    function(arguments[0][: len(arguments[0]) // 2])
                elif self.act == "after":
                    function(*arguments, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted

    def wait(self):
        Path(f"{self.name}.waits").touch()
        while not Path(f"{self.name}.go").exists():
            time.sleep(0.01)

    def open(self, path, mode, **options):
        stream = self.operation("open", open)(path, mode, buffering=0, **options)
        return Watched(stream, self.operation("write", stream.write)) if mode != "rb" else stream

    def install(self):
        files.open = self.open
        for name in ("fsync", "replace", "unlink", "link"):
            setattr(os, name, self.operation(name, getattr(os, name)))
        save, restore, init = session.State.save, session.State.restore, session.Session.__init__

        def saved(state, *arguments):
            self.note("saving")
            save(state, *arguments)
            self.note("saved")

        def restored(state, path):
            restore(state, path)
            self.state = state
            self.note("resumed")

        def begun(self_, run, config, state, *arguments):
            self.state = state
            init(self_, run, config, state, *arguments)

        session.State.save, session.State.restore, session.Session.__init__ = saved, restored, begun


class Watched:
    """A stream whose writes are operations."""

    def __init__(self, stream, write):
        self.stream, self.write = stream, write

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stream.close()


def train_small(folder, log, resume=False, at=0, act="full"):
    """Train with a checkpoint after every step; operations on files go to a log, what is said beside it."""
    redirect(log)
    session.SECONDS_BETWEEN_CHECKPOINTS = -1.0
    Operations(log, at, act).install()
    lb.train(small(), folder, resume, quiet=True)


def compete(folder, log, barrier, seed, late):
    """Start a run that has nothing to train, at the same time as another process does; 2 if it is refused.

    One that is late has seen no run in the folder, and comes to the lock when there is a finished one.
    """
    redirect(log)
    lock = runs.Run.lock

    def after_the_other(run):
        while not run.finished:
            time.sleep(0.001)
        return lock(run)

    runs.Run.lock = after_the_other if late else lock
    nothing = {"autoencoder": {"epochs": 0}, "rbm": {"cd_epochs": 0, "pcd_epochs": 0}, "joint": {"epochs": 0}}
    write = runs.write_atomically
    runs.write_atomically = lambda *arguments: (time.sleep(0.02), write(*arguments))
    barrier.wait()
    try:
        lb.train(tiny(**nothing).model_copy(update={"seed": seed}), folder, quiet=True)
    except lb.RunError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def write_in_turn(path, sizes):
    """Write states of these sizes until killed."""
    for size in itertools.cycle(sizes):
        files.save_state(path, {"x": torch.arange(float(size))})


def command(arguments, log, at=0, act="full"):
    """Run a command, whose training writes a checkpoint after every step, and end with its status."""
    redirect(log)
    session.SECONDS_BETWEEN_CHECKPOINTS = -1.0
    Operations(log, at, act).install()
    sys.exit(main([str(word) for word in arguments]))


def limited_command(arguments, log, most):
    """Run a command that may write no file of more than so many bytes; None for any."""
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    redirect(log)
    session.SECONDS_BETWEEN_CHECKPOINTS = -1.0
    sys.exit(main([str(word) for word in arguments]))


def unprivileged_command(arguments, log):
    """Run a command as a user whom permissions bind."""
    redirect(log)
    if os.geteuid() == 0:
        os.seteuid(65534)
    sys.exit(main([str(word) for word in arguments]))


def guarded_command(arguments, log, most):
    """Run a command that may take so many bytes of memory more; those it took go to a file."""
    redirect(log)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + most
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = main([str(word) for word in arguments])
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    Path(f"{log}.taken").write_text(str(taken << 10))
    sys.exit(status)


def peak_memory(log, work, *arguments):
    """Do some work and write down the most memory that this process has had, in MiB, and what it had at first."""
    redirect(log)
    first = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    work(*arguments)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    Path(f"{log}.memory").write_text(f"{most >> 20} {first >> 20}")


def mnist_sized():
    """Random bits in place of MNIST's, as many as those."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (70_000, 784), generator=generator, dtype=torch.uint8)  # no more at any time than the data
    return Splits("binarized-mnist", x[:50_000], x[50_000:60_000], x[60_000:], data.FORMS["binarized-mnist"], "bits")


def train_at_full_size(folder, stage, seconds):
    """Some steps of a stage of mnist-mlp, as it is."""
    config = RECIPES["mnist-mlp"].make()
    epochs = {"autoencoder": {"epochs": 0}, "rbm": {"cd_epochs": 0, "pcd_epochs": 0}, "joint": {"epochs": 0}}
    kept = {"autoencoder": {"epochs": 1}, "rbm": {"pcd_epochs": 1}, "joint": {"epochs": 1}}[stage]
    for name, values in (epochs | {stage: epochs[stage] | kept}).items():
        config = config.model_copy(update={name: getattr(config, name).model_copy(update=values)})
    data.load = lambda *arguments: mnist_sized()
    lb.train(config, folder, max_minutes=seconds / 60)


def evaluate_at_full_size(images, samples, chains):
    """The bound, AIS and RAISE with as many samples and chains as the documents quote, and few temperatures."""
    model, x = lb.load_pretrained("mnist-mlp-best"), mnist_sized().test[:images]
    counts = lb.Counts(samples, chains, 10, images, 4, 10)
    lb.evaluate(model, x, "test", counts, "linear", torch.Generator().manual_seed(0))


def validate_at_full_size():
    """The quick estimate of an epoch's end."""
    model, splits = lb.load_pretrained("mnist-mlp-best"), mnist_sized()
    config = RECIPES["mnist-mlp"].make().validation.model_copy(update={"ais_temperatures": 50, "images": 500})
    quick_nll(model, splits.valid, splits.train[:10_000], config, 0)


def redirect(log):
    """Write what a command says to files beside the log."""
    for number, name in ((1, "out"), (2, "err")):
        target = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, number)


def warm_up():
    """Compile, or load, every loop that the children need, and register the recipe."""
    torch.set_num_threads(1)
    RECIPES["small"] = Recipe(small, "tests", "")
    data.load = lambda config, *rest: DIGITS if config.name == "digits" else LOAD(config, *rest)
    pretrain.CALIBRATION_UPDATES = 5
    with tempfile.TemporaryDirectory() as folder:
        lb.train(small(), Path(folder) / "run", quiet=True)


if os.environ.get(faults.WARM_UP):  # in the process that others are forked from, and not in the tests' own
    warm_up()
