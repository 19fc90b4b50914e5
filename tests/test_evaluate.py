"""Evaluations against exact log-likelihoods; error bars against the spread of repeated evaluations."""

import json
import math
from importlib import import_module
from pathlib import Path

import exact
import numpy as np
import pytest
import torch
from checks import LIMIT, machine, mean_scores, random_rbm, seeded
from test_objectives import exact_tables, small_model

import latentbits as lb
from latentbits import BernoulliPrior, Counts, LatentModel, evaluate
from latentbits.config import ModelConfig, ValidationConfig
from latentbits.evaluate import exact_log_partition, fit_prior_base, quick_nll
from latentbits.figures import Evaluation, doubts
from latentbits.importance import LARGEST, LargestWeights
from latentbits.model import build
from latentbits.records import Record, evaluation_captions
from latentbits.sharing import evaluation_lines
from latentbits.splits import Form, some_of

MODULE = import_module("latentbits.evaluate")
RESULTS = Path(__file__).parents[1] / "results"
COUNTS = Counts(samples=2000, chains=200, temperatures=200, raise_images=50, raise_resampled=4, raise_temperatures=200)


@pytest.fixture
def model():
    return small_model(2)


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((60, 4), 0.5), generator=seeded(5))


def exact_nll(model, x):
    return -exact_tables(model, x)[1].log_prob().detach()


def test_both_sides_hold_the_exact_value(model, x):
    result = evaluate(model, x, "valid", COUNTS, generator=seeded(0))
    exact = exact_nll(model, x)
    assert result.log_partition.method == "exact"
    assert abs(result.likelihood.nll - float(exact.mean())) < LIMIT * result.likelihood.standard_error_monte_carlo
    raised = result.likelihood_raise
    assert (
        abs(raised.nll - float(exact[[i * 60 // 50 for i in range(50)]].mean()))
        < LIMIT * raised.standard_error_monte_carlo + 0.02
    )
    assert raised.images == 50
    assert 3 < raised.resampled_effective_sample_size <= 4  # of m = 4 chains, at 200 temperatures
    annealed = result.log_partition_ais
    assert abs(annealed.value - result.log_partition.value) < LIMIT * annealed.standard_error
    assert result.likelihood_fewer_samples.samples == 200
    assert result.likelihood.bits_per_dimension == pytest.approx(result.likelihood.nll / 4 / math.log(2))
    assert result.likelihood.standard_error_images == pytest.approx(float(exact.std()) / math.sqrt(60), rel=0.05)


@pytest.mark.parametrize(
    ("images", "count", "positions"),
    [(10, 5, [0, 2, 4, 6, 8]), (10, 4, [0, 2, 5, 7]), (10, 1, [0]), (3, 8, [0, 1, 2]), (3, None, [0, 1, 2])],
)
def test_some_images_are_spread_over_the_split(images, count, positions):
    assert some_of(torch.arange(images)[:, None], count).flatten().tolist() == positions


def test_raise_is_of_images_from_all_over_the_split(model, x):
    ones, zeros = torch.ones_like(x), torch.zeros_like(x)
    both = torch.cat([ones, zeros])  # sorted, and differently likely
    counts = COUNTS._replace(samples=20, raise_images=len(both) // 2)
    each = [float(evaluate(model, part, "", counts, generator=seeded(0)).likelihood.nll) for part in (ones, zeros)]
    raised = evaluate(model, both, "", counts, generator=seeded(0)).likelihood_raise
    assert raised.evenly_spaced
    assert raised.images == len(x)
    assert abs(raised.nll - sum(each) / 2) < 0.2 * abs(each[0] - each[1])


def test_ais_stands_in_where_log_z_cannot_be_summed(model, x, monkeypatch):
    monkeypatch.setattr(MODULE, "exact_log_partition", lambda prior: None)
    result = evaluate(model, x, "valid", COUNTS, generator=seeded(1))
    assert result.log_partition.method == "ais"
    assert result.log_partition_ais is None
    error = result.likelihood.standard_error_monte_carlo
    assert error > result.log_partition.standard_error  # the chains' error is part of it
    assert abs(result.likelihood.nll - float(exact_nll(model, x).mean())) < LIMIT * error
    with pytest.raises(ValueError, match="leaves log Z unknown"):
        evaluate(model, x, "valid", COUNTS._replace(chains=0), generator=seeded(1))


def test_monte_carlo_error_is_the_spread_of_repeated_evaluations(model, x, monkeypatch):
    monkeypatch.setattr(MODULE, "exact_log_partition", lambda prior: None)
    counts = Counts(samples=50, chains=20, temperatures=5, raise_temperatures=0)
    results = [evaluate(model, x, "valid", counts, "linear", seeded(s)).likelihood for s in range(200)]
    observed = np.std([result.nll for result in results], ddof=1)
    claimed = np.mean([result.standard_error_monte_carlo for result in results])
    # 200 repeats give a standard deviation to 5 %, and the jackknife has its own few per cent
    assert observed == pytest.approx(claimed, rel=0.25)


@pytest.mark.parametrize(("over_data", "chains"), [(False, 30), (True, 1000)])
def test_raises_monte_carlo_error_is_the_spread_of_repeated_evaluations(model, x, over_data, chains):
    """For these images: with few temperatures they differ in what RAISE loses, which another seed does not change."""
    x = x[:20]
    counts = Counts(samples=400, chains=0, raise_images=len(x), raise_resampled=chains, raise_temperatures=2)
    of = random_rbm(4, 3, 1, scale=2.0) if over_data else model
    found = [evaluate(of, x, "valid", counts, "linear", seeded(s)).likelihood_raise for s in range(200)]
    observed = np.std([each.nll for each in found], ddof=1)
    claimed = np.mean([each.standard_error_monte_carlo for each in found])
    assert observed == pytest.approx(claimed, rel=0.25)
    if over_data:
        assert np.mean([each.difference_standard_error for each in found]) > 2 * claimed
    one = evaluate(of, x, "valid", counts._replace(raise_resampled=1), generator=seeded(0)).likelihood_raise
    assert one.standard_error_monte_carlo > 0.999 * one.difference_standard_error


@pytest.mark.parametrize("K", [2, 3, LARGEST, LARGEST + 1, 100, 5000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_monte_carlo_variance_is_that_of_leaving_one_out(K, spread):
    """Of weights that come in chunks, by leaving each out in turn; where all are alike, the variance of a mean."""
    log_w = spread * torch.randn(K, 3, dtype=torch.float64, generator=seeded(K)) - 700
    largest = LargestWeights(log_w[0])
    for chunk in log_w.split(37):
        largest.add(chunk)
    variance = largest.variance(K).numpy()
    share = (log_w - log_w.logsumexp(0)).exp().numpy()
    left = np.log1p(-share)  # but for a constant, the log of what is left
    expected = (K - 1) * left.var(0)
    # -w for log(1 - w) of the smaller ones, each up to 1 / 16, is off by 3 %, and by a step of w^2 / 2 from the larger
    step = np.sort(share, 0)[-LARGEST - 1] ** 2 / 2 if K > LARGEST else np.zeros(3)
    allowed = 0.03 * expected + LARGEST * step**2 + 2 * step * np.sqrt(LARGEST * expected)
    assert (np.abs(variance - expected) <= allowed + 1e-12).all()
    if spread == 0.01 and K not in (LARGEST + 1, 100):
        w = (log_w + 700).exp().numpy()
        np.testing.assert_allclose(variance, w.var(0, ddof=1) / K / w.mean(0) ** 2, rtol=0.05)


def test_monte_carlo_error_is_not_too_small_where_few_samples_count():
    """The spread of repeated bounds whose log-weights vary by several nats."""
    K, n = 50, 4000
    log_w = 3 * torch.randn(K, n, dtype=torch.float64, generator=seeded(5))
    largest = LargestWeights(log_w[0])
    largest.add(log_w)
    size = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()
    assert size.mean() < 5
    observed, claimed = float(log_w.logsumexp(0).std()), float(largest.variance(K).mean().sqrt())
    assert observed < claimed < 1.5 * observed


def test_the_error_of_raises_difference_is_its_spread_over_other_images(model, x, monkeypatch):
    rbm, states = random_rbm(4, 3, 1, scale=2.0), exact.states(4)
    p = exact.probabilities(machine(rbm))
    rbm.fit_base(torch.tensor(p @ states), 10**6)  # or the first evaluation would
    found = []
    for s in range(300):
        rows = np.random.default_rng(s).choice(16, 30, p=p)
        images = torch.tensor(states[rows], dtype=torch.float32)
        found.append(evaluate(rbm, images, "", Counts(1, 0, 0, 30, 50, 2), "linear", seeded(s)).likelihood_raise)
    claimed = math.sqrt(np.mean([each.difference_standard_error**2 for each in found]))
    assert np.std([each.difference for each in found], ddof=1) == pytest.approx(claimed, rel=0.2)
    monkeypatch.setattr(MODULE, "exact_log_partition", lambda prior: None)
    few = evaluate(model, x, "valid", COUNTS._replace(chains=3, temperatures=2), generator=seeded(1))
    assert few.likelihood_raise.difference_standard_error > few.log_partition.standard_error > 0


def test_one_sample_has_no_error_bar(model, x):
    assert model.importance_sums(x, 1, generator=seeded(2)).variance.isnan().all()


def test_raise_through_the_model_is_unbiased_for_the_annealed_likelihood(model, x):
    """With two temperatures p_ann is far from p: RAISE must follow p_ann, and tighten with more."""
    rbm = model.prior
    rbm.base_bias = rbm.visible_bias.detach().clone()
    base = rbm.base_bias.double().numpy()
    states = exact.states(3)
    logits = model.decoder(torch.tensor(states, dtype=torch.float32)).double().detach().numpy()
    p = 1 / (1 + np.exp(-logits))
    image = x[0].numpy()
    likelihood = np.where(image > 0.5, p, 1 - p).prod(1)
    means = []
    for temperatures in (2, 8):
        p_ann = exact.annealing_probabilities(machine(rbm), base, np.linspace(0, 1, temperatures + 1))
        target = float(likelihood @ p_ann)
        counts = Counts(50, 0, 0, 1, 4, temperatures)
        estimates = [
            math.exp(-evaluate(model, x[:1], "valid", counts, "linear", seeded(s)).likelihood_raise.nll)
            for s in range(400)
        ]
        assert abs(mean_scores(np.array(estimates)[:, None], target)[0]) < LIMIT
        means.append(np.mean(estimates))
    truth = float(likelihood @ exact.probabilities(machine(rbm)))
    assert abs(math.log(means[1] / truth)) < abs(math.log(means[0] / truth))


def test_a_model_with_numbers_that_are_none_is_not_evaluated(model, x):
    model.prior.hidden_bias.data[0] = math.nan
    with pytest.raises(ValueError, match=r"model: expected finite parameters, got others in prior.hidden_bias"):
        evaluate(model, x, "valid", COUNTS)
    nll, error = quick_nll(model, x, x, ValidationConfig(), 1)
    assert math.isnan(nll)
    assert error is None


def test_figures_that_are_no_numbers_are_doubted(model, x):
    found = evaluate(model, x, "valid", COUNTS, "linear", seeded(3))
    spoilt = found.likelihood.model_copy(update={"effective_sample_size": math.nan})
    assert any(
        "posterior samples nan count" in doubt for doubt in doubts(found.model_copy(update={"likelihood": spoilt}))
    )


def test_checkpoints_may_be_named_by_a_string(model, x, tmp_path):
    found = evaluate(model, x, "valid", COUNTS, "linear", seeded(3), checkpoints=str(tmp_path / "new"))
    assert found == evaluate(model, x, "valid", COUNTS, "linear", seeded(3))


def test_an_rbm_over_the_data(x):
    rbm = random_rbm(4, 3, 1, scale=0.7)
    result = evaluate(rbm, x, "test", COUNTS, generator=seeded(0))
    probabilities = dict(zip(map(tuple, exact.states(4)), exact.probabilities(machine(rbm)), strict=True))
    truth = -np.mean([math.log(probabilities[tuple(row)]) for row in x.numpy()])
    assert result.likelihood.nll == pytest.approx(truth, abs=1e-5)
    assert result.likelihood.samples == 0
    assert abs(result.likelihood_raise.difference) < LIMIT * result.likelihood_raise.difference_standard_error + 0.02


def test_doubts_name_what_failed(model, x, monkeypatch):
    """A good evaluation raises none; too few samples, temperatures and a distance of the sides one each."""
    monkeypatch.setattr(MODULE, "exact_log_partition", lambda prior: None)
    good = evaluate(model, x, "valid", COUNTS, generator=seeded(0))
    assert doubts(good) == []
    assert "K = 1 posterior" in doubts(evaluate(model, x, "valid", COUNTS._replace(samples=1), generator=seeded(0)))[0]
    for scale, doubt in ((2.0, "RAISE is +"), (8.0, "2,000 AIS chains")):
        rbm = random_rbm(30, 20, 1, scale=scale)
        z = lb.gibbs(rbm, lb.random_bits(50, rbm, seeded(1)), 100, seeded(2))
        (found,) = doubts(evaluate(rbm, z, "", Counts(1, 2000, 1, 50, 1, 1), "linear", seeded(3)))
        assert doubt in found


def test_a_doubt_does_not_blame_an_exact_log_partition(model, x):
    evaluation = evaluate(model, x, "valid", COUNTS, generator=seeded(0))
    assert evaluation.log_partition.method == "exact"
    far = evaluation.likelihood_raise.model_copy(update={"difference": 0.5, "difference_standard_error": 0.01})
    (found,) = doubts(evaluation.model_copy(update={"likelihood_raise": far}))
    assert "log Z is exact, so RAISE has not converged" in found


@pytest.mark.parametrize("wrong", [lambda x: 255 * x, lambda x: x - 0.5, lambda x: x * torch.nan])
def test_data_of_other_values_are_refused(model, x, wrong):
    """0 and 255 for bits would give a likelihood that looks far too good."""
    for call in (
        lambda: evaluate(model, wrong(x), "valid", COUNTS),
        lambda: model.log_prob(wrong(x), 2, 0.0),
        lambda: model.encode(wrong(x)),
    ):
        with pytest.raises(ValueError, match="x: expected bits, 0 or 1, got values from"):
            call()


def test_data_of_256_levels_are_whole_numbers_up_to_255():
    form = Form(1, 4, 4, 256)
    config = ModelConfig(network="resnet", maps=(4,), repeats=1, fully_connected=True, latent=3, hidden=2, norm="none")
    model = build(config, form, seeded(0))
    x = torch.randint(0, 256, (3, 16), generator=seeded(1), dtype=torch.uint8)
    assert model.log_prob(x, 2, 0.0).isfinite().all()
    for wrong in (x / 255, x.float() - 200, x.float() * 2):
        with pytest.raises(ValueError, match="x: expected whole numbers from 0 to 255"):
            model.log_prob(wrong, 2, 0.0)


def test_bits_may_be_booleans(model, x):
    assert torch.equal(model.encode(x.bool()), model.encode(x))


@pytest.mark.parametrize(("counts", "kept"), [({}, 4), ({"raise_images": 0}, 0), ({"raise_temperatures": 0}, 0)])
def test_samples_are_kept_for_raise_alone(model, x, monkeypatch, counts, kept):
    seen, usual = [], LatentModel.importance_sums

    def spy(self, x, samples, keep, *others):
        seen.append(keep)
        return usual(self, x, samples, keep, *others)

    monkeypatch.setattr(LatentModel, "importance_sums", spy)
    evaluate(model, x, counts=COUNTS._replace(samples=10, **counts), generator=seeded(0))
    assert seen == [kept]


def test_another_schedule_is_refused(model, x):
    with pytest.raises(ValueError, match="schedule: expected adaptive or linear, got geometric"):
        evaluate(model, x, "valid", COUNTS, "geometric")


@pytest.mark.parametrize(("name", "count"), [("mnist-rbm-30-epochs-valid", 1), ("mnist-mlp-best-test", 0)])
def test_doubts_stand_in_the_terminal_and_on_the_card(name, count):
    record = json.loads((RESULTS / f"{name}.json").read_text())
    evaluation = Evaluation.model_validate(record["evaluation"])
    assert sum(line.startswith("Doubtful: RAISE is") for line in evaluation_captions(evaluation)) == count
    assert sum(line.startswith("Doubtful: RAISE is") for line in evaluation_lines(Record(evaluation, record))) == count


def test_an_rbm_without_a_base_gets_one_from_the_data():
    """Of two far modes, one wide and one narrow, annealing from the visible biases finds the wide one only."""
    rbm = lb.RBM.from_arrays(np.full((30, 1), 1.5), np.full(30, -2.0), np.array([-9.5]))
    truth = np.logaddexp(30 * np.log1p(np.exp(-2.0)), -9.5 + 30 * np.log1p(np.exp(-0.5)))
    z = torch.cat([torch.zeros(30, 30), torch.ones(30, 30)])
    result = evaluate(rbm, z, "", Counts(1, 1000, 200, raise_images=0), "linear", seeded(3))
    annealed = result.log_partition_ais
    assert abs(annealed.value - truth) < LIMIT * annealed.standard_error
    assert rbm.base_bias is not None


@pytest.mark.parametrize(("spoil", "says"), [(lambda x: x * 255, "0s and 1s"), (lambda x: x[:, 1:], r"\(60, 3\)")])
def test_data_that_do_not_fit_an_rbm_are_refused_before_annealing(x, monkeypatch, spoil, says):
    monkeypatch.setattr(MODULE, "ais", lambda *args, **options: pytest.fail("annealed"))
    with pytest.raises(ValueError, match=says):
        evaluate(random_rbm(4, 3, 1), spoil(x), "test", COUNTS)
    with pytest.raises(ValueError, match=says):
        lb.raise_log_prob(random_rbm(4, 3, 1), spoil(x), 10)


def test_data_that_do_not_fit_a_model_are_refused_before_annealing(model, x, monkeypatch):
    monkeypatch.setattr(MODULE, "ais", lambda *args, **options: pytest.fail("annealed"))
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 4\), got \(60, 3\)"):
        evaluate(model, x[:, 1:], "test", COUNTS)


def test_a_factorized_prior_is_exact_and_has_no_other_side(model, x):
    factorized = LatentModel(model.encoder, model.decoder, BernoulliPrior(3))
    fit_prior_base(factorized, x)
    result = evaluate(factorized, x, "test", COUNTS, generator=seeded(0))
    assert result.log_partition.method == "exact"
    assert result.log_partition.value == pytest.approx(3 * math.log(2))
    assert result.likelihood_raise is None
    assert exact_log_partition(BernoulliPrior(40)) is not None


def test_base_is_fitted_to_the_posteriors_means(model, x):
    fit_prior_base(model, x)
    means = model.posterior(x).mean.mean(0).detach().clamp(1 / 62, 61 / 62)
    torch.testing.assert_close(torch.sigmoid(model.prior.base_bias), means, atol=1e-5, rtol=0)


def test_quick_estimate_is_near_and_repeats_with_its_seed(model, x):
    config = ValidationConfig(images=60, samples=300, ais_chains=100, ais_temperatures=100)
    first = quick_nll(model, x, x, config, 0)
    torch.rand(3)
    assert quick_nll(model, x, x, config, 0) == first
    assert quick_nll(model, x, x, config, 1) != first
    assert abs(first[0] - float(exact_nll(model, x).mean())) < 0.05


def test_quick_estimate_takes_images_evenly_spaced(model, x):
    """A split of one's own may be sorted."""
    config = ValidationConfig(images=len(x), samples=20_000, ais_chains=10, ais_temperatures=10)
    few = config.model_copy(update={"images": 4})
    order = exact_nll(model, x).argsort()
    found = quick_nll(model, x[order], x, few, 0)[0]
    some = order[torch.arange(4) * len(x) // 4]
    assert found == pytest.approx(float(exact_nll(model, x)[some].mean()), abs=0.05)


class InterruptionError(Exception):
    pass


@pytest.mark.parametrize(
    ("limit", "value", "sizes"),
    [("DIMENSIONS_PER_PART", 3 * 4, [3, 3, 2]), ("SAMPLES_PER_PART", 3 * 200, [3, 3, 2])],
)
def test_parts_of_large_images_and_many_samples_are_smaller(model, x, monkeypatch, limit, value, sizes):
    """And progress is told within them."""
    told = []
    monkeypatch.setattr(MODULE, limit, value)
    scored, score = [], LatentModel.importance_sums
    monkeypatch.setattr(
        LatentModel, "importance_sums", lambda self, part, *a: scored.append(len(part)) or score(self, part, *a)
    )
    evaluate(model, x[:8], "valid", Counts(200, 100, 40, 0), "linear", seeded(11), lambda *call: told.append(call))
    assert scored == sizes
    shares = [share for title, share, _ in told if title == "bound with K = 200"]
    assert shares == sorted(shares)
    assert shares[0] == 0.0  # before any work
    assert shares[-1] == 1.0


@pytest.mark.parametrize("phase", ["AIS", "refining posteriors", "bound with K = 200", "RAISE"])
def test_an_interrupted_evaluation_goes_on_to_the_same_result(model, x, tmp_path, monkeypatch, phase):
    """What was written down is not computed again; at the end nothing is left of it."""
    monkeypatch.setattr(MODULE, "IMAGES_PER_PART", 20)
    monkeypatch.setattr("latentbits.files.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    counts = Counts(200, 3000, 400, 60, 2, 400, 10)
    fit_prior_base(model, x)

    def run(report, checkpoints=None):
        return evaluate(model, x, "valid", counts, "linear", seeded(11), report, checkpoints)

    def interrupt(name, share, so_far):
        if name == phase and share > 0.5:
            raise InterruptionError

    whole = run(lambda *_: None)
    with pytest.raises(InterruptionError):
        run(interrupt, tmp_path)
    names = ("annealing", "refined", "bound", "annealing")
    phases = ("AIS", "refining posteriors", "bound with K = 200", "RAISE")
    count = phases.index(phase) + 1
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == sorted(names[:count])
    told, scored = {}, []
    score = LatentModel.importance_sums
    monkeypatch.setattr(LatentModel, "importance_sums", lambda *a, **b: scored.append(1) or score(*a, **b))
    resumed = run(lambda name, share, _: told.setdefault(name, share), tmp_path)
    assert resumed == whole
    # three parts
    assert len(scored) == {"AIS": 3, "refining posteriors": 3, "bound with K = 200": 2, "RAISE": 0}[phase]
    if "bound" not in phase:
        assert told[phase] > (0.5 if phase != "refining posteriors" else 0.33)
    assert ("AIS" in told) == (phase == "AIS")  # what had come to its end is not done again
