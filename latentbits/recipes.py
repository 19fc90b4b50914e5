"""Recipes: a function for each experiment, returning a full configuration.

What the paper leaves open (batch sizes, learning rates, chains, epochs) stands here with its reason.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from .config import (
    AdversarialConfig,
    AutoencoderConfig,
    Config,
    DataConfig,
    JointConfig,
    ModelConfig,
    RBMConfig,
    ValidationConfig,
    different,
    settings,
)
from .nets import halvings


def digits() -> Config:
    """8x8 digits, 24 bits, RBM with 16 hidden units (its log Z is exact): all three stages in a minute."""
    return Config(
        recipe="digits",
        data=DataConfig(name="digits"),
        # few bits for a small image; 16 hidden units can be summed
        model=ModelConfig(layers=(128, 64), latent=24, hidden=16),
        # 1,197 images: a code that does not lean on single bits overfits less
        autoencoder=AutoencoderConfig(epochs=60, dropout=0.1),
        # 60 updates an epoch need a larger rate than 500 do; with 0.05 the RBM stayed a factorized prior
        rbm=RBMConfig(
            cd_epochs=15, cd_steps=10, pcd_epochs=15, pcd_steps=5, chains=100, batch_size=20, learning_rate=0.2
        ),
        # trials without committed records, validation NLL: 16.68 with 5e-4 for the networks, 16.41 with 1e-3;
        # 16.78 with 1e-3 for the RBM
        joint=JointConfig(
            epochs=150,
            samples=20,
            batch_size=50,
            chains=500,
            encoder_learning_rate=1e-3,
            decoder_learning_rate=1e-3,
            prior_learning_rate=0.03,
        ),
        validation=ValidationConfig(every=5, images=300),
    )


def mnist_mlp() -> Config:
    """The paper's fully connected model (Table 1): 784-200-200-100-100-200, RBM 200x400, VIMCO with K = 50."""
    return Config(
        recipe="mnist-mlp",
        data=DataConfig(name="binarized-mnist"),
        model=ModelConfig(),
        # long, because it is cheap, and what stages 2 and 3 reach depends on it
        autoencoder=AutoencoderConfig(epochs=70, scales=(0.7, 1.0, 1.5, 2.0)),
        # the best rate that did not make validation jump; most of the gain comes while it falls
        rbm=RBMConfig(
            cd_epochs=8,  # with eight of PCD, 5 of the 30 minutes; the rate falls over the second half
            pcd_epochs=8,
            learning_rate=0.05,  # validation still jumps by a nat at this rate and settles when it falls
            momentum=0.5,  # not tuned
            chains=500,  # two blocks, one for each core
        ),
        joint=JointConfig(
            samples=50,  # the paper's K
            batch_size=100,  # 5,000 rows for the decoder, which fill the matrix units
            backward_samples=4,  # about twice the effective sample size, which is 2 to 3
            chains=1000,  # 2.5 times the samples that reach the RBM; two blocks
            gibbs_steps=5,  # at this rate the RBM moves little between updates
            average=0.999,  # two epochs; evaluates as if the rates had fallen already
            # as many as half an hour on 2 cores allows after the other stages; the rates fall over the second half
            epochs=30,
            # trials without committed records, 12 epochs, validation at K = 100: 88.29 with these rates, 88.51 with
            # half of them and 1e-3 for the RBM
            encoder_learning_rate=1e-3,
            decoder_learning_rate=1e-3,
            prior_learning_rate=5e-3,
            products="bfloat16",
        ),
    )


def mnist_mlp_best() -> Config:
    """mnist-mlp with what helped: elastic distortion, a sleep phase, K that rises, more epochs."""
    return mnist_mlp().vary(
        "mnist-mlp-best",
        # both kinds of augmentation together lost least to the training set after stage 2; see docs/ablations.md
        autoencoder={"shift": 0.5, "distort": 1.5, "scales": (1.0,)},
        rbm={"cd_epochs": 4, "pcd_epochs": 4},  # short: stage 3 goes on with the prior
        joint={
            "epochs": 200,
            "first_samples": 10,  # an epoch costs two thirds of one with K = 50 while the rates are high
            "distort": 1.5,
            "augmentation_decay": 0.3,  # the last epochs are for the images as they are
            # wake-sleep was ahead of VIMCO alone epoch by epoch; its sleep phase never sees an image twice
            "sleep": 0.5,
            "dreams": 100,
        },
        validation={"keep": 20, "every": 2},
    )


NO_PRETRAINING: dict[str, dict[str, Any]] = {
    "autoencoder": {"epochs": 0},
    "rbm": {"cd_epochs": 0, "pcd_epochs": 0},
    "warm_start": {"epochs": 0},
}


def mnist_mlp_crws() -> Config:
    """mnist-mlp-best by contrastive reweighted wake-sleep, K = 50."""
    return mnist_mlp_best().vary("mnist-mlp-crws", joint={"objective": "crws", "epochs": 180, "sleep": 0.0})


def mnist_mlp_no_pretrain() -> Config:
    """mnist-mlp-best from random weights, to see what stages 1 and 2 are worth."""
    return mnist_mlp_best().vary("mnist-mlp-no-pretrain", **NO_PRETRAINING)


def mnist_mlp_bernoulli_prior() -> Config:
    """mnist-mlp-best with independent bits for a prior, to see what the RBM is worth."""
    # stage 2 has one update to make, the bits' means; its other epochs follow the posterior's noise
    return mnist_mlp_best().vary(
        "mnist-mlp-bernoulli-prior",
        model={"prior": "bernoulli"},
        rbm={"cd_epochs": 1, "pcd_epochs": 0},
    )


def mnist_mlp_iwae() -> Config:
    """The continuous counterpart of mnist-mlp-best: 200 normal latents, the same layers, IWAE's bound with K = 50."""
    return mnist_mlp_best().vary(
        "mnist-mlp-iwae",
        **NO_PRETRAINING,
        model={"prior": "normal"},
        joint={"objective": "iwae", "sleep": 0.0, "gibbs_steps": 1, "chains": 2},  # nothing needs negatives
    )


def mnist_resnet() -> Config:
    """The paper's residual networks on MNIST (Table 2): 25 to 50 maps, RBM 200x400, a relaxed ELBO, then VIMCO."""
    return Config(
        recipe="mnist-resnet",
        data=DataConfig(name="binarized-mnist"),
        model=ModelConfig(network="resnet", maps=(25, 50, 50), repeats=2, precision="bfloat16"),
        # Trials (results/runs/trial-mnist-resnet-*): 25 epochs and scale 1 left 137 nats after stage 2 and 92.9 after 6
        # epochs of a relaxed ELBO, 6 epochs and scale 3 left 96 and 91.9 after one. A code learned for longer says more
        # than an RBM can model, and this encoder's output needs to be scaled up before its bits are certain.
        autoencoder=AutoencoderConfig(
            epochs=6, shift=0.5, distort=1.5, augmentation_decay=0.5, warmup=100, scales=(3.0,)
        ),
        rbm=RBMConfig(cd_epochs=2, pcd_epochs=2, chains=500),
        # one sample for each image: a quarter of VIMCO's time for an epoch
        warm_start=JointConfig(
            objective="relaxed",
            samples=1,
            epochs=50,
            distort=1.5,
            augmentation_decay=0.0,
            chains=500,
            warmup=100,
            decay=0.0,  # VIMCO goes on from here
            encoder_learning_rate=1e-3,
            decoder_learning_rate=1e-3,
            prior_learning_rate=5e-3,
        ),
        joint=JointConfig(
            epochs=50,
            samples=16,  # a third of the fully connected model's: the decoder on K samples is most of an epoch
            first_samples=5,
            backward_samples=2,
            batch_size=100,
            distort=1.5,
            augmentation_decay=0.2,
            sleep=0.5,
            dreams=50,
            chains=500,
            warmup=100,
            decay=0.25,
            encoder_learning_rate=7e-4,
            decoder_learning_rate=7e-4,
            prior_learning_rate=5e-3,
        ),
        validation=ValidationConfig(images=1000, samples=20, every=2, keep=10),
    )


def cifar10_resnet() -> Config:
    """The paper's residual networks on CIFAR-10 (Table 3): 64 to 256 maps, RBM 1024x2048, VIMCO at the end."""
    return Config(
        recipe="cifar10-resnet",
        data=DataConfig(name="cifar10"),
        model=ModelConfig(
            network="resnet",
            maps=(64, 128, 192, 256),
            repeats=2,
            fully_connected=False,
            latent=1024,
            hidden=2048,
            precision="bfloat16",
        ),
        # Without a slow start the scales of the mixture collapse before its means are right. A trial without committed
        # records: bits of probability sigmoid(3 E(x)) lose the least in a factorized prior, 0.2 bits/dim less than
        # those of sigmoid(E(x)).
        autoencoder=AutoencoderConfig(epochs=4, batch_size=32, warmup=200, flip=0.5, scales=(3.0,)),
        # short: a Gibbs step of this RBM costs as much as the decoder does for two images, and it is learned on
        rbm=RBMConfig(cd_epochs=1, cd_steps=5, pcd_epochs=0, chains=100, learning_rate=0.02),
        # one sample for each image, whose gradient has little noise where K samples of a thousand bits have much
        warm_start=JointConfig(
            objective="relaxed",
            samples=1,
            epochs=15,
            batch_size=32,
            chains=128,
            gibbs_steps=1,
            warmup=200,
            flip=0.5,
            decay=0.0,  # VIMCO goes on from here
            encoder_learning_rate=5e-4,
            decoder_learning_rate=5e-4,
            prior_learning_rate=2e-3,
        ),
        joint=JointConfig(
            epochs=5,
            samples=10,
            first_samples=4,
            backward_samples=2,
            batch_size=32,
            chains=128,
            gibbs_steps=1,
            warmup=200,
            flip=0.5,
            decay=1.0,
            encoder_learning_rate=3e-4,
            decoder_learning_rate=3e-4,
            prior_learning_rate=2e-3,
        ),
        validation=ValidationConfig(images=500, samples=10, ais_chains=100, ais_temperatures=1000, keep=10),
    )


def imagenet64_resnet() -> Config:
    """The paper's residual networks on ImageNet at 64x64 (Figure 3b), scaled down another way; VIMCO at the end."""
    return cifar10_resnet().vary(
        "imagenet64-resnet",
        data={"name": "imagenet64"},
        model={"maps": (64, 128, 128, 256, 256), "repeats": 1},
        autoencoder={"epochs": 1},
        warm_start={"epochs": 1},
        joint={"epochs": 1},
    )


# Likelihood for each operation: few maps where the image is large, blocks that do not repeat, half of the mixture's
# components, and one relaxed sample for each image. Four times as many bits as the paper has, from maps of 4x4. Trials
# (results/runs/trial-cifar10-*): 10,437 nats on validation images after four epochs of it, 4.90 bits/dim; an epoch of
# VIMCO with K = 6 after that took as long as two and came to 10,436.
SMALL: dict[str, dict[str, Any]] = {
    "model": {"maps": (32, 64, 256), "repeats": 1, "components": 5, "latent": 4096, "hidden": 1024},
    "warm_start": {"epochs": 0},
    "joint": {
        "objective": "relaxed",
        "samples": 1,
        "first_samples": 0,
        "decay": 0.5,
        "encoder_learning_rate": 7e-4,
        "decoder_learning_rate": 7e-4,
    },
}


def cifar10_small() -> Config:
    """CIFAR-10 at a size for two CPU cores: 64 to 256 maps (decoder 32 to 256), RBM 4096x512, a relaxed ELBO."""
    return (
        cifar10_resnet()
        .vary("cifar10-small", **SMALL)
        .vary(
            # An encoder as narrow as the decoder and an RBM with 1,024 hidden units were as good for an hour, 0.04
            # bits/dim behind after two and 0.06 after five (results/runs/cifar10-small-narrow*).
            model={"encoder_maps": (64, 128, 256), "hidden": 512},
            joint={"epochs": 125, "decay": 0.4, "chains": 64},  # ten hours on a core
            validation={"every": 2, "keep": 0},
        )
    )


def natural64_small() -> Config:
    """Photographs of 64x64 at a size for two CPU cores: 16 to 256 maps, RBM 4096x1024, a relaxed ELBO."""
    small = cifar10_resnet().vary("natural64-small", data={"name": "natural64"}, **SMALL)
    return small.vary(
        model={"maps": (16, 32, 64, 256)},
        autoencoder={"epochs": 10},
        rbm={"cd_epochs": 3},
        joint={"epochs": 40, "chains": 64},
        validation={"every": 5},  # epochs are short, and log Z of so large an RBM is not
    )


def _iwae_twin(config: Config, epochs: int, **joint: Any) -> Config:
    """The same decoder with continuous latents by IWAE, in one stage of so many epochs, about as many hours.

    The encoder is the same but for what it ends with, twice as wide: a mean and a spread for each latent.
    """
    return config.vary(
        f"{config.recipe}-iwae",
        **NO_PRETRAINING,
        model={"prior": "normal"},
        joint={"objective": "iwae", "epochs": epochs, "sleep": 0.0, "gibbs_steps": 1, "chains": 2, "decay": 0.5}
        | joint,
    )


def mnist_resnet_iwae() -> Config:
    """The continuous counterpart of mnist-resnet."""
    rates = {"encoder_learning_rate": 5e-4, "decoder_learning_rate": 5e-4}
    return _iwae_twin(mnist_resnet(), 80, samples=10, first_samples=4, augmentation_decay=0.3, **rates)


def cifar10_resnet_iwae() -> Config:
    """The continuous counterpart of cifar10-resnet (Table 3): 1,024 normal latents."""
    return _iwae_twin(cifar10_resnet(), 10)


def imagenet64_resnet_iwae() -> Config:
    """The continuous counterpart of imagenet64-resnet."""
    return _iwae_twin(imagenet64_resnet(), 2)


def cifar10_small_iwae() -> Config:
    """The continuous counterpart of cifar10-small."""
    return _iwae_twin(cifar10_small(), 90, samples=3, first_samples=2, backward_samples=1, decay=0.4)


def cifar10_wgan() -> Config:
    """A Wasserstein GAN on CIFAR-10, for its samples beside the others' (Figure 4b)."""
    return Config(
        recipe="cifar10-wgan",
        data=DataConfig(name="cifar10"),
        # bfloat16: a third of the time
        model=ModelConfig(network="dcgan", maps=(64, 128, 256), latent=100, prior="normal", precision="bfloat16"),
        autoencoder=AutoencoderConfig(epochs=0),
        rbm=RBMConfig(cd_epochs=0, pcd_epochs=0),
        joint=JointConfig(epochs=0),
        # of the critic; the generator has a fifth of the steps, and both twice the rate of Arjovsky et al.
        adversarial=AdversarialConfig(epochs=40, learning_rate=1e-4),
    )


OWN_VALIDATION = ValidationConfig(images=200, samples=20, ais_chains=200, ais_temperatures=500)


class _Schedule(NamedTuple):
    """Batches and epochs for so many pictures, of which 8 in 10 are for training."""

    images: int

    @property
    def batch_size(self) -> int:
        """Small ones for few pictures, so that an epoch has eight."""
        return min(50, max(4, 8 * self.images // 10 // 8))

    def epochs(self, updates: int, most: int) -> int:
        """For about so many updates, but no more than so many epochs, or twice as many of few pictures."""
        an_epoch = max(1, 8 * self.images // 10 // self.batch_size)
        return min(2 * most if self.images < 1000 else most, max(2, round(updates / an_epoch)))


def my_images(
    kind: Literal["colour", "grey", "black-and-white"] = "colour", size: int = 32, images: int = 5000
) -> Config:
    """Your own pictures: networks and epochs are chosen by their kind, size and number."""
    config = _black_and_white(size, images) if kind == "black-and-white" else _grey_or_colour(size, images)
    return config.vary("my-images", data={"name": "images", "kind": kind, "size": size})


def _black_and_white(size: int, images: int) -> Config:
    """Pictures of bits: VIMCO, fully connected networks up to 32x32."""
    schedule, few = _Schedule(images), images < 5000
    latent = 100 if few else 200
    model = ModelConfig(latent=latent, hidden=2 * latent)
    if size > 32:
        maps = tuple(min(256, 32 * 2**i) for i in range(_halvings(size)))
        model = ModelConfig(
            network="resnet", maps=maps, repeats=1, latent=latent, hidden=2 * latent, precision="bfloat16"
        )
    return Config(
        model=model,
        # bits that are dropped now and then keep a code of few images from leaning on single ones
        autoencoder=AutoencoderConfig(
            epochs=schedule.epochs(4000, 200),
            batch_size=schedule.batch_size,
            warmup=100,
            dropout=0.1 if few else 0.0,
            shift=0.3,
            distort=1.0,
            scales=(1.0, 2.0),
        ),
        rbm=RBMConfig(
            cd_epochs=schedule.epochs(1000, 50), cd_steps=10, pcd_epochs=schedule.epochs(1000, 50), pcd_steps=5,
            chains=200, batch_size=schedule.batch_size,
        ),
        joint=JointConfig(
            epochs=schedule.epochs(3000, 100), samples=10, first_samples=4, backward_samples=2,
            batch_size=schedule.batch_size, warmup=100, shift=0.3, distort=1.0, chains=200, gibbs_steps=2,
        ),
        validation=OWN_VALIDATION,
    )  # fmt: skip


def _grey_or_colour(size: int, images: int) -> Config:
    """Pictures in grey or colour, as cifar10-small: bits from the last maps, one relaxed sample for each picture."""
    schedule, count = _Schedule(images), _halvings(size)
    maps = tuple(min(256, (32 if size <= 32 else 16) * 2**i) for i in range(count))
    latent = maps[-1] * math.prod(halvings((size, size), count)[-1])
    return Config(
        model=ModelConfig(
            network="resnet", maps=maps, repeats=1, fully_connected=False, components=5, latent=latent,
            hidden=latent // 4, precision="bfloat16",
        ),
        # Trials on photographs of 32x32, results/runs/trial-my-images-*
        autoencoder=AutoencoderConfig(
            epochs=schedule.epochs(1500, 100), batch_size=schedule.batch_size, warmup=100, shift=0.3, scales=(3.0,)
        ),
        rbm=RBMConfig(
            cd_epochs=schedule.epochs(400, 25), cd_steps=5, pcd_epochs=0, chains=100, batch_size=schedule.batch_size,
            learning_rate=0.02,
        ),
        joint=JointConfig(
            objective="relaxed", samples=1, epochs=schedule.epochs(9000, 300), batch_size=schedule.batch_size,
            warmup=100, shift=0.3, chains=100, gibbs_steps=1, encoder_learning_rate=7e-4, decoder_learning_rate=7e-4,
            prior_learning_rate=2e-3,
        ),
        validation=OWN_VALIDATION,
    )  # fmt: skip


def _halvings(size: int) -> int:
    """How often pictures of this size are halved, rounding up, until at most 4x4 is left; at least once."""
    return max(1, math.ceil(math.log2(size / 4)))


def mnist_rbm() -> Config:
    """An RBM alone on the pixels, 784x500, the first kind to be evaluated by AIS (Salakhutdinov & Murray 2008)."""
    return Config(
        recipe="mnist-rbm",
        data=DataConfig(name="binarized-mnist"),
        model=ModelConfig(network="none", hidden=500),
        autoencoder=AutoencoderConfig(epochs=0),
        # their best model: CD with up to 25 steps; the last epochs with a falling rate and persistent chains,
        # because CD alone leaves the free energy far from the data wrong, and AIS sees it
        rbm=RBMConfig(
            cd_epochs=15, cd_steps=25, pcd_epochs=45, pcd_steps=25, chains=500, learning_rate=0.05, momentum=0.5
        ),
        joint=JointConfig(epochs=0),
        validation=ValidationConfig(images=10_000, ais_temperatures=4000),
    )


class Recipe(NamedTuple):
    """An entry of the list of recipes.

    Attributes:
        make: Returns the configuration.
        source: The experiment that it repeats.
        cost: What it was measured to take, and on what; of one that has not been trained, what its measured steps
            add up to.
    """

    make: Callable[[], Config]
    source: str
    cost: str

    @property
    def summary(self) -> str:
        """The first line of the recipe's docstring."""
        return (self.make.__doc__ or "").strip().splitlines()[0]


RECIPES = {
    "digits": Recipe(digits, "scikit-learn's digits", "1 minute on 2 cores"),
    "mnist-mlp": Recipe(mnist_mlp, "paper, Table 1", "26 minutes on 2 cores: 85.88 nats, test"),
    "mnist-mlp-best": Recipe(
        mnist_mlp_best, "paper, Table 1, and what helped", "2.4 hours on 1 core, in three runs: 83.29 nats, test"
    ),
    "mnist-mlp-crws": Recipe(mnist_mlp_crws, "paper, Table 1", "2 hours on 1 core: 83.29 nats, test"),
    "mnist-mlp-no-pretrain": Recipe(mnist_mlp_no_pretrain, "paper, Table 1", "2.5 hours on 1 core: 88.97 nats, test"),
    "mnist-mlp-bernoulli-prior": Recipe(
        mnist_mlp_bernoulli_prior, "an ablation", "1.2 hours on 1 core: 86.69 nats, test"
    ),
    "mnist-mlp-iwae": Recipe(
        mnist_mlp_iwae, "Burda et al. 2015; paper, Table 1", "1.1 hours on 1 core: 85.58 nats, test"
    ),
    "mnist-resnet": Recipe(mnist_resnet, "paper, Table 2", "10 core-hours, in four runs: 80.84 nats, test, K = 1,000"),
    "mnist-resnet-iwae": Recipe(
        mnist_resnet_iwae, "its continuous twin", "not trained yet; by its steps 6 hours on 2 cores"
    ),
    "cifar10-resnet": Recipe(
        cifar10_resnet, "paper, Table 3", "not trained to its end; by its steps 5 hours on 2 cores"
    ),
    "cifar10-resnet-iwae": Recipe(
        cifar10_resnet_iwae, "paper, Table 3", "not trained yet; by its steps 6 hours on 2 cores"
    ),
    "cifar10-small": Recipe(
        cifar10_small,
        "paper, Table 3, smaller",
        "9.9 hours on 1 core: 4.42 bits/dim, first 1,000 test images",
    ),
    "cifar10-small-iwae": Recipe(
        cifar10_small_iwae, "its continuous twin", "10.8 hours on 1 core: 4.10 bits/dim, first 1,000 test images"
    ),
    "cifar10-wgan": Recipe(cifar10_wgan, "Arjovsky et al. 2017; paper, Figure 4b", "38 minutes on 1 core"),
    "imagenet64-resnet": Recipe(
        imagenet64_resnet, "paper, Figure 3b", "not trained yet; by its steps 54 hours on 2 cores"
    ),
    "imagenet64-resnet-iwae": Recipe(
        imagenet64_resnet_iwae, "its continuous twin", "not trained yet; by its steps 67 hours on 2 cores"
    ),
    "natural64-small": Recipe(
        natural64_small,
        "paper, Figure 3b, smaller and on JPEG photographs",
        "1.2 hours on 1 core: 4.60 bits/dim, test; not ImageNet64's",
    ),
    "my-images": Recipe(my_images, "your own pictures, with --data-dir", "depends on them"),
    "mnist-rbm": Recipe(mnist_rbm, "Salakhutdinov & Murray 2008", "1.5 hours on 1 core: 86.89 nats, test"),
}


_KINDS: tuple[Literal["colour", "grey", "black-and-white"], ...] = ("colour", "grey", "black-and-white")


def beginnings(config: Config) -> list[Config]:
    """What ``latentbits train`` may begin with for a configuration's recipe, before options.

    One, or for one's own pictures several, by what and how many they are; none if no recipe has the name.
    """
    if config.recipe == "my-images":
        return [my_images(kind, config.data.size, images) for kind in _KINDS for images in (1, 10**9)]
    return [RECIPES[config.recipe].make()] if config.recipe in RECIPES else []


def beginning(config: Config, images: int) -> Config:
    """The one that a configuration began as, if the data are so many images; without a recipe the defaults.

    A configuration does not say what was seen in one's own pictures, for it may name another kind. So it began as the
    nearest of what there is for so many pictures of its size.
    """
    if config.recipe == "my-images":
        of_kinds = [my_images(kind, config.data.size, images) for kind in _KINDS]
        return min(of_kinds, key=lambda other: len(different(config, other)))
    return next(iter(beginnings(config)), Config(recipe=config.recipe))


def changes(config: Config) -> dict[str, Any]:
    """The settings, by dotted name, that a configuration has otherwise than any that it may have begun as.

    Given as options they lead to the configuration, whatever pictures there are by then.
    """
    before = [settings(other) for other in beginnings(config)]
    if config.recipe == "my-images":  # a size that is not asked for is the default, whatever comes of it
        before.append(before[0] | {"data.size": DataConfig().size})
    return {name: value for name, value in settings(config).items() if any(other[name] != value for other in before)}


def command_for(config: Config, *options: str) -> list[str]:
    """The words of the command that trains a configuration: its recipe, what differs from it, and other options.

    Raises:
        ValueError: If no recipe has the configuration's name.
    """
    if not beginnings(config):
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {config.recipe!r}")
    words = ["latentbits", "train", config.recipe]
    for name, value in changes(config).items():
        section, _, setting = name.replace("_", "-").rpartition(".")
        before = f"--{section}." if section else "--"
        if isinstance(value, bool):
            words.append(before + ("" if value else "no-") + setting)
        else:
            words += [before + setting, *(str(part) for part in (value if isinstance(value, tuple) else [value]))]
    return [*words, *options]
