"""What a training loop stands on: the state that checkpoints hold, batches, metrics, the clock, the wish to stop."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import distributed
from .chains import Chains, Sampler
from .config import Config
from .events import Events
from .files import SECONDS_BETWEEN_CHECKPOINTS, fingerprint, load_state
from .fused import default_generator, fork
from .model import GaussianModel, LatentModel, Model
from .nets import processor
from .objectives import LossesFunction, SignalFunction
from .progress import STAGE_TITLES, Display
from .rbm import RBM, BernoulliPrior, NormalPrior, Prior, not_finite
from .runs import STAGES, Run, RunError
from .splits import Splits
from .watch import most_gap, stuck

STEPS_BETWEEN_CHECKS = 50
_STREAMS = {"autoencoder": 0, "rbm": 1, "joint": 2, "warm_start": 3_000_000_017, "adversarial": 4_000_000_007}


class TrainingError(RuntimeError):
    """Training that cannot go on; the message names the last good state."""


class Stopped(Exception):  # noqa: N818 (not an error)
    """The run was asked to stop, and its checkpoint is written."""


class Parts(NamedTuple):
    """What was given in Python instead of being made from the configuration.

    Attributes:
        model: A model of one's own, trained in place.
        splits: Data of one's own.
        objective: A function from log-weights (K, B) to a :class:`~latentbits.Signal`, for stage 3.
        sampler: Source of the persistent negatives, called as :func:`latentbits.gibbs` is.
        losses: A function from model, data, negatives, K and generator to :class:`~latentbits.Losses`, for stage 3;
            in place of an objective.
    """

    model: LatentModel | None = None
    splits: Splits | None = None
    objective: SignalFunction | None = None
    sampler: Sampler | None = None
    losses: LossesFunction | None = None

    def settings(self, config: Config) -> Config:
        """The configuration with "given" written where a part takes a setting's place.

        Raises:
            RunError: If it names a part that was not given, or two take the same place.
        """
        if self.objective is not None and self.losses is not None:
            raise RunError("objective, losses: expected one of them, got both")
        for name in ("objective", "losses", "sampler"):
            part = getattr(self, name)
            if part is not None and not callable(part):
                hint = "; what has a name is a setting, as of joint.objective" if isinstance(part, str) else ""
                raise RunError(f"{name}: expected a function, got {part!r}{hint}")
        for name, type_ in (("model", LatentModel), ("splits", Splits)):
            part = getattr(self, name)
            if part is not None and not isinstance(part, type_):
                made = "; latentbits.make_splits makes one of arrays" if name == "splits" else ""
                raise RunError(f"{name}: expected a latentbits.{type_.__name__}, got {type(part).__name__}{made}")
        changes: dict[str, Any] = {}
        if self.model is not None:
            prior = self.model.prior
            kind = {RBM: "rbm", BernoulliPrior: "bernoulli", NormalPrior: "normal"}.get(type(prior), "given")
            changes["model"] = {"network": "given", "prior": kind, "latent": prior.visible}
            changes["model"] |= {"hidden": prior.hidden} if prior.hidden else {}
        if self.splits is not None:
            form = self.splits.form
            changes["data"] = {"name": "given", "image": form.image, "levels": form.levels}
        if self.objective is not None or self.losses is not None:
            changes["joint"] = {"objective": "given"}
        if self.sampler is not None:
            changes["sampler"] = "given"
        config = config.vary(**changes) if changes else config
        self._check_objectives(config)
        self._check_use(config)
        named = {
            "model": config.model.network == "given",
            "splits": config.data.name == "given",
            "objective": "given" in (config.joint.objective, config.warm_start.objective) and self.losses is None,
            "sampler": config.sampler == "given",
        }
        missing = [name for name, wanted in named.items() if wanted and getattr(self, name) is None]
        if missing:
            words = [f"{name}= or losses=" if name == "objective" else f"{name}=" for name in missing]
            raise RunError(
                f"the configuration is of a run with its own {', '.join(missing)}: pass {', '.join(words)} to "
                "latentbits.train in Python"
            )
        return config

    def _check_use(self, config: Config) -> None:
        """Refuse an objective or a sampler that would never be called."""
        prior = config.model.prior
        if self.objective is not None and prior == "normal":
            raise RunError("objective: is for latents that are bits, got model.prior=normal; give losses= instead")
        if (self.objective or self.losses) and not (config.warm_start.epochs or config.joint.epochs):
            raise RunError("objective, losses: are for stage 3, which joint.epochs=0 leaves out; set joint.epochs")
        if self.sampler is None:
            return
        if prior != "rbm" and not (self.model and isinstance(self.model.prior, RBM)):
            raise RunError(f"sampler: is for an RBM's chains, got model.prior={prior}, which is drawn from exactly")
        if not (config.rbm.pcd_epochs or config.warm_start.epochs or config.joint.epochs):
            raise RunError(
                "sampler: is for persistent chains, which no stage has with rbm.pcd_epochs=0, warm_start.epochs=0 and "
                "joint.epochs=0"
            )

    def _check_objectives(self, config: Config) -> None:
        """Refuse for a model of one's own an objective that its latents have no use for."""
        if self.model is None:
            return
        continuous = isinstance(self.model, GaussianModel)
        expected = "iwae, or losses=," if continuous else "another than iwae"
        for name, stage in (("warm_start", config.warm_start), ("joint", config.joint)):
            own = stage.objective == "given" and (self.losses is not None or not continuous)
            if stage.epochs and not own and continuous != (stage.objective == "iwae"):
                raise RunError(
                    f"{name}.objective: expected {expected} with a {type(self.model).__name__}, got {stage.objective}"
                )


@dataclass
class State:
    """Everything that a checkpoint holds."""

    model: Model
    generator: torch.Generator
    stage: str = STAGES[0]
    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    rows: int = 0
    totals: dict[str, Tensor | float] = field(default_factory=dict)
    chains: Chains | None = None
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    average: AveragedModel | None = None
    restored: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    def save(self, run: Run, origin: dict[str, Any]) -> None:
        """Write a checkpoint, with where it comes from: configuration, data, versions. All processes take part."""
        average = None if self.average is None else self.average.state_dict()
        state = {
            "origin": origin,
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "rows": self.rows,
            "totals": self.mean_totals(),
            "generators": distributed.gather(self.generator.get_state()[None]),
            "chains": None if self.chains is None else self.chains.state(),
            "model": self.model.state_dict(),
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "average": average,
        }
        if distributed.world().is_first:
            run.write_checkpoint(state)

    def restore(self, path: Path) -> None:
        """Read a checkpoint; optimizers and average wait for :meth:`begin`, which makes them.

        Raises:
            FileError: If it cannot be read, or is not of such a model.
        """
        try:
            self._take(load_state(path))
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{path}: is no checkpoint of this run's model ({reason}); start a new run") from error

    def _take(self, saved: dict[str, Any]) -> None:
        self.origin = saved["origin"]
        for name in ("stage", "step", "seconds", "best", "rows", "totals"):
            setattr(self, name, saved[name])
        if saved["chains"] is not None:
            self.chains = Chains.restore(saved["chains"], self.generator.device)
        (rank, processes), states = distributed.world(), saved["generators"]
        if states.shape == (processes, self.generator.get_state().numel()):
            self.generator.set_state(states[rank].clone())  # a view would be read from its storage's start
        else:  # of another number of processes or another device: new streams, that depend on where the run stands
            key = int(fingerprint(states), 16)
            self.generator = fork((np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)), rank, self.generator.device)
        self.model.load_state_dict(saved["model"])
        self.restored = {"optimizers": saved["optimizers"], "average": saved["average"]}

    def mean_totals(self) -> dict[str, float]:
        """The epoch's totals so far, as means over processes."""
        names = sorted(self.totals)
        values = torch.tensor([float(self.totals[name]) for name in names], dtype=torch.float64)
        mean = distributed.total(values) / distributed.world().size
        return dict(zip(names, mean.tolist(), strict=True))

    def begin(self, stage: str, optimizers: dict[str, Optimizer], average: float = 0.0) -> None:
        """Enter a stage, at its start or where the checkpoint left it."""
        if self.stage != stage:
            self.stage, self.step, self.totals = stage, 0, {}
        self.optimizers = optimizers
        self.average = None
        if average:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(average))
        if self.restored.get("optimizers"):
            for name, optimizer in optimizers.items():
                optimizer.load_state_dict(self.restored["optimizers"][name])
            if self.average is not None:
                self.average.load_state_dict(self.restored["average"])
        self.restored = {}

    @property
    def evaluated(self) -> Model:
        """The model that validation sees: the moving average where there is one."""
        return self.model if self.average is None else cast(Model, self.average.module)


def origin(config: Config, splits: Splits) -> dict[str, Any]:
    """What a run's bits depend on: configuration, data, and as far as rounding goes versions, processor and threads."""
    return {
        "config": config.model_dump_json(),
        "data": splits.checksum,
        "rounding": f"torch {torch.__version__}, {processor()}, {torch.get_num_threads()} threads, "
        f"{distributed.world().size} processes, {splits.train.device.type}",
    }


def check_origin(saved: dict[str, Any], now: dict[str, Any], path: Path, display: Display) -> None:
    """Compare a checkpoint's origin with the present one.

    Raises:
        RunError: If configuration or data differ; another version, processor or number of threads is only noted.
    """
    # settings that a newer version has brought are at their defaults in both
    before, after = (Config.model_validate_json(each["config"]) for each in (saved, now))
    if before != after:
        raise RunError(f"{path}: the checkpoint is of another configuration: config.json was changed; start a new run")
    if saved["data"] != now["data"]:
        raise RunError(
            f"{path}: the checkpoint is of other data than these; name those that the run was begun with by "
            "--data-dir, or start a new run"
        )
    if saved["rounding"] != now["rounding"]:
        display.note(
            f"resumed with {now['rounding']}; before: {saved['rounding']}. From here on the run is not "
            "bit-identical to one that was never stopped"
        )


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Whole batches in an epoch of ``count`` data; a remainder waits for another epoch's order."""
    return max(1, count // batch_size)


class Session:
    """One sitting of a run: batches, checkpoints, metrics, the clock and the wish to stop."""

    def __init__(
        self,
        run: Run,
        config: Config,
        state: State,
        splits: Splits,
        deadline: float,
        display: Display,
        parts: Parts,
        events: Events | None,
    ) -> None:
        self.run, self.config, self.state, self.splits = run, config, state, splits
        self.deadline, self.display, self.parts, self.events = deadline, display, parts, events
        self.stop = False
        self.is_first = distributed.world().is_first
        self.origin = origin(config, splits)
        self._gap, self._most_gap = torch.zeros(()), math.inf
        self._looked_at: tuple[str, Tensor] | None = None
        self._told_of: set[str] = set()
        self._last_save = self._last_tick = time.monotonic()

    def batches(
        self, epochs: int, batch_size: int, at_epoch_end: Callable[[int], Mapping[str, float | None]]
    ) -> Iterator[Tensor]:
        """Batches (B, D) of training data from the state's step to its stage's end; the bookkeeping between them.

        Several processes get a share of each batch.
        """
        state, stage, x = self.state, self.state.stage, self.splits.train
        per_epoch = steps_per_epoch(len(x), batch_size)
        self.display.phase(STAGE_TITLES[stage], epochs * per_epoch, state.step)
        drawn = -1
        while state.step < epochs * per_epoch:
            epoch, i = divmod(state.step, per_epoch)
            if epoch != drawn:
                drawn, order = epoch, epoch_order(self.config.seed, stage, epoch, len(x)).to(x.device)
            if self.parts.model is not None:  # whose modules may draw from PyTorch's own generator, as dropout does
                for device in {torch.device("cpu"), x.device}:
                    default_generator(device).manual_seed(step_seed(self.config.seed, stage, state.step))
            yield x[distributed.share(order[i * batch_size : (i + 1) * batch_size])]
            state.step += 1
            self.display.advance(state.step)
            if state.step % STEPS_BETWEEN_CHECKS == 0 or i + 1 == per_epoch:
                self._check()
            if i + 1 == per_epoch:
                self._end_epoch(epoch + 1, per_epoch, at_epoch_end)
            self._checkpoint_if_due()

    def record(self, **values: Tensor) -> None:
        """Add a step's values, scalars, to the epoch's totals, where they are: a GPU is not waited for."""
        for name, value in values.items():
            self.state.totals[name] = self.state.totals.get(name, 0.0) + torch.as_tensor(value).detach().double()

    def watch_gap(self, prior: Prior, gap: Tensor) -> None:
        """Note a step's free energy of data minus that of chains, a scalar, by which an explosion is noticed."""
        if isinstance(prior, RBM | BernoulliPrior):
            size = torch.as_tensor(gap).detach().abs()
            self._gap, self._most_gap = torch.fmax(self._gap.to(size), size), most_gap(prior.visible)

    def _end_epoch(self, epoch: int, per_epoch: int, at_epoch_end: Callable[[int], Mapping[str, float | None]]) -> None:
        state = self.state
        self._tick()
        row: dict[str, Any] = {"stage": state.stage, "epoch": epoch, "step": state.step}
        row |= {name: total / per_epoch for name, total in state.mean_totals().items()}
        row |= dict(at_epoch_end(epoch))
        self._refuse([name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)])
        self._look_at_chains()
        self._tick()
        row["seconds"] = round(state.seconds, 3)
        state.totals = {}
        if state.chains is not None:
            state.chains.respace()
        self.keep(row)
        self.display.epoch(row)

    def keep(self, row: Mapping[str, Any]) -> None:
        """Add a line to the metrics, and to TensorBoard's events if they are wanted."""
        self.state.rows += 1
        if self.is_first:
            self.run.append_metrics(row)
            if self.events is not None:
                self.events.append(row)

    def consider(self, nll: float) -> None:
        """Keep the evaluated weights as the run's model if their validation NLL is the best so far."""
        if nll <= self.state.best:
            self.state.best = nll
            origin = {"stage": self.state.stage, "step": str(self.state.step), "valid_nll": f"{nll:.4f}"}
            self.save_weights("model", origin)

    def save_weights(self, name: str, origin: Mapping[str, str] | None = None) -> None:
        """Write the evaluated weights as ``name.safetensors``."""
        if self.is_first:
            self.run.save_weights(name, self.state.evaluated, origin)

    def _tick(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._last_tick
        self._last_tick = now

    def _check(self) -> None:
        """Refuse to go on with what is not finite, or with a prior that has exploded, in any process."""
        bad = [name for name, total in self.state.totals.items() if not math.isfinite(total)]
        bad += not_finite(self.state.model)
        broken, exploded = distributed.any_of(bool(bad), float(self._gap) > self._most_gap)
        if broken:
            self._refuse(bad or ["values of another process are"])
        if exploded:
            raise TrainingError(
                f"{self._where()}: the prior exploded: the free energies of data and chains came {self._gap:,.0f} nats "
                f"apart, expected up to {self._most_gap:,.0f}; the last good checkpoint is kept. "
                + (
                    "The given sampler may not sample the RBM that it is given: check the signs of its couplings "
                    "and fields, and its temperature"
                    if self.parts.sampler
                    else "Lower the prior's learning rate in a new run"
                )
            )
        self._gap = torch.zeros(())

    def _refuse(self, not_finite: list[str]) -> None:
        if not_finite:
            raise TrainingError(
                f"{self._where()}: {', '.join(not_finite[:3])} not finite; the last good checkpoint is kept. Lower the "
                "learning rates, of the RBM first, in a new run"
            )

    def _where(self) -> str:
        return f"{self.run.path}, stage {self.state.stage}, step {self.state.step}"

    def _look_at_chains(self) -> None:
        """Say once in a stage that its persistent chains are stuck."""
        state, model = self.state, self.state.evaluated
        prior = model if isinstance(model, RBM) else model.prior
        if state.chains is None or not isinstance(prior, RBM):
            return
        z = state.chains.bits
        before = self._looked_at[1] if self._looked_at is not None and self._looked_at[0] == state.stage else None
        self._looked_at = state.stage, z.clone()
        problem = stuck(z, before, None if prior.base_bias is None else prior.base_bias.sigmoid())
        if problem and state.stage not in self._told_of:
            self._told_of.add(state.stage)
            section = state.stage.replace("_", "-")
            self.display.note(
                f"warning: {problem}. Training goes on; a lower learning rate of the prior or --{section}.temperatures "
                "10 can help, in a new run"
            )

    def checkpoint(self) -> None:
        """Write a checkpoint now."""
        self._check()
        self._tick()
        self.state.save(self.run, self.origin)
        self._last_save = time.monotonic()

    def _checkpoint_if_due(self) -> None:
        now = time.monotonic()
        asked, over, due = distributed.any_of(
            self.stop, now >= self.deadline, now - self._last_save > SECONDS_BETWEEN_CHECKPOINTS
        )
        if asked or over or due:
            self.checkpoint()
        if asked or over:
            self.run.interrupted = not over
            self.display.note("stopping; the checkpoint is written")
            raise Stopped


def epoch_order(seed: int, stage: str, epoch: int, count: int) -> Tensor:
    """The order of the data in an epoch, with shape (count,): a function of its arguments alone."""
    generator = torch.Generator().manual_seed((seed * 3 + _STREAMS[stage]) * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator, device="cpu")


def step_seed(seed: int, stage: str, step: int) -> int:
    """A seed for a step in this process: a function of these alone."""
    rank, processes = distributed.world()
    return (((seed * 3 + _STREAMS[stage]) * 1_000_003 + step) * processes + rank) % 2**63


@contextlib.contextmanager
def stop_on_interrupt(session: Session) -> Iterator[None]:
    """Let Ctrl-C or SIGTERM stop the run at the next step; a second Ctrl-C interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        session.stop = True
        if number == signal.SIGINT:  # a SIGTERM may come twice, from a scheduler and from torchrun
            signal.signal(number, before[signal.SIGINT])

    try:
        for number in before:
            signal.signal(number, ask)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
