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
    """8x8 digits, 24 bits, an RBM with 16 hidden units whose log Z is exact: all three stages in a minute."""
    return Config(
        recipe="digits",
        data=DataConfig(name="digits"),
        model=ModelConfig(layers=(128, 64), latent=24, hidden=16),
        autoencoder=AutoencoderConfig(epochs=60, dropout=0.1),
        rbm=RBMConfig(cd_epochs=20, cd_steps=10, pcd_epochs=20, pcd_steps=5, chains=200),
        joint=JointConfig(epochs=150, samples=20, chains=500, batch_size=50),
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
