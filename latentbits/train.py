"""A training run from its first step to its last: its folder, its state, and the stages in turn.

The stages themselves are in :mod:`latentbits.pretrain` (autoencoder and prior) and :mod:`latentbits.joint`, a GAN's
only one in :mod:`latentbits.adversarial`.

A run is a function of its configuration: the order of the data depends on seed, stage and epoch, and all
noise comes from one generator whose state is part of every checkpoint. Validation has a generator of
its own. So a run that was stopped and resumed gives the same weights as one that was not.

Where ``torchrun`` has started several processes, each takes its share of every batch and of the persistent chains
and has a generator of its own, gradients are averaged, and the first process writes the files.
"""

import contextlib
import hashlib
import math
import time
from pathlib import Path
from typing import Any, cast

import torch

from . import data, distributed
from .adversarial import train_wgan
from .chains import Sampler
from .config import Config, different, settings
from .evaluate import fit_prior_base
from .events import Events, check_tensorboard
from .joint import train_joint
from .model import WGAN, LatentModel, build
from .nets import MLP, Network, evaluating, full_float32, initialize_by_data, note_on_precision
from .objectives import LossesFunction, SignalFunction
from .pretrain import train_autoencoder, train_rbm
from .progress import Display
from .runs import FINISHED, STAGES, Run, RunError, read_weights
from .session import (
    Parts,
    Session,
    State,
    Stopped,
    check_origin,
    origin,
    stop_on_interrupt,
)
from .splits import Splits, some_of

INITIALIZATION_IMAGES, INITIALIZATION_ELEMENTS = 500, 2**29
"""Images by which networks begin, at most, also by the size of their largest tensors together."""


@full_float32()
def train(
    config: Config,
    run: Path | str,
    resume: bool = False,
    max_minutes: float | None = None,
    data_dir: Path | str | None = None,
    device: str = "cpu",
    quiet: bool = False,
    tensorboard: bool = False,
    *,
    model: LatentModel | None = None,
    splits: Splits | None = None,
    objective: SignalFunction | None = None,
    sampler: Sampler | None = None,
    losses: LossesFunction | None = None,
) -> Run:
    """Train a model in its stages; the command ``latentbits train``.

    Parts of one's own take the place of what the configuration describes, which then says "given" there. To resume,
    give them again.

    Arguments:
        config: What to train; see :mod:`latentbits.recipes`.
        run: The run folder. It must be new, unless resuming.
        resume: Go on from the folder's checkpoint; its configuration must be the same.
        max_minutes: Stop, resumable, after so long. The schedules do not depend on it.
        data_dir: Folder with the data set's published files.
        device: Where to train, as PyTorch names it.
        quiet: Show no progress.
        tensorboard: Write the metrics as TensorBoard's events too, into the folder ``tensorboard`` of the run's.
        model: A model of one's own, trained in place; it begins as it is.
        splits: Data of one's own; see :func:`latentbits.make_splits`.
        objective: Of stage 3: a function from log-weights (K, B) to a :class:`~latentbits.Signal`.
        sampler: Source of the persistent negatives of stages 2 and 3, called as :func:`latentbits.gibbs` is.
        losses: Of stage 3, in place of an objective: a function from the model, data (B, D), negatives (N, M), K and a
            generator to :class:`~latentbits.Losses`.

    Returns:
        The run folder; ``finished`` says whether it came to its end, ``interrupted`` whether a signal stopped it.

    Raises:
        RunError: If the folder holds a run already, or another one than is to be resumed; if parts do not fit; or if
            the package tensorboard is wanted and missing.
        DataError: If the data are missing or damaged.
        TrainingError: If a value is not finite, or the prior explodes.
    """
    if tensorboard:
        check_tensorboard()
    if not isinstance(config, Config):
        raise RunError(f"config: expected a latentbits.Config, such as recipes.digits(), got {type(config).__name__}")
    if max_minutes is not None and not (isinstance(max_minutes, int | float) and max_minutes > 0):
        raise RunError(f"max_minutes: expected a positive number, got {max_minutes!r}")
    parts = Parts(model, splits, objective, sampler, losses)
    config = parts.settings(config)
    folder = reopened(run, config, parts) if resume else None
    check_shares(config)
    data.check_place(config.data, data_dir)
    if data_dir is None and folder is not None:
        data_dir = folder.data_dir
    splits = (splits or data.load(config.data, data_dir)).to(device)
    check_shares(config, len(splits.train))
    state, is_first = new_state(config, splits, model), distributed.world().is_first
    begins = folder is None or not folder.has_checkpoint()
    if begins and config.weights:
        begin_with_weights(state, Path(config.weights))
    if folder is None:
        folder = distributed.in_first(lambda: Run.create(run, config)) or Run(run)
    with folder.lock() if is_first else contextlib.nullcontext(), Display(quiet or not is_first) as display:
        if not begins:
            take_up(folder, state, origin(config, splits), display)
        if is_first and (left := folder.truncate_metrics(state.rows)) < state.rows:
            display.note(f"metrics.jsonl: {left} of the {state.rows} lines up to the checkpoint are left; going on")
            state.rows = left
        if is_first and data_dir is not None:
            folder.remember_data_dir(Path(data_dir))
        deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        events = Events(folder) if tensorboard and is_first else None
        session = Session(folder, config, state, splits, deadline, display, parts, events)
        if begins:
            display.note(splits.summary())
        if begins and config.weights:
            note_weights(session, Path(config.weights))
        if note := note_on_precision(config.model.precision, torch.device(device)):
            display.note(note)
        distributed.wait()  # for the folder, and for all to have read the checkpoint before one replaces it
        if begins:
            session.checkpoint()  # from here on, weights without a checkpoint are never a run that can start again
        writing = contextlib.nullcontext() if events is None else contextlib.closing(events)
        with writing, own_randomness(model, device), stop_on_interrupt(session), contextlib.suppress(Stopped):
            run_stages(session)
        distributed.wait()
    return folder


def reopened(run: Path | str, config: Config, parts: Parts) -> Run:
    """The run folder to go on with.

    Raises:
        RunError: If there is no run, or it was started with another configuration, or with parts that are not given.
    """
    folder = Run.open(run)
    parts.settings(folder.config)  # which says what is missing
    if folder.config != config:
        raise RunError(
            f"{folder.path}: was started with another configuration ({describe_difference(folder.config, config)}); "
            "resume it without options, in Python with its own configuration, or start a new run"
        )
    return folder


def begin_with_weights(state: State, path: Path) -> None:
    """Read the weights that a run is to begin with."""
    try:
        read_weights(path, state.model)
    except RunError as error:
        raise RunError(f"--weights: expected a file of weights of such a model ({error})") from error


def take_up(folder: Run, state: State, now: dict[str, Any], display: Display) -> None:
    """Go on from the folder's checkpoint, put right if it is damaged, and compare its origin with the present one."""
    if distributed.world().is_first and (note := folder.repair_checkpoint()):
        display.note(note)
    distributed.wait()  # for the repair
    state.restore(folder.checkpoint)
    check_origin(state.origin, now, folder.checkpoint, display)


def own_randomness(model: LatentModel | None, device: str) -> contextlib.AbstractContextManager[Any]:
    """Leave PyTorch's own generators as they are, which :meth:`Session.batches` seeds for a model of one's own."""
    if model is None:
        return contextlib.nullcontext()
    return torch.random.fork_rng([torch.device(device)] if device.startswith("cuda") else [])


def check_shares(config: Config, images: int | None = None) -> None:
    """Check that batches and chains can be shared out equally to the processes.

    Arguments:
        config: What is to be trained.
        images: Number of training images, once it is known; where they are fewer, a batch has no more.

    Raises:
        RunError: With a line for each setting that cannot.
    """
    processes = distributed.world().size
    problems = [
        f"{section}.{name}: expected a multiple of {processes}, the number of processes, got {value}"
        for section in STAGES
        if getattr(config, section).epochs
        for name in ("batch_size", "chains")
        if (value := getattr(getattr(config, section), name, 0)) % processes
    ]
    batches = [getattr(config, section).batch_size for section in STAGES if getattr(config, section).epochs]
    if images is not None and batches and images < max(batches) and images % processes:
        problems = [
            f"data: expected a number of training images that is a multiple of {processes}, the number of processes, "
            f"or no less than a batch, {max(batches)}, got {images}"
        ]
    if problems:
        raise RunError("\n".join(problems))


def describe_difference(old: Config, new: Config) -> str:
    """The first few settings that differ, as ``section.name: old -> new``."""
    after = settings(new)
    return ", ".join([f"{name}: {value} -> {after[name]}" for name, value in different(old, new).items()][:4])


def new_state(config: Config, splits: Splits, given: LatentModel | None = None) -> State:
    """The state before the first step: random weights, and the decoder's bias at the data's mean logits.

    A given model is taken as it is, but for one that is in evaluation mode as a whole, as it was loaded: it is put into
    training mode.

    Raises:
        RunError: If the networks do not fit the images or the stages.
    """
    if given is not None and config.autoencoder.epochs and not hasattr(given.encoder, "scale_output"):
        raise RunError(
            "model.encoder: has no scale_output(factor), with which stage 1 ends; wrap it in latentbits.Scaled, or "
            "leave stage 1 out (autoencoder.epochs=0)"
        )
    try:
        model = given or build(config.model, splits.form, torch.Generator().manual_seed(config.seed))
    except ValueError as error:
        raise RunError(str(error)) from error
    model = model.to(splits.train.device)
    if given is not None:
        check_fit(given, splits)
    if not model.training:
        model.train()
    generator = torch.Generator(splits.train.device).manual_seed(config.seed + 1_000_003 * distributed.world().rank)
    if isinstance(model, LatentModel) and given is None:
        begin_networks(model, splits)
    distributed.copy_from_first(model.state_dict().values())  # one of one's own may have begun otherwise in each
    return State(model, generator)


def check_fit(model: LatentModel, splits: Splits) -> None:
    """Try a model of one's own on two images, before anything is written.

    Raises:
        RunError: If its parts do not fit each other or the images.
    """
    try:
        with own_randomness(model, str(splits.train.device)):
            model.log_prob(splits.train[:2].float(), 2, 0.0, torch.Generator(splits.train.device).manual_seed(0))
    except (RuntimeError, ValueError, IndexError) as error:
        if "memory" in str(error):
            raise
        reason = " ".join(str(error).split())
        raise RunError(
            f"model: does not fit images of {splits.form.dimensions} values, or its parts do not fit each other "
            f"({reason})"
        ) from error


def begin_networks(model: LatentModel, splits: Splits) -> None:
    """Set what the training data determine before the first step."""
    if not isinstance(model.encoder, MLP):
        count = INITIALIZATION_ELEMENTS // int(getattr(model.decoder, "elements", 1))
        x = some_of(splits.train, max(2, min(INITIALIZATION_IMAGES, count))).float()
        generator = torch.Generator(x.device).manual_seed(0)
        initialize_by_data(model.encoder, x)
        with torch.no_grad():
            z = model.posterior(x).sample(generator=generator)
        initialize_by_data(model.decoder, z)
    if splits.form.levels == 2:
        cast(Network, model.decoder).set_offset(splits.mean_logits())


def note_weights(session: Session, path: Path) -> None:
    """Write down which weights the run began with."""
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    session.keep({"stage": "start", "weights": str(path), "sha256": checksum})


def run_stages(session: Session) -> None:
    """Run the stages that the configuration asks for, from where the state stands."""
    state, config, run = session.state, session.config, session.run
    if state.stage == FINISHED:
        return
    done, model = STAGES.index(state.stage), state.model
    if done <= 0 and config.autoencoder.epochs and isinstance(model, LatentModel):
        train_autoencoder(session, model, config.autoencoder)
        end_stage(session, "autoencoder")
    if done <= 1 and config.rbm.epochs:
        train_rbm(session, config.rbm)
        end_stage(session, "rbm")
    if done <= 2 and config.warm_start.epochs and isinstance(model, LatentModel):
        train_joint(session, model, config.warm_start, "warm_start")
        end_stage(session, "warm_start")
    if done <= 3 and config.joint.epochs and isinstance(model, LatentModel):
        train_joint(session, model, config.joint)
        end_stage(session, "joint")
    if done <= 4 and config.adversarial.epochs and isinstance(model, WGAN):
        train_wgan(session, model, config.adversarial)
        end_stage(session, "adversarial")
    if not (run.path / "model.safetensors").is_file():
        session.save_weights("model", {"stage": state.stage, "step": "0"})
    state.stage = FINISHED
    session.checkpoint()


def end_stage(session: Session, stage: str) -> None:
    """Keep the stage's last weights, and enter the next stage in a checkpoint."""
    state = session.state
    if isinstance(state.evaluated, LatentModel):
        with evaluating(state.evaluated):
            fit_prior_base(state.evaluated, session.splits.train)
    session.save_weights(stage)
    state.stage = (*STAGES, FINISHED)[STAGES.index(stage) + 1]
    state.step, state.totals = 0, {}
    state.optimizers, state.average = {}, None
    session.checkpoint()
