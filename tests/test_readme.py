"""The README's quick start, run as written, and what it leaves behind."""

import re
from pathlib import Path

import pytest
import torch
from checks import seeded

import latentbits as lb

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory):
    """The names that the README's Python blocks define, run in order in an empty folder."""
    folder = tmp_path_factory.mktemp("readme")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL):
            exec(block, names)
        names["folder"] = folder
        yield names


def test_quick_start_gives_what_it_says(quick_start):
    assert quick_start["bits"].shape == (300, 24)
    assert set(quick_start["bits"].unique().tolist()) == {0.0, 1.0}
    assert quick_start["images"].shape == (300, 64)
    assert quick_start["samples"].shape == (64, 64)
    assert quick_start["signal"].encoder_signal.shape == (50, 10)
    assert 15 < float(quick_start["nll"]) < 18  # 64 fair bits would be 44.4, independent pixels 25.6


def test_exact_ais_and_raise_agree_on_digits(quick_start):
    """AIS within 3 standard errors of exact and 0.02; RAISE's NLL within 0.1 of the exact one."""
    model, x = quick_start["model"], quick_start["x"]
    counts = lb.Counts(samples=500, chains=2000, temperatures=2000, raise_images=300, raise_temperatures=2000)
    result = lb.evaluate(model, x, "test", counts, generator=seeded(1))
    exact, annealed = result.log_partition, result.log_partition_ais
    assert exact.method == "exact"
    assert exact.value == pytest.approx(float(model.prior.log_partition()))
    assert annealed.standard_error < 0.02
    assert abs(annealed.value - exact.value) < 3 * annealed.standard_error
    assert abs(result.likelihood_raise.nll - result.likelihood.nll) < 0.1
    # the RBM is not a factorized prior in disguise, for which annealing would be trivial
    assert annealed.effective_sample_size < 1995


def test_reconstructions_are_near_the_images(quick_start):
    error = (quick_start["images"].round() - quick_start["x"]).abs().mean()
    assert float(error) < 0.1


def test_samples_look_like_digits(quick_start):
    """By a classifier trained on real digits: confident on most samples, and all ten classes drawn."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits = load_digits()
    classifier = LogisticRegression(max_iter=2000, C=0.05).fit((digits.data >= 8).astype(float), digits.target)
    samples = quick_start["model"].sample(300, gibbs_steps=1000, generator=seeded(2))
    pixels = torch.bernoulli(samples, generator=seeded(3)).numpy()
    confidence = classifier.predict_proba(pixels).max(1)
    noise = torch.bernoulli(quick_start["x"].mean(0).expand(300, -1), generator=seeded(4)).numpy()
    of_noise = classifier.predict_proba(noise).max(1)
    assert len(set(classifier.predict(pixels))) == 10
    assert confidence.mean() > of_noise.mean() + 0.1
