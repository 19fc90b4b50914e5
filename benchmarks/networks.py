"""What a step of each residual recipe costs, and that its networks can learn 64 images by heart.

``python benchmarks/networks.py [RECIPE …]`` writes ``results/networks.json``: parameters, operations of a step of each
stage (a multiplication and an addition are two), its measured time, and the hours that the recipe's epochs would take
on this machine. A WGAN's step is the critic's five and the generator's one. With ``--overfit STEPS`` each recipe's
networks are instead trained on 64 images of its data, as an autoencoder of soft bits, for so many steps on 16 of them;
the loss of all 64 along the way, and of 64 validation images, is written beside. Networks of continuous latents have no
such stage: their loss is stage 3's with one sample, the negative ELBO.
"""

import argparse
import contextlib
import functools
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tables import costs_markdown, overfitting_markdown
from torch.optim import Adam
from torch.utils.flop_counter import FlopCounterMode

from latentbits import data
from latentbits.adversarial import critic_loss, generator_loss
from latentbits.chains import Chains
from latentbits.config import AdversarialConfig, Config, JointConfig
from latentbits.data import form_of
from latentbits.files import write_json
from latentbits.joint import stage_losses
from latentbits.model import WGAN, GaussianModel, LatentModel
from latentbits.pretrain import soft_binarize
from latentbits.recipes import RECIPES
from latentbits.records import provenance
from latentbits.session import Parts, steps_per_epoch
from latentbits.splits import Form, Splits
from latentbits.stages import group, rate_factor, set_rates
from latentbits.train import new_state

STAGES = ("autoencoder", "warm_start", "joint", "adversarial")
NAMES = [name for name in RECIPES if "resnet" in name or "small" in name or "wgan" in name]
TRAINING_IMAGES = {"binarized-mnist": 50_000, "cifar10": 45_000, "imagenet64": 1_271_167, "natural64": 9_000}
FOLDERS = {"binarized-mnist": "binarized_mnist", "cifar10": "cifar10", "natural64": "natural64"}
console = Console(highlight=False)


def stand_in(form: Form, count: int) -> Splits:
    """Random images of a form."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(form.levels, (count, form.dimensions), dtype=torch.uint8, generator=generator)
    return Splits("random", x, x, x, form, "")


def autoencoder_step(
    model: LatentModel, config: Config, x: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Stage 1's loss of a batch (B, D), a scalar."""
    z = model.encoder(x)
    bits = soft_binarize(z, torch.rand(z.shape, generator=generator), config.autoencoder.conversion)
    return -model.likelihood(bits).log_prob(x).mean()


def negative_elbo(model: GaussianModel, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The loss of a batch (B, D) with one sample for each datum, a scalar."""
    q = model.posterior(x)
    z = q.loc + q.scale * torch.randn(1, *q.loc.shape, generator=generator)
    log_p = model.log_joint(x, z) - model.prior.log_partition()
    return (q.log_prob(z) - log_p).mean()


def joint_step(model: LatentModel, joint: JointConfig, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A function that advances the chains and gives the loss of a batch (B, D) at the last K."""
    generator, latents = torch.Generator().manual_seed(1), model.encoder(x[:1]).shape[-1]
    chains = Chains.begin(model.prior, torch.zeros(joint.chains, latents), joint.temperatures, generator)

    def step() -> torch.Tensor:
        z_negative = chains.advance(model.prior, joint.gibbs_steps, generator)
        losses = stage_losses(model, x, z_negative, joint, joint.samples, generator, contextlib.nullcontext, Parts())
        return losses.decoder + losses.encoder + losses.prior

    return step


def adversarial_round(model: WGAN, config: AdversarialConfig, x: torch.Tensor) -> torch.Tensor:
    """The losses of the critic's steps on images (N, D), a batch each, and of the generator's one after them."""
    generator, total = torch.Generator().manual_seed(1), torch.zeros(())
    for real in x.split(config.batch_size):
        z = model.prior.sample(len(real), generator)
        with torch.no_grad():
            fake = model.generator(z)
        total = total + critic_loss(model, real / 127.5 - 1, fake)
    return total + generator_loss(model, z)


def seconds_and_operations(model: torch.nn.Module, loss: Callable[[], torch.Tensor], rounds: int) -> dict[str, float]:
    """Of a step: forward, backward and Adam; the median and the extremes of some rounds after one."""
    optimizer, seconds = Adam(model.parameters(), fused=True), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what other threads do is not counted
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    torch.set_num_threads(threads)
    for _ in range(rounds + 1):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    fastest, median, slowest = min(seconds[1:]), sorted(seconds[1:])[rounds // 2], max(seconds[1:])
    return {
        "seconds": median,
        "seconds_fastest": fastest,
        "seconds_slowest": slowest,
        "gigaoperations": counter.get_total_flops() / 1e9,
    }


def measure(config: Config, rounds: int) -> dict[str, Any]:
    """Costs of a recipe."""
    form, images = form_of(config.data), TRAINING_IMAGES[config.data.name]
    splits = stand_in(form, 500)
    model = new_state(config, splits).model
    assert isinstance(model, (LatentModel, WGAN))
    result: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "of_prior": sum(p.numel() for p in model.prior.parameters()),
        "training_images": images,
        "threads": torch.get_num_threads(),
    }
    for stage in STAGES:
        settings = getattr(config, stage)
        if not settings.epochs:
            continue
        images_a_step = settings.batch_size
        if isinstance(settings, AdversarialConfig):
            images_a_step *= settings.critic_steps
        x = splits.train[:images_a_step].float()
        loss: Callable[[], torch.Tensor]
        if isinstance(model, WGAN):
            loss = functools.partial(adversarial_round, model, settings, x)
        elif isinstance(settings, JointConfig):
            loss = joint_step(model, settings, x)
        else:
            loss = functools.partial(autoencoder_step, model, config, x)
        costs = seconds_and_operations(model, loss, rounds)
        epoch = costs["seconds"] * steps_per_epoch(images, images_a_step) / 3600
        result[stage] = costs | {
            "images": images_a_step,
            "hours_for_an_epoch": epoch,
            "hours_for_the_recipe": epoch * settings.epochs,
        }
    return result


def overfit(config: Config, data_dir: Path, steps: int) -> dict[str, Any]:
    """The loss in nats, of 64 training images and of 64 others, over so many steps on 16 of the first.

    It is the autoencoder's, or the negative ELBO of continuous latents.
    """
    if config.data.name == "imagenet64":  # which nobody can download freely; of the same form
        config = config.model_copy(update={"data": config.data.model_copy(update={"name": "natural64"})})
    splits = data.load(config.data, data_dir / FOLDERS[config.data.name])
    few = splits._replace(train=splits.train[:64])
    model, x, others = new_state(config, few).model, few.train.float(), splits.valid[:64].float()
    assert isinstance(model, LatentModel)
    generator, losses, of_others = torch.Generator().manual_seed(config.seed), {}, {}
    if isinstance(model, GaussianModel):
        rate, decay, warmup = config.joint.decoder_learning_rate, config.joint.decay, config.joint.warmup
        loss_of = functools.partial(negative_elbo, model, generator=generator)
    else:
        rate, decay, warmup = config.autoencoder.learning_rate, config.autoencoder.decay, config.autoencoder.warmup
        loss_of = functools.partial(autoencoder_step, model, config, generator=generator)
    optimizer = Adam([group(model.parameters(), rate)], fused=True)
    for step in range(steps + 1):
        if step % (steps // 4) == 0:
            with torch.no_grad():
                losses[str(step)] = float(loss_of(x))
                of_others[str(step)] = float(loss_of(others))
        set_rates(optimizer, rate_factor(step, steps, decay, warmup))
        loss = loss_of(x[torch.randperm(64, generator=generator)[:16]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    about = {"data": splits.name, "data_checksum": splits.checksum, "steps": steps}
    return about | {"nats": losses, "nats_of_others": of_others}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all if none")
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets' folders, for --overfit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--overfit", type=int, default=0, metavar="STEPS")
    parser.add_argument("--out", type=Path, default=Path("results/networks.json"))
    arguments = parser.parse_args()
    if arguments.overfit and arguments.data_dir is None:
        parser.error("--overfit: needs --data-dir")
    record: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"recipes": {}}
    recipes = record["recipes"]
    command = shlex.join(["python", "benchmarks/networks.py", *sys.argv[1:]])
    for name in arguments.names or NAMES:
        config, row = RECIPES[name].make(), recipes.setdefault(name, {})
        if not arguments.overfit:
            found = measure(config, arguments.rounds)
            overfitted = {key: row[key] for key in row if key == "overfit"}
            recipes[name] = found | {"made": provenance() | {"command": command}} | overfitted
        elif not config.adversarial.epochs:  # a GAN has other networks, and no likelihood
            found = overfit(config, arguments.data_dir, arguments.overfit)
            row["overfit"] = found | {"made": provenance() | {"command": command}}
            console.print(f"{name}, 64 images: {row['overfit']['nats']}")
        write_json(arguments.out, record)
    print(f"{costs_markdown(recipes)}\n\n{overfitting_markdown(recipes)}\n\nwritten: {arguments.out}")


if __name__ == "__main__":
    main()
