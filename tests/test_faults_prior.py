"""Training that goes wrong by itself: values that are not finite, a prior that explodes, chains that are stuck."""

import itertools
import json
import math

import faults
import pytest
import torch
from checks import seeded
from test_train import continuous, tiny

import latentbits as lb
from latentbits import session, watch
from latentbits.files import load_state
from latentbits.recipes import RECIPES
from latentbits.runs import Run

SHORT = {"autoencoder": {"epochs": 3, "batch_size": 50}}
RBM_ALONE = {"model": {"network": "none", "hidden": 10}, "autoencoder": {"epochs": 0}, "joint": {"epochs": 0}}


def rate_of_rbm(rate):
    return tiny(rbm={"learning_rate": rate, "batch_size": 50, "cd_epochs": 3, "pcd_epochs": 3})


def rate_of_prior(rate, **changes):
    return tiny(**SHORT, joint={"prior_learning_rate": rate, "epochs": 10, "batch_size": 50, **changes})


EXPLOSIONS = {
    "stage 2": rate_of_rbm(1e4),
    "stage 3": rate_of_prior(1e4),
    "stage 2, beyond float32": rate_of_rbm(1e37),
    "stage 2, RBM alone": tiny(**RBM_ALONE, rbm={"learning_rate": 1e4, "batch_size": 50}),
    "stage 3, wake-sleep": rate_of_prior(1e4, objective="crws"),
    "stage 3, tempered chains": rate_of_prior(1e4, temperatures=3),
    "stage 3, centered": rate_of_prior(1e4, centered=True),
    "warm start": tiny(**SHORT, warm_start={"epochs": 5, "prior_learning_rate": 1e4, "batch_size": 50}),
    "bits for a prior": tiny(
        model={"prior": "bernoulli"}, joint={"prior_learning_rate": 1e4, "epochs": 10, "batch_size": 50}
    ),
}
NOT_FINITE = {
    "stage 1": tiny(autoencoder={"learning_rate": 1e37, "epochs": 5, "batch_size": 50}),
    "stage 3, encoder": tiny(**SHORT, joint={"encoder_learning_rate": 1e37, "epochs": 10, "batch_size": 50}),
    "stage 3, decoder": tiny(**SHORT, joint={"decoder_learning_rate": 1e37, "epochs": 10, "batch_size": 50}),
    "continuous latents": continuous(encoder_learning_rate=1e37, epochs=10, batch_size=50),
}


def refused(config, path):
    """The error by which training ends; its last checkpoint is whole, finite, and leads to the same error."""
    with pytest.raises(lb.TrainingError) as error:
        lb.train(config, path, quiet=True)
    run = Run(path)
    state = load_state(run.checkpoint)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    before = faults.snapshot(path)
    with pytest.raises(lb.TrainingError) as again:
        lb.train(config, path, resume=True, quiet=True)
    kept = {each: what for each, what in faults.snapshot(path).items() if "checkpoint" in each.name}
    assert kept == {each: what for each, what in before.items() if "checkpoint" in each.name}
    if (path / "model.safetensors").is_file():
        assert lb.load(path) is not None
    assert str(again.value) == str(error.value)
    return str(error.value)


def test_a_prior_that_explodes_stops_the_run(tmp_path):
    chosen = list(EXPLOSIONS)[: faults.form(3, None)]
    for i, name in enumerate(chosen):
        message = refused(EXPLOSIONS[name], tmp_path / str(i))
        assert "the prior exploded: the free energies of data and chains came" in message or "not finite" in message
        assert ("not finite" in message) == ("float32" in name)
        assert "the last good checkpoint is kept. Lower the" in message
    faults.ran("prior that explodes", len(chosen))


def test_values_that_are_not_finite_stop_the_run(tmp_path, monkeypatch):
    """Before any checkpoint could hold them."""
    monkeypatch.setattr(session, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    chosen = list(NOT_FINITE)[: faults.form(2, None)]
    for i, name in enumerate(chosen):
        message = refused(NOT_FINITE[name], tmp_path / str(i))
        assert "not finite; the last good checkpoint is kept" in message
        assert f"stage {'autoencoder' if name == 'stage 1' else 'joint'}, step" in message
    faults.ran("values that are not finite", len(chosen))


def begin_with(prior, tmp_path):
    """A file of weights whose prior holds given parameters."""
    model = lb.load(lb.train(tiny(), tmp_path / "first", quiet=True).path)
    with torch.no_grad():
        for name, values in prior.items():
            getattr(model.prior, name).copy_(values)
    model.prior.base_bias = None
    Run(tmp_path / "first").save_weights("joint", model)
    return str(tmp_path / "first" / "joint.safetensors")


STUCK = {
    # pairs of bits so coupled that neither ever leaves the other: every state is as probable, and none is left
    "hardly move": {
        "weight": 60 * torch.eye(8, 6),
        "visible_bias": torch.tensor([-30.0] * 6 + [30.0, -30.0]),
        "hidden_bias": torch.full((6,), -30.0),
    },
    "all alike": {"weight": torch.zeros(8, 6), "visible_bias": torch.full((8,), 8.0), "hidden_bias": torch.zeros(6)},
}


def test_chains_that_are_stuck_are_named_once(tmp_path, capsys):
    cases = list(itertools.product(STUCK, faults.form([1], [1, 2])))
    for number, (problem, temperatures) in enumerate(cases):
        stuck_chains(tmp_path / str(number), capsys, problem, temperatures)
    faults.ran("chains that are stuck", len(cases))


def stuck_chains(tmp_path, capsys, problem, temperatures):
    config = tiny(
        autoencoder={"epochs": 0},
        rbm={"cd_epochs": 0, "pcd_epochs": 0},
        joint={"epochs": 4, "prior_learning_rate": 1e-9, "temperatures": temperatures, "average": 0.0},
    )
    config = config.model_copy(update={"weights": begin_with(STUCK[problem], tmp_path)})
    run = lb.train(config, tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert run.finished
    assert said.count("warning: the chains") == (temperatures == 1 or problem == "all alike")
    if temperatures == 1 or problem == "all alike":
        assert f"warning: the chains {'are ' if problem == 'all alike' else ''}{problem}: " in said
        assert "a lower learning rate of the prior or --joint.temperatures 10 can help, in a new run" in said


def few_bits(visible, hidden, seed, **changes):
    return tiny(
        model={"latent": visible, "hidden": hidden},
        autoencoder={"epochs": 10, "batch_size": 50},
        rbm={"batch_size": 20, "cd_epochs": 3, "pcd_epochs": 3, "learning_rate": 0.1},
        joint={"epochs": 10, "batch_size": 50, **changes},
    ).model_copy(update={"seed": seed})


def healthy():
    """Runs in which nothing is wrong: RBMs of one bit and more, each objective, first steps, the recipe."""
    yield "one bit", few_bits(1, 1, 0)
    yield "few bits", few_bits(4, 2, 1)
    yield "first steps", tiny(warm_start={"epochs": 1, "batch_size": 399, "chains": 30})
    if faults.FULL:
        for seed in range(4):
            for visible, hidden in ((1, 1), (2, 3), (8, 6)):
                yield f"{visible}x{hidden}, {seed}", few_bits(visible, hidden, seed)
        yield "wake-sleep", few_bits(8, 6, 0, objective="crws")
        yield "no pretraining", tiny(autoencoder={"epochs": 0}, rbm={"cd_epochs": 0, "pcd_epochs": 0})
        yield "tempered", few_bits(8, 6, 0, temperatures=3)
        yield "RBM alone", tiny(**RBM_ALONE, rbm={"cd_epochs": 6, "pcd_epochs": 4, "batch_size": 20})
        yield "digits", RECIPES["digits"].make()


def test_healthy_runs_raise_no_alarm(tmp_path, capsys, monkeypatch):
    """And their gaps stay a factor of ten below the bound, in each step."""
    largest, cases = [], list(healthy())
    watch_gap = session.Session.watch_gap

    def noted(self, prior, gap):
        largest.append(abs(float(gap)) / watch.most_gap(prior.visible))
        watch_gap(self, prior, gap)

    monkeypatch.setattr(session.Session, "watch_gap", noted)
    for i, (name, config) in enumerate(cases):
        assert lb.train(config, tmp_path / str(i)).finished, name
        assert "warning:" not in capsys.readouterr().err, name
        faults.progress("healthy runs", i + 1, len(cases))
    assert max(largest) < 0.1
    faults.measured("largest free-energy gap of healthy steps, in M log 2", round(10 * max(largest), 2))
    faults.ran("healthy runs", len(cases))


@pytest.mark.parametrize("name", lb.pretrained_names())
def test_models_of_the_package_raise_no_alarm(name):
    """Neither do the epochs of kept runs, nor chains of their models between two looks."""
    model = lb.load_pretrained(name)
    z = lb.gibbs(model.prior, lb.random_bits(200, model.prior, seeded(0)), 200, seeded(1))
    later = lb.gibbs(model.prior, z, 50, seeded(2))
    assert watch.stuck(later, z, model.prior.base_bias.sigmoid()) is None
    among = watch.differing(later.mean(0))
    assert float((z != later).sum(1).float().mean()) > 0.5 * among
    folder = faults.HERE.parent / "results" / "runs"
    gaps = [
        abs(row["free_energy_gap"])
        for path in folder.glob("mnist-*/metrics.jsonl")
        if lb.Run(path.parent).config.model.prior == "rbm"  # of a prior that is summed exactly it is -log p(z)
        for row in map(json.loads, path.read_text().splitlines())
        if row["stage"] in ("rbm", "joint")
    ]
    assert len(gaps) > 300
    assert max(gaps) < 200 * math.log(2) / 10
