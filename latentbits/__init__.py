"""Deep generative models whose latent variables are bits and whose prior is a Boltzmann machine.

.. code-block:: python

    import latentbits as lb

    run = lb.train(lb.recipes.digits(), run="runs/digits")
    model = lb.load("runs/digits")
    images = model.sample(64, gibbs_steps=1000)
"""

from . import distributed, recipes
from .anneal import AISEstimate, adaptive_schedule, ais, linear_schedule, raise_log_prob
from .codes import load_codes, read_images, save_codes
from .config import Config
from .data import load as load_data
from .distributions import Likelihood
from .evaluate import Counts, evaluate
from .figures import Evaluation
from .fused import bernoulli
from .gibbs import gibbs, random_bits
from .model import GaussianModel, LatentModel
from .nets import MLP, Scaled
from .objectives import Losses, Signal, resample, vimco, wake
from .rbm import RBM, BernoulliPrior, Ising, NormalPrior, TractablePrior
from .refine import refine
from .runs import Run, RunError, load, load_pretrained, pretrained_names
from .session import TrainingError
from .splits import DataError, Form, Splits, make_splits
from .tempering import parallel_tempering, sample_prior, tempering_schedule
from .train import train

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "RBM",
    "AISEstimate",
    "BernoulliPrior",
    "Config",
    "Counts",
    "DataError",
    "Evaluation",
    "Form",
    "GaussianModel",
    "Ising",
    "LatentModel",
    "Likelihood",
    "Losses",
    "NormalPrior",
    "Run",
    "RunError",
    "Scaled",
    "Signal",
    "Splits",
    "TractablePrior",
    "TrainingError",
    "adaptive_schedule",
    "ais",
    "bernoulli",
    "distributed",
    "evaluate",
    "gibbs",
    "linear_schedule",
    "load",
    "load_codes",
    "load_data",
    "load_pretrained",
    "make_splits",
    "parallel_tempering",
    "pretrained_names",
    "raise_log_prob",
    "random_bits",
    "read_images",
    "recipes",
    "refine",
    "resample",
    "sample_prior",
    "save_codes",
    "tempering_schedule",
    "train",
    "vimco",
    "wake",
]
