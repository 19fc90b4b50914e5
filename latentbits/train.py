r"""The three stages of training, each a loop that reads top to bottom.

1. ``train_autoencoder``: encoder and decoder with soft bits (section 3.1), then the conversion of the
   encoder's output to a posterior.
2. ``train_rbm``: the prior on bits drawn from that posterior, by CD and then persistent CD.
3. ``train_joint``: everything together by VIMCO or contrastive reweighted wake-sleep (section 3.2).

A run is a function of its configuration: the order of the data depends on seed, stage and epoch, and all
noise comes from one generator whose state is part of every checkpoint. Validation has a generator of
its own. So a run that was stopped and resumed gives the same weights as one that was not.

Where ``torchrun`` has started several processes, each takes its share of every batch and of the persistent chains
and has a generator of its own, gradients are averaged, and the first process writes the files.
"""

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Adamax, Optimizer

from . import data, distributed
from .config import AutoencoderConfig, Config, JointConfig, RBMConfig, ValidationConfig
from .evaluate import IMAGES_AT_ONCE, fit_prior_base, quick_nll
from .fused import bernoulli
from .gibbs import bfloat16_products, gibbs
from .model import GaussianModel, LatentModel, Products, build
from .nets import MLP, Network, initialize_by_data, weight_matrices
from .objectives import Losses, drop, iwae_losses, joint_losses, relaxed_losses
from .progress import Display
from .rbm import RBM, BernoulliPrior, Prior
from .runs import FINISHED, STAGES, Run, RunError, read_weights
from .session import (
    Session,
    State,
    Stopped,
    check_origin,
    origin,
    steps_per_epoch,
    stop_on_interrupt,
)
from .splits import Form, Splits, distort, shift
from .tempering import Chains

CALIBRATION_IMAGES = 20_000
CALIBRATION_UPDATES = 1000
INITIALIZATION_IMAGES = 500


def rate_factor(step: int, steps: int, decay: float) -> float:
    """1, then falling linearly to 0 over the last share ``decay`` of the steps."""
    left = (steps - step) / steps
    return min(1.0, left / decay) if decay else 1.0


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Multiply each group's first learning rate by a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _group(parameters: Any, rate: float, **options: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": rate, "initial_lr": rate, **options}


def augment(
    x: Tensor, form: Form, config: AutoencoderConfig | JointConfig, share: float, generator: torch.Generator
) -> Tensor:
    """Training images (B, D) moved and bent by a share of what a stage's settings ask for, in float."""
    return distort(shift(x, form, config.shift * share, generator), form, config.distort * share, generator).float()


def soft_binarize(z: Tensor, u: Tensor, conversion: str) -> Tensor:
    """B(z), Eq. 3, of encoder outputs z (B, M) with noise u (B, M) uniform on [0, 1).

    As printed the noise is U(-0.5, 0.5), and z = 0 is not the middle; shifted by a half, so that the
    function saturates at -1 and 1 as section 3.1 says, it is.
    """
    return (z + u - 0.5 if conversion == "literal" else z + u).clamp(0, 1)


def train_autoencoder(session: Session, model: LatentModel, config: AutoencoderConfig) -> None:
    """Stage 1: maximise log p(x | B(E(x))), then convert the encoder to a posterior."""
    state, splits = session.state, session.splits
    optimizer = Adam([_group([*model.encoder.parameters(), *model.decoder.parameters()], config.learning_rate)])
    state.begin("autoencoder", {"nets": optimizer})
    steps = config.epochs * steps_per_epoch(len(splits.train), config.batch_size)

    def validate(epoch: int) -> dict[str, float]:
        at_once = min(IMAGES_AT_ONCE, model.rows_at_once())
        with torch.no_grad(), evaluating(model):
            hard = [model.likelihood(model.encode(x)).log_prob(x.float()) for x in splits.valid.split(at_once)]
        return {"reconstruction_hard_bits": -float(torch.cat(hard).mean())}

    for batch in session.batches("autoencoder", splits.train, config.epochs, config.batch_size, validate):
        factor = rate_factor(state.step, steps, config.decay)
        set_rates(optimizer, factor)
        x = augment(
            batch, splits.form, config, rate_factor(state.step, steps, config.augmentation_decay), state.generator
        )
        z = model.encoder(drop(x, config.input_dropout, state.generator))
        u = torch.rand(z.shape, generator=state.generator, device=z.device)
        bits = soft_binarize(z, u, config.conversion)
        if config.dropout:
            bits = bits * (torch.rand(z.shape, generator=state.generator, device=z.device) >= config.dropout)
        loss = -model.likelihood(bits).log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients(model.parameters())
        optimizer.step()
        shrink(model, config.weight_decay * factor)
        session.record(reconstruction=loss.detach())

    session.checkpoint()
    scale, table = choose_scale(session, model, config)
    scale = distributed.of_first(scale)  # on a GPU, rounding could tip the balance in one of several processes
    cast(Network, model.encoder).scale_output(scale)
    if session.is_first:
        session.run.append_metrics({"stage": "conversion", "scale": scale, "nll_by_scale": table})
    state.rows += 1
    session.display.note(f"posterior = sigmoid({scale:g} E(x)); validation NLL by scale: {table}")


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Let batch normalization use its running statistics, and leave them as they are."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def choose_scale(session: Session, model: LatentModel, config: AutoencoderConfig) -> tuple[float, dict[str, float]]:
    """The scale s of sigmoid(s E(x)) with the best validation NLL after a short stage 2, and the table."""
    splits, whole = session.splits, session.config
    scales = (1.0,) if config.conversion == "literal" else config.scales
    if len(scales) == 1:
        return scales[0], {}
    quick = ValidationConfig(images=1000, samples=100, ais_chains=500, ais_temperatures=500)
    x = splits.train[:CALIBRATION_IMAGES]
    with torch.no_grad(), evaluating(model):
        logits = torch.cat([model.encoder(part.float()) for part in x.split(IMAGES_AT_ONCE)])
    table: dict[str, float] = {}
    for scale in scales:
        session.display.note(f"trying posterior = sigmoid({scale:g} E(x)) with a short stage 2")
        trial = copy.deepcopy(model).eval()
        trial.prior = build_prior_like(model.prior, whole.seed)
        cast(Network, trial.encoder).scale_output(scale)
        fit_prior_briefly(trial.prior, scale * logits, whole)
        table[f"{scale:g}"] = round(quick_nll(trial, splits.valid, x, quick, whole.seed)[0], 3)
    return min(scales, key=lambda s: table[f"{s:g}"]), table


def build_prior_like(prior: Prior, seed: int) -> RBM | BernoulliPrior:
    """A fresh prior of the same kind and size."""
    if isinstance(prior, BernoulliPrior):
        return BernoulliPrior(prior.visible).to(prior.visible_bias.device)
    rbm = RBM(prior.visible, prior.hidden, generator=torch.Generator().manual_seed(seed))
    return rbm.to(prior.visible_bias.device)


def fit_prior_briefly(prior: RBM | BernoulliPrior, logits: Tensor, whole: Config) -> None:
    """CD-1 for a thousand updates on posterior logits (N, M): enough to compare scales."""
    config, B = whole.rbm, whole.rbm.batch_size
    generator = torch.Generator(logits.device).manual_seed(whole.seed)
    start_biases(prior, torch.sigmoid(logits).mean(0), len(logits))
    if isinstance(prior, BernoulliPrior):
        return
    optimizer = SGD([_group(prior.parameters(), config.learning_rate, momentum=config.momentum)])
    for step in range(CALIBRATION_UPDATES):
        set_rates(optimizer, rate_factor(step, CALIBRATION_UPDATES, 0.5))
        z = bernoulli(logits[torch.randint(len(logits), (B,), generator=generator, device=logits.device)], generator)
        contrastive_step(prior, optimizer, z, gibbs(prior, z, 1, generator))


@torch.no_grad()
def start_biases(prior: Prior, means: Tensor, count: int) -> None:
    """Set the visible biases to the log-odds of the bits' means (M,), as if the weights were zero."""
    if isinstance(prior, BernoulliPrior):
        prior.fit_means(means, count)
    elif isinstance(prior, RBM):
        prior.fit_base(means, count)
        assert prior.base_bias is not None
        prior.visible_bias.copy_(prior.base_bias)


def contrastive_step(prior: Prior, optimizer: Optimizer, z: Tensor, z_negative: Tensor) -> Tensor:
    """One ascent step on log p(z) (B, M) with model samples (N, M); returns the free-energy gap, a scalar."""
    loss = prior.free_energy(z).mean() + prior.log_partition_surrogate(z_negative)
    optimizer.zero_grad()
    loss.backward()
    distributed.average_gradients(prior.parameters())
    optimizer.step()
    return loss.detach()


def cd_steps(epoch: int, config: RBMConfig) -> int:
    """CD steps rise linearly from 1 in the first epoch to ``cd_steps`` in the last of the CD epochs."""
    if config.cd_epochs <= 1:
        return config.cd_steps
    return round(1 + (config.cd_steps - 1) * min(1.0, epoch / (config.cd_epochs - 1)))


def train_rbm(session: Session, config: RBMConfig) -> None:
    """Stage 2: the prior on bits z ~ q(z | x), or on the data where there are no networks."""
    state, splits, model = session.state, session.splits, session.state.model
    prior = model if isinstance(model, RBM) else model.prior
    weights, biases = weight_matrices(prior), [p for p in prior.parameters() if p.dim() == 1]
    groups = [_group(biases, config.learning_rate, momentum=config.momentum)]
    if weights:
        groups.append(_group(weights, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay))
    optimizer = SGD(groups)
    state.begin("rbm", {"prior": optimizer})
    per_epoch = steps_per_epoch(len(splits.train), config.batch_size)

    def draw(x: Tensor) -> Tensor:
        if isinstance(model, RBM):
            return x.float()
        with torch.no_grad(), evaluating(model):
            return model.posterior(x.float()).sample(generator=state.generator)

    if state.step == 0:
        with torch.no_grad():
            if isinstance(model, RBM):
                means = splits.train.mean(0, dtype=torch.float32)
            else:
                means = torch.cat([model.posterior(x.float()).mean for x in splits.train.split(IMAGES_AT_ONCE)])
                means = means.mean(0)
        start_biases(prior, means, len(splits.train))

    for batch in session.batches(
        "rbm", splits.train, config.epochs, config.batch_size, lambda epoch: validate_nll(session, epoch, config.epochs)
    ):
        epoch = state.step // per_epoch
        set_rates(optimizer, rate_factor(state.step, config.epochs * per_epoch, config.decay))
        z = draw(batch)
        if epoch < config.cd_epochs:
            z_negative = gibbs(prior, z, cd_steps(epoch, config), state.generator)
        else:
            if state.chains is None:
                first = torch.arange(config.chains) % len(splits.train)
                z_first = draw(splits.train[distributed.share(first)])
                state.chains = Chains.begin(prior, z_first, config.temperatures, state.generator)
            z_negative = state.chains.advance(prior, config.pcd_steps, state.generator)
        session.record(free_energy_gap=contrastive_step(prior, optimizer, z, z_negative))


def validate_nll(session: Session, epoch: int, epochs: int) -> dict[str, float | None]:
    """The quick validation NLL every so many epochs and after the last; keeps the best weights."""
    config, state, splits = session.config, session.state, session.splits
    if config.validation.keep and state.stage == "joint" and epoch % config.validation.keep == 0:
        with evaluating(state.evaluated):
            fit_prior_base(state.evaluated, splits.train)
        session.save_weights(f"joint-{epoch:04d}", {"stage": "joint", "step": str(state.step)})
    if epoch % config.validation.every and epoch != epochs:
        return {}
    with evaluating(state.evaluated):
        nll, error = quick_nll(state.evaluated, splits.valid, splits.train, config.validation, config.seed)
    session.consider(nll)
    return {"valid_nll": nll, "log_partition_error": error}


def samples_at(step: int, steps: int, config: JointConfig) -> int:
    """K of a step: it rises geometrically from ``first_samples`` to ``samples``, which the last half has."""
    if not config.first_samples:
        return config.samples
    share = min(1.0, 2 * step / steps)
    return round(config.first_samples * math.pow(config.samples / config.first_samples, share))


def stage_losses(
    model: LatentModel, x: Tensor, z_negative: Tensor, config: JointConfig, samples: int, generator: torch.Generator,
    products: Products,
) -> Losses:  # fmt: skip
    """The losses of a batch x (B, D) by the objective that the configuration names."""
    if config.objective == "relaxed":
        return relaxed_losses(model, x, z_negative, config.relaxation, config.dropout, generator, products)
    if isinstance(model, GaussianModel):
        return iwae_losses(model, x, samples, config.backward_samples, config.dropout, generator, products)
    return joint_losses(
        model, x, z_negative, config.objective, samples, config.backward_samples,
        config.dropout, generator, products, config.sleep, -(-config.dreams // distributed.world().size),
    )  # fmt: skip


def train_joint(session: Session, model: LatentModel, config: JointConfig, stage: str = "joint") -> None:
    """Stage 3, or its warm start: encoder, decoder and prior together."""
    state, splits, prior = session.state, session.splits, model.prior
    make = Adam if config.optimizer == "adam" else Adamax
    nets = make(
        [
            _group(model.encoder.parameters(), config.encoder_learning_rate),
            _group(model.decoder.parameters(), config.decoder_learning_rate),
        ]
    )
    sgd = SGD([_group(prior.parameters(), config.prior_learning_rate)])
    state.begin(stage, {"nets": nets, "prior": sgd}, config.average)
    if state.step == 0:
        first = torch.arange(config.chains) % len(splits.train)
        with torch.no_grad():
            x = splits.train[distributed.share(first)].float()
            z = model.posterior(x).sample(generator=state.generator)
        state.chains = Chains.begin(prior, z, config.temperatures, state.generator)
    steps = config.epochs * steps_per_epoch(len(splits.train), config.batch_size)
    products = bfloat16_products if config.products == "bfloat16" else contextlib.nullcontext

    for batch in session.batches(
        stage,
        splits.train,
        config.epochs,
        config.batch_size,
        lambda epoch: validate_nll(session, epoch, config.epochs),
    ):
        factor = rate_factor(state.step, steps, config.decay)
        set_rates(nets, factor)
        set_rates(sgd, factor)
        assert state.chains is not None
        z_negative = state.chains.advance(prior, config.gibbs_steps, state.generator)
        K = samples_at(state.step, steps, config)
        x = augment(
            batch, splits.form, config, rate_factor(state.step, steps, config.augmentation_decay), state.generator
        )
        losses = stage_losses(model, x, z_negative, config, K, state.generator, products)
        nets.zero_grad()
        sgd.zero_grad()
        with products():
            (losses.decoder + losses.encoder).backward()
        if losses.prior.requires_grad:
            losses.prior.backward()
        distributed.average_gradients(model.parameters())
        if config.centered and isinstance(prior, RBM):
            center(prior, z_negative)
        nets.step()
        sgd.step()
        shrink(model, config.weight_decay * factor)
        if state.average is not None:
            state.average.update_parameters(model)
        session.record(
            bound=losses.bound,
            decoder_loss=losses.decoder.detach(),
            free_energy_gap=losses.prior.detach(),
            effective_sample_size=losses.effective_sample_size,
        )


@torch.no_grad()
def center(prior: RBM, z_negative: Tensor) -> None:
    """Center the prior's gradient at the chains' mean bits; z_negative (N, M) is this process's share of them."""
    means = torch.cat([z_negative.mean(0), prior.hidden_logits(z_negative).sigmoid().mean(0)])
    means = distributed.total(means) / distributed.world().size
    prior.center_gradient(*means.split([prior.visible, prior.hidden]))


@torch.no_grad()
def shrink(model: LatentModel, amount: float) -> None:
    """Decoupled weight decay of the networks' weight matrices."""
    if amount:
        for net in (model.encoder, model.decoder):
            torch._foreach_mul_(weight_matrices(net), 1 - amount)


def train(
    config: Config,
    run: Path | str,
    resume: bool = False,
    max_minutes: float | None = None,
    data_dir: Path | str | None = None,
    device: str = "cpu",
    quiet: bool = False,
) -> Run:
    """Train a model in its three stages; the command ``latentbits train``.

    Arguments:
        config: What to train; see :mod:`latentbits.recipes`.
        run: The run folder. It must be new, unless resuming.
        resume: Go on from the folder's checkpoint; its configuration must be the same.
        max_minutes: Stop, resumable, after so long. The schedules do not depend on it.
        data_dir: Folder with the data set's published files.
        device: Where to train, as PyTorch names it.
        quiet: Show no progress.

    Returns:
        The run folder; ``finished`` says whether it came to its end.

    Raises:
        RunError: If the folder holds a run already, or another one than is to be resumed.
        DataError: If the data are missing or damaged.
        TrainingError: If a value is not finite.
    """
    folder = Run.open(run) if resume else None
    if folder is not None and folder.config != config:
        raise RunError(
            f"{folder.path}: was started with another configuration ({describe_difference(folder.config, config)}); "
            "resume it without options, or start a new run"
        )
    check_shares(config)
    splits = data.load(config.data, data_dir).to(device)
    state, is_first = new_state(config, splits), distributed.world().is_first
    begins = folder is None or not folder.checkpoint.is_file()
    if begins and config.weights:
        try:
            read_weights(Path(config.weights), state.model)
        except RunError as error:
            raise RunError(f"--weights: expected a file of weights of such a model ({error})") from error
    if folder is None:
        folder = Run.create(run, config) if is_first else Run(run)
    with folder.lock() if is_first else contextlib.nullcontext(), Display(quiet or not is_first) as display:
        if not begins:
            state.restore(folder.checkpoint)
            check_origin(state.origin, origin(config, splits), folder.checkpoint, display)
        if is_first:
            folder.truncate_metrics(state.rows)
        deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        session = Session(folder, config, state, splits, deadline, display)
        if begins and config.weights:
            note_weights(session, Path(config.weights))
        distributed.wait()  # for the folder, and for all to have read the checkpoint before one replaces it
        with stop_on_interrupt(session), contextlib.suppress(Stopped):
            run_stages(session)
        distributed.wait()
    return folder


def check_shares(config: Config) -> None:
    """Check that batches and chains can be shared out equally to the processes.

    Raises:
        RunError: With a line for each setting that cannot.
    """
    processes = distributed.world().size
    problems = [
        f"{section}.{name}: expected a multiple of {processes}, the number of processes, got {value}"
        for section in ("autoencoder", "rbm", "warm_start", "joint")
        if getattr(config, section).epochs
        for name in ("batch_size", "chains")
        if (value := getattr(getattr(config, section), name, 0)) % processes
    ]
    if processes > 1 and config.model.network == "resnet" and config.model.norm == "batch":
        problems.append("model.norm: batch normalization is for one process; expected weight or none")
    if problems:
        raise RunError("\n".join(problems))


def describe_difference(old: Config, new: Config) -> str:
    """The first few settings that differ, as ``section.name: old -> new``."""
    differences = []
    old_values, new_values = old.model_dump(), new.model_dump()
    for section, values in old_values.items():
        if not isinstance(values, dict):
            values, other = {"": values}, {"": new_values[section]}
        else:
            other = new_values[section]
        for name, value in values.items():
            if other[name] != value:
                differences.append(f"{section}{'.' if name else ''}{name}: {value} -> {other[name]}")
    return ", ".join(differences[:4])


def new_state(config: Config, splits: Splits) -> State:
    """The state before the first step: random weights, and the decoder's bias at the data's mean logits."""
    try:
        model = build(config.model, splits.form, torch.Generator().manual_seed(config.seed))
    except ValueError as error:
        raise RunError(str(error)) from error
    model = model.to(splits.train.device)
    generator = torch.Generator(splits.train.device).manual_seed(config.seed + 1_000_003 * distributed.world().rank)
    if isinstance(model, LatentModel):
        begin_networks(model, splits)
    return State(model, generator)


def begin_networks(model: LatentModel, splits: Splits) -> None:
    """Set what the training data determine before the first step."""
    if not isinstance(model.encoder, MLP):
        x = splits.train[:INITIALIZATION_IMAGES].float()
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
    if session.is_first:
        session.run.append_metrics({"stage": "start", "weights": str(path), "sha256": checksum})
    session.state.rows += 1


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
    if config.joint.epochs and isinstance(model, LatentModel):
        train_joint(session, model, config.joint)
        end_stage(session, "joint")
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
