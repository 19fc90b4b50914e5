"""What two processes compute, for test_distributed.py to hold against one; run by torchrun."""

import sys
import time
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

from latentbits import RBM, LatentModel, distributed
from latentbits.anneal import adaptive_schedule, ais, raise_log_prob
from latentbits.config import (
    AdversarialConfig,
    AutoencoderConfig,
    Config,
    JointConfig,
    ModelConfig,
    RBMConfig,
    ValidationConfig,
)
from latentbits.data import load as load_data
from latentbits.distributions import Bits
from latentbits.evaluate import Counts, _parts_to_do, evaluate
from latentbits.model import build
from latentbits.objectives import losses_of_samples
from latentbits.splits import Form
from latentbits.train import train


def seeded(seed):
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def small_model():
    """A model over 12 pixels with 6 bits, and 40 data of it."""
    model = build(ModelConfig(layers=(8,), latent=6, hidden=5), Form(1, 3, 4), seeded(0))
    assert isinstance(model, LatentModel)
    return model, torch.bernoulli(torch.full((40, 12), 0.4), generator=seeded(1))


def annealed():
    """AIS, its schedule and RAISE for an RBM of some size."""
    rbm = RBM(20, 30, scale=0.5, generator=seeded(2))
    schedule = adaptive_schedule(rbm, 50, seeded(3), pilot_temperatures=60)
    z = torch.bernoulli(torch.full((150, 20), 0.5), generator=seeded(4))
    return {
        "schedule": schedule,
        "ais": ais(rbm, 1700, 50, seeded(5), schedule=schedule).log_weights,
        "raise": raise_log_prob(rbm, z, 30, 3, seeded(6)),
    }


def evaluated(images=40):
    """Bound and RAISE of the small model, as one row of figures."""
    model, x = small_model()
    counts = Counts(60, 100, 20, images, 2, 20, refine_steps=2)
    result = evaluate(model, x.repeat(30, 1)[: 30 * images], "", counts, "linear", seeded(7))
    assert result.likelihood_raise is not None
    figures = [result.likelihood.nll, result.likelihood.effective_sample_size, result.likelihood_raise.nll]
    return {"evaluation": torch.tensor(figures, dtype=torch.float64)}


def gradients(objective):
    """Gradients of one step of joint training, averaged over processes that share data, samples and chains."""
    model, x = small_model()
    z = Bits(model.encoder(x).detach()).sample((7,), seeded(8))
    negatives = torch.bernoulli(torch.full((16, 6), 0.5), generator=seeded(9))
    x, z_share = distributed.share(x), distributed.share(z.transpose(0, 1)).transpose(0, 1)
    losses = losses_of_samples(
        model, x, model.encoder(x), z_share.contiguous(), distributed.share(negatives), objective
    )  # fmt: skip
    (losses.decoder + losses.encoder + losses.prior).backward()
    distributed.average_gradients(model.parameters())
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def everything():
    """All of the above, by name."""
    return {**annealed(), **evaluated(), "gradient": gradients("vimco"), "statistics": statistics()}


def statistics():
    """Running mean and variance of batch normalization after two steps, averaged over processes that share the data."""
    norm, rank = torch.nn.BatchNorm2d(3), distributed.world().rank
    for step in range(2):
        norm(torch.randn(20, 3, 2, 2, generator=seeded(10 * step + rank)) * (1 + rank))
        distributed.average_statistics(norm)
    return torch.cat([norm.running_mean, norm.running_var])


WITHOUT_PRIOR = {"rbm": RBMConfig(cd_epochs=0, pcd_epochs=0), "joint": JointConfig(epochs=0)}


def gan_config():
    """A GAN of the digits: six steps."""
    return Config(
        model=ModelConfig(network="dcgan", maps=(4, 8), latent=4, prior="normal"),
        autoencoder=AutoencoderConfig(epochs=0),
        adversarial=AdversarialConfig(epochs=2, batch_size=398, critic_steps=2),
        **WITHOUT_PRIOR,
    )


def batch_config():
    """Stage 1 of residual networks with batch normalization on the digits: six steps."""
    model = ModelConfig(network="resnet", maps=(4, 8), repeats=1, latent=8, hidden=6, norm="batch")
    return Config(model=model, autoencoder=AutoencoderConfig(epochs=2, batch_size=398, scales=(1.0,)), **WITHOUT_PRIOR)


def small_config():
    """All three stages on the digits, with tempered chains: 3 + 6 + 6 steps."""
    tempered = {"chains": 20, "temperatures": 3}
    return Config(
        model=ModelConfig(layers=(16,), latent=8, hidden=6),
        autoencoder=AutoencoderConfig(epochs=1, batch_size=398, scales=(2.0,)),
        rbm=RBMConfig(cd_epochs=1, cd_steps=2, pcd_epochs=1, pcd_steps=2, batch_size=398, **tempered),
        joint=JointConfig(epochs=2, batch_size=398, samples=4, backward_samples=2, gibbs_steps=1, **tempered),
        validation=ValidationConfig(images=50, samples=5, ais_chains=20, ais_temperatures=10),
    )


def train_until(folder, stage, step, resume):
    """Train; stop at a step of a stage, as at the end of the time that is allowed."""
    session = import_module("latentbits.session").Session
    configs = {"gan": gan_config, "batch": batch_config}
    config = configs.get(folder.parent.name, small_config)()

    def stop_there(self):
        self.stop = self.stop or (self.state.stage, self.state.step) == (stage, step)
        check(self)

    def save_what_all_have(self, name, origin=None):
        for each in self.state.evaluated.state_dict().values():
            assert torch.equal(distributed.gather(each[None]), each.expand(distributed.world().size, *each.shape))
        save(self, name, origin)

    check, save = session._checkpoint_if_due, session.save_weights
    with (
        mock.patch.object(session, "_checkpoint_if_due", stop_there),
        mock.patch.object(session, "save_weights", save_what_all_have),
        distributed.processes(),
    ):
        train(config, folder, resume=resume)


def own_weights(rank):
    """Weights of a model of one's own, which each process has begun with another seed, as training begins with them."""
    model = build(small_config().model, load_data("digits").form, seeded(rank))
    state = import_module("latentbits.train").new_state(small_config(), load_data("digits"), model)
    return torch.cat([each.detach().flatten() for each in state.model.parameters()])


def ended_by():
    """1 where the first process's error is raised, 2 where a process ends for it."""
    try:
        distributed.in_first(lambda: 1 / 0)
    except ZeroDivisionError:
        return 1
    except SystemExit as end:
        return end.code


def main(folder):
    """Compute in each process, and write what each has."""
    with distributed.processes():
        rank, size = distributed.world()
        result = everything() | {"world": torch.tensor([rank, size])}
        result["gathered"] = distributed.gather(torch.tensor([[rank, rank + 10]]))
        result["any"] = torch.tensor(distributed.any_of(rank == 1, False))
        slow = [time.sleep(0.2 * rank) or number for number in distributed.share_dynamically(40)]
        result["numbers"] = torch.tensor(slow)
        done = torch.arange(2000) // 500 == rank  # the first process has done the first 500, the second the next
        result["parts"] = torch.tensor([number for number, _ in _parts_to_do(torch.zeros(2000, 12), 10, done)])
        result["of_first"] = torch.tensor(distributed.of_first(5.0 + rank))
        result["own_model"] = own_weights(rank)
        result["ended_by"] = torch.tensor(ended_by())
        save_file(result, folder / f"{rank}.safetensors")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        train_until(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), resume=sys.argv[4] == "resume")
