"""Configuration of a run: typed, validated, and the one place where each default stands.

A recipe (:mod:`latentbits.recipes`) returns a full :class:`Config`; the run folder keeps it as
``config.json``. Values that an experiment sets have their reasons in the recipe. "given" stands for what was passed
to :func:`latentbits.train` in Python: a model, an objective, a sampler or data of one's own.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

COLOUR = ("cifar10", "imagenet64", "natural64", "images")
"""Data sets whose pixels have 256 levels."""


MOST = 2**31 - 1
"""Whole numbers up to this; beyond it they overflow somewhere."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _numbers_are_not_enormous(self) -> "Section":
        for name, value in self:
            if any(isinstance(part, int) and part > MOST for part in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"{name}: expected up to {MOST:,}, got {value}")
        return self


class DataConfig(Section):
    """What to train on."""

    name: Literal["digits", "binarized-mnist", "cifar10", "imagenet64", "natural64", "images", "given"] = Field(
        "digits",
        description="data set; see `latentbits data`. images: your own, with --data-dir naming their folder or "
        "archive; given: in Python",
    )
    damaged: Literal["skip", "refuse"] = Field("skip", description="what to do with a file of yours that is no picture")
    size: int = Field(32, ge=4, le=512, description="height and width that your own images are scaled and cropped to")
    kind: Literal["colour", "grey", "black-and-white"] = Field("colour", description="what your own images become")
    image: tuple[int, ...] = Field((), description="channels, height and width of data given in Python")
    levels: int = Field(2, ge=2, description="of data given in Python; 2 for bits")

    @model_validator(mode="after")
    def _image_has_three_sizes(self) -> "DataConfig":
        if self.name == "given" and (len(self.image) != 3 or min(self.image) < 1):
            raise ValueError(f"image: expected channels, height and width of the given data, got {self.image}")
        return self


class ModelConfig(Section):
    """Sizes of the networks and of the prior."""

    network: Literal["mlp", "resnet", "dcgan", "none", "given"] = Field(
        "mlp",
        description="encoder and decoder; dcgan is a generator and a critic; none trains the prior on the data "
        "itself; given: a model of one's own, in Python",
    )
    layers: tuple[int, ...] = Field(
        (200, 200, 100, 100),
        max_length=100,
        description="hidden layers of an mlp's encoder; the decoder mirrors them",
    )
    maps: tuple[int, ...] = Field(
        (25, 50, 50),
        max_length=100,
        description="feature maps of a resnet's blocks, or a critic's layers; the decoder mirrors them",
    )
    repeats: int = Field(2, ge=1, le=100, description="how many times in a row each block of a resnet occurs")
    encoder_maps: tuple[int, ...] = Field(
        (), max_length=100, description="feature maps of a resnet's encoder blocks, if other than those in `maps`"
    )
    encoder_repeats: int = Field(0, ge=0, le=100, description="times that each encoder block occurs; 0 for `repeats`")
    fully_connected: bool = Field(True, description="whether a linear layer joins a resnet's blocks and the latents")
    components: int = Field(10, ge=1, description="logistics in a pixel's mixture, for images of 256 levels")
    norm: Literal["weight", "batch", "none"] = Field("weight", description="normalization in a resnet")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of a resnet's layers, in training and evaluation alike; bfloat16 only where that is faster; "
        "parameters are kept in float32",
    )
    activation: Literal["elu", "relu", "leaky-relu"] = Field("elu", description="between layers")
    latent: int = Field(200, ge=1, description="latent bits M, the RBM's visible layer")
    prior: Literal["rbm", "bernoulli", "normal", "given"] = Field(
        "rbm",
        description="RBM; independent bits (an ablation); a standard normal, which makes the latents continuous; or "
        "that of a given model",
    )
    hidden: int = Field(400, ge=1, description="hidden bits H of the RBM")

    @model_validator(mode="after")
    def _layers_are_positive(self) -> "ModelConfig":
        for name in ("layers", "maps", "encoder_maps"):
            if any(width < 1 for width in getattr(self, name)):
                raise ValueError(f"{name}: widths must be at least 1, got {getattr(self, name)}")
        if self.network in ("resnet", "dcgan") and not self.maps:
            raise ValueError("maps: expected at least one number of feature maps, got none")
        if self.encoder_maps and len(self.encoder_maps) != len(self.maps):
            raise ValueError(
                f"encoder_maps: expected as many as maps, {len(self.maps)}, or none, got {len(self.encoder_maps)}"
            )
        if self.encoder_maps and not self.fully_connected and self.encoder_maps[-1] != self.maps[-1]:
            raise ValueError(
                f"encoder_maps: without fully_connected its last gives the latents, as that of maps; expected "
                f"{self.maps[-1]}, got {self.encoder_maps[-1]}"
            )
        return self


class Augmentation(Section):
    """How training images are changed before a stage sees them."""

    flip: float = Field(0.0, ge=0, le=1, description="probability that an image is mirrored, left for right")
    shift: float = Field(0.0, ge=0, le=1, description="probability that an image is moved by a pixel")
    distort: float = Field(
        0.0,
        ge=0,
        lt=10,
        description="images are bent by smooth displacements, whose standard deviation in pixels is drawn for each up "
        "to this",
    )
    augmentation_decay: float = Field(
        0.5, ge=0, le=1, description="last share of the epochs, in which shift and distort fall to 0"
    )


class AutoencoderConfig(Augmentation):
    """Stage 1: encoder and decoder as an autoencoder with soft bits. Skipped if epochs is 0."""

    epochs: int = Field(20, ge=0)
    batch_size: int = Field(100, ge=1)
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    warmup: int = Field(0, ge=0, description="first steps, over which the rate rises")
    decay: float = Field(0.5, ge=0, le=1, description="last share of the epochs, in which the rate falls to 0")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="probability that a soft bit is set to 0, the others kept as they are"
    )
    input_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability that the encoder sees a pixel as 0, the others scaled up"
    )
    weight_decay: float = Field(
        0.0, ge=0, lt=0.1, description="share of the networks' weight matrices that each step takes away"
    )
    conversion: Literal["calibrated", "literal"] = Field(
        "calibrated",
        description="calibrated: noise U(0, 1) and logits scaled by the best of `scales`; literal: Eq. 3 as "
        "printed, noise U(-0.5, 0.5) and no scale",
    )
    scales: tuple[float, ...] = Field(
        (1.0, 1.5, 2.0, 3.0, 4.0),
        max_length=100,
        description="candidates for the logits' scale, chosen on validation data",
    )

    @model_validator(mode="after")
    def _scales_are_positive(self) -> "AutoencoderConfig":
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ValueError(f"scales: expected one or more positive numbers, got {self.scales}")
        return self


class RBMConfig(Section):
    """Stage 2: the prior on bits drawn from the posterior. Skipped if both numbers of epochs are 0."""

    cd_epochs: int = Field(10, ge=0, description="epochs of contrastive divergence")
    cd_steps: int = Field(25, ge=1, description="CD steps rise from 1 to this over the epochs; a single one has all")
    pcd_epochs: int = Field(10, ge=0, description="epochs of persistent contrastive divergence after that")
    pcd_steps: int = Field(25, ge=1, description="Gibbs steps between updates")
    chains: int = Field(500, ge=1, description="persistent chains")
    temperatures: int = Field(
        1, ge=1, description="of each persistent chain; above 1 they are run by parallel tempering"
    )
    batch_size: int = Field(100, ge=1)
    learning_rate: float = Field(0.05, gt=0, description="of SGD")
    momentum: float = Field(0.5, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, description="of the weights, not the biases")
    decay: float = Field(0.5, ge=0, le=1, description="last share of the epochs, in which the rate falls to 0")

    @property
    def epochs(self) -> int:
        return self.cd_epochs + self.pcd_epochs


class JointConfig(Augmentation):
    """Stage 3: encoder, decoder and prior together. Skipped if epochs is 0.

    The same settings describe its warm start (section ``warm_start``).
    """

    objective: Literal["vimco", "crws", "relaxed", "iwae", "given"] = Field(
        "vimco",
        description="VIMCO; contrastive reweighted wake-sleep; the ELBO of one relaxed sample; IWAE's bound, for "
        "continuous latents; or a function given in Python",
    )
    samples: int = Field(
        50, ge=1, description="posterior samples K for each datum; 1 for relaxed, 2 or more for vimco and crws"
    )
    first_samples: int = Field(0, ge=0, description="K of the first step, from which it rises; 0 for `samples`")
    backward_samples: int = Field(
        4, ge=0, description="how many of the K samples go backward, resampled by weight (unbiased); 0 for all K"
    )
    epochs: int = Field(30, ge=0)
    batch_size: int = Field(100, ge=1)
    optimizer: Literal["adam", "adamax"] = Field("adam", description="of encoder and decoder")
    encoder_learning_rate: float = Field(5e-4, gt=0)
    decoder_learning_rate: float = Field(5e-4, gt=0)
    prior_learning_rate: float = Field(1e-3, gt=0, description="of SGD")
    warmup: int = Field(0, ge=0, description="first steps, over which the rates rise")
    decay: float = Field(0.5, ge=0, le=1, description="last share of the epochs, in which the rates fall to 0")
    weight_decay: float = Field(
        0.0, ge=0, lt=0.1, description="share of the networks' weight matrices that each step takes away"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="probability that the encoder sees a pixel as 0, the others scaled up"
    )
    sleep: float = Field(
        0.0,
        ge=0,
        description="weight of a sleep phase in the encoder's loss of vimco or a given objective; crws has one of "
        "weight 1, whatever this is",
    )
    dreams: int = Field(
        0, ge=0, description="how many of the chains, drawn at random at each step, dream in a sleep phase; 0 for all"
    )
    relaxation: float = Field(0.2, gt=0, description="temperature of the relaxed bits, if the objective is relaxed")
    centered: bool = Field(False, description="center the RBM's gradient")
    chains: int = Field(1000, ge=1, description="persistent chains for the negative phase")
    gibbs_steps: int = Field(5, ge=1, description="Gibbs steps between updates")
    temperatures: int = Field(
        1, ge=1, description="of each persistent chain; above 1 they are run by parallel tempering"
    )
    average: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights that is evaluated; 0 is none",
    )
    products: Literal["float32", "bfloat16"] = Field(
        "float32", description="operands of matrix products on the CPU; sums are in float32"
    )

    @model_validator(mode="after")
    def _samples_fit_the_objective(self) -> "JointConfig":
        several, problems = self.objective in ("vimco", "crws"), []
        if (self.objective == "relaxed" and self.samples > 1) or (several and self.samples == 1):
            expected = "at least 2" if several else "1"
            problems.append(f"samples: expected {expected} for objective {self.objective}, got {self.samples}")
        if self.sleep and self.objective in ("relaxed", "iwae"):
            problems.append(f"sleep: objective {self.objective} has no sleep phase; expected 0, got {self.sleep}")
        if self.first_samples == 1 or self.first_samples > self.samples:
            expected = f"0, or between 2 and samples={self.samples}"
            problems.append(f"first_samples: expected {expected}, got {self.first_samples}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class AdversarialConfig(Section):
    """A Wasserstein GAN's only stage. Skipped if epochs is 0."""

    epochs: int = Field(0, ge=0, description="of the critic")
    batch_size: int = Field(64, ge=1)
    critic_steps: int = Field(5, ge=1, description="of the critic for each of the generator")
    learning_rate: float = Field(5e-5, gt=0, description="of RMSprop")
    clip: float = Field(0.01, gt=0, description="largest absolute value of the critic's weights")


class ValidationConfig(Section):
    """The quick estimate after an epoch, for choosing weights; `latentbits evaluate` does the careful one."""

    every: int = Field(1, ge=1, description="epochs between validations")
    images: int = Field(2000, ge=1, description="images of the validation split, evenly spaced")
    samples: int = Field(100, ge=1, description="K of the bound")
    ais_chains: int = Field(500, ge=2)
    ais_temperatures: int = Field(1000, ge=1)
    keep: int = Field(
        0, ge=0, description="keep the weights as joint-EPOCH after every so many epochs of stage 3; 0 keeps none"
    )


class Config(Section):
    """Everything that determines a training run."""

    recipe: str = Field("custom", description="name of the recipe that this started from")
    seed: int = Field(0, ge=0, lt=2**31, description="of first weights, the order of the data, and all noise")
    sampler: Literal["gibbs", "given"] = Field(
        "gibbs", description="of the persistent negatives; given: an outside sampler, in Python"
    )
    weights: str = Field(
        "", description="file of weights to begin with, such as runs/NAME/rbm.safetensors; random if empty"
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    rbm: RBMConfig = RBMConfig()
    warm_start: JointConfig = JointConfig(objective="relaxed", samples=1, epochs=0)
    joint: JointConfig = JointConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    validation: ValidationConfig = ValidationConfig()

    @model_validator(mode="after")
    def _stages_fit_the_model(self) -> "Config":
        if problems := [*self._misfits_of_the_model(), *self._misfits_of_the_stages()]:
            raise ValueError("\n".join(problems))
        return self

    def _misfits_of_the_model(self) -> Iterator[str]:
        """What networks and prior cannot be or do, a line for each problem."""
        model, pretrained = self.model, self.autoencoder.epochs or self.rbm.epochs or self.warm_start.epochs
        if model.network == "none" and (self.autoencoder.epochs or self.warm_start.epochs or self.joint.epochs):
            yield (
                "model.network=none has nothing to train in stages 1 and 3: set autoencoder.epochs=0, "
                "warm_start.epochs=0 and joint.epochs=0"
            )
        if model.network == "none" and model.prior != "rbm":
            yield "model.network=none needs model.prior=rbm"
        if model.prior == "given" and model.network != "given":
            yield "model.prior=given: is for a model that is given in Python, got no such model"
        if self.adversarial.epochs and model.network != "dcgan":
            yield f"adversarial.epochs: is for model.network=dcgan, got {model.network}"
        if model.network == "dcgan" and (self.joint.epochs or model.prior != "normal"):
            yield "model.network=dcgan has its own stage: set joint.epochs=0 and model.prior=normal"
        if model.prior == "normal" and pretrained:
            yield (
                "model.prior=normal has no bits to pretrain: set autoencoder.epochs=0, rbm.cd_epochs=0, "
                "rbm.pcd_epochs=0 and warm_start.epochs=0"
            )
        if is_colour(self.data) and model.network not in ("resnet", "dcgan", "given"):
            yield (
                f"model.network: expected resnet or dcgan for {self.data.name}, whose pixels are not bits, got "
                f"{model.network}"
                + ("; data.kind=black-and-white makes bits of them" if self.data.name == "images" else "")
            )

    def _misfits_of_the_stages(self) -> Iterator[str]:
        """What stages cannot do with this model, a line for each problem."""
        model = self.model
        for name, stage in (("warm_start", self.warm_start), ("joint", self.joint)):
            either = model.prior == "given" or stage.objective == "given"
            if stage.epochs and not either and (model.prior == "normal") != (stage.objective == "iwae"):
                yield (
                    f"{name}.objective: expected iwae with model.prior=normal and another without, got "
                    f"{stage.objective} with {model.prior}"
                )
            if stage.epochs and stage.centered and model.prior != "rbm":
                yield f"{name}.centered: is for model.prior=rbm, got {model.prior}"
        for name in ("autoencoder", "warm_start", "joint"):
            stage = getattr(self, name)
            if stage.epochs and stage.batch_size == 1 and model.network == "resnet" and model.norm == "batch":
                yield f"{name}.batch_size: expected 2 or more with model.norm=batch, got 1"
        tempered = [s.temperatures > 1 for s in (self.rbm, self.warm_start, self.joint) if s.epochs]
        if self.sampler == "given" and any(tempered):
            yield "temperatures: a given sampler is not tempered; expected 1 in every stage"

    def vary(self, recipe: str = "", /, **changes: Any) -> Self:
        """The same with some settings changed, and validated again.

        Arguments:
            recipe: A new name; the old one if empty.
            changes: For a section a dictionary of its settings, such as ``joint={"epochs": 10}``, or another
                configuration's section; else a value, such as ``seed=1``.

        Raises:
            ValidationError: If a name is unknown or a value is out of range; it names every problem.
        """
        values = self.model_dump()
        for name, change in changes.items():
            change = change.model_dump() if isinstance(change, Section) else change
            values[name] = values[name] | change if isinstance(values.get(name), dict) else change
        return self.model_validate(values | ({"recipe": recipe} if recipe else {}))


def is_colour(data: DataConfig) -> bool:
    """Whether pixels have more than two levels."""
    if data.name == "given":
        return data.levels > 2
    return data.name in COLOUR and not (data.name == "images" and data.kind == "black-and-white")


def settings(config: Config) -> dict[str, Any]:
    """Every setting by its dotted name, such as ``joint.samples``."""
    found: dict[str, Any] = {}
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, Section):
            found |= {f"{name}.{inner}": getattr(section, inner) for inner in type(section).model_fields}
        else:
            found[name] = section
    return found


def different(config: Config, other: Config) -> dict[str, Any]:
    """The settings, by dotted name, that a configuration has otherwise than another one."""
    values = settings(other)
    return {name: value for name, value in settings(config).items() if values[name] != value}


def without_effect(config: Config) -> dict[str, str]:
    """The settings, by dotted name, that change nothing in a configuration, each with the setting that is why."""
    idle = [*_idle_by_model_and_data(config), *_idle_by_stages(config)]
    return {f"{section}.{name}": why for why, section, *names in idle for name in names}


def _idle_by_model_and_data(config: Config) -> Iterator[tuple[str, ...]]:
    """Why, a section, and settings of it for which networks and data have no use."""
    model, network, name = config.model, f"model.network={config.model.network}", config.data.name
    if model.network != "mlp":
        yield network, "model", "layers"
    if model.network not in ("resnet", "dcgan"):
        yield network, "model", "maps", "precision"
    if model.network == "none":
        yield network, "model", "activation", "latent"
        yield network, "validation", "samples"
    if model.network == "dcgan":
        yield network, "model", "activation"
        yield network, "validation", *type(config.validation).model_fields
    if not config.joint.epochs:
        yield "joint.epochs=0", "validation", "keep"
    if model.network != "resnet":
        yield network, "model", "repeats", "encoder_maps", "encoder_repeats", "fully_connected", "norm", "components"
    if name != "images":
        yield f"data.name={name}", "data", "size", "kind", *(["damaged"] if name != "natural64" else [])
    if name != "given":
        yield f"data.name={name}", "data", "image", "levels"
    if model.network == "resnet" and not is_colour(config.data):
        yield "pixels of 2 levels", "model", "components"


def _idle_by_stages(config: Config) -> Iterator[tuple[str, ...]]:
    """Why, a section, and settings of it for which stages, objectives and the prior have no use."""
    prior, is_exact = f"model.prior={config.model.prior}", config.model.prior in ("bernoulli", "normal")
    if config.autoencoder.conversion == "literal":
        yield "autoencoder.conversion=literal", "autoencoder", "scales"
    for section, stage in (("warm_start", config.warm_start), ("joint", config.joint)):
        objective = f"{section}.objective={stage.objective}"
        if stage.objective != "relaxed":
            yield objective, section, "relaxation"
        if stage.objective == "crws":
            yield objective, section, "sleep"
        if stage.objective == "relaxed":
            yield objective, section, "backward_samples"
        if stage.objective in ("relaxed", "iwae"):
            yield objective, section, "sleep", "dreams"
        elif stage.objective == "vimco" and not stage.sleep:
            yield f"{section}.sleep=0", section, "dreams"
        if is_exact:
            yield prior, section, "gibbs_steps", "temperatures"
        if config.model.prior == "normal":
            yield prior, section, "chains"
    if is_exact:
        yield prior, "model", "hidden"
        yield prior, "rbm", "cd_steps", "pcd_steps", "temperatures"
    if not config.rbm.cd_epochs:
        yield "rbm.cd_epochs=0", "rbm", "cd_steps"
    if not config.rbm.pcd_epochs:
        yield "rbm.pcd_epochs=0", "rbm", "pcd_steps", "chains", "temperatures"
    for section in ("autoencoder", "rbm", "warm_start", "joint", "adversarial"):
        values = getattr(config, section)
        if not values.epochs:
            zero = "rbm.cd_epochs=rbm.pcd_epochs" if section == "rbm" else f"{section}.epochs"
            yield f"{zero}=0", section, *(name for name in type(values).model_fields if not name.endswith("epochs"))
