"""The Wasserstein GAN: its networks, losses and loop, and that it is refused where a likelihood is asked for."""

import pytest
import torch
from checks import seeded
from safetensors.torch import load_file
from torch import nn

import latentbits as lb
from latentbits.adversarial import clip, critic_loss, generator_loss
from latentbits.cli import main
from latentbits.config import (
    AdversarialConfig,
    AutoencoderConfig,
    Config,
    DataConfig,
    JointConfig,
    ModelConfig,
    RBMConfig,
)
from latentbits.model import WGAN, build
from latentbits.nets import DCCritic, DCGenerator
from latentbits.rbm import NormalPrior
from latentbits.splits import Form, Splits


def grey_splits(count=64):
    """Colour images of 8x8 that are all one grey, between levels 178 and 230."""
    levels = torch.randint(178, 231, (count, 1), generator=seeded(1)).expand(-1, 192).to(torch.uint8).contiguous()
    return Splits("images", levels, levels[:16], levels[16:32], Form(3, 8, 8, 256), "greys")


def gan(epochs, **changes):
    return Config(
        data=DataConfig(name="images", size=8),
        model=ModelConfig(network="dcgan", maps=(8, 16), latent=4, prior="normal"),
        autoencoder=AutoencoderConfig(epochs=0),
        rbm=RBMConfig(cd_epochs=0, pcd_epochs=0),
        joint=JointConfig(epochs=0),
        adversarial=AdversarialConfig(**{"epochs": epochs, "batch_size": 16} | changes),
    )


@pytest.fixture
def greys(monkeypatch):
    splits = grey_splits()
    monkeypatch.setattr("latentbits.data.load", lambda config, data_dir: splits)
    return splits


def test_networks_have_the_shapes_of_images():
    image, maps = (3, 32, 32), (8, 16, 32)
    generator, critic = DCGenerator(image, maps, 10), DCCritic(image, maps)
    images = generator(torch.randn(5, 10, generator=seeded(2)))
    assert images.shape == (5, 3072)
    assert float(images.detach().abs().max()) <= 1
    assert critic(images).shape == (5, 1)
    sizes = [tuple(m.weight.shape) for m in critic if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sizes == [(8, 3, 4, 4), (16, 8, 4, 4), (32, 16, 4, 4), (1, 32 * 4 * 4)]
    for net in (lambda: DCCritic((1, 28, 28), maps), lambda: DCGenerator((1, 28, 28), maps, 10)):
        with pytest.raises(ValueError, match="expected few enough that each can halve 28x28 exactly, got 3 of them"):
            net()


def test_bfloat16_gives_almost_the_same_images_and_values_in_float32(set_fast_bfloat16):
    set_fast_bfloat16(True)
    form, z = Form(3, 8, 8, 256), torch.randn(5, 4, generator=seeded(2))
    images, values = [], []
    for precision in ("float32", "bfloat16"):
        config = gan(1).model.model_copy(update={"precision": precision})
        model = build(config, form, seeded(3)).eval()
        images.append(model.generator(z))
        values.append(model.critic(images[0]))
    assert images[1].dtype == values[1].dtype == torch.float32
    # 8 bits of a number are kept by each of three layers
    assert 0 < float((images[0] - images[1]).detach().abs().max()) < 0.02
    assert 0 < float((values[0] - values[1]).detach().abs().max()) < 0.02


def test_losses_of_a_linear_critic():
    """Of c(x) = 2 x_0 - x_1, by hand."""
    critic, generator = nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        critic.weight.copy_(torch.tensor([[2.0, -1.0]]))
        generator.weight.copy_(torch.tensor([[0.5], [3.0]]))
    model = WGAN(generator, critic, NormalPrior(1), 2)
    real, fake = torch.tensor([[1.0, 1.0], [3.0, -1.0]]), torch.tensor([[0.0, 2.0]])
    assert critic_loss(model, real, fake).item() == -2 - (1 + 7) / 2
    z = torch.tensor([[1.0], [-2.0]])
    assert generator_loss(model, z).item() == -((1 - 3) * 1 + (1 - 3) * -2) / 2
    (slope,) = torch.autograd.grad(generator_loss(model, z), generator.weight)
    assert slope.flatten().tolist() == [2 * 0.5, -0.5]  # minus the critic's weights times the mean of z
    clip(critic, 1.5)
    assert critic.weight.flatten().tolist() == [1.5, -1.0]


def test_it_learns_where_the_data_are(tmp_path, greys):
    run = lb.train(gan(60, learning_rate=2e-3, clip=0.05, critic_steps=2), tmp_path / "run", quiet=True)
    model = lb.load(run.path)
    assert isinstance(model, WGAN)
    before = build(gan(1).model, greys.form, seeded(0)).eval().sample(200, seeded(3))
    after = model.sample(200, seeded(3))
    assert after.shape == (200, 192)
    assert 0 <= float(after.min()) <= float(after.max()) <= 255
    assert abs(float(before.mean()) - 204) > 60
    assert abs(float(after.mean()) - 204) < 30
    assert all("distance" in row for row in run.metrics())


def test_the_generator_moves_at_every_so_many_steps_and_the_critic_stays_clipped(tmp_path, greys, monkeypatch):
    steps = []
    for number, epochs in enumerate((1, 2)):  # of four steps each
        run = lb.train(gan(epochs, critic_steps=5), tmp_path / str(number), quiet=True)
        steps.append(load_file(run.path / "model.safetensors"))
    first = build(gan(1).model, greys.form, torch.Generator().manual_seed(0)).state_dict()
    moved = [any(not torch.equal(weights[n], first[n]) for n in first if "generator.0" in n) for weights in steps]
    assert moved == [False, True]
    for weights in steps:
        assert max(float(weights[n].abs().max()) for n in weights if n.startswith("critic")) <= 0.01 + 1e-9


def test_stopped_and_resumed_is_bit_identical(tmp_path, greys):
    config = gan(3)
    whole = lb.train(config, tmp_path / "whole", quiet=True)
    parts = lb.train(config, tmp_path / "parts", max_minutes=1e-9, quiet=True)
    while not parts.finished:
        lb.train(config, tmp_path / "parts", resume=True, max_minutes=1e-9, quiet=True)
    one, other = (load_file(run.path / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_drawn_from_and_not_evaluated(tmp_path, greys, capsys):
    run = lb.train(gan(1), tmp_path / "run", quiet=True)
    assert main(["sample", str(run.path), "--count", "4"]) == 0
    assert (run.path / "samples.png").is_file()
    assert main(["report", str(run.path)]) == 0
    assert (run.path / "report" / "curve-adversarial.png").is_file()
    assert main(["evaluate", str(run.path)]) == 2
    assert "a GAN has no likelihood to evaluate" in capsys.readouterr().err


def test_what_comes_next_is_to_draw_from_it(tmp_path, greys, capsys):
    small = "--data.name images --data.size 8 --model.maps 8 16 --adversarial.epochs 1 --adversarial.batch-size 16"
    assert main(["train", "cifar10-wgan", "--run", str(tmp_path / "run"), *small.split()]) == 0
    assert f"next: latentbits sample {tmp_path / 'run'}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig()}, "adversarial.epochs: is for model.network=dcgan, got mlp"),
        ({"joint": JointConfig(epochs=1)}, "set joint.epochs=0 and model.prior=normal"),
        ({"model": ModelConfig(network="dcgan")}, "set joint.epochs=0 and model.prior=normal"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    values = {name: section.model_dump() for name, section in changes.items()}
    with pytest.raises(ValueError, match=message):
        Config.model_validate(gan(1).model_dump() | values)
