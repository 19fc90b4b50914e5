"""TensorBoard's events: the same scalars as the metrics, once each, also after stops; and no package, no run."""

import importlib.util
import json

import pytest
from test_train import tiny

import latentbits as lb
from latentbits.cli import main
from latentbits.events import Events
from latentbits.session import Session

reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(run):
    """All points in a run's events: (tag, step, value), in order of tags, then as written."""
    events = reader.EventAccumulator(str(run.path / "tensorboard"), {"scalars": 0})
    events.Reload()
    return [(tag, e.step, e.value) for tag in sorted(events.Tags()["scalars"]) for e in events.Scalars(tag)]


def expected(run):
    """The points that the lines of metrics.jsonl ask for."""
    points = [
        (f"{row['stage']}/{name}", row.get("step", 0), pytest.approx(value, rel=1e-6))
        for row in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
        for name, value in row.items()
        if name != "step" and type(value) in (int, float)
    ]
    return sorted(points, key=lambda point: point[0])


def test_events_hold_the_metrics_of_all_stages(tmp_path):
    run = lb.train(tiny(), tmp_path / "run", tensorboard=True, quiet=True)
    points = scalars(run)
    assert points == expected(run)
    tags = {tag for tag, _, _ in points}
    assert {"autoencoder/reconstruction", "conversion/scale", "rbm/valid_nll", "joint/bound"} <= tags


def test_a_resumed_run_has_each_point_once_and_none_beyond_its_checkpoint(tmp_path, monkeypatch):
    """A run that is killed after an epoch that no checkpoint knows of, and then goes on."""
    config, kept = tiny(joint={"epochs": 4}), Session.keep

    def die(session, row):
        kept(session, row)
        if row["stage"] == "joint" and row["epoch"] == 2:
            session.run.append_metrics(row | {"bound": 1e6})  # of a step that is not reached again
            session.events.append(row | {"step": 10**6})
            raise ConnectionError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "keep", die)
        with pytest.raises(ConnectionError):
            lb.train(config, tmp_path / "run", tensorboard=True, quiet=True)
    stale = scalars(lb.Run(tmp_path / "run"))
    assert any(step == 10**6 for _, step, _ in stale)
    run = lb.train(config, tmp_path / "run", resume=True, tensorboard=True, quiet=True)
    points = scalars(run)
    assert points == expected(run)
    assert [step for tag, step, _ in points if tag == "joint/bound"] == [3, 6, 9, 12]


def test_the_option_is_no_part_of_the_configuration(tmp_path):
    path = tmp_path / "run"
    assert not lb.train(tiny(), path, max_minutes=1e-9, quiet=True).finished
    run = lb.train(tiny(), path, resume=True, tensorboard=True, quiet=True)  # begun without it
    assert run.finished
    assert scalars(run) == expected(run)
    assert "tensorboard" not in (path / "config.json").read_text()


def test_without_the_package_nothing_begins(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorboard" else found(name))
    assert main(["train", "digits", "--run", str(tmp_path / "run"), "--tensorboard"]) == 2
    errors = capsys.readouterr().err
    assert "pip install tensorboard" in errors
    assert len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_room_for_events_training_goes_on(tmp_path, monkeypatch):
    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Events, "_add", full)
    with pytest.warns(UserWarning, match=r"tensorboard: no more events are written there .*No space") as warned:
        run = lb.train(tiny(), tmp_path / "run", tensorboard=True, quiet=True)
    assert run.finished
    assert len([each for each in warned if "no more events" in str(each.message)]) == 1
