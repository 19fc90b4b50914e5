"""The scikit-learn wrapper: scikit-learn's own checks, and that it codes and scores."""

import re
import signal

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from latentbits.estimator import BinaryCodes
from latentbits.session import Session

# Each check of scikit-learn's that does not apply, and why.
EXCEPTIONS = {
    "check_methods_subset_invariance": "score_samples is a Monte-Carlo estimate; its noise depends on a datum's place",
    "check_methods_sample_order_invariance": "the same",
}


def quick():
    return BinaryCodes(n_components=4, n_hidden=3, layers=(5,), n_epochs=1, n_samples=5, random_state=0)


@parametrize_with_checks([quick()], expected_failed_checks=lambda estimator: EXCEPTIONS)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    return (load_digits().data / 16).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(digits):
    return BinaryCodes(n_components=24, n_hidden=16, n_epochs=15, random_state=1).fit(digits[:1500])


def test_codes_are_bits_that_say_what_the_images_were(digits, fitted):
    codes = fitted.transform(digits[1500:])
    assert codes.shape == (297, 24)
    assert set(np.unique(codes)) == {0.0, 1.0}
    wrong = np.mean((fitted.inverse_transform(codes) > 0.5) != (digits[1500:] > 0.5))
    assert wrong < 0.1  # always the more frequent value of each pixel: 0.17


def test_scores_are_likelihoods_and_tell_outliers(digits, fitted):
    """Independent pixels give -24.6 nats; images with their pixels shuffled are far less likely."""
    assert fitted.log_partition_error_ == 0
    scores = fitted.score_samples(digits[1500:])
    shuffled = fitted.score_samples(digits[1500:][:, np.random.default_rng(0).permutation(64)])
    assert -21 < scores.mean() < -14
    assert (shuffled < np.median(scores)).mean() > 0.95
    assert fitted.score(digits[1500:]) == pytest.approx(scores.mean())


def test_more_samples_tighten_the_bound(digits, fitted):
    x = digits[1500:]
    few = fitted.set_params(n_samples=2).score(x)
    assert fitted.set_params(n_samples=100).score(x) > few + 0.1


def test_samples_are_bits_with_the_datas_means(digits, fitted):
    drawn = fitted.sample(500)
    assert drawn.shape == (500, 64)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert np.abs(drawn.mean(0) - (digits > 0.5).mean(0)).max() < 0.2


def test_the_seed_decides(digits):
    one, same, other = (
        BinaryCodes(n_components=6, n_hidden=4, n_epochs=2, random_state=seed).fit(digits[:200]) for seed in (0, 0, 1)
    )
    assert np.array_equal(one.score_samples(digits), same.score_samples(digits))
    assert not np.array_equal(one.score_samples(digits), other.score_samples(digits))


def test_it_stands_in_a_pipeline(digits):
    pipeline = make_pipeline(MinMaxScaler(), quick()).fit(digits[:100])
    assert list(pipeline.get_feature_names_out()) == [f"binarycodes{i}" for i in range(4)]
    assert pipeline.transform(digits[:10]).shape == (10, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_components": 0, "n_epochs": -1}, "n_components: .* got 0\nn_epochs: .* got -1"),
        ({"validation_fraction": 1.5}, "validation_fraction: .* got 1.5"),
        ({"layers": ()}, "layers"),
    ],
)
def test_parameters_out_of_range_are_each_named(digits, changes, message):
    with pytest.raises(ValueError, match=message):
        quick().set_params(**changes).fit(digits[:50])


def test_the_fitted_model_stays_as_it_is_when_parameters_change(digits):
    fitted = quick().fit(digits[:100]).set_params(n_components=5)
    assert fitted.transform(digits[:2]).shape == (2, 4)
    assert len(fitted.get_feature_names_out()) == 4
    assert fitted.inverse_transform(fitted.transform(digits[:2])).shape == (2, 64)


def test_samples_are_the_same_unless_asked_for_others(digits):
    fitted = quick().fit(digits[:100])
    one, same, other = fitted.sample(20, 5), fitted.sample(20, 5), fitted.sample(20, 5, random_state=3)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.array_equal(other, fitted.sample(20, 5, random_state=3))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("layers", 16), ("layers", (4.5,)), ("layers", ()), ("n_components", "8"), ("n_epochs", 1.5),
        ("n_samples", 2.5), ("n_hidden", 10**10), ("threshold", np.nan), ("threshold", "a"),
        ("validation_fraction", None),
    ],
)  # fmt: skip
def test_parameters_are_named(digits, name, wrong):
    with pytest.raises(ValueError, match=rf"{name}: expected .*, got {re.escape(repr(wrong))}"):
        quick().set_params(**{name: wrong}).fit(digits[:20])


def test_widths_may_be_an_array(digits):
    assert quick().set_params(layers=np.array([8, 4])).fit(digits[:50]).transform(digits[:2]).shape == (2, 4)


def test_codes_that_are_no_bits_are_refused(digits):
    with pytest.raises(ValueError, match="X: expected codes of 0s and 1s"):
        quick().fit(digits[:20]).inverse_transform(np.full((2, 4), np.nan))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["autoencoder", "joint"])
def test_a_fit_that_is_stopped_fits_nothing(digits, monkeypatch, number, stage):
    keep = Session.keep

    def stop(self, row):
        keep(self, row)
        if row["stage"] == stage:
            signal.raise_signal(number)

    monkeypatch.setattr(Session, "keep", stop)
    codes = quick().set_params(n_epochs=3)
    with pytest.raises(KeyboardInterrupt, match="stopped before it was fitted"):
        codes.fit(digits[:100])
    assert not hasattr(codes, "model_")
