"""A run's page: what stands in it for runs of every kind and state, and how it behaves in a browser."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Page
from checks import seeded
from PIL import Image
from test_adversarial import gan, grey_splits
from test_train import continuous, tiny

import latentbits as lb
from latentbits import data
from latentbits.charts import Chart, Series, error, histogram, number, settled_limits
from latentbits.cli import main
from latentbits.config import Config, settings
from latentbits.facts import configuration, not_comparable, standing
from latentbits.page import examine, page, pictures, trained_temperatures
from latentbits.recipes import RECIPES, command_for, my_images
from latentbits.records import last_evaluation
from latentbits.report import Exhibits, exhibits, over, samples_beside
from latentbits.runs import Run
from latentbits.splits import Form
from latentbits.train_cli import parse_train

QUICK = ["--gibbs-steps", "5", "--diagnostics-seconds", "0.001"]
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\"'&amp;"


class Outline(HTMLParser):
    """What a page is made of: its tags with their attributes, the text in each section, and each chart's data."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.charts, self._section = [], {}, {}, ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "section" and "id" in attributes:
            self._section = attributes["id"]
        if "data-chart" in attributes:
            chart = json.loads(attributes["data-chart"])
            self.charts.setdefault(self._section, []).append(chart)

    def handle_data(self, text):
        self.texts[self._section] = self.texts.get(self._section, "") + text

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def report(run, *others, arguments=()):
    """The page that the command writes."""
    assert main(["report", str(run), *(str(other) for other in others), *QUICK, *arguments]) == 0
    html = (run / "report" / "report.html").read_text()
    check_soundness(html)
    return Outline(html)


def page_of(run):
    """The same page of one run without the command's pictures, which take most of its time."""
    folder = Run.open(run)
    splits = data.load(folder.config.data)
    temperatures = trained_temperatures(folder.config)
    shown = exhibits(folder, splits, 5, temperatures, lambda *told: None)
    diagnosis = examine(shown.model, splits, 0.001, temperatures, lambda *told: None)
    html = page([folder], [last_evaluation(folder)], splits, shown, diagnosis, {})
    check_soundness(html)
    return Outline(html)


def check_soundness(html):
    """What holds for every page: nothing from elsewhere, words for every picture, headings in order."""
    outline = Outline(html)
    addresses = [value for _, tag in outline.tags for name, value in tag.items() if name in ("src", "href")]
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)
    assert "url(" not in html.replace("url(#${id})", "")
    assert all(image["alt"] for image in outline.all("img"))
    assert all(tag["data-alt"] for _, tag in outline.tags if "data-chart" in tag)
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    identities = [tag["id"] for _, tag in outline.tags if "id" in tag]
    assert len(identities) == len(set(identities))
    assert {tag["href"][1:] for tag in outline.all("a")} <= set(identities)
    for tag in ("table", "section", "figure", "details", "div", "dl", "span", "button"):
        assert len(re.findall(rf"<{tag}[ >]", html)) == html.count(f"</{tag}>"), tag


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of three stages, one of them evaluated and with tempered chains."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny(joint={"epochs": 12, "temperatures": 3}, rbm={"pcd_epochs": 2}, autoencoder={"epochs": 12})
    first = lb.train(config.model_copy(update={"recipe": "digits"}), folder / "first", quiet=True)
    counts = "--samples 20 --chains 50 --temperatures 50 --raise-images 10 --raise-temperatures 20".split()
    assert main(["evaluate", str(first.path), "--images", "40", *counts]) == 0
    second = lb.train(tiny(joint={"epochs": 3, "objective": "crws"}), folder / "second", quiet=True)
    return first.path, second.path


@pytest.fixture(scope="module")
def outline(runs):
    found = report(*runs)
    shutil.copy(runs[0] / "report" / "report.html", runs[0] / "page.html")  # for the browser; others report here too
    return found


def test_curves_are_the_metrics(runs, outline):
    charts = outline.charts["curves"]
    rows = [row for row in Run(runs[0]).metrics() if row["stage"] == "joint"]
    (nll,) = [
        chart["series"][0]
        for chart in charts
        if chart["title"] == "Validation NLL" and len(chart["series"][0]["y"]) == 12
    ]
    assert nll["y"] == pytest.approx([row["valid_nll"] for row in rows], rel=1e-6)
    assert nll["x"][0] == list(range(1, 13))
    assert nll["x"][1] == pytest.approx([row["seconds"] for row in rows], rel=1e-6)
    titles = {chart["title"] for chart in charts}
    assert {"Reconstruction", "L_K + log Z in training", "Free energy, data minus chains"} <= titles
    assert "Stage 1, autoencoder" in outline.texts["curves"]
    assert "Stage 2, prior" in outline.texts["curves"]


def test_the_evaluation_stands_with_both_sides(runs, outline):
    evaluation = last_evaluation(Run(runs[0])).evaluation
    (chart,) = outline.charts["evaluation"]
    exact, fewer, raised = chart["rows"]
    assert exact["value"] == evaluation.likelihood.nll
    assert fewer["name"] == "K = 2, exact log Z"
    assert raised["value"] == evaluation.likelihood.nll + evaluation.likelihood_raise.difference
    assert raised["monte_carlo"] == evaluation.likelihood_raise.difference_standard_error
    text = outline.texts["evaluation"]
    assert f"{evaluation.likelihood_raise.nll:.3f}" in text
    assert "40 evenly spaced of 300" in text
    assert "on the 10 images" in text
    assert "its error here is that of the difference" in " ".join(text.split())


def test_pictures_and_latents_are_there(outline):
    assert len(outline.all("img")) == 6  # four of the run, and two samples side by side
    (latents,) = outline.charts["latents"]
    assert [series["name"] for series in latents["series"]] == ["after stage 1, scaled", "final"]
    assert all(0.9 < sum(series["y"]) <= 1 + 1e-9 for series in latents["series"])


def test_captions_count_the_images_that_are_there():
    few, one = torch.zeros(8, 4), torch.zeros(1, 4)
    sheets = {"samples": one, "samples-over-nearest-training-images": over(one, one), "reconstructions": over(few, few)}
    samples, pairs, test = pictures(Exhibits(None, sheets, {}), Form(1, 2, 2))
    assert samples.alt.startswith("1 sample of the model, 2 by 2 pixels")
    assert pairs.alt.startswith("1 sample in rows")
    assert test.alt.startswith("8 test images in rows")
    (many,) = pictures(
        Exhibits(None, {"reconstructions": over(torch.zeros(73, 4), torch.zeros(73, 4))}, {}), Form(1, 2, 2)
    )
    assert many.alt.startswith("50 test images")  # as many as are drawn


def test_diagnostics_say_what_they_were_measured_on(outline):
    text = outline.texts["diagnostics"]
    assert "of a budget of 0.001 s" in text
    assert "2 × 50 chains, 100 steps" in text
    assert "250 chains, 100 temperatures" in text
    assert "log Z, not the quoted one" in text
    titles = [chart["title"] for chart in outline.charts["diagnostics"]]
    assert titles[-1] == "Swaps of parallel tempering"  # as many temperatures as in training
    schedule = next(chart for chart in outline.charts["diagnostics"] if chart["title"].startswith("Temperature"))
    assert schedule["series"][0]["y"][0] == 0
    assert schedule["series"][0]["y"][-1] == 1


def test_settings_are_marked_where_they_differ_from_the_recipe(outline):
    text = outline.texts["configuration"]
    assert "Marked settings differ" in text
    assert len(outline.all("mark")) == sum(
        value != settings(RECIPES["digits"].make())[name] for name, value in settings(first_config()).items()
    )
    assert "recipe: 1.0, 1.5, 2.0, 3.0, 4.0" in text  # beside the autoencoder's own scales


def marked(config, images):
    """The settings of the page's configuration that are marked, with the recipe's values."""
    groups = configuration(config, images)
    return {f"{group.name}.{row[0]}": row[2] for group in groups for row in group.rows if row[2]}


@pytest.mark.parametrize("kind", ["colour", "grey", "black-and-white"])
@pytest.mark.parametrize(("size", "images"), [(16, 97), (32, 4000), (64, 20_000)])
def test_what_the_recipe_chose_by_looking_at_pictures_is_not_marked(kind, size, images):
    assert marked(my_images(kind, size, images), images) == {}
    changed = my_images(kind, size, images).vary(joint={"epochs": 7}, model={"latent": 33})
    recipes = my_images(kind, size, images)
    assert marked(changed, images) == {
        "joint.epochs": str(recipes.joint.epochs),
        "model.latent": str(recipes.model.latent),
    }


def test_pictures_of_another_kind_than_was_asked_for_have_only_that_marked():
    black_and_white = my_images("black-and-white", 64, 3000)
    assert marked(black_and_white.vary(data={"kind": "grey"}), 3000) == {"data.kind": "black-and-white"}


def test_settings_of_other_data_are_left_out():
    def shown(config):
        return {row[0] for group in configuration(config, 100) if group.name == "data" for row in group.rows}

    assert shown(my_images("colour", 16, 100)) == {"name", "damaged", "size", "kind"}
    assert shown(RECIPES["digits"].make()) == {"name"}
    given = Config(data={"name": "given", "image": (1, 2, 2), "levels": 2})
    assert shown(given) == {"name", "image", "levels"}


def first_config():
    config = tiny(joint={"epochs": 12, "temperatures": 3}, rbm={"pcd_epochs": 2}, autoencoder={"epochs": 12})
    return config.model_copy(update={"recipe": "digits"})


def test_the_command_repeats_the_run(runs, outline):
    lines = re.findall(r"latentbits train [^\n]*", outline.texts["repeat"])
    words = shlex.split(lines[0])
    config, options = parse_train(words[2:])
    assert config == Run(runs[0]).config
    assert options.run == runs[0].with_name("first-again")
    assert "latentbits" in outline.texts["repeat"].split("Its evaluation was")[1]


def test_the_terminal_says_in_words_whose_evaluation_it_is(runs, outline, capsys):
    report(runs[1], runs[0], arguments=["--diagnostics-seconds", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert f"{runs[1]}: not evaluated yet; latentbits evaluate does it" in lines
    (said,) = [line for line in lines if line.startswith(f"{runs[0]}, last evaluated on")]
    assert "40 evenly spaced of 300 images, with weights model of stage" in said
    assert any(line.startswith("made by: latentbits") for line in lines)
    assert "{" not in "".join(lines)


def test_runs_are_compared(runs, outline):
    text = outline.texts["comparison"]
    assert "first, whose page this is, with second" in text
    charts = {chart["title"]: chart for chart in outline.charts["comparison"]}
    joined = charts["Validation NLL, stage 3, joint training"]
    assert [series["name"] for series in joined["series"]] == ["first", "second"]
    assert [len(series["y"]) for series in joined["series"]] == [12, 3]
    assert [series["color"] for series in joined["series"]] == [0, 1]
    assert joined["axes"] == ["epoch", "seconds of training"]
    assert "joint.objective" in text
    assert "crws" in text
    assert "joint.samples" not in text  # the same in both
    assert f"{last_evaluation(Run(runs[0])).evaluation.likelihood.nll:.3f}" in text


def test_likelihoods_that_cannot_be_compared_are_named(runs, outline, tmp_path):
    assert "Warning" not in outline.texts["comparison"]  # one of the two has no evaluation
    other = tmp_path / "other"
    shutil.copytree(runs[0], other)
    path = other / "evaluation.json"
    record = json.loads(path.read_text())
    record["images"] = "first 39"
    record["evaluation"]["likelihood"]["samples"] = 21
    record["data_checksum"] = "0" * 64
    path.write_text(json.dumps(record))
    found = report(runs[0], other, arguments=["--diagnostics-seconds", "0"])
    text = found.texts["comparison"]
    assert "of different data" in text
    assert "of different images: 40 evenly spaced of 300, test; first 39, test" in text
    assert "of different K" in text


def test_alone_there_is_no_comparison(runs, capsys):
    alone = report(runs[1], arguments=["--temperatures", "4"])
    assert "comparison" not in alone.charts
    assert "Not evaluated yet" in alone.texts["evaluation"]
    assert "4 temperatures" in alone.texts["diagnostics"]
    assert "no recipe has its name" in alone.texts["repeat"]
    assert "config.json --run" in alone.texts["repeat"]
    assert "report.html" in capsys.readouterr().out


def test_evaluations_of_kept_weights_are_drawn(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[1], run)
    rows = [
        {
            "epoch": epoch,
            "seconds": seconds,
            "images": "all 5",
            "weights": {"file": f"joint-{epoch:04d}"},
            "settings": {},
            "evaluation": {"likelihood": {"nll": nll, "samples": 9, "images": 5}},
        }
        for epoch, seconds, nll in ((1, 10.0, 20.5), (2, None, 19.25))
    ]
    Run(run).write_curve("test", rows)
    outline = report(runs[0], run, arguments=["--diagnostics-seconds", "0"])
    curve = next(chart for chart in outline.charts["comparison"] if chart["title"] == "NLL of the test split")
    assert curve["series"] == [
        {"name": "run (K = 9, 5 images)", "x": [[1, 2], [10, None]], "y": [20.5, 19.25], "color": 1}
    ]
    assert "as asked by" in outline.texts["diagnostics"]


def test_a_run_that_has_just_begun_makes_a_page(tmp_path):
    run = lb.train(tiny(), tmp_path / "run", max_minutes=1e-9, quiet=True)
    outline = page_of(run.path)
    assert "epoch 0 of 1" in outline.texts[""]
    assert "stage 1, autoencoder" in outline.texts[""]
    assert "No epoch is over yet" in outline.texts["curves"]
    for section in ("images", "latents", "diagnostics"):
        assert "no weights" in outline.texts[section]


def test_a_folder_of_a_configuration_alone_makes_a_page(tmp_path):
    Run.create(tmp_path / "run", tiny())
    outline = page_of(tmp_path / "run")
    assert "just begun" in outline.texts[""]
    assert "the folder has no checkpoint" in outline.texts["run"]


def test_a_run_without_weights_or_checkpoint_says_how_far_it_came(runs, tmp_path):
    run = Run.create(tmp_path / "run", Run(runs[0]).config)
    shutil.copy(runs[0] / "metrics.jsonl", run.path)
    outline = page_of(run.path)
    assert "epoch 12 of 12" in outline.texts[""]
    assert outline.charts["curves"]
    assert "no weights" in outline.texts["images"]
    assert not outline.all("img")


def test_an_rbm_over_the_data_makes_a_page(tmp_path):
    config = tiny(
        model={"network": "none", "hidden": 5}, autoencoder={"epochs": 0}, joint={"epochs": 0}, rbm={"cd_epochs": 2}
    )
    outline = page_of(lb.train(config, tmp_path / "run", quiet=True).path)
    assert "64 × 5" in outline.texts[""]
    assert len(outline.all("img")) == 2  # samples, and over their nearest; nothing is reconstructed
    assert "no encoder" in outline.texts["latents"]
    assert outline.charts["diagnostics"]


@pytest.mark.parametrize("prior", ["normal", "bernoulli"])
def test_a_prior_that_is_sampled_exactly_needs_no_diagnosis(tmp_path, prior):
    config = continuous() if prior == "normal" else tiny(model={"prior": "bernoulli"})
    outline = page_of(lb.train(config, tmp_path / "run", quiet=True).path)
    assert "sampled exactly" in outline.texts["diagnostics"]
    (latents,) = outline.charts["latents"]
    assert ("Means of the latents" in latents["title"]) == (prior == "normal")
    assert len(outline.all("img")) == 4 - (prior == "normal")  # which has no stage 1 to show


def test_an_adversarial_run_makes_a_page(tmp_path, monkeypatch):
    splits = grey_splits()
    monkeypatch.setattr("latentbits.data.load", lambda config, data_dir=None: splits)
    outline = page_of(lb.train(gan(2), tmp_path / "run", quiet=True).path)
    assert "no likelihood" in outline.texts["evaluation"]
    assert "Generator and critic" in outline.texts["curves"]
    assert outline.charts["curves"][0]["title"] == "Distance by the critic"
    assert len(outline.all("img")) == 2


def test_a_checkpoint_before_a_stage_that_is_not_trained_names_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("latentbits.train"), "train_joint", stop_at_once)
    with pytest.raises(KeyboardInterrupt):
        lb.train(tiny(), tmp_path / "run", quiet=True)  # ends stage 2; the warm start has no epochs
    assert standing(Run(tmp_path / "run")).words == "stage 3, joint training: epoch 0 of 1"


def stop_at_once(*arguments):
    raise KeyboardInterrupt


def hostile_run(folder, like):
    """A run in whose files and name every text is an attempt to become a part of the page."""
    run = folder / "<b onclick=alert(1)>&quot;'"
    shutil.copytree(like, run)
    config = json.loads((run / "config.json").read_text()) | {"weights": HOSTILE}
    (run / "config.json").write_text(json.dumps(config))
    start = {"stage": "start", "weights": HOSTILE, "sha256": HOSTILE}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [row | ({HOSTILE: float(i)} if "epoch" in row else {}) for i, row in enumerate(lines)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [start, *lines]))
    record = json.loads((run / "evaluation.json").read_text())
    record |= {"command": HOSTILE, "images": HOSTILE, "data_checksum": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    record["evaluation"]["split"] = HOSTILE
    (run / "evaluation.json").write_text(json.dumps(record))
    return run


def hostile_page(folder, runs):
    run = Run(hostile_run(folder, runs[0]))
    splits = data.load("digits")
    shown = exhibits(run, splits, 1, 1, lambda *told: None)
    records = [last_evaluation(run), None]
    beside = samples_beside(shown.sheets["samples"], [run, Run(runs[1])], splits.form, 1, [1, 1], lambda *told: None)
    return page([run, Run(runs[1])], records, splits, shown, None, beside)


def test_samples_are_tempered_where_that_is_asked_for(runs):
    run, splits = Run(runs[0]), data.load("digits")
    model = lb.load(runs[0])
    plain, tempered = (exhibits(run, splits, 5, count, lambda *told: None).sheets["samples"] for count in (1, 4))
    assert torch.equal(tempered, model.sample(100, 5, torch.Generator().manual_seed(0), temperatures=4))
    assert not torch.equal(tempered, plain)


def test_samples_of_runs_stand_side_by_side(runs, outline, tmp_path):
    with Image.open(runs[0] / "report" / "samples-side-by-side.png") as picture:
        assert picture.width > 1.5 * picture.height
    assert [figure["alt"] for figure in outline.all("img")[:2]] == ["100 samples in rows of ten."] * 2
    samples, form = torch.zeros(7, 64), data.load("digits").form
    unfinished, larger = tmp_path / "unfinished", tmp_path / "larger"
    for folder in (unfinished, larger):
        shutil.copytree(runs[1], folder)
    (unfinished / "model.safetensors").unlink()
    config = json.loads((larger / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps(config | {"data": {"name": "binarized-mnist"}}))
    compared = [Run(path) for path in (runs[0], runs[1], unfinished, larger)]
    beside = samples_beside(samples, compared, form, 5, [1, 4, 1, 1], lambda *told: None)
    assert list(beside) == ["first", "second"]  # not what has no weights, nor what has other images
    assert torch.equal(beside["first"], samples)
    expected = lb.load(runs[1]).sample(7, 5, torch.Generator().manual_seed(0), temperatures=4)
    assert torch.equal(beside["second"], expected)
    foreign = tmp_path / "foreign"
    shutil.copytree(runs[1], foreign)
    config = json.loads((foreign / "config.json").read_text())
    config["model"]["latent"] += 1
    (foreign / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="foreign: its samples are left out"):
        beside = samples_beside(samples, [Run(runs[0]), Run(foreign)], form, 5, [1, 1], lambda *told: None)
    assert beside == {}
    torn = tmp_path / "torn"
    shutil.copytree(runs[0], torn)
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:100])
    assert not_comparable([Run(torn)], [last_evaluation(Run(torn))]) == [
        "An evaluation is of other weights than its run's own now: evaluate again."
    ]
    alone = samples_beside(samples, compared[:1], form, 5, [1], lambda *told: None)
    assert alone == {}


def test_texts_from_files_stay_texts(runs, tmp_path):
    html = hostile_page(tmp_path, runs)
    check_soundness(html)
    outline = Outline(html)
    assert len(outline.all("script")) == 2  # the page's own
    assert not outline.all("b") or all("onclick" not in tag for tag in outline.all("b"))
    assert {tag["src"][:5] for tag in outline.all("img")} == {"data:"}
    assert HOSTILE in outline.texts["run"]
    assert HOSTILE in outline.texts["repeat"]
    assert HOSTILE in {chart["title"] for chart in outline.charts["curves"]}
    assert f"is of data with SHA-256 {HOSTILE}" in outline.texts["run"]


def test_infinities_do_not_break_a_page(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1] |= {"valid_nll": float("inf"), "bound": float("nan"), "log_partition_error": None}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    outline = page_of(run)
    (nll,) = [
        chart
        for chart in outline.charts["curves"]
        if len(chart["series"][0]["y"]) == 12 and chart["title"] == "Validation NLL"
    ]
    assert nll["series"][0]["y"][-1] is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--gibbs-steps", "-1"], "--gibbs-steps: expected at least 0, got -1"),
        (["--diagnostics-seconds", "-1"], "--diagnostics-seconds: expected 0 or more, got -1.0"),
        (["--diagnostics-seconds", "inf"], "--diagnostics-seconds: expected 0 or more, got inf"),
        (["--temperatures", "0"], "--temperatures: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_done_is_refused(runs, arguments, line, capsys):
    assert main(["report", str(runs[1]), *arguments]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"evaluation": {}, "command": ""}'])
def test_a_damaged_evaluation_is_refused_before_anything_is_written(runs, tmp_path, content, capsys):
    run = Run.create(tmp_path / "run", Run(runs[0]).config)
    (run.path / "evaluation.json").write_text(content)
    assert main(["report", str(run.path), *QUICK]) == 2
    assert "evaluation.json: damaged; evaluate again to replace it" in capsys.readouterr().err
    assert not (run.path / "report").exists()


# ----------------------------------------------------------------------------- the command and the charts by themselves


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "my-images"])
def test_every_recipes_command_gives_its_configuration_back(name):
    config = RECIPES[name].make()
    assert command_for(config) == ["latentbits", "train", name]
    values = config.model_dump() | {"seed": 7, "weights": "it's a file.safetensors"}
    values["model"] |= {"fully_connected": not config.model.fully_connected, "layers": ()}
    values["model"] |= {"maps": (3, 4), "encoder_maps": ()}
    values["autoencoder"] |= {"learning_rate": 1e-5, "scales": (0.5,)}
    values["validation"] |= {"keep": 3}
    changed = Config.model_validate(values)
    words = shlex.split(shlex.join(command_for(changed, "--max-minutes", "1")))
    parsed, options = parse_train(words[2:])
    assert parsed == changed
    assert options.max_minutes == 1
    assert "--joint.samples" not in words


@pytest.mark.parametrize("found", [("colour", 40), ("grey", 3000), ("black-and-white", 10**6)])
@pytest.mark.parametrize("size", [32, 64])
def test_a_command_for_ones_own_pictures_does_not_depend_on_what_is_found(found, size, monkeypatch):
    """The same options give the same configuration, even if the folder holds other pictures by then."""
    from types import SimpleNamespace

    config = my_images("grey", size, 3000)
    kind, files = found
    place = SimpleNamespace(kind=kind, files=files, looked_at=10)
    monkeypatch.setattr("latentbits.folders.describe", lambda path: place)
    words = command_for(config, "--data-dir", "pictures")
    assert parse_train(words[2:])[0] == config


def test_a_configuration_of_no_recipe_has_no_command():
    with pytest.raises(ValueError, match=r"recipe: expected one of digits, .* got 'custom'"):
        command_for(Config())


def test_a_charts_table_has_all_values():
    times = {"epoch": [1.0, 2.0], "hours": [0.5, 1.25]}
    one = Series("one", times, [3.0, float("nan")])
    same = Chart("Loss", "nats", [one, Series("two", times, [5.0, 6.5])])
    assert same.table.head == ["epoch", "hours", "one", "two"]
    assert same.table.rows == [["1", "0.5", "3", "5"], ["2", "1.25", "–", "6.5"]]
    apart = Chart("Loss", "nats", [one, Series("two", {"epoch": [2.0, 4.0], "hours": [2.0, 3.0]}, [7.0, 8.0])])
    assert apart.table.head == ["epoch", "hours, one", "one", "hours, two", "two"]
    assert apart.table.rows[1:] == [["2", "1.25", "–", "2", "7"], ["4", "–", "–", "3", "8"]]
    assert apart.alt == (
        "Loss. one: 3 at epoch 1, 3 at 1; least 3 at 1, most 3 at 1. "
        "two: 7 at epoch 2, 8 at 4; least 7 at 2, most 8 at 4."
    )


def test_words_of_a_chart_tell_large_values_apart():
    series = Series("", {"epoch": [1.0, 2.0, 3.0]}, [18820.31, 18805.87, 18817.5])
    assert Chart("NLL", "nats", [series]).alt == (
        "NLL. 18,820.3 at epoch 1, 18,817.5 at 3; least 18,805.9 at 2, most 18,820.3 at 1."
    )
    close = Series("", {"epoch": [1.0, 2.0]}, [4786.053446, 4786.053187])
    assert Chart("NLL", "nats", [close]).alt.startswith("NLL. 4,786.053 at epoch 1, 4,786.053 at 2;")
    bars = Series("", {"log-weight, nats": [15000.25, 15000.5, 15000.75]}, [0.5, 0.0, 0.5])
    assert Chart("Weights", "share", [bars], "bars").alt.endswith("from 15,000.25 to 15,000.75, on average 15,000.5.")


@pytest.mark.parametrize(
    ("value", "said"),
    [(490.3, "490"), (12_345.0, "12,000"), (99.7, "100"), (99.4, "99"), (0.0161, "0.016"), (None, "?"), (np.inf, "?")],
)
def test_errors_have_two_digits_in_plain_notation(value, said):
    assert error(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(18820.31, "18,820.3"), (1234567.8, "1,234,568"), (0.25, "0.25"), (7.0, "7"), (None, "–"), (87.25, "87.25")],
)
def test_numbers_of_tables_are_in_plain_notation(value, said):
    assert number(value) == said


def test_the_first_epochs_do_not_flatten_the_rest():
    falling = Series("", {"epoch": list(range(40))}, [500.0, *np.linspace(90, 80, 39)])
    low, high = settled_limits([falling])
    assert 79 < low < 80
    assert 89 < high < 95
    assert settled_limits([Series("", {"epoch": [1.0, 2.0]}, [9.0, 1.0])]) is None


def test_histograms_have_common_bins_and_hold_nearly_all():
    values = torch.randn(20_000, generator=seeded(1)).numpy()
    wide, narrow = histogram({"wide": 2 * values, "narrow": values}, "x", bins=40)
    assert wide.x == narrow.x
    assert 0.975 < sum(wide.y) < 1
    assert sum(narrow.y) > 0.999
    assert max(narrow.y) > 1.5 * max(wide.y)
    (constant,) = histogram({"": np.full(5, 3.0)}, "x")
    assert sum(constant.y) == 1


# ----------------------------------------------------------------------------- in a browser

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian's package chromium)")


@pytest.fixture(scope="module")
def browser():
    with Page() as page:
        yield page


@pytest.fixture
def opened(browser, runs, outline):
    """The page of both runs in a browser of desktop size with the light theme, nothing stored."""
    browser.problems.clear()
    browser.requests.clear()
    browser.resize(1100, 900)
    browser.prefer(dark=False)
    path = runs[0] / "page.html"
    browser.open(path)
    browser.run("localStorage.clear()")
    browser.open(path)
    return browser


CURVE = "#curves .canvas"
READING = "document.querySelector('#curves .legend').innerText.replaceAll(/\\s+/g, ' ')"


def centre(page, selector):
    page.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    page.settle()
    box = page.run(
        f"(b => [b.x, b.y, b.width, b.height])(document.querySelector({selector!r}).getBoundingClientRect())"
    )
    return box[0] + box[2] / 2, box[1] + box[3] / 2


@needs_chromium
def test_it_loads_in_silence_and_asks_for_nothing(opened):
    assert opened.run("document.querySelectorAll('.plot svg[role=img]').length") > 10
    assert opened.run("[...document.querySelectorAll('.plot svg[role=img]')].every(s => s.ariaLabel.length > 20)")
    colours = opened.run(
        "[...document.querySelectorAll('#comparison .canvas')].map(canvas => [...canvas.querySelectorAll('.stroke')]"
        ".map(line => getComputedStyle(line).stroke))"
    )
    assert len(colours) == 3
    assert all(len(set(each)) == 2 and "none" not in each for each in colours)
    assert opened.run("[...document.images].every(image => image.complete && image.naturalWidth > 50)")
    assert all(address.startswith(("file:", "data:")) for address in opened.requests)
    assert sum(address.startswith("file:") for address in opened.requests) == 2  # the page, opened twice
    assert opened.problems == []


@needs_chromium
def test_the_theme_follows_the_system_until_it_is_switched(opened):
    def paper():
        return opened.run("getComputedStyle(document.body).backgroundColor")

    light = paper()
    opened.prefer(dark=True)
    opened.until("document.querySelector('#theme').ariaPressed === 'true'")
    opened.settle()
    dark = paper()
    assert light != dark
    for _ in range(5):  # a page's store reaches the browser's own process a moment later: a reload can come before it
        opened.point(*centre(opened, "#theme"), click=True)
        assert paper() == light
        opened.settle()
        opened.reload()
        remembers = paper() == light
        if remembers:
            break
    assert remembers
    opened.run("document.querySelector('#theme').focus()")
    opened.press("Enter")
    assert paper() == dark
    assert opened.problems == []


@needs_chromium
def test_values_are_read_by_mouse_keyboard_and_touch(opened, runs):
    rows = [row for row in Run(runs[0]).metrics() if row["stage"] == "autoencoder"]
    before = opened.run(READING)
    assert "epoch" not in before
    x, y = centre(opened, CURVE)
    opened.point(x, y)
    assert re.search(r"epoch [5-8] ", opened.run(READING))
    opened.point(5, 5)
    assert opened.run(READING) == before
    opened.run(f"document.querySelector({CURVE!r}).focus()")
    opened.press("End")
    opened.press("ArrowLeft")
    reading = opened.run(READING)
    assert "epoch 11 " in reading
    assert f"{rows[10]['reconstruction']:.5g}" in reading
    assert "epoch 11: " in opened.run(f"document.querySelector({CURVE!r}).ariaValueText")
    opened.press("Home")
    assert "epoch 1 " in opened.run(READING)
    opened.press("Escape")
    assert opened.run(READING) == before
    opened.resize(375, 800, touch=True)
    opened.settle()
    opened.touch(*centre(opened, CURVE))
    assert "epoch" in opened.run(READING)
    assert opened.problems == []


@needs_chromium
def test_the_axis_the_range_and_the_tables_are_chosen(opened):
    ends = "document.querySelector('#curves .canvas svg').textContent"
    assert "epoch" in opened.run(ends)
    opened.run("document.querySelectorAll('#curves .controls button')[1].click()")
    assert opened.run(ends).count("seconds of training") == 1
    assert "epoch" not in opened.run(ends)
    path = "document.querySelector('#curves .canvas .stroke').getAttribute('d')"
    before = opened.run(path)
    opened.run("document.querySelector('#curves .legend button').click()")
    assert opened.run(path) != before
    assert opened.run("document.querySelector('#curves .legend button').ariaPressed") == "true"
    table = "document.querySelector('#curves details table')"
    assert opened.run(f"{table}.checkVisibility()") is False
    opened.run("document.querySelector('#curves details summary').focus()")
    opened.press("Enter")
    assert opened.run(f"{table}.checkVisibility()")
    assert opened.run(f"{table}.rows.length") == 13
    assert opened.problems == []


@needs_chromium
def test_nothing_overflows_a_phone(opened):
    opened.resize(375, 800, touch=True)
    opened.run("document.querySelectorAll('details').forEach(details => details.open = true)")
    opened.settle()
    assert opened.run("document.documentElement.scrollWidth") == 375
    # within charts the letters keep their size, and the drawing fits its frame
    assert opened.run(
        "[...document.querySelectorAll('.plot svg[role=img]')].every(s => "
        "Math.abs(s.viewBox.baseVal.width - s.getBoundingClientRect().width) < 2)"
    )
    assert opened.problems == []


@needs_chromium
@pytest.mark.parametrize("width", [360, 500, 700, 1100])
def test_the_first_figures_leave_no_hole(opened, width):
    opened.resize(width, 800)
    opened.settle()
    covered, whole = opened.run(
        "(list => [[...list.children].reduce((sum, tile) => sum + tile.offsetWidth * tile.offsetHeight, 0), "
        "list.clientWidth * list.clientHeight])(document.querySelector('.highlights'))"
    )
    assert covered > 0.97 * whole  # the rest is rules between them


@needs_chromium
def test_it_prints_and_copies(opened):
    assert opened.pdf().startswith(b"%PDF")
    opened.call("Emulation.setEmulatedMedia", media="print")
    assert opened.run("document.querySelector('nav').checkVisibility()") is False
    opened.call("Emulation.setEmulatedMedia", media="")
    opened.point(*centre(opened, ".copy"), click=True)
    opened.until("/Copied|Selected/.test(document.querySelector('.copy').textContent)")
    assert opened.run("getSelection().toString()").startswith("latentbits train digits --")


@needs_chromium
def test_hostile_texts_do_nothing(opened, runs, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(hostile_page(tmp_path, runs))
    opened.problems.clear()
    opened.open(path)
    assert opened.run("window.hacked") is None
    assert opened.run("document.querySelectorAll('.plot svg[role=img]').length") > 10
    assert opened.problems == []
