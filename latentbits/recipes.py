"""Recipes: a function for each experiment, returning a full configuration.

What the paper leaves open (batch sizes, learning rates, chains, epochs) stands here with its reason.
"""

from collections.abc import Callable
from typing import NamedTuple

from .config import (
    AutoencoderConfig,
    Config,
    DataConfig,
    JointConfig,
    ModelConfig,
    RBMConfig,
    ValidationConfig,
)


def digits() -> Config:
    """8x8 digits, 24 bits, RBM with 16 hidden units (its log Z is exact): all three stages in a minute."""
    return Config(
        recipe="digits",
        data=DataConfig(name="digits"),
        # 24 bits carry an image of 64 at about 1.5 nats of reconstruction each; 16 hidden units can be summed
        model=ModelConfig(layers=(128, 64), latent=24, hidden=16),
        # 1,197 images: a code that does not lean on single bits overfits less
        autoencoder=AutoencoderConfig(epochs=60, dropout=0.1),
        # 60 updates an epoch need a larger rate than 500 do; with 0.05 the RBM stayed a factorized prior
        rbm=RBMConfig(
            cd_epochs=15, cd_steps=10, pcd_epochs=15, pcd_steps=5, chains=100, batch_size=20, learning_rate=0.2
        ),
        # validation NLL 16.68 with 5e-4 for the networks, 16.41 with 1e-3; 16.78 with 1e-3 for the RBM
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
        autoencoder=AutoencoderConfig(epochs=40),
        rbm=RBMConfig(),
        joint=JointConfig(),
    )


class Recipe(NamedTuple):
    """An entry of the list of recipes.

    Attributes:
        make: Returns the configuration.
        source: The experiment that it repeats.
        cost: What it was measured to take, and on what.
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
    "mnist-mlp": Recipe(mnist_mlp, "paper, Table 1", ""),
}
