"""Shared folders: what they hold, that they read back, folders of the first format, and the hub's mixin."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from checks import seeded
from test_train import tiny

import latentbits as lb
from latentbits import cli, hub, sharing
from latentbits.runs import FOLDER_FORMAT
from latentbits.sharing import FILES, export, model_card

FORMAT_1 = Path(__file__).parent / "format-1"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = lb.train(tiny(), tmp_path_factory.mktemp("sharing") / "run", quiet=True)
    options = ["--samples", "20", "--raise-images", "5", "--temperatures", "50", "--chains", "10"]
    assert cli.main(["evaluate", str(run.path), *options]) == 0
    return run


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_folder_of_the_first_format_gives_what_it_gave():
    """Written by the version before folders had a number; codes, log Z and decoded means were noted then."""
    expected = json.loads((FORMAT_1 / "expected.json").read_text())
    assert "format" not in json.loads((FORMAT_1 / "config.json").read_text())
    model = lb.load(FORMAT_1)
    codes = model.encode(lb.load_data("digits").test[:8])
    assert ["".join(str(int(bit)) for bit in row) for row in codes] == expected["codes"]
    assert model.prior.log_partition().item() == pytest.approx(expected["log_partition"], abs=1e-4)
    assert float(model.decode(codes).mean()) == pytest.approx(expected["mean_of_decoded"], abs=1e-5)
    assert len(lb.Run.open(FORMAT_1).metrics()) == 51


def test_a_folder_of_the_first_format_is_evaluated_and_exported(tmp_path):
    shutil.copytree(FORMAT_1, tmp_path / "old")
    before = json.loads((FORMAT_1 / "evaluation.json").read_text())["evaluation"]
    out = tmp_path / "again.json"
    assert (
        cli.main(["evaluate", str(tmp_path / "old"), "--samples", "100", "--raise-images", "0", "--out", str(out)]) == 0
    )
    after = json.loads(out.read_text())["evaluation"]
    assert after["likelihood"]["nll"] == pytest.approx(before["likelihood"]["nll"], abs=0.03)  # 4 standard errors
    exported = export(tmp_path / "old", tmp_path / "new")
    assert json.loads((exported / "config.json").read_text())["format"] == FOLDER_FORMAT
    assert same(lb.load(exported), lb.load(FORMAT_1))


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sharing, "write_atomically", full)  # of the card, the last file
        with pytest.raises(OSError, match="No space"):
            export(run.path, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    assert export(run.path, tmp_path / "new").is_dir()


@pytest.mark.parametrize("number", [FOLDER_FORMAT + 1, "2", None])
def test_a_folder_of_a_newer_format_is_refused(tmp_path, number):
    shutil.copytree(FORMAT_1, tmp_path / "newer")
    config = json.loads((FORMAT_1 / "config.json").read_text())
    (tmp_path / "newer" / "config.json").write_text(json.dumps({**config, "format": number}))
    with pytest.raises(lb.RunError, match=f"format {FOLDER_FORMAT} or before"):
        lb.load(tmp_path / "newer")


def test_an_exported_folder_has_the_model_its_card_and_its_evaluation(run, tmp_path):
    assert cli.main(["export", str(run.path), str(tmp_path / "shared"), "--licence", "cc0-1.0"]) == 0
    shared = tmp_path / "shared"
    assert sorted(path.name for path in shared.iterdir()) == sorted(FILES)
    assert same(lb.load(shared), lb.load(run.path))
    assert lb.Run.open(shared).config == run.config

    _, header, body = (shared / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "cc0-1.0"
    nll = json.loads((run.path / "evaluation.json").read_text())["evaluation"]["likelihood"]["nll"]
    assert f"{nll:.3f}" in body
    assert "an RBM with 6 hidden bits" in body
    again = export(shared, tmp_path / "again")
    assert (again / "README.md").read_text() == (shared / "README.md").read_text().replace('license: "cc0-1.0"\n', "")


def test_other_weights_do_not_borrow_the_evaluation(run, tmp_path):
    shared = export(run.path, tmp_path / "shared", weights="rbm")
    assert not (shared / "evaluation.json").exists()
    assert "Not evaluated" in (shared / "README.md").read_text()
    assert same(lb.load(shared), lb.load(run.path, "rbm"))


def test_rounded_weights_are_half_as_large_and_say_so(run, tmp_path):
    assert cli.main(["export", str(run.path), str(tmp_path / "half"), "--rounded"]) == 0
    exact, half = lb.load(run.path).state_dict(), lb.load(tmp_path / "half").state_dict()
    assert all(half[name].dtype == value.dtype for name, value in exact.items())
    for name, value in exact.items():  # eight bits of each number
        torch.testing.assert_close(half[name], value, rtol=2**-8 if value.dim() > 1 else 0, atol=0)
    assert not same(lb.load(tmp_path / "half"), lb.load(run.path))
    sizes = [(path / "model.safetensors").stat().st_size for path in (run.path, tmp_path / "half")]
    matrices = sum(value.numel() for value in exact.values() if value.dim() > 1)
    assert abs(sizes[0] - sizes[1] - 2 * matrices) < 200  # headers
    card = (tmp_path / "half" / "README.md").read_text()
    assert "rounded to bfloat16" in card
    assert "Not evaluated" in card  # the evaluation is of other weights
    assert "rounded to bfloat16" in (export(tmp_path / "half", tmp_path / "again") / "README.md").read_text()


def test_the_card_of_an_rbm_says_how_to_draw_from_it(tmp_path):
    splits = lb.load_data("digits")
    config = lb.recipes.mnist_rbm().vary(
        "mine", model={"hidden": 4}, rbm={"cd_epochs": 1, "pcd_epochs": 0, "chains": 10}, validation={"images": 20}
    )
    run = lb.train(config, tmp_path / "run", splits=splits, quiet=True)
    card = model_card(run.config, 332, None)
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(run.path)).replace("1000", "5")
    names = {}
    exec(code, names)
    assert names["images"].shape == (64, 64)


def test_nothing_is_overwritten_and_damage_is_named(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("mine")
    with pytest.raises(lb.RunError, match="nothing is overwritten"):
        export(run.path, tmp_path / "full")
    with pytest.raises(lb.RunError, match="nothing is overwritten"):
        hub.HubModel(run.path).save_pretrained(tmp_path / "full")
    assert (tmp_path / "full" / "config.json").read_text() == "mine"
    damaged = tmp_path / "damaged"
    shutil.copytree(run.path, damaged)
    (damaged / "evaluation.json").write_text('{"evaluation": 3}')
    with pytest.raises(lb.RunError, match="evaluate again"):
        export(damaged, tmp_path / "shared")


def test_hub_model_goes_through_a_folder(run, tmp_path):
    hub.HubModel(run.path).save_pretrained(tmp_path / "shared")
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == sorted(FILES)
    back = hub.HubModel.from_pretrained(tmp_path / "shared")
    assert same(back.model, lb.load(run.path))
    assert back.model.sample(2, 5, seeded(0)).shape == (2, 64)


def test_hub_model_goes_through_a_hub(run, tmp_path, monkeypatch):
    """With the hub's two calls, upload and download, replaced by a folder."""
    store = tmp_path / "store"

    class Api:
        def __init__(self, **options):
            pass

        def create_repo(self, repo_id, **options):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **options):
            shutil.copytree(folder_path, store / repo_id)
            (store / repo_id / "evil.pkl").write_bytes(b"not wanted")
            return f"there/{repo_id}"

    def download(repo_id, allow_patterns, **options):
        kept = tmp_path / "downloaded"
        kept.mkdir()
        for name in allow_patterns:
            shutil.copy(store / repo_id / name, kept)
        return str(kept)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download", lambda repo_id, filename, **_: str(store / repo_id / filename)
    )
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert hub.HubModel(run.path).push_to_hub("someone/digits") == "there/someone/digits"
    back = hub.HubModel.from_pretrained("someone/digits")
    assert same(back.model, lb.load(run.path))
    assert not (back.path / "evil.pkl").exists()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("mnist-rbm", "An RBM over the pixels"),
        ("cifar10-wgan", "Wasserstein GAN"),
        ("mnist-mlp-iwae", "normal latents"),
    ],
)
def test_cards_say_what_a_model_is(recipe, words):
    from latentbits.sharing import model_card

    card = model_card(lb.recipes.RECIPES[recipe].make(), 1000, None)
    assert words in card
    assert "license" not in card
