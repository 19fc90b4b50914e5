"""Every code block of the README and of docs/, run as written, what the pages say of the results, and the site.

A page's blocks run in order, in one namespace and an empty folder. ``python`` and ``sh`` blocks run; a plain block
directly below one shows its output, and each of its lines has to come, but for the digits. What cannot run here has a
comment above it, ``<!-- not run: why -->``, and only has to parse. Training is cut short: the recipe ``digits`` is
trained in full once and copied wherever it is asked for, and any other run, those of torchrun too, has an epoch or two
of each stage. The folder has what a reader would have: PICTURES, and DIR with MNIST, of random bits.
"""

import ast
import contextlib
import functools
import importlib.metadata
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from checks import LIMIT, seeded
from packaging.specifiers import SpecifierSet
from PIL import Image

import latentbits as lb
from latentbits import cli, console, data, folders, train_cli
from latentbits.recipes import RECIPES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import tables  # noqa: E402

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.M
)
NOT_CODE = ("", "json", "yaml")
SHORT = {
    "autoencoder": {"epochs": 2, "scales": (1.0,)},
    "rbm": {"cd_epochs": 1, "pcd_epochs": 1},
    "warm_start": {"epochs": 1},
    "joint": {"epochs": 2},
    "adversarial": {"epochs": 1},
}


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: As the fence says it; empty for output.
        text: Its lines.
        why: The reason why it is not run here, or None.
        line: Number of its first line in the page.
        follows: Whether nothing but an empty line stands between it and the block before.
    """

    language: str
    text: str
    why: str | None
    line: int
    follows: bool


def blocks(page):
    text, found, end = page.read_text(), [], -1
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        follows = end >= 0 and not text[end : match.start()].strip()
        found.append(Block(match["language"], match["text"], match["why"], line, follows))
        end = match.end()
    return found


def commands(block):
    """The words of each command of a shell block."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def pattern(text):
    """Output without its digits, the length of its rules and the way in which it was wrapped."""
    text = re.sub(r"[-+]?\d[\d,.]*", "#", text)
    return " ".join(re.sub(r"([━─])+", r"\1", text).split())


def short(config):
    """The same configuration with an epoch or two of each stage that it has."""
    values = config.model_dump()
    for section, few in SHORT.items():
        values[section] |= {name: value for name, value in few.items() if values[section][name]}
    return lb.Config.model_validate(values)


class Page(NamedTuple):
    """What running a page leaves.

    Attributes:
        names: Of its Python blocks.
        folder: Where it ran.
        printed: By all of its blocks.
        missing: Lines that it shows as output and that did not come.
    """

    names: dict
    folder: Path
    printed: str
    missing: list


def run(page, folder):
    names, printed, missing, output = {"__name__": page.stem}, "", [], None
    for block in blocks(page):
        if block.why is None and block.language in ("python", "sh"):
            with contextlib.redirect_stdout(io.StringIO()) as stream:
                run_block(block, page.name, names)
            output = stream.getvalue()
            printed += output
        elif output is not None and block.language == "" and block.follows:
            missing += [line for line in block.text.splitlines() if pattern(line.strip("… ")) not in pattern(output)]
            output = None
        else:
            output = None
    return Page(names, folder, printed, missing)


def run_block(block, page, names):
    if block.language == "python":
        # empty lines above it let a traceback name the page's own line
        exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), names)
        return
    for words in commands(block):
        place = f"{page}:{block.line}: {shlex.join(words)}"
        if words[0] == "latentbits":
            assert cli.main(words[1:]) == 0, place
        else:
            assert words[0] in OTHERS, f"{place} is not run; say why in a comment above"
            done = subprocess.run(OTHERS[words[0]](words), env=ENVIRONMENT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{place}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


BRIEFLY = "--autoencoder.epochs 2 --rbm.cd-epochs 1 --rbm.pcd-epochs 1 --joint.epochs 2"


def torchrun(words):
    """Its command in this Python; what it trains is cut short, too."""
    begins = "train" in words and "--resume" not in words
    return [sys.executable, "-m", "torch.distributed.run", *words[1:], *(BRIEFLY.split() if begins else [])]


OTHERS = {
    "torchrun": torchrun,
    "eval": lambda words: ["bash", "-c", f'eval "{words[1]}"'],
}
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def prepare(folder):
    """Give a page's reader some pictures, and a folder for MNIST."""
    (folder / "DIR").mkdir()
    (folder / "PICTURES").mkdir()
    for number, x in enumerate(lb.load_data("digits").test[:40]):
        pixels = np.kron(x.view(8, 8).numpy() * np.uint8(255), np.ones((4, 4), np.uint8))
        Image.fromarray(pixels).save(folder / "PICTURES" / f"{number}.png")


def load_small(config, data_dir=None):
    """The data that are asked for, but for MNIST a few hundred images of random bits."""
    if getattr(config, "name", config) != "binarized-mnist":
        return LOAD(config, data_dir)
    x = np.random.default_rng(0).integers(0, 2, (400, 784), np.uint8)
    return lb.make_splits("binarized-mnist", [x[:200], x[200:300], x[300:]], lb.Form(1, 28, 28, ink=True))


LOAD = data.load


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of the recipe, trained in full."""
    return lb.train(lb.recipes.digits(), tmp_path_factory.mktemp("digits") / "run", quiet=True)


@pytest.fixture(scope="module")
def after(digits, tmp_path_factory):
    """A function from a page's name to what running it leaves; each page runs once."""
    train = lb.train

    def train_briefly(config, run, resume=False, *args, **options):
        if config == lb.recipes.digits() and not resume:
            shutil.copytree(digits.path, run)
            return lb.Run(run)
        return train(short(config), run, resume, *args, **options)

    @functools.cache
    def run_once(name):
        folder = tmp_path_factory.mktemp(Path(name).stem)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lb, "train", train_briefly)
            patch.setattr(train_cli, "train", train_briefly)
            patch.setattr(data, "load", load_small)
            patch.chdir(folder)
            prepare(folder)
            return run(ROOT / name, folder)

    return run_once


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_blocks_run_and_print_what_the_page_shows(after, page):
    assert not after(page).missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_are_marked(page):
    """Every fence is one that the runner understands."""
    found = blocks(page)
    assert 2 * len(found) == page.read_text().count("```")
    assert {block.language for block in found} <= {"python", "sh", *NOT_CODE}


NOT_RUN = [(page, block) for page in PAGES for block in blocks(page) if block.why is not None]


@pytest.mark.parametrize(("page", "block"), NOT_RUN, ids=[f"{page.stem}-{block.line}" for page, block in NOT_RUN])
def test_blocks_that_do_not_run_parse(page, block, monkeypatch):
    monkeypatch.setattr(folders, "describe", lambda place: folders.Description("grey", 5000, 200))
    if block.language == "python":
        compile(block.text, page.name, "exec")
        return
    assert block.language == "sh"
    for words in commands(block):
        if "latentbits" in words:
            parse(words[words.index("latentbits") + 1 :])


def parse(words):
    """Let the command's own parser read its options, without doing what they ask for."""
    name, *options = words
    if name == "train":
        train_cli.parse_train(options)
        return
    command = getattr(cli, f"{name}_run", None) or getattr(cli, f"print_{name}")

    @functools.wraps(command)
    def do_nothing(*args, **options):
        pass

    console.parse(do_nothing, options, "latentbits")


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", README.read_text())
    assert links
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


@pytest.mark.parametrize("name", tables.pages())
def test_pages_show_the_tables_that_the_files_make(name):
    page = (ROOT / "docs" / name).read_text()
    for made in tables.pages()[name]:
        assert made in page, f"run python benchmarks/tables.py\n{made}"


def test_the_tables_files_are_those_that_the_results_make():
    for name in tables.TABLES:
        assert json.loads((ROOT / f"results/{name}.json").read_text()) == tables.table(name)
    assert json.loads((ROOT / "results/hours.json").read_text()) == tables.hours()


def test_results_name_no_place_of_a_machine():
    for path in (ROOT / "results").rglob("*.json*"):
        assert not re.search(r"""[\s"'=]/\w+/""", path.read_text()), path


def test_hours_of_recipes_that_were_not_trained_are_those_of_their_measured_steps():
    measured = json.loads((ROOT / "results/networks.json").read_text())["recipes"]
    stated = {name: re.search(r"by its steps (\d+) hours", recipe.cost) for name, recipe in RECIPES.items()}
    for name, hours in stated.items():
        if hours:
            stages = [stage for stage in measured[name].values() if isinstance(stage, dict)]
            assert int(hours[1]) == round(sum(stage.get("hours_for_the_recipe", 0.0) for stage in stages)), name
    assert any(stated.values())


def test_a_table_takes_the_place_of_the_one_most_like_it():
    head = "| name | nats |\n| --- | --- |\n"
    page = f"a\n\n{head}| p | 1 |\n| q | 2 |\n\nb\n\n{head}| p | 3 |\n| r | 4 |\n\nc\n"
    new = f"{head}| p | 5 |\n| r | 6 |\n| t | 7 |"
    assert tables.put_in(page, new) == page.replace(f"{head}| p | 3 |\n| r | 4 |", new)
    with pytest.raises(ValueError, match="found none"):
        tables.put_in("a\n", new)


@pytest.fixture(scope="module")
def quick_start(after):
    """The names that the README's blocks define."""
    return after("README.md").names


def test_quick_start_gives_what_it_says(quick_start):
    assert quick_start["bits"].shape == (300, 24)
    assert set(quick_start["bits"].unique().tolist()) == {0.0, 1.0}
    assert quick_start["images"].shape == (300, 64)
    assert quick_start["samples"].shape == (64, 64)
    assert quick_start["signal"].encoder_signal.shape == (50, 10)
    assert 15 < float(quick_start["nll"]) < 18  # 64 fair bits would be 44.4, independent pixels leave 24.6


def test_exact_ais_and_raise_agree_on_digits(after, quick_start):
    """As the README's command found: AIS near exact by its error, RAISE's NLL within 0.1 of the exact one."""
    record = json.loads((after("README.md").folder / "runs/digits/evaluation.json").read_text())
    result = lb.Evaluation.model_validate(record["evaluation"])
    exact, annealed = result.log_partition, result.log_partition_ais
    assert exact.method == "exact"
    assert exact.value == pytest.approx(quick_start["log_z"].item())
    assert annealed.standard_error < 0.02
    assert abs(annealed.value - exact.value) < LIMIT * annealed.standard_error
    assert abs(result.likelihood_raise.difference) < 0.1
    # the RBM is not a factorized prior in disguise, for which annealing would be trivial
    assert lb.ais(quick_start["rbm"], chains=1000, temperatures=20, generator=seeded(1)).ess < 900


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


def floats(form, text):
    return [[float(number) for number in found] for found in re.findall(form, text)]


def test_the_page_on_likelihoods_says_what_comes(after):
    names, _, printed, _ = after("docs/likelihoods.md")
    exact = names["exact"]
    # few modes are seen: three estimates with tiny errors, and more than a nat too small
    estimates = floats(r"temperatures: log Z = (\S+) ± (\S+), ESS (\S+)", printed)
    assert len(estimates) == 3
    for log_z, error, size in estimates:
        assert exact - log_z > 1
        assert error < 0.05
        assert size > 800
    # RAISE on samples of both modes tells; on those of one it agrees; with a base between them all is well
    of_all, of_one, fitted = floats(r"AIS (\S+), RAISE (\S+), exact (\S+)", printed)
    assert of_all[0] - of_all[1] > 5
    assert abs(of_one[0] - of_one[1]) < 0.1
    assert of_one[0] - of_one[2] > 1
    assert -0.2 < fitted[0] - fitted[2] < 0.2
    assert 0 < fitted[0] - fitted[1] < 1
    assert abs(names["estimate"].log_z - exact) < 4 * names["estimate"].standard_error
    # plain chains are mostly in the mode that has 30%, tempered ones are not
    assert names["plain"].mean(1).gt(0.5).float().mean() < 0.4
    assert abs(names["tempered"].mean(1).gt(0.5).float().mean() - 0.7) < 0.1
    # comparing picture by picture leaves an error much below that over images
    (gain, error), *_ = floats(r"gains (\S+) ± (\S+) nats", printed)
    assert gain > 5 * error
    assert error < 0.2


def test_the_bound_rises_with_k_as_the_method_says(after):
    bounds = [bound for _, bound in floats(r"K = +(\S+): (\S+) nats", after("docs/method.md").printed)]
    assert len(bounds) == 4
    assert bounds == sorted(bounds)
    assert bounds[1] - bounds[0] > 0.5


def test_noise_scores_least_in_the_tutorial(after):
    names = [line.split(",")[0] for line in (after("docs/tutorial.md").folder / "scores.csv").read_text().splitlines()]
    assert {name.split("-")[0] for name in names[1:3]} == {"noise"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return {path.name: path.read_text() for path in folder.glob("*.html")}


def test_pages_of_the_site_fetch_nothing_from_elsewhere(site):
    assert {"index.html", "CHANGELOG.html", *(f"{page.stem}.html" for page in PAGES[1:])} <= set(site)
    for name, page in site.items():
        fetched = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?((?:https?:)?//[^\" >]+)", page)
        assert not fetched, name


def test_pictures_of_the_site_have_a_text(site):
    pictures = [picture for page in site.values() for picture in re.findall(r"<img[^>]*>", page)]
    assert pictures
    assert not [picture for picture in pictures if not re.search(r'alt="[^"]{20,}"', picture)]


def test_formulas_of_the_site_are_drawn(site):
    assert site["method.html"].count("<math") > 20
    for name, page in site.items():
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", page, flags=re.DOTALL)
        assert not re.search(r"\\(?:frac|sum|begin|log|mid)\b|:(?:math|func|class|meth):|\$", text), name


def test_every_public_name_is_described(site):
    modules = {"distributed": "distributed.processes", "recipes": "recipes.my_images"}
    for name in lb.__all__:
        described = rf'id="latentbits\.(?:\w+\.)?{re.escape(modules.get(name, name))}"'
        assert re.search(described, site["api.html"]), name


PINNED = [line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]


@pytest.mark.parametrize("package", PINNED)
def test_the_pinned_versions_are_for_every_python_that_the_project_is_for(package):
    """Debian 12 has Python 3.11.2; a package that asks for 3.11.5 made `make demo` fail there."""
    try:
        asked = importlib.metadata.metadata(package).get("Requires-Python")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("is not installed for the tests")
    assert asked is None or "3.11.0" in SpecifierSet(asked)


def test_imports_point_downwards():
    """In the order of the list in docs/architecture.md, which has every module but the package's own two."""
    listed = re.search(r"```\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.S).group(1)
    order = re.findall(r"^(\w+)\.py ", listed, re.M)
    package = ROOT / "latentbits"
    assert sorted(order) == sorted(path.stem for path in package.glob("*.py") if not path.stem.startswith("__"))
    for name in order:
        above = set(order[: order.index(name) + 1])
        for node in ast.walk(ast.parse((package / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                imported = {node.module} if node.module else {each.name for each in node.names}
                assert not imported & above, f"{name}.py imports {imported & above} from above"
