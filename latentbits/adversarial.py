"""A Wasserstein GAN, for its samples beside those of models with a likelihood (Arjovsky et al. 2017, Algorithm 1)."""

import torch
from torch import Tensor
from torch.optim import RMSprop

from . import distributed
from .config import AdversarialConfig
from .model import WGAN
from .session import Session
from .stages import group


def critic_loss(model: WGAN, real: Tensor, fake: Tensor) -> Tensor:
    """The critic's mean on samples (N, D) minus that on data (B, D), images scaled to [-1, 1]; a scalar.

    Its negative, where the critic is as good as its bounded weights allow, is in proportion to the distance between the
    two distributions.
    """
    difference: Tensor = model.critic(fake).mean() - model.critic(real).mean()
    return difference


def generator_loss(model: WGAN, z: Tensor) -> Tensor:
    """Minus the critic's mean on what the generator makes of latents (N, M); a scalar."""
    mean: Tensor = model.critic(model.generator(z)).mean()
    return -mean


@torch.no_grad()
def clip(critic: torch.nn.Module, limit: float) -> None:
    """Keep each of the critic's weights within a limit of 0."""
    for p in critic.parameters():
        p.clamp_(-limit, limit)


def train_wgan(session: Session, model: WGAN, config: AdversarialConfig) -> None:
    """The critic at each step, the generator at each ``critic_steps``-th."""
    state, splits = session.state, session.splits
    critic = RMSprop([group(model.critic.parameters(), config.learning_rate)])
    generator = RMSprop([group(model.generator.parameters(), config.learning_rate)])
    state.begin("adversarial", {"critic": critic, "generator": generator})
    half = (splits.form.levels - 1) / 2

    for batch in session.batches(config.epochs, config.batch_size, lambda epoch: {}):
        real = batch.float() / half - 1
        z = model.prior.sample(len(batch), state.generator)
        with torch.no_grad():
            fake = model.generator(z)
        loss = critic_loss(model, real, fake)
        critic.zero_grad()
        loss.backward()
        distributed.average_gradients(model.critic.parameters())
        critic.step()
        clip(model.critic, config.clip)
        if (state.step + 1) % config.critic_steps == 0:
            generator.zero_grad()
            generator_loss(model, model.prior.sample(len(batch), state.generator)).backward()
            distributed.average_gradients(model.generator.parameters())
            generator.step()
        distributed.average_statistics(model.generator)
        session.record(distance=-loss.detach())
    session.save_weights("model", {"stage": state.stage, "step": str(state.step)})
