"""Training: schedules, the conversion, and that a run is a function of its configuration."""

import copy
import hashlib
import json
import math
import signal
import time
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import torch
from checks import LIMIT, seeded
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

import latentbits as lb
from latentbits import chains, data, pretrain, stages
from latentbits.config import (
    AutoencoderConfig,
    Config,
    DataConfig,
    JointConfig,
    ModelConfig,
    RBMConfig,
    ValidationConfig,
)
from latentbits.files import load_state, save_state
from latentbits.joint import first_chains, samples_at
from latentbits.pretrain import cd_steps, soft_binarize
from latentbits.session import Session, State, TrainingError, epoch_order
from latentbits.splits import Form, Splits
from latentbits.stages import rate_factor, shrink
from latentbits.train import new_state


def tiny(**changes):
    """All three stages on the digits with few steps: 3 + 4 + 3 of 399 images each."""
    config = Config(
        model=ModelConfig(layers=(16,), latent=8, hidden=6),
        autoencoder=AutoencoderConfig(epochs=1, batch_size=399, dropout=0.1, scales=(2.0,)),
        rbm=RBMConfig(cd_epochs=1, cd_steps=2, pcd_epochs=1, pcd_steps=2, chains=20, batch_size=500),
        joint=JointConfig(epochs=1, batch_size=399, samples=4, backward_samples=2, chains=30, gibbs_steps=1),
        validation=ValidationConfig(images=50, samples=5, ais_chains=20, ais_temperatures=10),
    )
    for section, values in changes.items():
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
    return config


def weights(run):
    """All tensors that a run leaves: each stage's weights, the chosen ones, and the last checkpoint's."""
    return {
        (path.name, name): tensor
        for path in sorted(run.path.glob("*.safetensors"))
        if path.name != "checkpoint-previous.safetensors"  # of whenever the run was stopped
        for name, tensor in load_file(path).items()
    }


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_run(one, other):
    assert weights(one).keys() == weights(other).keys()
    for key, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[key]), key
    assert without_seconds(one.metrics()) == without_seconds(other.metrics())


def continuous(**changes):
    """Stage 3 alone, of a model with normal latents."""
    return tiny(
        model={"prior": "normal"},
        autoencoder={"epochs": 0},
        rbm={"cd_epochs": 0, "pcd_epochs": 0},
        joint={"objective": "iwae", **changes},
    )


@pytest.mark.parametrize(("objective", "temperatures"), [("vimco", 1), ("crws", 3)])
def test_stopped_after_each_step_and_resumed_is_bit_identical(tmp_path, objective, temperatures):
    config = tiny(
        autoencoder={"scales": (1.0, 2.0), "shift": 0.5, "input_dropout": 0.1, "weight_decay": 1e-4},
        rbm={"temperatures": temperatures},
        joint={
            "objective": objective,
            "temperatures": temperatures,
            "dropout": 0.1,
            "epochs": 2,
            "optimizer": "adamax",
            "sleep": 0.5,
            "dreams": 7,
            "shift": 0.5,
            "distort": 1.0,
            "flip": 0.5,
            "centered": True,
            "first_samples": 2,
        },
        warm_start={"epochs": 1, "batch_size": 399, "chains": 30, "gibbs_steps": 2},
        validation={"every": 2},
    )
    whole = lb.train(config, tmp_path / "whole", quiet=True)
    parts = lb.train(config, tmp_path / "parts", max_minutes=1e-9, quiet=True)
    sittings = 1
    while not parts.finished:
        lb.train(config, tmp_path / "parts", resume=True, max_minutes=1e-9, quiet=True)
        sittings += 1
    assert sittings >= 10
    assert_same_run(whole, parts)


def test_the_seed_decides(tmp_path):
    one = lb.train(tiny(), tmp_path / "one", quiet=True)
    same = lb.train(tiny(), tmp_path / "same", quiet=True)
    other = lb.train(tiny().model_copy(update={"seed": 1}), tmp_path / "other", quiet=True)
    assert_same_run(one, same)
    assert not torch.equal(
        weights(one)["joint.safetensors", "prior.weight"], weights(other)["joint.safetensors", "prior.weight"]
    )


def test_validation_does_not_touch_the_training_stream(tmp_path):
    each = tiny(joint={"epochs": 3}, validation={"every": 1})
    seldom = tiny(joint={"epochs": 3}, validation={"every": 3, "samples": 9, "ais_chains": 50})
    one, other = (lb.train(c, tmp_path / str(i), quiet=True) for i, c in enumerate((each, seldom)))
    # base_bias is fitted by validation and changes no sample of training
    for key, tensor in load_file(one.path / "joint.safetensors").items():
        assert torch.equal(tensor, load_file(other.path / "joint.safetensors")[key]), key
    assert [("valid_nll" in row) for row in one.metrics() if row["stage"] == "joint"] == [True] * 3
    assert [("valid_nll" in row) for row in other.metrics() if row["stage"] == "joint"] == [False, False, True]


def test_evaluated_weights_are_those_with_the_best_validation(tmp_path, monkeypatch):
    nll, seen = iter([9.0, 2.5, 3.0, 2.0, 6.0]), []  # two epochs of stage 2, three of stage 3

    def validation(model, *rest):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(nll), 0.0

    monkeypatch.setattr(stages, "quick_nll", validation)
    run = lb.train(tiny(joint={"epochs": 3}), tmp_path / "run", quiet=True)
    chosen = load_file(run.path / "model.safetensors")
    assert all(torch.equal(chosen[name], tensor) for name, tensor in seen[3].items())
    assert not torch.equal(chosen["prior.weight"], seen[1]["prior.weight"])


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"autoencoder": {"epochs": 0}, "rbm": {"cd_epochs": 0, "pcd_epochs": 0}}, ["joint"]),
        ({"joint": {"epochs": 0}}, ["autoencoder", "conversion", "rbm"]),
        ({"rbm": {"cd_epochs": 0, "pcd_epochs": 0}}, ["autoencoder", "conversion", "joint"]),
        ({"model": {"prior": "bernoulli"}}, ["autoencoder", "conversion", "rbm", "joint"]),
        ({"warm_start": {"epochs": 1}}, ["autoencoder", "conversion", "rbm", "warm_start", "joint"]),
        ({"warm_start": {"epochs": 1}, "joint": {"epochs": 0}}, ["autoencoder", "conversion", "rbm", "warm_start"]),
    ],
)
def test_each_stage_can_be_skipped(tmp_path, changes, stages):
    run = lb.train(tiny(**changes), tmp_path / "run", quiet=True)
    assert list(dict.fromkeys(row["stage"] for row in run.metrics())) == stages
    assert run.finished
    assert lb.load(run.path).encode(torch.zeros(2, 64)).shape == (2, 8)


def test_an_rbm_alone_trains_on_the_data(tmp_path):
    config = tiny(
        model={"network": "none", "hidden": 10},
        autoencoder={"epochs": 0},
        joint={"epochs": 0},
        rbm={"cd_epochs": 6, "pcd_epochs": 4, "batch_size": 20, "learning_rate": 0.1},
    )
    run = lb.train(config, tmp_path / "run", quiet=True)
    model = lb.load(run.path)
    assert isinstance(model, lb.RBM)
    nll = [row["valid_nll"] for row in run.metrics()]
    valid, train = (data.load("digits")[i].float() for i in (2, 1))
    p = train.mean(0).clamp(0.001, 0.999)
    factorized = -float((valid * p.log() + (1 - valid) * (1 - p).log()).sum(1).mean())
    assert nll[-1] < factorized - 3


def test_training_lowers_each_stage(tmp_path):
    config = tiny(
        autoencoder={"epochs": 30, "batch_size": 50},
        rbm={"cd_epochs": 5, "pcd_epochs": 5, "batch_size": 20, "learning_rate": 0.1},
        joint={
            "epochs": 30,
            "batch_size": 50,
            "average": 0.9,
            "encoder_learning_rate": 3e-3,
            "decoder_learning_rate": 3e-3,
        },
        validation={"images": 300, "samples": 50},
    )
    run = lb.train(config, tmp_path / "run", quiet=True)
    rows = run.metrics()
    reconstruction = [row["reconstruction"] for row in rows if row["stage"] == "autoencoder"]
    assert reconstruction[-1] < reconstruction[0] - 5
    nll = {stage: [row["valid_nll"] for row in rows if row["stage"] == stage] for stage in ("rbm", "joint")}
    assert nll["rbm"][-1] < nll["rbm"][0]
    assert nll["joint"][-1] < nll["rbm"][-1] - 0.5


def test_a_value_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    config = tiny(joint={"epochs": 5})
    lb.train(config, tmp_path / "run", max_minutes=1e-9, quiet=True)
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()

    def poisoned(z, u, conversion):
        return soft_binarize(z, u, conversion) * math.nan

    monkeypatch.setattr(pretrain, "soft_binarize", poisoned)
    with pytest.raises(TrainingError, match=r"stage autoencoder, step \d+: .*not finite; the last good checkpoint"):
        lb.train(config, tmp_path / "run", resume=True, quiet=True)
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("by_epoch", "said"),
    [
        ([9.0, 5.0, 6.0, 7.0], True),
        ([9.0, 5.0, 7.0, 6.99], True),  # still high
        ([9.0, 5.0, 7.0, 6.0], False),  # falling again
        ([5.0, 6.0, 7.0, 8.0], False),  # nothing was learned yet when it was best
        ([9.0, 5.0, 5.04], False),
        ([-5.0, -6.0, -5.5], True),  # densities of a likelihood of one's own
        ([5.0], False),
        ([], False),
    ],
)
def test_a_rise_that_lasts_is_called_overfitting(by_epoch, said):
    found = pretrain.overfitting(dict(enumerate(by_epoch, start=1)), 0.2)
    assert (found is not None) == said
    if said:
        assert "after epoch 2" in found
        assert "dropout 0.3 instead of 0.2" in found


def stop_at_epoch(epoch):
    """In place of ``drop``: the same, and Ctrl-C at an epoch of a single step."""
    drop, calls = pretrain.drop, iter(range(2, 10_000))

    def stopping(*arguments):
        if next(calls) == epoch:
            signal.raise_signal(signal.SIGINT)
        return drop(*arguments)

    return stopping


def test_stage_1_says_where_it_began_to_overfit(tmp_path, capsys, monkeypatch):
    few = data.load(DataConfig(name="digits"))
    few = few._replace(train=few.train[:20])
    alone = {"rbm": {"cd_epochs": 0, "pcd_epochs": 0}, "joint": {"epochs": 0}}
    long = tiny(autoencoder={"epochs": 400, "batch_size": 20, "dropout": 0.0, "learning_rate": 0.01}, **alone)
    run = lb.train(long, tmp_path / "long", splits=few)
    by_epoch = [row["reconstruction_hard_bits"] for row in run.metrics() if row.get("epoch")]
    best = 1 + by_epoch.index(min(by_epoch))
    assert 1 < best < 400
    told = "".join(capsys.readouterr())
    assert f"came back best after epoch {best}, to {min(by_epoch):.2f} nats, and after epoch 400" in told
    assert "--autoencoder.dropout 0.1 instead of 0" in told
    stopped = lb.train(long, tmp_path / "stopped", splits=few, quiet=True, max_minutes=1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "drop", stop_at_epoch(best + 5))
        lb.train(stopped.config, stopped.path, splits=few, quiet=True, resume=True)
    capsys.readouterr()
    assert lb.train(stopped.config, stopped.path, splits=few, resume=True).finished
    assert f"came back best after epoch {best}, to" in "".join(capsys.readouterr())
    lb.train(tiny(autoencoder={"epochs": 3, "batch_size": 20}, **alone), tmp_path / "short", splits=few)
    assert "overfits" not in "".join(capsys.readouterr())


def test_ctrl_c_stops_at_the_step_and_resumes_bit_identical(tmp_path, monkeypatch):
    config = tiny(autoencoder={"epochs": 3})
    whole = lb.train(config, tmp_path / "whole", quiet=True)
    calls = iter(range(100))

    def interrupted(z, u, conversion):
        if next(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return soft_binarize(z, u, conversion)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "soft_binarize", interrupted)
        run = lb.train(config, tmp_path / "run", quiet=True)
    assert signal.getsignal(signal.SIGINT) is before
    assert not run.finished
    assert load_state(run.checkpoint)["step"] == 5
    assert_same_run(whole, lb.train(config, tmp_path / "run", resume=True, quiet=True))


@pytest.fixture
def ctrl_c():
    """Python's own handler: a shell that starts a background process has it ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_interrupts_at_once_and_the_run_resumes(tmp_path, monkeypatch):
    config = tiny(autoencoder={"epochs": 3, "scales": (1.0, 2.0)})
    whole = lb.train(config, tmp_path / "whole", quiet=True)

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "fit_prior_briefly", interrupted)  # in the calibration
        with pytest.raises(KeyboardInterrupt):
            lb.train(config, tmp_path / "run", quiet=True)
    assert_same_run(whole, lb.train(config, tmp_path / "run", resume=True, quiet=True))


def test_a_crash_at_the_last_checkpoint_trains_nothing_again(tmp_path, monkeypatch):
    config, last = tiny(), Session.checkpoint
    whole = lb.train(config, tmp_path / "whole", quiet=True)

    def full(self):
        if self.state.stage == "finished":
            raise OSError("disk full")
        last(self)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "checkpoint", full)
        with pytest.raises(OSError, match="disk full"):
            lb.train(config, tmp_path / "run", quiet=True)
    assert_same_run(whole, lb.train(config, tmp_path / "run", resume=True, quiet=True))


def test_stage_3_alone_is_averaged_over_epochs(tmp_path):
    """Validation fits the annealing base of the averaged model, which the other one then has to have too."""
    alone = {"autoencoder": {"epochs": 0}, "rbm": {"cd_epochs": 0, "pcd_epochs": 0}}
    run = lb.train(tiny(**alone, joint={"epochs": 3, "average": 0.9}), tmp_path / "run", quiet=True)
    assert len(run.metrics()) == 3


@pytest.mark.parametrize("moment", ["append_metrics", "save_weights"])
def test_a_crash_between_writing_and_the_checkpoint_is_made_good(tmp_path, monkeypatch, moment):
    config = tiny(joint={"epochs": 3})
    whole = lb.train(config, tmp_path / "whole", quiet=True)
    for crash in range(3):
        original, calls = getattr(lb.Run, moment), iter(range(100))

        def dies(self, *arguments, original=original, calls=calls, crash=crash):
            original(self, *arguments)
            if next(calls) == crash + 1:
                raise RuntimeError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(lb.Run, moment, dies)
            with pytest.raises(RuntimeError, match="killed"):
                lb.train(config, tmp_path / str(crash), quiet=True)
        assert_same_run(whole, lb.train(config, tmp_path / str(crash), resume=True, quiet=True))


def test_stage_2_uses_the_steps_and_chains_that_it_says(tmp_path, monkeypatch):
    """CD from the data with rising steps, then persistent chains: each call goes on where the last one ended."""
    module, calls = import_module("latentbits.train"), []

    def spy(prior, z, steps, generator=None):
        after = lb.gibbs(prior, z, steps, generator)
        calls.append((module_stage[0], z.clone(), steps, after.clone()))
        return after

    module_stage = ["rbm"]
    joint = module.train_joint

    def joint_begins(*arguments):
        module_stage[0] = "joint"
        joint(*arguments)

    for owner in (pretrain, chains):
        monkeypatch.setattr(owner, "gibbs", spy)
    monkeypatch.setattr(module, "train_joint", joint_begins)
    config = tiny(
        rbm={"cd_epochs": 3, "cd_steps": 5, "pcd_epochs": 2, "pcd_steps": 4}, joint={"epochs": 2, "gibbs_steps": 3}
    )
    lb.train(config, tmp_path / "run", quiet=True)
    stage_2 = [call for call in calls if call[0] == "rbm"]
    assert [steps for _, _, steps, _ in stage_2] == [1, 1, 3, 3, 5, 5, 4, 4, 4, 4]
    assert [len(z) for _, z, _, _ in stage_2] == [500] * 6 + [20] * 4
    persistent = stage_2[6:]
    assert all(torch.equal(a[3], b[1]) for a, b in pairwise(persistent))
    stage_3 = [call for call in calls if call[0] == "joint"]
    assert {(len(z), steps) for _, z, steps, _ in stage_3} == {(30, 3)}
    assert all(torch.equal(a[3], b[1]) for a, b in pairwise(stage_3))


@pytest.mark.parametrize("part", ["encoder", "decoder", "prior"])
def test_each_learning_rate_moves_its_own_part(tmp_path, part):
    run = lb.train(tiny(joint={f"{part}_learning_rate": 1e-12, "average": 0.0}), tmp_path / "run", quiet=True)
    before, after = (load_file(run.path / f"{stage}.safetensors") for stage in ("rbm", "joint"))
    moved = {
        name.split(".")[0] for name in before if "base" not in name and not torch.allclose(before[name], after[name])
    }
    assert moved == {"encoder", "decoder", "prior"} - {part}


@pytest.mark.parametrize(("products", "times"), [("bfloat16", 4), ("float32", 0)])
def test_bfloat16_products_are_for_the_networks_and_put_back(tmp_path, monkeypatch, products, times):
    """In each of three steps for the encoder, for scoring, for the samples that go backward, and for the way back."""
    module = import_module("latentbits.joint")
    setting, usual, gibbs = torch.backends.mkldnn.matmul.fp32_precision, module.bfloat16_products, chains.gibbs
    entered, inside, of_chains = [], [], []

    @contextmanager
    def spy():
        entered.append(1)
        inside.append(1)
        with usual():
            yield
        inside.pop()

    monkeypatch.setattr(module, "bfloat16_products", spy)
    monkeypatch.setattr(chains, "gibbs", lambda *arguments: of_chains.append(bool(inside)) or gibbs(*arguments))
    run = lb.train(tiny(joint={"products": products}), tmp_path / "run", quiet=True)
    assert len(entered) == 3 * times
    assert of_chains
    assert not any(of_chains)
    assert torch.backends.mkldnn.matmul.fp32_precision == setting
    assert all(math.isfinite(row["valid_nll"]) for row in run.metrics() if row["stage"] == "joint")


def test_metrics_are_means_over_an_epochs_steps(tmp_path, monkeypatch):
    seen, record = [], Session.record

    def spy(self, **values):
        seen.append((self.state.stage, {name: float(value) for name, value in values.items()}))
        record(self, **values)

    monkeypatch.setattr(Session, "record", spy)
    run = lb.train(tiny(joint={"epochs": 2}), tmp_path / "run", quiet=True)
    rows = [row for row in run.metrics() if row["stage"] == "joint"]
    steps = [values for stage, values in seen if stage == "joint"]
    assert list(steps[0]) == ["bound", "decoder_loss", "free_energy_gap", "effective_sample_size"]
    for row, part in zip(rows, (steps[:3], steps[3:]), strict=True):
        for name in part[0]:
            assert row[name] == pytest.approx(np.mean([each[name] for each in part]), rel=1e-6)


def test_every_stages_rates_rise_and_fall_as_they_are_set(tmp_path):
    seen, rates = [], {"epochs": 2, "decay": 0.5, "warmup": 2}

    def note(optimizer, *_):
        seen.append([(each["lr"], each.get("momentum"), each["weight_decay"]) for each in optimizer.param_groups])

    hook = register_optimizer_step_pre_hook(note)
    config = tiny(autoencoder=rates, rbm={"momentum": 0.3, "weight_decay": 0.01}, joint=rates)
    try:
        lb.train(config, tmp_path / "run", quiet=True)
    finally:
        hook.remove()
    of_six, of_four = np.array([0.5, 1, 1, 1, 2 / 3, 1 / 3]), np.array([1, 1, 1, 0.5])
    first, second, nets, prior = seen[:6], seen[6:10], seen[10::2], seen[11::2]
    assert [groups[0][0] for groups in first] == pytest.approx(config.autoencoder.learning_rate * of_six)
    assert [groups[0][0] for groups in second] == pytest.approx(config.rbm.learning_rate * of_four)
    assert all([each[1:] for each in groups] == [(0.3, 0), (0.3, 0.01)] for groups in second)  # biases, weights
    assert [groups[0][0] for groups in nets] == pytest.approx(config.joint.encoder_learning_rate * of_six)
    assert [groups[1][0] for groups in nets] == pytest.approx(config.joint.decoder_learning_rate * of_six)
    assert [groups[0][0] for groups in prior] == pytest.approx(config.joint.prior_learning_rate * of_six)


def test_minutes_have_sixty_seconds(tmp_path, monkeypatch):
    """Steps of half a minute: the fifth is the first that ends after two and a quarter."""
    now, record = [0.0], Session.record

    def slowly(self, **values):
        now[0] += 30
        record(self, **values)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Session, "record", slowly)
    run = lb.train(tiny(autoencoder={"epochs": 3}), tmp_path / "run", max_minutes=2.25, quiet=True)
    assert load_state(run.checkpoint)["step"] == 5


def test_a_changed_configuration_or_other_data_are_refused(tmp_path, monkeypatch):
    run = lb.train(tiny(), tmp_path / "run", max_minutes=1e-9, quiet=True)
    changed = tiny(joint={"samples": 6})
    (run.path / "config.json").write_text(changed.model_dump_json())
    with pytest.raises(lb.RunError, match="checkpoint is of another configuration"):
        lb.train(changed, run.path, resume=True, quiet=True)
    (run.path / "config.json").write_text(tiny().model_dump_json())
    splits = data.load("digits")._replace(checksum="other")
    monkeypatch.setattr(data, "load", lambda *arguments: splits)
    with pytest.raises(lb.RunError, match="checkpoint is of other data"):
        lb.train(tiny(), run.path, resume=True, quiet=True)


def test_a_checkpoint_from_before_a_setting_was_there_is_resumed(tmp_path):
    run = lb.train(tiny(), tmp_path / "run", max_minutes=1e-9, quiet=True)
    state = load_state(run.checkpoint)
    config = json.loads(state["origin"]["config"])
    del config["joint"]["shift"]
    state["origin"]["config"] = json.dumps(config)
    save_state(run.checkpoint, state)
    assert lb.train(run.config, run.path, resume=True, quiet=True).finished


def test_resuming_with_another_configuration_is_refused(tmp_path):
    lb.train(tiny(), tmp_path / "run", max_minutes=1e-9, quiet=True)
    with pytest.raises(lb.RunError, match=r"another configuration \(joint.samples: 4 -> 6\)"):
        lb.train(tiny(joint={"samples": 6}), tmp_path / "run", resume=True, quiet=True)


def test_a_finished_run_resumes_to_itself(tmp_path):
    run = lb.train(tiny(), tmp_path / "run", quiet=True)
    before = weights(run)
    lb.train(tiny(), tmp_path / "run", resume=True, quiet=True)
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(run).items())


def test_metrics_after_the_checkpoint_are_made_again(tmp_path):
    """As after a crash: lines that the checkpoint does not know are dropped, not doubled."""
    config = tiny()
    whole = lb.train(config, tmp_path / "whole", quiet=True)
    run = lb.train(config, tmp_path / "run", max_minutes=1e-9, quiet=True)
    run.append_metrics({"stage": "autoencoder", "epoch": 99})
    lb.train(config, tmp_path / "run", resume=True, quiet=True)
    assert without_seconds(run.metrics()) == without_seconds(whole.metrics())


def test_decoder_starts_at_the_datas_mean_logits():
    splits = data.load("digits")
    model = new_state(tiny(), splits).model
    p = torch.sigmoid(model.decoder.last.bias)
    means = splits.train.float().mean(0)
    inside = (means > 0.01) & (means < 0.99)
    torch.testing.assert_close(p[inside], means[inside], atol=1e-5, rtol=0)
    assert model.decoder.last.bias.isfinite().all()


@pytest.mark.parametrize(("conversion", "middle"), [("literal", 0.5), ("calibrated", 0.0)])
def test_soft_binarization_saturates_one_away_from_its_middle(conversion, middle):
    """Eq. 3 as printed has its middle at a half; shifted, at 0, and saturates at -1 and 1 (section 3.1)."""
    u = torch.rand(20_000, generator=seeded(0))
    assert float(soft_binarize(torch.tensor(middle - 1), u, conversion).max()) == 0
    assert float(soft_binarize(torch.tensor(middle + 1), u, conversion).min()) == 1
    bits = soft_binarize(torch.tensor(middle), u, conversion)
    assert abs(float(bits.mean()) - 0.5) < LIMIT * float(bits.std()) / math.sqrt(len(u))
    inner = soft_binarize(torch.tensor(middle + 0.25), u, conversion)
    assert float((inner == 1).float().mean()) == pytest.approx(0.25, abs=0.02)


def test_scaling_the_logits_scales_the_encoders_output():
    model = new_state(tiny(), data.load("digits")).model
    x = torch.rand(5, 64, generator=seeded(0))
    before = model.encoder(x).detach()
    model.encoder.scale_output(2.5)
    torch.testing.assert_close(model.encoder(x).detach(), 2.5 * before)


def test_scale_is_the_best_of_the_candidates(tmp_path):
    run = lb.train(
        tiny(autoencoder={"scales": (0.01, 2.0), "epochs": 60, "batch_size": 50, "dropout": 0.0}),
        tmp_path / "run",
        quiet=True,
    )
    (row,) = (row for row in run.metrics() if row["stage"] == "conversion")
    assert row["scale"] == 2.0
    assert row["nll_by_scale"]["2"] < row["nll_by_scale"]["0.01"]
    literal = lb.train(tiny(autoencoder={"conversion": "literal"}), tmp_path / "literal", quiet=True)
    assert [row["scale"] for row in literal.metrics() if row["stage"] == "conversion"] == [1.0]


def test_schedules():
    assert [rate_factor(step, 10, 0.5) for step in (0, 5, 6, 9)] == pytest.approx([1, 1, 0.8, 0.2])
    assert rate_factor(9, 10, 0.0) == 1
    assert [rate_factor(step, 10, 0.5, 4) for step in (0, 1, 3, 5, 9)] == pytest.approx([0.25, 0.5, 1, 1, 0.2])
    config = RBMConfig(cd_epochs=5, cd_steps=25)
    assert [cd_steps(epoch, config) for epoch in range(5)] == [1, 7, 13, 19, 25]
    assert cd_steps(0, RBMConfig(cd_epochs=1, cd_steps=25)) == 25


def test_epoch_orders_are_permutations_of_their_own():
    orders = [epoch_order(0, stage, epoch, 50) for stage in ("rbm", "joint") for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 6
    assert torch.equal(epoch_order(0, "rbm", 1, 50), orders[1])


def test_weight_decay_shrinks_matrices_and_not_biases():
    model = new_state(tiny(), data.load("digits")).model
    before = {name: p.clone() for name, p in model.named_parameters()}
    shrink(model, 0.1)
    for name, p in model.named_parameters():
        is_matrix = p.dim() == 2 and "prior" not in name
        torch.testing.assert_close(p, before[name] * (0.9 if is_matrix else 1.0))


def test_average_is_the_exponential_one(tmp_path):
    state = State(torch.nn.Linear(1, 1, bias=False), seeded(0))
    state.begin("joint", {}, average=0.5)
    values, expected = [1.0, 2.0, 5.0], None
    for value in values:
        with torch.no_grad():
            state.model.weight.fill_(value)
        state.average.update_parameters(state.model)
        expected = value if expected is None else 0.5 * expected + 0.5 * value
    assert float(state.evaluated.weight.detach()) == pytest.approx(expected)


def test_checkpoint_holds_no_pickle(tmp_path):
    run = lb.train(tiny(), tmp_path / "run", max_minutes=1e-9, quiet=True)
    assert load_state(run.checkpoint)["step"] == 1
    header = run.checkpoint.read_bytes()
    length = int(np.frombuffer(header[:8], np.uint64)[0])
    assert json.loads(header[8 : 8 + length])["__metadata__"]["format"] == "3"


def test_continuous_latents_train_and_resume(tmp_path):
    short = continuous(epochs=2, batch_size=399)
    one = lb.train(short, tmp_path / "one", quiet=True)
    parts = lb.train(short, tmp_path / "parts", max_minutes=1e-9, quiet=True)
    while not parts.finished:
        lb.train(short, tmp_path / "parts", resume=True, max_minutes=1e-9, quiet=True)
    assert_same_run(one, parts)
    config = continuous(epochs=30, batch_size=50, encoder_learning_rate=3e-3, decoder_learning_rate=3e-3)
    whole = lb.train(config, tmp_path / "whole", quiet=True)
    nll = [row["valid_nll"] for row in whole.metrics()]
    assert nll[-1] < nll[0] - 1
    assert lb.load(whole.path).encode(torch.zeros(2, 64)).shape == (2, 8)


def test_samples_rise_to_their_number():
    config = JointConfig(samples=50, first_samples=5)
    assert [samples_at(step, 100, config) for step in (0, 25, 50, 99)] == [5, 16, 50, 50]
    assert samples_at(0, 100, JointConfig(samples=50)) == 50


def test_a_run_can_begin_with_anothers_weights(tmp_path):
    """Its first epoch starts where the other's stage 2 ended; what they were is written down."""
    one = lb.train(tiny(), tmp_path / "one", quiet=True)
    begin = {"autoencoder": {"epochs": 0}, "rbm": {"cd_epochs": 0, "pcd_epochs": 0}, "joint": {"epochs": 0}}
    path = one.path / "rbm.safetensors"
    config = tiny(**begin).model_copy(update={"weights": str(path)})
    other = lb.train(config, tmp_path / "other", quiet=True)
    for name, tensor in load_file(path).items():
        assert torch.equal(load_file(other.path / "model.safetensors")[name], tensor)
    assert other.metrics() == [
        {"stage": "start", "weights": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    ]
    with pytest.raises(lb.RunError, match="does not hold the weights of this run's model"):
        lb.train(config.model_copy(update={"model": ModelConfig(layers=(3,))}), tmp_path / "third", quiet=True)
    assert not (tmp_path / "third").exists()


def test_weights_are_kept_every_so_many_epochs(tmp_path):
    config = tiny(joint={"epochs": 5, "average": 0.5}, validation={"keep": 2})
    run = lb.train(config, tmp_path / "run", quiet=True)
    kept = sorted(path.name for path in run.path.glob("joint-*.safetensors"))
    assert kept == ["joint-0002.safetensors", "joint-0004.safetensors"]
    assert run.weights_origin("joint-0004")["stage"] == "joint"
    assert not torch.equal(*(load_file(run.path / name)["prior.weight"] for name in kept))
    assert isinstance(lb.load(run.path, "joint-0002"), lb.LatentModel)


def test_centering_changes_the_way_and_sleep_the_encoder(tmp_path):
    """Only where asked: the prior's step differs with `centered`, the encoder's with `sleep`."""
    runs = {
        name: lb.train(tiny(joint=changes), tmp_path / name, quiet=True)
        for name, changes in (("plain", {}), ("centered", {"centered": True}), ("sleep", {"sleep": 0.7}))
    }
    tensors = {name: load_file(run.path / "joint.safetensors") for name, run in runs.items()}
    assert not torch.equal(tensors["plain"]["prior.weight"], tensors["centered"]["prior.weight"])
    assert not torch.equal(tensors["plain"]["encoder.0.weight"], tensors["sleep"]["encoder.0.weight"])


RESNET = {"network": "resnet", "maps": (3, 4), "repeats": 1}


@pytest.mark.parametrize("changes", [{}, {"fully_connected": False, "latent": 16}, {"norm": "batch"}])
def test_residual_networks_go_through_all_stages(tmp_path, changes):
    config = tiny(model=RESNET | changes, joint={"epochs": 2}, autoencoder={"scales": (1.0, 2.0)})
    whole = lb.train(config, tmp_path / "whole", quiet=True)
    parts = lb.train(config, tmp_path / "parts", max_minutes=1e-9, quiet=True)
    while not parts.finished:
        lb.train(config, tmp_path / "parts", resume=True, max_minutes=1e-9, quiet=True)
    assert_same_run(whole, parts)
    model = lb.load(whole.path)
    assert model.sample(3, 2, seeded(0)).shape == (3, 64)
    assert model.log_prob(torch.zeros(5, 64), 7, 0.0, seeded(0)).shape == (5,)


def test_residual_networks_begin_standardized_and_at_the_datas_means():
    splits = data.load("digits")
    model = new_state(tiny(model=RESNET), splits).model
    a = model.encoder(splits.train[torch.arange(500) * len(splits.train) // 500].float()).detach()
    assert a.mean(0).abs().max() < 0.01
    torch.testing.assert_close(a.std(0), torch.ones(8), atol=0.02, rtol=0)
    torch.testing.assert_close(model.decoder.offset.detach(), splits.mean_logits())


def test_networks_of_large_images_begin_by_fewer_of_them(monkeypatch):
    """So that it takes no more memory than that of small ones."""
    training = import_module("latentbits.train")  # lb.train is the function
    seen, initialize = [], training.initialize_by_data
    monkeypatch.setattr(training, "initialize_by_data", lambda net, x: seen.append(len(x)) or initialize(net, x))
    splits = data.load("digits")
    elements = new_state(tiny(model=RESNET), splits).model.decoder.elements
    for limit in (elements * 10, 0):
        monkeypatch.setattr(training, "INITIALIZATION_ELEMENTS", limit)
        new_state(tiny(model=RESNET), splits)
    assert seen == [500, 500, 10, 10, 2, 2]


def test_batch_normalization_wants_batches_of_two_or_more():
    normalized = Config().vary(model={"network": "resnet", "norm": "batch"})
    for stage in ("autoencoder", "warm_start", "joint"):
        with pytest.raises(ValueError, match=rf"{stage}.batch_size: expected 2 or more with model.norm=batch, got 1"):
            normalized.vary(**{stage: {"batch_size": 1, "epochs": 1}})
        normalized.vary(**{stage: {"batch_size": 1, "epochs": 0}})
        Config().vary(model={"network": "resnet"}, **{stage: {"batch_size": 1}})


def test_validation_uses_batch_normalizations_own_statistics(tmp_path):
    """Validating more often leaves the same weights and statistics."""
    runs = [
        lb.train(
            tiny(model=RESNET | {"norm": "batch"}, joint={"epochs": 2}, validation={"every": every}), path, quiet=True
        )
        for every, path in ((1, tmp_path / "each"), (2, tmp_path / "last"))
    ]
    one, other = (load_file(run.path / "joint.safetensors") for run in runs)
    assert any("running_mean" in name for name in one)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_stage_2_leaves_batch_normalizations_statistics(tmp_path):
    """It trains no network: not even where its biases and chains come from."""
    config, splits = tiny(model=RESNET | {"norm": "batch"}, autoencoder={"epochs": 0}), data.load("digits")
    before = {key: tensor.clone() for key, tensor in new_state(config, splits).model.encoder.state_dict().items()}
    run = lb.train(config, tmp_path / "run", quiet=True)
    after = load_file(run.path / "rbm.safetensors")
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(tensor, after[f"encoder.{name}"]) for name, tensor in before.items())


def test_the_first_chains_leave_batch_normalizations_statistics():
    config, splits = tiny(model=RESNET | {"norm": "batch"}), data.load("digits")
    model = new_state(config, splits).model.train()
    before = copy.deepcopy(model.state_dict())
    first_chains(model, splits.train, config.joint, seeded(0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_images_are_moved_and_bent_less_and_less(tmp_path, monkeypatch):
    """All of it until the last share of the epochs that is stated, whatever the rates do, then in equal steps to 0."""
    seen = []
    for kind in ("shift", "distort"):
        monkeypatch.setattr(stages, kind, lambda x, form, amount, generator: seen.append(amount) or x)
    settings = {"epochs": 5, "batch_size": 399, "decay": 1.0, "shift": 0.5, "distort": 2.0, "augmentation_decay": 0.4}
    lb.train(tiny(autoencoder=settings, joint=settings), tmp_path / "run", quiet=True)
    assert len(seen) == 2 * 2 * 15  # two stages, two kinds, five epochs of three steps
    left = [1.0] * 9 + [1 - step / 6 for step in range(6)]
    for stage in (seen[:30], seen[30:]):
        assert stage[::2] == pytest.approx([0.5 * share for share in left])
        assert stage[1::2] == pytest.approx([2.0 * share for share in left])


@pytest.mark.parametrize("option", ["flip", "shift", "distort", "input_dropout", "weight_decay"])
def test_each_regularization_of_stage_1_changes_its_weights(tmp_path, option):
    runs = [
        lb.train(tiny(autoencoder={option: value}, joint={"epochs": 0}), tmp_path / str(value), quiet=True)
        for value in (0.0, 0.05)
    ]
    one, other = (load_file(run.path / "autoencoder.safetensors")["encoder.0.weight"] for run in runs)
    assert not torch.equal(one, other)


def colour_splits(count=64):
    """Images of 8x8 in colour that a few numbers describe: a plane of brightness in a random hue, in 256 levels."""
    g = seeded(9)
    hue, slope = torch.rand(count, 3, 1, 1, generator=g), torch.rand(count, 2, 1, 1, generator=g) - 0.5
    grid = torch.linspace(-1, 1, 8)
    plane = slope[:, :1] * grid[:, None] + slope[:, 1:] * grid
    x = ((0.2 + 0.6 * hue + 0.3 * plane).clamp(0, 1) * 255).round().to(torch.uint8).flatten(1)
    return Splits("images", x, x[:16], x[16:32], Form(3, 8, 8, 256), "colour")


def test_colour_images_go_through_all_stages_and_are_learnt(tmp_path, monkeypatch):
    """64 images, which the model can learn by heart: the likelihood rises far above that of independent levels."""
    splits = colour_splits()
    monkeypatch.setattr("latentbits.data.load", lambda config, data_dir: splits)
    config = tiny(
        data={"name": "images", "size": 8},
        model={"network": "resnet", "maps": (8, 8), "repeats": 1, "latent": 32, "hidden": 16, "fully_connected": False},
        autoencoder={"epochs": 80, "batch_size": 32, "learning_rate": 3e-3, "dropout": 0.0, "warmup": 20},
        rbm={"batch_size": 16},
        joint={"epochs": 20, "batch_size": 32, "average": 0.9, "decoder_learning_rate": 2e-3, "warmup": 10},
    )
    run = lb.train(config, tmp_path / "run", quiet=True)
    rows = run.metrics()
    reconstruction = [row["reconstruction"] for row in rows if row["stage"] == "autoencoder"]
    nll = [row["valid_nll"] for row in rows if row["stage"] == "joint"]
    assert reconstruction[-1] < reconstruction[0] - 100
    assert nll[-1] < nll[0] - 5
    validated = [row for row in rows if "valid_nll" in row]
    bits = [row["valid_bits_per_dimension"] for row in validated]  # colour is quoted in these
    assert bits == pytest.approx([row["valid_nll"] / 192 / math.log(2) for row in validated])
    model = lb.load(run.path)
    assert model.decode(model.encode(splits.valid[:3])).shape == (3, 192)
    assert float(model.sample(5, 3, seeded(0)).min()) >= 0
    one = seeded(1)
    bound = model.log_prob(splits.valid.float(), 50, model.prior.log_partition().item(), one)
    assert float(-bound.mean()) / (192 * math.log(2)) < 7.0  # bits/dim; 8 for levels that are all alike


def test_networks_and_images_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("latentbits.data.load", lambda config, data_dir: colour_splits())
    config = tiny(data={"name": "images", "size": 8})
    with pytest.raises(lb.RunError, match="expected resnet for images with more than two levels, got mlp"):
        lb.train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
