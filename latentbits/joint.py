"""Stage 3: encoder, decoder and prior together by one of the objectives (section 3.2)."""

import contextlib
import math

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Adamax, Optimizer

from . import distributed
from .chains import Chains
from .config import JointConfig
from .evaluate import fit_prior_base
from .gibbs import bfloat16_products
from .model import GaussianModel, LatentModel, Products
from .nets import evaluating
from .objectives import Losses, iwae_losses, joint_losses, relaxed_losses
from .rbm import RBM
from .session import Parts, Session, steps_per_epoch
from .stages import augment, group, rate_factor, set_rates, shrink, validate_nll


def samples_at(step: int, steps: int, config: JointConfig) -> int:
    """K of a step: it rises geometrically from ``first_samples`` to ``samples``, which the last half has."""
    if not config.first_samples:
        return config.samples
    share = min(1.0, 2 * step / steps)
    return round(config.first_samples * math.pow(config.samples / config.first_samples, share))


def stage_losses(
    model: LatentModel, x: Tensor, z_negative: Tensor, config: JointConfig, samples: int, generator: torch.Generator,
    products: Products, parts: Parts,
) -> Losses:  # fmt: skip
    """The losses of a batch x (B, D) by the objective that the configuration names, or the given one."""
    given = config.objective == "given"
    if given and parts.losses is not None:
        losses = parts.losses(model, x, z_negative, samples, generator)
        if not isinstance(losses, Losses):
            raise TypeError(f"losses: expected it to return latentbits.Losses, got {type(losses).__name__}")
        return losses
    if config.objective == "relaxed":
        return relaxed_losses(model, x, z_negative, config.relaxation, config.dropout, generator, products)
    if isinstance(model, GaussianModel):
        return iwae_losses(model, x, z_negative, samples, config.backward_samples, config.dropout, generator, products)
    return joint_losses(
        model, x, z_negative, (given and parts.objective) or config.objective, samples, config.backward_samples,
        config.dropout, generator, products, config.sleep, -(-config.dreams // distributed.world().size),
    )  # fmt: skip


def optimizers(model: LatentModel, config: JointConfig) -> tuple[Optimizer, Optimizer]:
    """Of the networks, which have rates of their own, and of the prior.

    What else a model of one's own has, such as a baseline for its losses, has the encoder's; so has what the decoder
    shares with the encoder.
    """
    encoder = dict.fromkeys(model.encoder.parameters())
    nets = [
        group(encoder, config.encoder_learning_rate),
        group((p for p in model.decoder.parameters() if p not in encoder), config.decoder_learning_rate),
    ]
    named = {p for part in (model.encoder, model.decoder, model.prior) for p in part.parameters()}
    if others := [p for p in model.parameters() if p not in named]:
        nets.append(group(others, config.encoder_learning_rate))
    prior = SGD([group(model.prior.parameters(), config.prior_learning_rate)])
    return Adam(nets, fused=True) if config.optimizer == "adam" else Adamax(nets), prior


@torch.no_grad()
def first_chains(model: LatentModel, x: Tensor, config: JointConfig, generator: torch.Generator) -> Chains:
    """Persistent chains that begin where the posterior of some data x (N, D) is."""

    def draw(some: Tensor) -> Tensor:
        return model.posterior(some.float()).sample(generator=generator)

    with evaluating(model):
        return Chains.at_data(model.prior, x, config.chains, draw, config.temperatures, generator)


def train_joint(session: Session, model: LatentModel, config: JointConfig, stage: str = "joint") -> None:
    """Stage 3, or its warm start: encoder, decoder and prior together."""
    state, splits, prior = session.state, session.splits, model.prior
    if isinstance(prior, RBM) and prior.base_bias is None:  # the average has to have what validation sets
        with evaluating(model):
            fit_prior_base(model, splits.train)
    nets, sgd = optimizers(model, config)
    state.begin(stage, {"nets": nets, "prior": sgd}, config.average)
    if state.step == 0:
        state.chains = first_chains(model, splits.train, config, state.generator)
    steps = config.epochs * steps_per_epoch(len(splits.train), config.batch_size)
    products = bfloat16_products if config.products == "bfloat16" else contextlib.nullcontext

    for batch in session.batches(
        config.epochs, config.batch_size, lambda epoch: validate_nll(session, epoch, config.epochs)
    ):
        factor = rate_factor(state.step, steps, config.decay, config.warmup)
        set_rates(nets, factor)
        set_rates(sgd, factor)
        assert state.chains is not None
        z_negative = state.chains.advance(prior, config.gibbs_steps, state.generator, session.parts.sampler)
        K = samples_at(state.step, steps, config)
        x = augment(
            batch, splits.form, config, rate_factor(state.step, steps, config.augmentation_decay), state.generator
        )
        losses = stage_losses(model, x, z_negative, config, K, state.generator, products, session.parts)
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
        distributed.average_statistics(model)
        shrink(model, config.weight_decay * factor)
        if state.average is not None:
            state.average.update_parameters(model)
        session.watch_gap(prior, losses.gap)
        session.record(
            bound=losses.bound,
            decoder_loss=losses.decoder.detach(),
            free_energy_gap=losses.gap,
            effective_sample_size=losses.effective_sample_size,
        )


@torch.no_grad()
def center(prior: RBM, z_negative: Tensor) -> None:
    """Center the prior's gradient at the chains' mean bits; z_negative (N, M) is this process's share of them."""
    means = torch.cat([z_negative.mean(0), prior.hidden_logits(z_negative).sigmoid().mean(0)])
    means = distributed.total(means) / distributed.world().size
    prior.center_gradient(*means.split([prior.visible, prior.hidden]))
