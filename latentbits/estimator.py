"""Binary codes for scikit-learn: fit, transform, inverse_transform, score_samples, sample.

>>> from latentbits.estimator import BinaryCodes
>>> codes = BinaryCodes(n_components=24).fit(X).transform(X)  # doctest: +SKIP
"""

import math
import tempfile
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .config import MOST, AutoencoderConfig, Config, JointConfig, ModelConfig, RBMConfig, ValidationConfig
from .evaluate import Counts, log_partition
from .fused import draw_key, fork
from .model import LatentModel
from .runs import load
from .splits import Form, Splits, make_splits
from .train import train


class BinaryCodes(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A deep model with bits for latents as a scikit-learn transformer.

    Features are made bits at a threshold; multi-layer perceptrons map them to codes and back.

    Parameters
    ----------
    n_components : int
        Bits of a code, M.
    n_hidden : int
        Hidden units of the RBM over the codes, H; up to 20 its log Z is exact.
    layers : tuple of int
        Hidden layers of the encoder; the decoder mirrors them.
    threshold : float
        Features above this are ones.
    n_epochs : int
        Epochs of each of the three stages: autoencoder, RBM, and all together by VIMCO.
    batch_size : int
        Data in a step.
    n_samples : int
        Posterior samples K behind each log-likelihood.
    validation_fraction : float
        Share of the data that chooses among the weights.
    random_state : int, RandomState or None
        Of weights, splits and samples.
    verbose : bool
        Whether to show progress.

    Attributes
    ----------
    model_ : LatentModel
        The trained model.
    log_partition_ : float
        log Z of its prior, in nats.
    log_partition_error_ : float
        Its standard error; 0 where log Z is exact.
    """

    def __init__(
        self,
        n_components: int = 32,
        n_hidden: int = 64,
        layers: tuple[int, ...] = (128, 64),
        threshold: float = 0.5,
        n_epochs: int = 30,
        batch_size: int = 50,
        n_samples: int = 100,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_components, self.n_hidden, self.layers, self.threshold = n_components, n_hidden, layers, threshold
        self.n_epochs, self.batch_size, self.n_samples = n_epochs, batch_size, n_samples
        self.validation_fraction, self.random_state, self.verbose = validation_fraction, random_state, verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on data X (N, D); y is ignored.

        Raises:
            ValueError: If a parameter is out of range, which names each, or X is not a matrix of finite numbers.
            KeyboardInterrupt: If it was stopped, by Ctrl-C or SIGTERM; nothing is fitted then.
        """
        self._check_parameters()
        X = validate_data(self, X, dtype=(np.float64, np.float32))
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        splits = self._split(self._bits(X), random)
        config = self._config(seed)
        with tempfile.TemporaryDirectory() as folder:
            run = train(config, f"{folder}/run", splits=splits, quiet=not self.verbose)
            if not run.finished:  # training takes signals as a wish to go on later, for which there is no run here
                raise KeyboardInterrupt("BinaryCodes: stopped before it was fitted")
            model = load(run.path)
        assert isinstance(model, LatentModel)
        self.model_, self._seed = model, seed
        log_z = log_partition(model.prior, Counts().chains, Counts().temperatures, self._generator(0))
        self.log_partition_, self.log_partition_error_ = log_z.value, log_z.standard_error
        return self

    def _check_parameters(self) -> None:
        least = {"n_components": 1, "n_hidden": 1, "n_epochs": 1, "batch_size": 1, "n_samples": 1}
        problems = [
            f"{name}: expected a whole number from {bound} to {MOST}, got {getattr(self, name)!r}"
            for name, bound in least.items()
            if not isinstance(getattr(self, name), Integral) or not bound <= getattr(self, name) <= MOST
        ]
        widths = np.asarray(self.layers)
        if widths.ndim != 1 or widths.dtype.kind not in "iu" or not widths.size or widths.min() < 1:
            problems.append(f"layers: expected one or more widths of at least 1, got {self.layers!r}")
        if not _is_number(self.threshold):
            problems.append(f"threshold: expected a finite number, got {self.threshold!r}")
        if not _is_number(self.validation_fraction) or not 0 < self.validation_fraction < 1:
            problems.append(f"validation_fraction: expected between 0 and 1, got {self.validation_fraction!r}")
        if problems:
            raise ValueError("\n".join(problems))

    def _config(self, seed: int) -> Config:
        E, B, layers = self.n_epochs, self.batch_size, tuple(int(width) for width in self.layers)
        return Config(
            recipe="BinaryCodes",
            seed=seed,
            model=ModelConfig(layers=layers, latent=self.n_components, hidden=self.n_hidden),
            autoencoder=AutoencoderConfig(epochs=E, batch_size=B, dropout=0.1, scales=(1.5,)),
            rbm=RBMConfig(cd_epochs=-(-E // 2), cd_steps=10, pcd_epochs=E // 2, pcd_steps=5, chains=100, batch_size=B),
            joint=JointConfig(epochs=E, samples=20, batch_size=B, chains=200),
            validation=ValidationConfig(every=max(1, E // 10), samples=50, ais_chains=200),
        )

    def _split(self, bits: np.ndarray, random: np.random.RandomState) -> Splits:
        """Training and validation data; a single datum is both."""
        held_out = max(1, round(self.validation_fraction * len(bits)))
        order = random.permutation(len(bits))
        valid, rest = bits[order[:held_out]], bits[order[held_out:]]
        return make_splits("X", [rest if len(rest) else valid, valid, valid], Form(1, 1, bits.shape[1]))

    def _bits(self, X: np.ndarray) -> np.ndarray:
        bits: np.ndarray = (self.threshold < X).astype(np.uint8)
        return bits

    def _generator(self, use: int) -> torch.Generator:
        """The same at each call, and another for each use."""
        return fork(draw_key(torch.Generator().manual_seed(self._seed)), use)

    def _checked(self, X: Any) -> tuple[torch.Tensor, Any]:
        """Data (N, D) as bits, and the number format that they came in."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return torch.from_numpy(self._bits(X)).float(), X.dtype

    @property
    def _n_features_out(self) -> int:
        return self.model_.prior.visible

    def transform(self, X: Any) -> np.ndarray:
        """Codes of data X (N, D): their most probable bits, 0.0 or 1.0, with shape (N, M)."""
        x, dtype = self._checked(X)
        codes: np.ndarray = self.model_.encode(x).numpy().astype(dtype)
        return codes

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Probabilities that the features of codes X (N, M) are ones, with shape (N, D)."""
        check_is_fitted(self)
        codes, M = np.asarray(X, np.float32), self.model_.prior.visible
        if codes.ndim != 2 or codes.shape[1] != M:
            raise ValueError(f"X: expected codes with shape (N, {M}), got {codes.shape}")
        if not np.isin(codes, (0, 1)).all():
            raise ValueError("X: expected codes of 0s and 1s, got other values")
        means: np.ndarray = self.model_.decode(torch.from_numpy(codes)).numpy()
        return means

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-likelihoods of data X (N, D), in nats, with shape (N,): the bound with K = ``n_samples``."""
        x, _ = self._checked(X)
        bound: np.ndarray = self.model_.log_prob(x, self.n_samples, self.log_partition_, self._generator(1)).numpy()
        return bound

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of :meth:`score_samples`; y is ignored."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, gibbs_steps: int = 1000, random_state: Any = None) -> np.ndarray:
        """Draw data: bits (n_samples, D) given codes from chains of the prior.

        Parameters
        ----------
        n_samples : int
            How many.
        gibbs_steps : int
            Length of the chains.
        random_state : int, RandomState or None
            Of the draws; if None, that of the fit, so that every call draws the same.
        """
        check_is_fitted(self)
        generator = self._generator(2)
        if random_state is not None:
            generator.manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
        means = self.model_.sample(n_samples, gibbs_steps, generator)
        drawn: np.ndarray = torch.bernoulli(means, generator=generator).numpy()
        return drawn

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
