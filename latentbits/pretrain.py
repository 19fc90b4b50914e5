r"""Stages 1 and 2, each a loop that reads top to bottom.

1. ``train_autoencoder``: encoder and decoder with soft bits (section 3.1), then the conversion of the
   encoder's output to a posterior.
2. ``train_rbm``: the prior on bits drawn from that posterior, by CD and then persistent CD.
"""

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from . import distributed
from .chains import Chains
from .config import AutoencoderConfig, Config, RBMConfig, ValidationConfig
from .evaluate import IMAGES_AT_ONCE, mean_latents, quick_nll
from .files import FileError
from .fused import bernoulli
from .gibbs import gibbs
from .model import LatentModel
from .nets import Network, evaluating, weight_matrices
from .objectives import drop
from .rbm import RBM, BernoulliPrior, Prior, TractablePrior
from .runs import Run
from .session import Session, steps_per_epoch
from .splits import some_of
from .stages import augment, group, rate_factor, set_rates, shrink, validate_nll

CALIBRATION_IMAGES = 20_000
CALIBRATION_UPDATES = 1000


def soft_binarize(z: Tensor, u: Tensor, conversion: str) -> Tensor:
    """B(z), Eq. 3, of encoder outputs z (B, M) with noise u (B, M) uniform on [0, 1).

    As printed the noise is U(-0.5, 0.5), and z = 0 is not the middle; shifted by a half, so that the
    function saturates at -1 and 1 as section 3.1 says, it is.
    """
    return (z + u - 0.5 if conversion == "literal" else z + u).clamp(0, 1)


def reconstructions_so_far(run: Run) -> dict[int, float]:
    """Of hard bits, by epoch, as earlier sittings wrote them down; none where they cannot be read."""
    try:
        rows = run.metrics()
    except FileError:  # it is for a warning only
        return {}
    return {row["epoch"]: row["reconstruction_hard_bits"] for row in rows if "reconstruction_hard_bits" in row}


def train_autoencoder(session: Session, model: LatentModel, config: AutoencoderConfig) -> None:
    """Stage 1: maximise log p(x | B(E(x))), then convert the encoder to a posterior."""
    state, splits = session.state, session.splits
    nets = [*model.encoder.parameters(), *model.decoder.parameters()]
    optimizer = Adam([group(nets, config.learning_rate)], fused=True)  # a third of the loop's time on a CPU
    state.begin("autoencoder", {"nets": optimizer})
    steps = config.epochs * steps_per_epoch(len(splits.train), config.batch_size)

    by_epoch = reconstructions_so_far(session.run)

    def validate(epoch: int) -> dict[str, float]:
        at_once = min(IMAGES_AT_ONCE, model.rows_at_once())
        with torch.no_grad(), evaluating(model):
            hard = [model.likelihood(model.encode(x)).log_prob(x.float()) for x in splits.valid.split(at_once)]
        by_epoch[epoch] = -float(torch.cat(hard).mean())
        return {"reconstruction_hard_bits": by_epoch[epoch]}

    for batch in session.batches(config.epochs, config.batch_size, validate):
        factor = rate_factor(state.step, steps, config.decay, config.warmup)
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
        distributed.average_statistics(model)
        shrink(model, config.weight_decay * factor)
        session.record(reconstruction=loss.detach())

    session.checkpoint()
    if problem := overfitting(by_epoch, config.dropout):
        session.display.note(f"warning: {problem}")
    convert(session, model, config)


def convert(session: Session, model: LatentModel, config: AutoencoderConfig) -> None:
    """Make a posterior of the encoder, sigmoid(s E(x)) (section 3.1, where s is 1), with the best scale s."""
    scale, table = choose_scale(session, model, config)
    scale = distributed.of_first(scale)  # on a GPU, rounding could tip the balance in one of several processes
    cast(Network, model.encoder).scale_output(scale)
    session.keep({"stage": "conversion", "scale": scale, "nll_by_scale": table})
    session.display.note(
        f"chosen: scale {scale:g}; from now on the encoder's bits have probabilities sigmoid({scale:g} E(x))"
    )


def overfitting(by_epoch: Mapping[int, float], dropout: float) -> str | None:
    """What is wrong if validation images' reconstruction, in nats, has risen since its best epoch and is still high.

    Risen is by a hundredth. After the first epoch, in which little is learned, a rise may pass.
    """
    best, last = min(by_epoch, key=by_epoch.__getitem__, default=0), max(by_epoch, default=0)
    if best <= 1 or by_epoch[last] - by_epoch[best] <= abs(by_epoch[best]) / 100:
        return None
    if by_epoch[last] < max(nll for epoch, nll in by_epoch.items() if epoch > best) - abs(by_epoch[best]) / 100:
        return None  # falling again
    return (
        f"stage 1 overfits: validation images came back best after epoch {best}, to {by_epoch[best]:.2f} nats, and "
        f"after epoch {last} to {by_epoch[last]:.2f}. With --autoencoder.epochs {best}, with --autoencoder.dropout "
        f"{dropout + 0.1:.1f} instead of {dropout:g} or with more images, a new run may become better"
    )


def choose_scale(session: Session, model: LatentModel, config: AutoencoderConfig) -> tuple[float, dict[str, float]]:
    """The scale s of sigmoid(s E(x)) with the best validation NLL after a short stage 2, and the table."""
    splits, whole = session.splits, session.config
    scales = (1.0,) if config.conversion == "literal" else config.scales
    if len(scales) == 1:
        return scales[0], {}
    quick = ValidationConfig(images=1000, samples=100, ais_chains=500, ais_temperatures=500)
    x = some_of(splits.train, CALIBRATION_IMAGES)
    with torch.no_grad(), evaluating(model):
        logits = torch.cat([model.encoder(part.float()) for part in x.split(IMAGES_AT_ONCE)])
    session.display.note(
        "the encoder's output E(x) becomes bits with probabilities sigmoid(s E(x)); a short stage 2 for each scale s "
        f"of {', '.join(f'{scale:g}' for scale in scales)} tells which is best"
    )
    table: dict[str, float] = {}
    for scale in scales:
        trial = copy.deepcopy(model).eval()
        trial.prior = fresh_prior(model.prior, whole.seed)
        cast(Network, trial.encoder).scale_output(scale)
        fit_prior_briefly(trial.prior, scale * logits, whole)
        table[f"{scale:g}"] = round(quick_nll(trial, splits.valid, x, quick, whole.seed)[0], 3)
        session.display.note(f"scale {scale:g}: validation NLL {table[f'{scale:g}']:.2f} nats")
    return min(scales, key=lambda s: table[f"{s:g}"]), table


def fresh_prior(prior: Prior, seed: int) -> Prior:
    """A prior for a trial: an RBM of the same size with random weights, another kind as it is."""
    if not isinstance(prior, RBM):
        return copy.deepcopy(prior)
    rbm = RBM(prior.visible, prior.hidden, generator=torch.Generator().manual_seed(seed))
    return rbm.to(prior.visible_bias.device)


def fit_prior_briefly(prior: Prior, logits: Tensor, whole: Config) -> None:
    """CD-1 for a thousand updates on posterior logits (N, M): enough to compare scales."""
    config, B = whole.rbm, whole.rbm.batch_size
    generator = torch.Generator(logits.device).manual_seed(whole.seed)
    start_biases(prior, torch.sigmoid(logits).mean(0), len(logits))
    if isinstance(prior, BernoulliPrior):
        return
    optimizer = SGD([group(prior.parameters(), config.learning_rate, momentum=config.momentum)])
    for step in range(CALIBRATION_UPDATES):
        set_rates(optimizer, rate_factor(step, CALIBRATION_UPDATES, 0.5))
        z = bernoulli(logits[torch.randint(len(logits), (B,), generator=generator, device=logits.device)], generator)
        contrastive_step(prior, optimizer, z, gibbs(prior, z, 1, generator))


@torch.no_grad()
def start_biases(prior: Prior, means: Tensor, count: int) -> None:
    """Set the visible biases to the log-odds of the bits' means (M,), as if the weights were zero."""
    if isinstance(prior, TractablePrior):
        prior.fit_means(means, count)
    else:
        prior.fit_base(means, count)
        assert prior.base_bias is not None
        prior.visible_bias.copy_(prior.base_bias)


def contrastive_step(prior: Prior, optimizer: Optimizer, z: Tensor, z_negative: Tensor) -> Tensor:
    """One ascent step on log p(z) (B, M) by model samples (N, M) (Eq. 5); returns the free-energy gap, a scalar."""
    loss = prior.free_energy(z).mean() + prior.log_partition_surrogate(z_negative)
    optimizer.zero_grad()
    if loss.requires_grad:  # a prior of one's own may have nothing to learn
        loss.backward()
        distributed.average_gradients(prior.parameters())
        optimizer.step()
    return loss.detach()


def cd_steps(epoch: int, config: RBMConfig) -> int:
    """CD steps rise linearly from 1 in the first epoch to ``cd_steps`` in the last of the CD epochs (Appendix C)."""
    if config.cd_epochs <= 1:
        return config.cd_steps
    return round(1 + (config.cd_steps - 1) * min(1.0, epoch / (config.cd_epochs - 1)))


def train_rbm(session: Session, config: RBMConfig) -> None:
    """Stage 2: the prior on bits z ~ q(z | x), or on the data where there are no networks."""
    state, splits, model = session.state, session.splits, cast(LatentModel | RBM, session.state.model)
    prior = model if isinstance(model, RBM) else model.prior
    weights = weight_matrices(prior)
    biases = [p for p in prior.parameters() if not any(p is weight for weight in weights)]
    groups = [group(biases, config.learning_rate, momentum=config.momentum)]
    if weights:
        groups.append(group(weights, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay))
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
                with evaluating(model):
                    means = mean_latents(model, splits.train).float()
        start_biases(prior, means, len(splits.train))

    for batch in session.batches(
        config.epochs, config.batch_size, lambda epoch: validate_nll(session, epoch, config.epochs)
    ):
        epoch = state.step // per_epoch
        set_rates(optimizer, rate_factor(state.step, config.epochs * per_epoch, config.decay))
        z = draw(batch)
        if epoch < config.cd_epochs:
            z_negative = gibbs(prior, z, cd_steps(epoch, config), state.generator)
        else:
            if state.chains is None:
                state.chains = Chains.at_data(
                    prior, splits.train, config.chains, draw, config.temperatures, state.generator
                )
            z_negative = state.chains.advance(prior, config.pcd_steps, state.generator, session.parts.sampler)
        gap = contrastive_step(prior, optimizer, z, z_negative)
        session.watch_gap(prior, gap)
        session.record(free_energy_gap=gap)
