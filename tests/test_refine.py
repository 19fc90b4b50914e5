"""Posteriors of each datum's own, against enumerated bounds, mean-field optima and a posterior in closed form."""

import exact_latent
import pytest
import torch
from checks import LIMIT, mean_scores, random_rbm, seeded
from test_objectives import D, M, exact_tables, small_model
from torch import nn

from latentbits import Counts, GaussianModel, NormalPrior, evaluate, refine
from latentbits.distributions import DiagonalNormal
from latentbits.records import evaluation_captions, evaluation_rows

X = exact_latent.states(D).float()


def exact_elbo(tables, logits):
    """E_q log p(x, z) / q(z) over all states, for posteriors of any logits (B, M), with shape (B,)."""
    q = exact_latent.bernoulli_table(logits.double(), tables.z)
    return (q * (tables.likelihood * tables.prior / q).log()).sum(1).detach()


def best_elbo(tables, starts=6, sweeps=60):
    """The highest ELBO of independent bits: coordinate ascent on the enumerated one, from several starts, (B,)."""
    log_joint = (tables.likelihood * tables.prior).log().detach()
    best = torch.full((len(log_joint),), -torch.inf, dtype=torch.float64)
    for start in range(starts):
        logits = 3 * torch.randn(len(log_joint), M, generator=seeded(start), dtype=torch.float64)
        for _ in range(sweeps):
            for m in range(M):
                others = logits.clone()
                others[:, m] = 0.0
                q = exact_latent.bernoulli_table(others, tables.z) * log_joint * 2
                on = tables.z[:, m] > 0.5
                logits[:, m] = q[:, on].sum(1) - q[:, ~on].sum(1)
        best = torch.maximum(best, exact_elbo(tables, logits.clamp(-30, 30)))
    return best


def test_steps_close_most_of_the_gap_to_the_best_independent_bits():
    model = small_model(1)
    _, tables = exact_tables(model, X)
    best = best_elbo(tables).mean()
    elbo = [float(exact_elbo(tables, refine(model, X, steps, seeded(0))).mean()) for steps in (0, 20, 200)]
    assert best - elbo[0] > 0.3  # or there is nothing to show
    assert elbo[0] < elbo[1] < elbo[2] <= best + 1e-9
    assert best - elbo[2] < 0.3 * (best - elbo[0])


def test_no_steps_leave_the_encoders_posterior():
    model = small_model(1)
    assert torch.equal(refine(model, X, 0), model.encoder(X).detach())


def test_the_bound_is_below_log_prob_whatever_q_and_its_weights_are_unbiased():
    """Each time refined anew, a mean weight is p(x) in expectation, although q depends on chance."""
    model = small_model(2)
    _, tables = exact_tables(model, X)
    log_z = model.prior.log_partition().item()
    n, x = 4000, X[[3, 9]]
    parameters = refine(model, x.repeat(n, 1), 15, seeded(0))
    sums = model.importance_sums(x.repeat(n, 1), 3, generator=seeded(1), parameters=parameters)
    bound = (sums.log_mean - log_z).view(n, 2).numpy()
    exact = tables.log_prob()[[3, 9]].detach().numpy()
    scores = mean_scores(torch.as_tensor(bound).exp().numpy(), torch.as_tensor(exact).exp().numpy())
    assert abs(scores).max() < LIMIT
    assert (bound.mean(0) < exact).all()


def test_many_samples_of_refined_posteriors_reach_log_prob():
    model = small_model(3)
    _, tables = exact_tables(model, X)
    parameters = refine(model, X, 50, seeded(0))
    sums = model.importance_sums(X, 50_000, generator=seeded(1), parameters=parameters)
    difference = sums.log_mean - model.prior.log_partition() - tables.log_prob().detach()
    assert (difference.abs() < LIMIT * sums.variance.sqrt() + 1e-5).all()


class Linear(GaussianModel):
    """x = W z + b + noise of 0.5, whose posterior is known, under an encoder that says the same of all x."""

    def __init__(self):
        torch.manual_seed(0)
        encoder = nn.Linear(5, 6)
        nn.init.zeros_(encoder.weight)
        decoder = nn.Linear(3, 5)
        super().__init__(encoder, decoder, NormalPrior(3), lambda y: DiagonalNormal(y, torch.full_like(y, 0.5)))


def test_normal_posteriors_reach_the_best_diagonal_one():
    model = Linear()
    x = torch.randn(20, 5, generator=seeded(1))
    W, b = model.decoder.weight.detach().double(), model.decoder.bias.detach().double()
    precision = torch.eye(3, dtype=torch.float64) + W.T @ W / 0.25
    mean = torch.linalg.solve(precision, W.T @ (x.double() - b).T / 0.25).T
    errors = []
    for steps in (0, 50, 500):
        q = model.posterior_of(refine(model, x, steps, seeded(2)))
        errors.append(
            [float((q.loc - mean).abs().mean()), float((q.scale - precision.diagonal().rsqrt()).abs().mean())]
        )
    loc, scale = zip(*errors, strict=True)
    assert loc[0] > loc[1] > loc[2]
    assert scale[0] > scale[2]
    assert loc[2] < 0.08
    assert scale[2] < 0.08


def test_data_are_refined_each_by_itself(monkeypatch):
    """A few at a time in memory."""
    model = small_model(1)
    together = refine(model, X, 200, seeded(0))
    monkeypatch.setattr(type(model), "rows_at_once", lambda self: 8 * 5)
    told = []
    apart = refine(model, X, 200, seeded(0), told.append)
    _, tables = exact_tables(model, X)
    assert float((exact_elbo(tables, together) - exact_elbo(tables, apart)).abs().mean()) < 0.1
    assert told == sorted(told)
    assert len(told) == 200 * 4
    assert told[-1] == 1.0


def test_an_evaluation_says_that_its_posteriors_were_refined():
    model = small_model(1)
    counts = Counts(50, 200, 100, 8, 2, 50)
    plain = evaluate(model, X, "test", counts, "linear", seeded(0))
    refined = evaluate(model, X, "test", counts._replace(refine_steps=100), "linear", seeded(0))
    assert plain.refine_steps == 0
    assert refined.refine_steps == 100
    assert refined.likelihood_fewer_samples.nll < plain.likelihood_fewer_samples.nll
    assert evaluation_rows(plain)[0][0] == "L_K, exact Z"
    assert evaluation_rows(refined)[0][0] == "refined, exact Z"
    assert any("100 gradient steps" in line for line in evaluation_captions(refined))
    assert not any("gradient steps" in line for line in evaluation_captions(plain))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: refine(small_model(), X[:, :3], 5), "x: expected shape"),
        (lambda: refine(small_model(), X, -1), "steps: expected a whole number of at least 0, got -1"),
        (lambda: evaluate(random_rbm(4, 2), X, counts=Counts(refine_steps=5)), "refine_steps: expected 0 for an RBM"),
        (
            lambda: evaluate(small_model(), X, counts=Counts(refine_steps=-2)),
            "refine_steps: expected a whole number of at least 0",
        ),
    ],
)
def test_what_cannot_be_refined_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_weights_have_no_gradients_afterwards():
    model = small_model(1)
    refine(model, X, 3)
    assert all(p.grad is None for p in model.parameters())
