"""Parts of one's own in training, and the examples of them."""

import copy
import math
import sys
from itertools import product
from pathlib import Path

import exact_latent
import numpy as np
import pytest
import torch
from checks import LIMIT, chi_square_score, mean_scores, random_rbm, seeded
from test_train import assert_same_run, tiny, weights

import latentbits as lb
from latentbits import cli
from latentbits.config import DataConfig
from latentbits.joint import optimizers
from latentbits.model import build
from latentbits.objectives import losses_of_samples
from latentbits.session import Parts
from latentbits.stages import shrink

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
import own_likelihood  # noqa: E402
import own_losses  # noqa: E402
import own_networks  # noqa: E402
import own_objective  # noqa: E402
import own_prior  # noqa: E402
import own_sampler  # noqa: E402


def same_model(config, splits):
    """What train builds by itself."""
    model = build(config.model, splits.form, seeded(config.seed))
    model.decoder.set_offset(splits.mean_logits())
    return model


@pytest.mark.parametrize("part", ["model", "splits", "objective", "sampler"])
def test_the_packages_own_part_given_changes_nothing_but_the_configuration(tmp_path, part):
    config, splits = tiny(), lb.load_data("digits")
    given = {"model": same_model(config, splits), "splits": splits, "objective": lb.vimco, "sampler": lb.gibbs}
    usual = lb.train(config, tmp_path / "usual", quiet=True)
    own = lb.train(config, tmp_path / "own", quiet=True, **{part: given[part]})
    assert own.config != config
    own_weights = weights(own)
    for key, tensor in weights(usual).items():
        assert torch.equal(tensor, own_weights[key]), key


def test_a_run_with_own_parts_resumes_with_them_and_loads(tmp_path):
    config, splits = tiny(), lb.load_data("digits")

    def parts():
        return {
            "model": same_model(config, splits),
            "splits": splits,
            "objective": own_objective.reinforce,
            "sampler": own_sampler.from_annealer,
        }

    whole = lb.train(config, tmp_path / "whole", quiet=True, **parts())
    stopped = lb.train(config, tmp_path / "parts", quiet=True, max_minutes=1e-9, **parts())
    while not stopped.finished:
        lb.train(config, tmp_path / "parts", resume=True, quiet=True, max_minutes=1e-9, **parts())
    assert_same_run(whole, stopped)
    trained = lb.load(whole.path, model=same_model(config, splits))
    assert not torch.equal(trained.encoder.last.weight, same_model(config, splits).encoder.last.weight)


def test_what_was_given_is_asked_for_again(tmp_path, capsys):
    config, splits = tiny(), lb.load_data("digits")
    given = {"model": same_model(config, splits), "splits": splits, "objective": lb.vimco, "sampler": lb.gibbs}
    run = lb.train(config, tmp_path / "run", quiet=True, **given)
    with pytest.raises(lb.RunError, match="model=, splits=, objective= or losses=, sampler="):
        lb.train(run.config, tmp_path / "run", resume=True, quiet=True)
    with pytest.raises(lb.RunError, match=r"load\(run, model=\)"):
        lb.load(run.path)
    with pytest.raises(lb.DataError, match="given in Python"):
        lb.load_data(run.config.data)
    with pytest.raises(lb.RunError, match="its own sampler: pass sampler= to"):
        lb.train(config, tmp_path / "run", resume=True, quiet=True, **(given | {"sampler": None}))
    assert cli.main(["evaluate", str(run.path)]) == 2
    assert cli.main(["train", "digits", "--run", str(tmp_path / "new"), "--joint.objective", "given"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "load(run, model=)" in lines[0]
    assert "objective= or losses= to latentbits.train" in lines[1]
    assert not (tmp_path / "new").exists()


def test_an_encoder_that_cannot_be_scaled_is_refused_before_training(tmp_path):
    config, splits = tiny(), lb.load_data("digits")
    model = same_model(config, splits)
    model.encoder = torch.nn.Linear(64, 8)
    with pytest.raises(lb.RunError, match=r"latentbits\.Scaled"):
        lb.train(config, tmp_path / "run", quiet=True, model=model)
    assert not (tmp_path / "run").exists()


def test_parts_that_would_never_be_called_are_refused(tmp_path):
    off = {"autoencoder": {"epochs": 0}, "rbm": {"cd_epochs": 0, "pcd_epochs": 0}}
    continuous = tiny().vary(model={"prior": "normal"}, joint={"objective": "iwae"}, **off)
    with pytest.raises(lb.RunError, match=r"objective: is for latents that are bits.*losses= instead"):
        lb.train(continuous, tmp_path / "run", quiet=True, objective=lb.vimco)
    with pytest.raises(lb.RunError, match=r"sampler: is for an RBM's chains, got model\.prior=bernoulli"):
        lb.train(tiny().vary(model={"prior": "bernoulli"}), tmp_path / "run", quiet=True, sampler=lb.gibbs)
    with pytest.raises(lb.RunError, match="sampler: is for persistent chains"):
        lb.train(
            tiny().vary(rbm={"pcd_epochs": 0}, joint={"epochs": 0}), tmp_path / "run", quiet=True, sampler=lb.gibbs
        )
    with pytest.raises(lb.RunError, match="objective, losses: are for stage 3"):
        lb.train(tiny().vary(joint={"epochs": 0}), tmp_path / "run", quiet=True, objective=lb.vimco)
    assert not (tmp_path / "run").exists()


def test_an_objective_may_count_in_float64_but_not_in_arrays_or_without_numbers(tmp_path):
    config = tiny().vary(joint={"backward_samples": 0})

    def double(log_w):
        return lb.vimco(log_w.double())

    assert lb.train(config, tmp_path / "double", quiet=True, objective=double).finished
    for number, (spoil, says) in enumerate(
        {
            (lambda each: each.numpy(), "expected bound as a torch.Tensor, got ndarray"),
            (lambda each: each * torch.nan, "expected finite bound"),
        }
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            lb.train(
                config, tmp_path / f"{number}", quiet=True,
                objective=lambda log_w, spoil=spoil: lb.Signal(*(spoil(each) for each in lb.vimco(log_w))),
            )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda z: z[:-1], "shape"), (lambda z: 2 * z - 1, "spins"), (lambda z: z + torch.nan, "0s and 1s"),
    ],
)  # fmt: skip
def test_negatives_that_are_no_bits_are_refused(tmp_path, wrong, expected):
    with pytest.raises(ValueError, match=expected):
        lb.train(tiny(), tmp_path / "run", quiet=True, sampler=lambda rbm, z, steps, generator: wrong(z))


@pytest.mark.parametrize(
    "wrong",
    [lambda w: 0.01 * w, lambda w: w - 1 / len(w), lambda w: w[:1], lambda w: w * torch.nan],
    ids=["scaled", "negative", "of another shape", "not finite"],
)
def test_weights_that_samples_cannot_be_drawn_with_are_refused(tmp_path, wrong):
    def spoiled(log_w):
        signal = lb.vimco(log_w)
        return signal._replace(weights=wrong(signal.weights))

    with pytest.raises(ValueError, match=r"objective: expected (finite )?weights of"):
        lb.train(tiny(), tmp_path / "run", quiet=True, objective=spoiled)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s._replace(encoder_signal=s.encoder_signal.mean(0, keepdim=True)), "encoder_signal of shape"),
        (lambda s: s._replace(bound=s.bound.mean()), "bound of shape"),
        (lambda s: s.encoder_signal, "return a latentbits.Signal, got Tensor"),
    ],
)
def test_signals_that_would_be_broadcast_are_refused(tmp_path, spoil, words):
    """They would train silently, by another gradient."""
    config = tiny(joint={"backward_samples": 0})
    with pytest.raises((ValueError, TypeError), match=words):
        lb.train(config, tmp_path / "run", quiet=True, objective=lambda log_w: spoil(lb.vimco(log_w)))


def test_losses_of_another_type_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"losses: expected it to return latentbits\.Losses, got NoneType"):
        lb.train(tiny(), tmp_path / "run", quiet=True, losses=lambda *batch: None)


def test_what_else_a_model_has_is_trained_with_the_encoder(tmp_path):
    """A baseline as own losses may want: regression on a constant moves it there."""
    splits, config = lb.load_data("digits"), tiny(joint={"epochs": 20, "encoder_learning_rate": 0.1, "average": 0.0})

    def with_baseline():
        model = same_model(config, splits)
        model.baseline = torch.nn.Parameter(torch.zeros(1))
        return model

    def losses(model, x, z, K, generator):
        found = own_losses.disarm(model, x, z, K, generator)
        return found._replace(encoder=found.encoder + (model.baseline - 1).square().sum())

    run = lb.train(config, tmp_path / "run", quiet=True, model=with_baseline(), losses=losses)
    baseline = lb.load(run.path, "joint", model=with_baseline()).baseline
    assert float(baseline.detach()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"objective": "vimco"}, "objective: expected a function, got 'vimco'; what has a name is a setting"),
        ({"sampler": 3}, "sampler: expected a function, got 3"),
        ({"model": torch.nn.Linear(2, 2)}, r"model: expected a latentbits\.LatentModel, got Linear"),
        ({"splits": np.zeros((3, 64), np.uint8)}, r"splits: expected a latentbits\.Splits, got ndarray"),
        ({"max_minutes": -1}, "max_minutes: expected a positive number, got -1"),
    ],
)
def test_parts_of_another_type_are_refused_before_anything_is_written(tmp_path, given, words):
    with pytest.raises(lb.RunError, match=words):
        lb.train(tiny(), tmp_path / "run", quiet=True, **given)
    with pytest.raises(lb.RunError, match=r"config: expected a latentbits\.Config"):
        lb.train("digits", tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_any_weights_may_go_where_all_samples_go_backward(tmp_path):
    def scaled(log_w):
        signal = lb.vimco(log_w)
        return signal._replace(weights=0.01 * signal.weights)

    config = tiny(joint={"backward_samples": 0})
    assert lb.train(config, tmp_path / "run", quiet=True, objective=scaled).finished


class Coins(lb.TractablePrior):
    """Fair coins: nothing to learn."""

    def free_energy(self, z):
        return torch.full(z.shape[:-1], self.visible * math.log(2))

    def sample(self, n, generator=None):
        return torch.randint(2, (n, self.visible), generator=generator).float()


def test_a_prior_with_nothing_to_learn_goes_through_all_stages(tmp_path):
    config, splits = tiny(), lb.load_data("digits")
    given = same_model(config, splits)
    run = lb.train(config, tmp_path / "run", quiet=True, model=lb.LatentModel(given.encoder, given.decoder, Coins(8)))
    assert run.finished
    assert {row["stage"] for row in run.metrics()} >= {"autoencoder", "rbm", "joint"}


class Tilted(Coins):
    """Coins of one common tilt, a scalar."""

    def __init__(self, visible):
        super().__init__(visible)
        self.tilt = torch.nn.Parameter(torch.zeros(()))

    def free_energy(self, z):
        return self.visible * torch.nn.functional.softplus(self.tilt) - self.tilt * z.sum(-1)


def test_a_scalar_of_ones_own_prior_is_trained_in_stage_2(tmp_path):
    config = tiny(autoencoder={"epochs": 0}, rbm={"cd_epochs": 5, "learning_rate": 0.1}, joint={"epochs": 0})
    splits = lb.load_data("digits")
    given = same_model(config, splits)
    prior = Tilted(8)
    with torch.no_grad():
        list(given.encoder.parameters())[-1].add_(1.0)
        q = given.posterior(splits.train.float()).mean.mean()
    lb.train(config, tmp_path / "run", quiet=True, model=lb.LatentModel(given.encoder, given.decoder, prior))
    assert q > 0.7
    assert prior.tilt.sigmoid().item() == pytest.approx(float(q), abs=0.02)


@pytest.mark.parametrize(
    ("parts", "form", "expected"),
    [
        ([np.zeros((3, 4), np.uint8)] * 2, lb.Form(1, 2, 2), "2 parts"),
        ([np.zeros((3, 4))] * 3, lb.Form(1, 2, 2), "uint8"),
        ([np.zeros((3, 4), np.uint8)] * 3, lb.Form(1, 2, 3), r"\(N, 6\)"),
        ([np.zeros((0, 4), np.uint8)] * 3, lb.Form(1, 2, 2), "at least 1"),
        ([np.full((3, 4), 2, np.uint8)] * 3, lb.Form(1, 2, 2), "below 2, got 2"),
    ],
)
def test_data_of_another_form_are_refused(parts, form, expected):
    with pytest.raises(lb.DataError, match=expected):
        lb.make_splits("mine", parts, form)


def test_given_data_say_their_form():
    with pytest.raises(ValueError, match="channels, height and width"):
        DataConfig(name="given")
    splits = lb.make_splits("mine", [np.full((2, 6), 4, np.uint8)] * 3, lb.Form(1, 2, 3, 5))
    config = Parts(splits=splits, model=own_likelihood.make_model()).settings(lb.recipes.digits())
    assert (config.data.name, config.data.image, config.data.levels) == ("given", (1, 2, 3), 5)
    assert (config.model.network, config.model.prior, config.model.latent) == ("given", "rbm", 32)


def test_a_varied_configuration_is_validated():
    config = lb.recipes.digits().vary("mine", joint={"epochs": 3}, seed=4)
    assert (config.recipe, config.joint.epochs, config.seed) == ("mine", 3, 4)
    assert config.joint.samples == lb.recipes.digits().joint.samples
    with pytest.raises(ValueError, match="epoch"):
        config.vary(joint={"epoch": 3})
    with pytest.raises(ValueError, match="greater than or equal"):
        config.vary(seed=-1)


@pytest.mark.parametrize(
    ("example", "worst"),
    [
        (own_networks, 22),
        (own_likelihood, 150),
        (own_prior, 22),
        (own_objective, 22),
        (own_losses, 22),
        (own_sampler, 22),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_examples_learn(tmp_path, example, worst):
    """Independent pixels leave 24.6 nats on the same images, with 17 levels 253."""
    evaluation = example.main(tmp_path / "run")
    assert evaluation.likelihood.images == 300
    assert evaluation.likelihood.nll < worst


def test_binomial_likelihood_sums_to_one_and_samples_follow_it():
    p = own_likelihood.Binomial(torch.tensor([[-1.3], [0.0], [2.0]]))
    levels = torch.arange(17.0)[:, None, None].expand(17, 3, 1)
    table = torch.stack([p.log_prob(x) for x in levels]).double().exp()
    torch.testing.assert_close(table.sum(0), torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)
    drawn = p.sample((20_000,), seeded(0))[..., 0]
    for column, expected in zip(drawn.T, table.T, strict=True):
        counts = np.bincount(column.long(), minlength=17)
        assert abs(chi_square_score(counts, expected.numpy())) < LIMIT
    assert np.abs(mean_scores(drawn, p.mean[:, 0].numpy())).max() < LIMIT


def test_mixture_prior_sums_to_one_and_samples_follow_it():
    prior = own_prior.MixturePrior(5, 3, seeded(0))
    with torch.no_grad():
        prior.share.copy_(torch.tensor([0.5, -1.0, 1.0]))
    z = torch.tensor(list(product((0.0, 1.0), repeat=5)))
    p = (-prior.free_energy(z)).double().exp().detach()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    assert prior.log_partition().item() == 0
    drawn = prior.sample(20_000, seeded(1)) @ 2.0 ** torch.arange(4, -1, -1)
    assert abs(chi_square_score(np.bincount(drawn.long(), minlength=32), p.numpy())) < LIMIT


def test_own_objectives_gradient_is_the_elbos_in_expectation():
    """The encoder's gradient from reinforce, averaged, against autograd through the enumerated ELBO."""
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    model, exact = small_model_and_its_elbo(x)
    exact = exact[: sum(parameter.numel() for parameter in model.encoder.parameters())]
    generator, found = seeded(1), []
    for _ in range(2000):
        a = model.encoder(x)
        z = lb.bernoulli(a.detach().expand(3, -1, -1), generator)
        losses = losses_of_samples(model, x, a, z, torch.zeros(1, 3), own_objective.reinforce)
        gradient = torch.autograd.grad(losses.encoder, list(model.encoder.parameters()))
        found.append(-torch.cat([g.flatten() for g in gradient]))
    scores = mean_scores(torch.stack(found), exact.numpy())
    assert np.abs(np.nan_to_num(scores)).max() < LIMIT


def small_model_and_its_elbo(x):
    """A random model, and the gradient of the enumerated ELBO of x by encoder and decoder, in double precision."""
    torch.manual_seed(0)
    model = lb.LatentModel(lb.MLP([4, 5, 3]), lb.MLP([3, 5, 4]), random_rbm(3, 2, 0, scale=1.0))
    twin = copy.deepcopy(model).double()
    rbm = (twin.prior.weight, twin.prior.visible_bias, twin.prior.hidden_bias)
    tables = exact_latent.Tables(twin.encoder, twin.decoder, rbm, x.double())
    elbo = (tables.q * tables.weights().log()).sum(1).mean()
    exact = torch.autograd.grad(elbo, [*twin.encoder.parameters(), *twin.decoder.parameters()])
    return model, torch.cat([g.flatten() for g in exact])


def test_own_losses_gradients_are_the_elbos_in_expectation():
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    model, exact = small_model_and_its_elbo(x)
    parameters = [*model.encoder.parameters(), *model.decoder.parameters()]
    generator, found = seeded(1), []
    for _ in range(3000):
        losses = own_losses.disarm(model, x, torch.zeros(1, 3), 2, generator)
        gradient = torch.autograd.grad(losses.encoder + losses.decoder, parameters)
        found.append(-torch.cat([g.flatten() for g in gradient]))
    scores = mean_scores(torch.stack(found), exact.numpy())
    assert np.abs(np.nan_to_num(scores)).max() < LIMIT


def test_a_run_with_own_losses_resumes_with_them_and_without_is_refused(tmp_path):
    config = tiny()
    whole = lb.train(config, tmp_path / "whole", quiet=True, losses=own_losses.disarm)
    assert whole.config.joint.objective == "given"
    stopped = lb.train(config, tmp_path / "parts", quiet=True, max_minutes=1e-9, losses=own_losses.disarm)
    while not stopped.finished:
        lb.train(config, tmp_path / "parts", resume=True, quiet=True, max_minutes=1e-9, losses=own_losses.disarm)
    assert_same_run(whole, stopped)
    with pytest.raises(lb.RunError, match="objective= or losses="):
        lb.train(whole.config, tmp_path / "parts", resume=True, quiet=True)
    with pytest.raises(lb.RunError, match="objective, losses: expected one of them"):
        lb.train(config, tmp_path / "both", quiet=True, objective=lb.vimco, losses=own_losses.disarm)


def test_the_annealers_bits_follow_the_rbm():
    """With a slow schedule within 0.05 of p(z) in total variation; bits in place of spins would be far off."""
    rbm = random_rbm(4, 3, 2, scale=0.8)
    J, f, g, _ = (part.numpy() for part in rbm.to_ising())
    spins = own_sampler.anneal(J, f, g, reads=20_000, sweeps=60, seed=0)
    counts = np.bincount(((spins + 1) / 2 @ 2 ** np.arange(3, -1, -1)).astype(int), minlength=16)
    exact = exact_latent.prior_table(*(p.detach().double() for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias)))
    assert np.abs(counts / counts.sum() - exact.numpy()).sum() / 2 < 0.05


class OwnNormal(lb.NormalPrior):
    """Which the configuration calls given."""


class Continuous(lb.GaussianModel):
    """Two normal latents under a prior that is a class of its own."""

    def __init__(self):
        super().__init__(lb.MLP([64, 8, 4]), lb.MLP([2, 8, 64]), OwnNormal(2))


@pytest.mark.parametrize(
    ("objective", "given", "words"),
    [
        ("vimco", {}, "joint.objective: expected iwae"),
        ("iwae", {"objective": lb.wake}, "joint.objective: expected iwae, or losses=, with a Continuous, got given"),
        ("iwae", {"model": "bits"}, "joint.objective: expected another than iwae with a LatentModel, got iwae"),
    ],
)
def test_an_objective_for_other_latents_is_refused(tmp_path, objective, given, words):
    changes = {"autoencoder": {"epochs": 0}, "rbm": {"cd_epochs": 0, "pcd_epochs": 0}}
    config, splits = tiny(**changes, joint={"objective": objective}), lb.load_data("digits")
    bits = lb.LatentModel(lb.MLP([64, 8, 2]), lb.MLP([2, 8, 64]), own_prior.MixturePrior(2, 2))
    model = bits if given.pop("model", "") else Continuous()
    with pytest.raises((lb.RunError, ValueError), match=words):
        lb.train(config, tmp_path / "run", quiet=True, model=model, splits=splits, **given)
    assert not (tmp_path / "run").exists()


class Dropping(lb.LatentModel):
    """Its encoder normalizes batches and drops; what else it has is frozen."""

    def __init__(self):
        encoder = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5),
                                      torch.nn.Linear(16, 8))  # fmt: skip
        super().__init__(lb.Scaled(encoder), lb.MLP([8, 16, 64]), lb.RBM(8, 6))
        self.frozen = torch.nn.Dropout(0.5).eval()


def test_what_modules_draw_themselves_repeats_and_resumes(tmp_path):
    """Dropout draws from PyTorch's own generator, which is left as it was."""

    def trained(name, seed, minutes=None):
        torch.manual_seed(0)
        model = Dropping()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        run = lb.train(tiny(), tmp_path / name, model=model, quiet=True, max_minutes=minutes)
        while not run.finished:
            run = lb.train(run.config, run.path, model=model, quiet=True, resume=True, max_minutes=minutes)
        assert torch.equal(torch.get_rng_state(), before)
        return lb.runs.read_sealed(run.path / "joint.safetensors")[0]

    once = trained("once", 1)
    for again in (trained("another-seed", 2), trained("stopped", 3, 1e-9)):
        assert all(torch.equal(value, again[name]) for name, value in once.items())


@pytest.mark.parametrize(
    ("encoder", "decoder", "prior"),
    [([50, 8], [8, 64], 8), ([64, 8], [8, 60], 8), ([64, 8], [7, 64], 8), ([64, 8], [8, 64], 9)],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, encoder, decoder, prior):
    def plain(sizes):
        return torch.nn.Linear(*sizes)

    model = lb.LatentModel(lb.Scaled(plain(encoder)), plain(decoder), lb.RBM(prior, 6))
    with pytest.raises(lb.RunError, match="model: does not fit images of 64 values, or its parts do not fit"):
        lb.train(tiny(), tmp_path / "run", model=model, quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_neither_drops_nor_learns_and_leaves_modes_as_they_were():
    torch.manual_seed(0)
    model, x = Dropping(), lb.load_data("digits").test[:40].float()
    model.encoder(lb.load_data("digits").train.float())  # running statistics
    counts = lb.Counts(samples=5, chains=10, temperatures=10, raise_images=0)
    state = copy.deepcopy(model.state_dict())
    found = [lb.evaluate(model.train(mode), x, counts=counts, generator=seeded(1)) for mode in (True, False)]
    assert found[0].likelihood.nll == found[1].likelihood.nll
    for name, value in model.state_dict().items():
        assert name not in state or torch.equal(value, state[name]), name
    model.train()
    model.frozen.eval()
    for part in (x[:1], x):  # one image alone has no batch to be normalized by
        model.log_prob(part, 5, 0.0, seeded(1))
        assert torch.equal(model.encode(x)[: len(part)], model.encode(part))
    model.inpaint(x, torch.arange(64) < 32, steps=2, generator=seeded(1))
    for name, value in model.state_dict().items():
        assert name not in state or torch.equal(value, state[name]), name
    lb.evaluate(model, x, counts=counts, generator=seeded(1))
    assert model.training
    assert model.encoder.net[2].training
    assert not model.frozen.training


def test_a_model_that_was_loaded_is_put_into_training_mode(tmp_path):
    torch.manual_seed(0)
    model = Dropping().eval()
    config = tiny(autoencoder={"epochs": 0}, rbm={"cd_epochs": 0, "pcd_epochs": 0})
    before = model.encoder.net[1].running_mean.clone()
    lb.train(config, tmp_path / "run", quiet=True, model=model)
    assert not torch.equal(model.encoder.net[1].running_mean, before)


class Tied(torch.nn.Module):
    """A decoder with the weights of an encoder's only layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.bias = layer, torch.nn.Parameter(torch.zeros(layer.weight.shape[1]))

    def forward(self, z):
        return torch.nn.functional.linear(z, self.layer.weight.T, self.bias)


@pytest.mark.filterwarnings("error")
def test_weights_that_encoder_and_decoder_share_are_moved_once(tmp_path):
    """In all stages: twice by an optimizer's step, or by weight decay, would be another rate."""
    torch.manual_seed(0)
    encoder = torch.nn.Linear(64, 8)
    model = lb.LatentModel(lb.Scaled(encoder), Tied(encoder), lb.RBM(8, 6))
    assert lb.train(tiny(), tmp_path / "run", quiet=True, model=model).finished
    before = encoder.weight.detach().clone()
    shrink(model, 0.1)
    torch.testing.assert_close(encoder.weight.detach(), 0.9 * before)
    nets, _ = optimizers(model, tiny().joint)
    moved = [p for group in nets.param_groups for p in group["params"]]
    assert len(moved) == len({id(p) for p in moved}) == 3


def test_a_report_of_a_model_of_ones_own_is_refused(tmp_path, capsys):
    config, splits = tiny(), lb.load_data("digits")
    run = lb.train(config, tmp_path / "run", quiet=True, model=same_model(config, splits), max_minutes=1e-9)
    assert not (run.path / "model.safetensors").exists()
    assert cli.main(["report", str(run.path)]) == 2
    assert "expected a run of a recipe, got one with a model that was given in Python" in capsys.readouterr().err


def test_convolutions_have_the_precision_of_float32_while_training(tmp_path):
    seen, before = [], torch.backends.cudnn.allow_tf32

    def losses(*arguments):
        seen.append(torch.backends.cudnn.allow_tf32)
        return own_losses.disarm(*arguments)

    lb.train(tiny(), tmp_path / "run", quiet=True, losses=losses)
    assert not any(seen)
    assert seen
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("form", [lb.Form(1, 8, 8, 16), lb.Form(2, 8, 8, 256)])
def test_pixels_that_the_packages_networks_have_no_distribution_for_are_refused(tmp_path, form):
    splits = lb.make_splits("mine", [np.zeros((20, form.dimensions), np.uint8)] * 3, form)
    config = tiny(model={"network": "resnet", "maps": (4,), "repeats": 1})
    with pytest.raises(lb.RunError, match=f"got {form.levels} levels in {form.channels} channels"):
        lb.train(config, tmp_path / "run", quiet=True, splits=splits)
    assert not (tmp_path / "run").exists()
