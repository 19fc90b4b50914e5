"""Every option and every input file made wrong: always a line with the option or the file, status 2, no traceback, and
nothing that was there is changed.
"""

import contextlib
import io
import json
import lzma
import math
import shutil
import tarfile
import tempfile
import typing
import warnings
import zipfile
from importlib import import_module
from pathlib import Path

import annotated_types
import faults
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data import amat
from test_train import tiny

import latentbits as lb
from latentbits import colour, data, files, report
from latentbits.cli import main
from latentbits.config import MOST, Config
from latentbits.data import MNIST_FILES, AmatFile
from latentbits.recipes import RECIPES
from latentbits.train_cli import NOT_OPTIONS

FEW = "--samples 5 --chains 10 --temperatures 5".split()
COUNT = {}


def cases(short, full):
    """Settings of a test with so many examples, always the same ones."""
    return settings(
        max_examples=faults.form(short, full),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def counted(fault):
    COUNT[fault] += 1
    if COUNT[fault] % 20 == 0:
        faults.progress(fault, COUNT[fault], "all")


def run_all(fault, place, *tests):
    """Run every case of a fault, and say how many there were."""
    COUNT[fault] = 0
    for test in tests:
        test(place)
    faults.ran(fault, COUNT[fault])


def told(command):
    """Status of a command and what it says on the standard error, without decoration."""
    errors, status = io.StringIO(), 0
    with warnings.catch_warnings(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of pictures that are passed over
        try:
            status = main([str(word) for word in command])
        except SystemExit as stopped:  # by the parser
            status = stopped.code
    return status, errors.getvalue()


def refused(command, folder, *named):
    """A command must be refused with lines that name what is wrong, and leave a folder as it was."""
    before = faults.snapshot(folder)
    status, errors = told(command)
    assert status == 2, (command, status, errors)
    assert errors.strip(), command
    assert "Traceback" not in errors
    assert all(any(name in errors for name in each.split("|")) for each in named), (command, errors)
    assert faults.snapshot(folder) == before, command
    return errors


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished run, its codes, and other things that nothing may change."""
    folder = tmp_path_factory.mktemp("place")
    config = tiny(validation={"keep": 1}).model_copy(update={"recipe": "digits"})
    lb.train(config, folder / "run", quiet=True)
    told(["evaluate", folder / "run", *FEW, "--images", "5", "--raise-images", "0"])
    told(["curve", folder / "run", *FEW, "--images", "5"])
    told(["encode", folder / "run", "--out", folder / "codes.npz"])
    (folder / "mine.txt").write_text("mine")
    (folder / "mine").mkdir()
    (folder / "mine" / "too.txt").write_text("mine")
    (folder / "run" / ".lock").touch()
    return folder


# ----------------------------------------------------------------------------- options


def bounds(info):
    """Values beyond the bounds that a setting states, and the enormous."""
    steps = {annotated_types.Ge: -1, annotated_types.Gt: 0, annotated_types.Le: 1, annotated_types.Lt: 0}
    whole = info.annotation is int
    for kind, step in steps.items():
        for bound in (each for each in info.metadata if isinstance(each, kind)):
            value = getattr(bound, kind.__name__.lower())
            yield str(value + step) if whole else str(value + 1e-3 * step)
            yield str(value + 1000 * step) if step else str(value)
    yield from (str(MOST + 1), str(10**30), "1.5", "x", "") if whole else ("nan", "inf", "-inf", "1e400", "x", "")


def settings_to_break():
    """Option and words for each setting of a recipe that no value of it may have."""
    for section, info in Config.model_fields.items():
        fields = getattr(info.annotation, "model_fields", {"": info})
        for name, field in fields.items():
            if section in NOT_OPTIONS or name in NOT_OPTIONS:
                continue
            option = "--" + ".".join(part for part in (section, name) if part).replace("_", "-")
            kind = field.annotation
            if typing.get_origin(kind) is typing.Literal:
                words = ["nothing", "", "1"]
            elif typing.get_origin(kind) is tuple:
                words = ["0", "-1", "x", "nan"]
            elif kind in (int, float):
                words = list(bounds(field))
            else:
                continue
            yield from ((option, word) for word in words)


TRAIN = [
    *settings_to_break(),
    ("--max-minutes", "0"), ("--max-minutes", "-1"), ("--max-minutes", "nan"), ("--max-minutes", "x"),
    ("--device", "abacus"), ("--device", "meta"), ("--device", "cuda:99"), ("--device", ""),
    ("--weights", "nowhere.safetensors"), ("--weights", "PLACE/mine.txt"), ("--weights", "PLACE/mine"),
    ("--weights", "PLACE/run/checkpoint.safetensors"), ("--weights", "PLACE/run/config.json"),
    ("--run", "PLACE/run"), ("--run", "PLACE/mine"), ("--run", "PLACE/mine.txt"), ("--run", "PLACE/mine.txt/new"),
    ("--joint.sample", "5"), ("--nothing", "1"), ("--model.prior", "normal"), ("--model.network", "none"),
    ("--model.network", "dcgan"), ("--joint.objective", "iwae"), ("--data.name", "cifar10"),
]  # fmt: skip
PARSED = ("x", "", "1.5", "nothing", "1")


@cases(24, 300)
@given(st.lists(st.sampled_from(TRAIN), min_size=1, max_size=3, unique_by=lambda each: each[0]))
def options_of_train(place, broken):
    """One to three wrong options of one command; each of those that validation finds has a line."""
    words = [word.replace("PLACE", str(place)) for pair in broken for word in (f"{pair[0]}={pair[1]}",)]
    run = [] if any(option == "--run" for option, _ in broken) else ["--run", place / "new"]
    errors = refused(["train", "digits", *run, *words], place)
    beyond = [
        option
        for option, word in broken
        if option.count(".") == 1 and word not in PARSED and len(word) < 10 and word not in ("normal", "none", "dcgan")
    ]
    if len(beyond) == len(broken) and not any(word in ("iwae", "cifar10") for _, word in broken):
        assert all(option.split(".")[0] in errors for option in beyond), errors
    counted("wrong options")


SPLITS = [("--split", "tset"), ("--split", "")]
SEEDS = [("--seed", "-1"), ("--seed", str(2**70)), ("--seed", "x"), ("--seed", "1.5")]
WEIGHTS = [("--weights", "nothing"), ("--weights", "../run"), ("--weights", "checkpoint"), ("--weights", "")]
OUTPUTS = [("--out", "PLACE/mine.txt"), ("--out", "PLACE/mine"), ("--out", "PLACE/mine.txt/x"), ("--out", "")]
DEVICES = [("--device", "abacus"), ("--device", "meta")]


def numbers(**least):
    """Options that are whole numbers, below their least value, enormous, or none."""
    for name, bound in least.items():
        for word in (str(bound - 1), str(MOST + 1), str(10**30), "x", "1.5", "nan"):
            yield f"--{name.replace('_', '-')}", word


COMMANDS = {
    "evaluate": [
        *numbers(samples=1, chains=0, temperatures=1, images=1),
        *numbers(raise_images=0, raise_resampled=1, raise_temperatures=0),
        *[("--schedule", "steep"), *SPLITS, *SEEDS, *WEIGHTS, *OUTPUTS, *DEVICES],
    ],
    "curve": [*numbers(samples=1, chains=1, temperatures=1, images=1), *SPLITS, *SEEDS, *DEVICES],
    "sample": [
        *numbers(count=1, gibbs_steps=0, temperatures=1, frames=2),
        *[*SEEDS, *WEIGHTS, *OUTPUTS, ("--pretrained", "mnist-mlp"), ("--pretrained", "mnist")],
    ],
    "report": [
        *numbers(gibbs_steps=0, temperatures=1),
        *[("--diagnostics-seconds", word) for word in ("-1", "inf", "nan", "x")],
    ],
    "export": [*WEIGHTS],
    "completion": [("--all", "x")],
    "encode": [*SPLITS, *WEIGHTS, *OUTPUTS],
    "score": [*numbers(samples=2, chains=2, temperatures=1), *SPLITS, *SEEDS, *WEIGHTS, *OUTPUTS],
    "inpaint": [
        *numbers(count=1, draws=1, steps=1, samples=2),
        *[*SPLITS, *SEEDS, *WEIGHTS, *OUTPUTS, ("--keep", "middle")],
        *[("--mask", f"PLACE/{name}") for name in ("mine.txt", "mine", "nowhere.png")],
    ],
    "decode": [*WEIGHTS, ("--out", "PLACE/mine"), ("--out", "PLACE/mine.txt"), ("--out", "PLACE/mine.txt/x")],
    "data": [("--dir", "x")],
    "recipes": [("--all", "x")],
}
OPTIONS = [(command, *pair) for command, pairs in COMMANDS.items() for pair in pairs]
RUNS = ["PLACE/nowhere", "PLACE/mine", "PLACE/mine.txt", "PLACE/mine.txt/run", "mnist-mlp-bets", "", "."]


@cases(16, 150)
@given(st.sampled_from(OPTIONS), st.sampled_from([None, None, *RUNS]))
def options_of_other_commands(place, broken, run):
    """A wrong option, of a run that is there or is not."""
    command, option, word = broken
    where = {"data": [], "recipes": [], "completion": ["bash"]}.get(command, [run or "PLACE/run"])
    where += {"decode": ["PLACE/codes.npz"], "export": ["PLACE/new"]}.get(command, [])
    words = [each.replace("PLACE", str(place)) for each in [command, *where, f"{option}={word}"]]
    if command != "decode" and option != "--out" and command in ("sample", "encode", "score", "inpaint"):
        words += ["--out", str(place / "new")]
    with contextlib.chdir(place / "mine"):
        refused(words, place)
    counted("wrong options")


@cases(4, 50)
@given(st.text(max_size=12), st.sampled_from(["", "train"]))
def words_that_are_no_command(place, word, before):
    known = (*COMMANDS, "train", *RECIPES, "-h", "--help", "--version", "")
    word = f"{word}?" if word in known else word
    with contextlib.chdir(place):
        refused([*([before] if before else []), word], place)
    counted("wrong options")


def test_wrong_options(place):
    run_all("wrong options", place, options_of_train, options_of_other_commands, words_that_are_no_command)


# ----------------------------------------------------------------------------- folders of models


def cut(content, where, _):
    return content[: int(where * len(content))]


def flip(content, where, bit):
    at = int(where * len(content))
    return content[:at] + bytes([content[at] ^ 1 << bit % 8]) + content[at + 1 :]


def swap(content, where, bit):
    """A kilobyte overwritten by one from elsewhere."""
    at, size = int(where * len(content)), min(1024, len(content) // 3)
    other = (at + size * (1 + bit % 2)) % (len(content) - size)
    changed = content[:at] + content[other : other + size] + content[at + size :]
    return changed if changed != content else cut(content, where, bit)


def fill(content, where, bit):
    return content[: int(where * len(content))] + bytes([bit]) * 100


DAMAGE = st.tuples(st.sampled_from([cut, flip, swap, fill]), st.floats(0, 1, exclude_max=True), st.integers(0, 255))
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def damaged_weights(folder, damage):
    path = folder / "model.safetensors"
    change, where, bit = damage
    content = path.read_bytes()
    changed = change(content, where, bit)
    path.write_bytes(changed if changed != content else content[:-1])


def other_weights(folder, damage):
    """A whole file with the checksum of what it holds, which are not this model's weights."""
    path = folder / "model.safetensors"
    tensors, metadata = files.read_sealed(path)
    _, where, bit = damage
    names = sorted(tensors)
    name = names[int(where * len(names))]
    if bit % 4 == 0:
        del tensors[name if "base" not in name else names[0]]
    elif bit % 4 == 1:
        tensors["more"] = tensors[name].clone()
    elif bit % 4 == 2:
        tensors[name] = tensors[name].flatten()[1:].clone() if bit % 8 == 2 else tensors[name][None].clone()
    else:
        tensors[name] = tensors[name] * math.nan
    path.write_bytes(files.sealed(tensors, {"stage": metadata["stage"]}))


def missing(folder, damage):
    name = ["config.json", "model.safetensors"][damage[2] % 2]
    (folder / name).unlink()
    if damage[1] > 0.5:
        (folder / name).mkdir()


def other_configuration(folder, damage):
    """A setting of the model that does not fit its weights, or one that there is not."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    _, where, bit = damage
    changes = [
        ("latent", 9), ("hidden", 7), ("layers", [17]), ("layers", [16, 16]), ("layers", []), ("prior", "bernoulli"),
        ("prior", "normal"), ("network", "none"), ("network", "resnet"), ("latent", -1), ("latent", "many"),
        ("latent", None), ("latents", 8), ("latent", 10**12), ("layers", [2**31 - 1]), ("network", "dcgan"),
    ]  # fmt: skip
    name, value = changes[bit % len(changes)]
    config["model"][name] = value
    if where > 0.9:
        config["data"]["name"] = "binarized-mnist"
    path.write_text(json.dumps(config))


def no_configuration(folder, damage):
    path = folder / "config.json"
    _, where, bit = damage
    others = [b"", b"null", b"[]", b"{", b"\xff" * 20, path.read_bytes()[: int(where * 500)], b'{"model": 3}']
    path.write_bytes(others[bit % len(others)])


BREAK = [damaged_weights, other_weights, missing, other_configuration, no_configuration]
READ = ["sample", "encode", "decode", "score", "inpaint", "evaluate"]


@cases(12, 150)
@given(st.sampled_from(BREAK), DAMAGE, st.sampled_from(READ))
def folders_of_models(place, change, damage, command):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(place / "run", folder / "run")
        shutil.copy(place / "codes.npz", folder)
        change(folder / "run", damage)
        words = [command, folder / "run"]
        words += [folder / "codes.npz"] if command == "decode" else []
        words += ["--out", folder / "new"] if command != "evaluate" else []
        words += FEW if command in ("evaluate", "score") else []
        errors = refused(words, folder, f"{folder}")
        assert all(line.startswith("error: ") for line in errors.splitlines())
    counted("wrong folders of models")


def test_wrong_folders_of_models(place):
    run_all("wrong folders of models", place, folders_of_models)


# ----------------------------------------------------------------------------- lines of JSON


@cases(4, 60)
@given(st.sampled_from(["metrics.jsonl", "evaluation.json", "curve-valid.jsonl"]), DAMAGE, JUNK, st.booleans())
def records(place, name, damage, junk, whole):
    """Torn, or with other values in the right places: drawn as they stand where they can be, else a line."""
    with tempfile.TemporaryDirectory() as where, pytest.MonkeyPatch.context() as patch:
        folder = Path(where)
        shutil.copytree(place / "run", folder / "run")
        path = folder / "run" / name
        if whole:
            rows = [json.loads(line) for line in path.read_text().splitlines()] if name.endswith("l") else None
            row = rows[int(damage[1] * 7919) % len(rows)] if rows else json.loads(path.read_text())
            key = sorted(row)[int(damage[1] * len(row))]
            row[key] = junk
            path.write_text("\n".join(map(json.dumps, rows)) + "\n" if rows else json.dumps(row))
        else:
            change, at, bit = damage
            path.write_bytes(change(path.read_bytes(), at, bit))
        patch.setattr(report, "exhibits", lambda *arguments: report.Exhibits(None, {}, {}))  # of the model
        patch.setattr(report, "save_png", lambda *arguments: None)
        before = path.read_bytes()
        status, errors = told(["report", folder / "run", "--diagnostics-seconds", "0"])
        assert status == 0 or (status == 2 and name in errors), errors
        status, errors = told(["curve", folder / "run", *FEW, "--images", "5", "--split", "valid"])
        assert (status, errors == "") in ((0, True), (2, False))
        assert name.startswith("curve") or path.read_bytes() == before
    counted("wrong records")


def test_wrong_records(place):
    run_all("wrong records", place, records)


# ----------------------------------------------------------------------------- codes


KINDS = st.sampled_from(["|u1", "<f4", "<f8", "<i8", "|b1", "<U3", "<c8", "<M8[s]", "|S4", "|O", "<f2", ">i2"])
SHAPES = st.lists(st.integers(0, 4), max_size=3)


@cases(6, 60)
@given(
    st.dictionaries(st.sampled_from(["names", "bits", "count", "latents", "bit"]), st.tuples(KINDS, SHAPES), max_size=4)
)
def wrong_codes(place, arrays):
    """Arrays of every kind and shape: refused, since none has a row of 8 bits or numbers for each of some names."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = {key: np.zeros(shape, kind) for key, (kind, shape) in arrays.items()}
        np.savez(folder / "codes.npz", **content)
        refused(["decode", place / "run", folder / "codes.npz", "--out", folder / "new"], folder, "codes")
    counted("wrong codes")


def test_wrong_codes(place):
    run_all("wrong codes", place, wrong_codes)


# ----------------------------------------------------------------------------- data


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Small data sets in each published layout, and pictures in a folder and in archives."""
    folder, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTBITS_CACHE", str(folder / "cache"))
        small = {}
        for part, file in MNIST_FILES.items():
            content = amat(rng.integers(0, 2, (5, 784), dtype=np.uint8))
            write(folder / "mnist" / file.name, content)
            small[part] = AmatFile(file.name, 5, files.hashlib.sha256(content).hexdigest())
        patch.setattr(data, "MNIST_FILES", small)
        patch.setattr(colour, "_BATCH", 30)
        patch.setattr(colour, "_VALIDATION", 20)
        patch.setattr(colour, "_IMAGENET64_VALIDATION", 5)
        for name in colour.CIFAR10_BATCHES:
            records = rng.integers(0, 256, (30, 3073), dtype=np.uint8)
            records[:, 0] %= 10
            write(folder / "cifar10" / f"{name}.xz", lzma.compress(records.tobytes()))
        for i, name in enumerate(colour.IMAGENET64_BATCHES):
            stream = io.BytesIO()
            np.savez_compressed(stream, data=rng.integers(0, 256, (2 + i % 3, 12288), dtype=np.uint8), labels=[0])
            write(folder / "imagenet64" / name, stream.getvalue())
        for number in range(40):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "PNG")
            write(folder / "pictures" / f"{number:03}.png", stream.getvalue())
        pictures = sorted((folder / "pictures").iterdir())
        with tarfile.open(folder / "all.tar", "w") as archive, zipfile.ZipFile(folder / "all.zip", "w") as other:
            for path in pictures:
                archive.add(path, path.name)
                other.write(path, path.name)
        yield folder


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


SETS = {
    "mnist": ["mnist-mlp"],
    "cifar10": ["cifar10-small"],
    "imagenet64": ["imagenet64-resnet", "--model.latent", "256"],
    "pictures": ["my-images", "--data.damaged", "refuse"],
    "all.tar": ["my-images", "--data.damaged", "refuse"],
    "all.zip": ["my-images", "--data.damaged", "refuse"],
}


def loaded(words, place, patch):
    """The images that a command would train on, or the line by which they are refused."""
    found = []

    def stop(config, splits, model=None):
        found.append({bytes(row) for part in splits[1:4] for row in part.numpy()})
        raise lb.RunError("loaded")

    patch.setattr(import_module("latentbits.train"), "new_state", stop)  # the package exports a function of the name
    status, errors = told(["train", *words, "--data-dir", place, "--run", place.parent / "new"])
    assert status == 2
    assert not (place.parent / "new").exists()
    return found[0] if found else None, errors


@cases(12, 200)
@given(st.sampled_from(list(SETS)), DAMAGE, st.integers(0, 10**6))
def wrong_data(sets, name, damage, which):
    """A file of a data set is torn, changed, missing or a folder: refused by name, or the images are the right ones."""
    with tempfile.TemporaryDirectory() as where, pytest.MonkeyPatch.context() as patch:
        folder = Path(where)
        (shutil.copytree if (sets / name).is_dir() else shutil.copy)(sets / name, folder / name)
        expected, _ = loaded(SETS[name], folder / name, patch)
        assert expected
        parts = sorted(path for path in folder.rglob("*") if path.is_file())
        path = parts[which % len(parts)]
        change, at, bit = damage
        content = path.read_bytes()
        if bit < 200:
            path.write_bytes(change(content, at, bit))
        else:
            path.unlink()
            if bit < 230:
                path.mkdir()
        before = faults.snapshot(folder)
        found, errors = loaded(SETS[name], folder / name, patch)
        if found is None:
            assert str(folder / name) in errors or "my-images" in errors, errors
        else:
            assert found <= expected
            assert found == expected or name in ("all.zip", "pictures")
        assert faults.snapshot(folder) == before
    counted("wrong data files")


def test_wrong_data_files(sets):
    run_all("wrong data files", sets, wrong_data)
