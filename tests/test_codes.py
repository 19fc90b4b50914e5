"""Codes, scores and inpainting of pictures, through files and commands."""

import csv
import io
import shutil
import zipfile

import numpy as np
import pytest
import torch
from checks import LIMIT, seeded
from PIL import Image
from test_train import tiny

import latentbits as lb
from latentbits import codes, codes_cli, data
from latentbits.cli import main
from latentbits.codes import Codes, CodesError
from latentbits.runs import Run
from latentbits.splits import Form


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny(autoencoder={"epochs": 20, "batch_size": 50}, joint={"epochs": 5, "batch_size": 50})
    return lb.train(config, tmp_path_factory.mktemp("codes") / "run", quiet=True)


@pytest.fixture
def pictures(tmp_path):
    """Forty digits as pictures, light on dark, and their bits in the order of their names."""
    bits = data.load("digits").test[:40]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(bits.view(-1, 8, 8).numpy()):
        Image.fromarray(image * 255).save(folder / f"digit {i:02}.png")
    return folder, bits


def opened(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_pictures_are_encoded_and_decoded(run, pictures, tmp_path, capsys):
    folder, bits = pictures
    file = tmp_path / "codes.npz"
    assert main(["encode", str(run.path), str(folder), "--out", str(file)]) == 0
    found, model = lb.load_codes(file), lb.load(run.path)
    assert found.names == [f"digit {i:02}.png" for i in range(40)]
    assert torch.equal(found.z, model.encode(bits.float()))
    assert file.stat().st_size < 2000  # eight bits in a byte
    assert main(["decode", str(run.path), str(file), "--out", str(tmp_path / "decoded")]) == 0
    decoded = sorted((tmp_path / "decoded").iterdir())
    assert [path.name for path in decoded[:2]] == ["000000-digit-00.png", "000001-digit-01.png"]
    pixels = np.stack([opened(path) for path in decoded]).reshape(40, 64) / 255
    np.testing.assert_allclose(pixels, model.decode(found.z), atol=0.5 / 255 + 1e-6)
    assert main(["encode", str(run.path), str(folder), "--out", str(file)]) == 2
    assert main(["decode", str(run.path), str(file), "--out", str(tmp_path / "decoded")]) == 2
    assert "decoded, which is not empty; name another" in capsys.readouterr().err
    assert main(["decode", str(run.path), str(file), "--out", str(file)]) == 2
    assert "--out: expected a new or an empty folder, got the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("z", "names", "binary", "says"),
    [
        (torch.full((2, 3), 0.3), ["a", "b"], True, "codes: expected 0s and 1s"),
        (torch.zeros(3), ["a", "b", "c"], True, r"codes: expected z \(N, M\) and N names, got \(3,\) and 3 names"),
        (torch.zeros(2, 3), ["a"], False, r"got \(2, 3\) and 1 names"),
    ],
)
def test_codes_that_are_none_are_not_saved(tmp_path, z, names, binary, says):
    with pytest.raises(ValueError, match=says):
        lb.save_codes(str(tmp_path / "codes.npz"), Codes(z, names), binary)
    assert list(tmp_path.iterdir()) == []


def test_latents_of_another_kind_are_not_decoded(run, tmp_path, capsys):
    M = lb.load(run.path).prior.visible
    lb.save_codes(str(tmp_path / "codes.npz"), Codes(torch.full((2, M), 0.5), ["a", "b"]), binary=False)
    assert main(["decode", str(run.path), str(tmp_path / "codes.npz"), "--out", str(tmp_path / "out")]) == 2
    assert "codes: expected bits for this model, got the continuous latents of another" in capsys.readouterr().err


def test_codes_of_other_weights_are_decoded_with_a_warning(run, tmp_path, capsys):
    made, other = tmp_path / "codes.npz", tmp_path / "other"
    assert main(["encode", str(run.path), "--out", str(made)]) == 0
    unsaid = tmp_path / "unsaid.npz"
    lb.save_codes(unsaid, lb.load_codes(made)._replace(made_by=""))
    shutil.copytree(run.path, other)
    model = lb.load(other)
    with torch.no_grad():
        model.prior.visible_bias[0] += 1
    Run(other).save_weights("model", model)
    warned = {}
    for name, place, file in (("own", run.path, made), ("another", other, made), ("unsaid", other, unsaid)):
        capsys.readouterr()
        assert main(["decode", str(place), str(file), "--out", str(tmp_path / name)]) == 0
        warned[name] = "was made by other weights" in capsys.readouterr().err
    assert warned == {"own": False, "another": True, "unsaid": False}


def test_pictures_that_are_not_all_written_are_taken_away(run, tmp_path, monkeypatch):
    write, written = codes_cli.write_atomically, []

    def full(path, content):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, content)

    lb.save_codes(tmp_path / "codes.npz", Codes(torch.zeros(5, lb.load(run.path).prior.visible), list("abcde")))
    command = ["decode", str(run.path), str(tmp_path / "codes.npz"), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(codes_cli, "write_atomically", full)
        assert main(command) == 2
    assert len(written) == 3
    assert main(command) == 0
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_a_split_is_encoded_and_inverted(run, tmp_path):
    for name, options in (("plain", []), ("inverted", ["--invert"])):
        out = tmp_path / f"{name}.npz"
        assert main(["encode", str(run.path), "--split", "valid", "--out", str(out), *options]) == 0
    x, model = data.load("digits").valid.float(), lb.load(run.path)
    assert torch.equal(lb.load_codes(tmp_path / "plain.npz").z, model.encode(x))
    assert torch.equal(lb.load_codes(tmp_path / "inverted.npz").z, model.encode(1 - x))
    assert lb.load_codes(tmp_path / "plain.npz").names[7] == "valid-000007"


def test_scores_are_log_likelihoods_least_first(run, pictures, tmp_path):
    folder, bits = pictures
    Image.fromarray((np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)).save(folder / "odd one out.png")
    out = tmp_path / "scores.csv"
    assert main(["score", str(run.path), str(folder), "--out", str(out), "--samples", "2000"]) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    values = [float(row["log_likelihood_nats"]) for row in rows]
    assert len(rows) == 41
    assert values == sorted(values)
    assert rows[0]["name"] == "odd one out.png"
    model, by_name = lb.load(run.path), {row["name"]: row for row in rows}
    other = model.log_prob(bits.float(), 20_000, model.prior.log_partition(), seeded(1))
    for i in range(40):
        row = by_name[f"digit {i:02}.png"]
        error = float(row["standard_error"])
        assert abs(float(row["log_likelihood_nats"]) - float(other[i])) < LIMIT * 1.3 * error + 1e-3
        assert float(row["bits_per_dimension"]) == pytest.approx(
            -float(row["log_likelihood_nats"]) / (64 * np.log(2)), abs=1e-4
        )


@pytest.mark.parametrize(
    ("keep", "kept"), [("left", "11001100"), ("right", "00110011"), ("top", "11110000"), ("bottom", "00001111")]
)
def test_each_half_is_the_one_that_is_named(keep, kept):
    assert "".join(str(int(pixel)) for pixel in codes_cli.kept_pixels(Form(1, 2, 4), keep, None)) == kept


def test_inpainting_keeps_what_is_known(run, pictures, tmp_path, capsys):
    folder, bits = pictures
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    cases = (["--keep", "top"], slice(0, 4)), (["--mask", str(tmp_path / "mask.png")], slice(2, 5))
    for i, (options, rows) in enumerate(cases):
        out = tmp_path / f"{i}.png"
        command = ["inpaint", str(run.path), str(folder), "--out", str(out), "--count", "4", "--steps", "3"]
        assert main([*command, *options]) == 0
        with Image.open(out) as picture:
            sheet = np.asarray(picture.resize((40, 60), Image.Resampling.NEAREST)) / 255
        tiles = 1 - sheet.reshape(6, 10, 4, 10)[:, 1:9, :, 1:9]  # ink on white
        for column, number in enumerate((0, 13, 26, 39)):
            image = bits[number].view(8, 8).numpy()
            np.testing.assert_array_equal(tiles[0, :, column], image)
            for drawn in tiles[2:, :, column]:
                np.testing.assert_array_equal(drawn[rows], image[rows])
    assert main(["inpaint", str(run.path), str(folder), "--mask", str(folder / "no.png")]) == 2
    Image.fromarray(mask[:5]).save(tmp_path / "small.png")
    assert main(["inpaint", str(run.path), str(folder), "--mask", str(tmp_path / "small.png")]) == 2
    assert "--mask: expected 8x8 pixels, got 8x5" in capsys.readouterr().err


def test_means_are_a_flag_whose_default_is_the_datas(run, pictures, tmp_path):
    """Bits are drawn unless means are asked for; means are grey."""
    folder, _ = pictures
    contents = {}
    for option in ((), ("--means",), ("--no-means",)):
        out = tmp_path / f"{option}.png"
        assert (
            main(["inpaint", str(run.path), str(folder), "--count", "4", "--steps", "3", "--out", str(out), *option])
            == 0
        )
        contents[option] = opened(out)
    np.testing.assert_array_equal(contents[()], contents[("--no-means",)])
    assert len(np.unique(contents[("--means",)])) > 10 > len(np.unique(contents[()]))


def test_one_picture_is_not_inpainted_from_itself(run, pictures, tmp_path):
    """What is drawn for a picture's hidden half is the same whatever that half shows."""
    _, bits = pictures
    image = bits[3].view(8, 8).numpy() * 255
    drawn = []
    for name, picture in (("whole", image), ("half", np.where(np.arange(8) < 4, image, 255 - image))):
        place = tmp_path / name
        place.mkdir()
        Image.fromarray(picture.astype(np.uint8)).save(place / "digit.png")
        out = tmp_path / f"{name}.png"
        assert main(["inpaint", str(run.path), str(place), "--steps", "2", "--out", str(out)]) == 0
        drawn.append(opened(out)[len(opened(out)) // 3 :])  # below the picture and its left half
    np.testing.assert_array_equal(*drawn)


def test_a_damaged_checkpoint_is_no_reason_to_refuse_weights(run, pictures, tmp_path, capsys):
    folder, _ = pictures
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    content = bytearray(copy.checkpoint.read_bytes())
    content[-9] ^= 1
    copy.checkpoint.write_bytes(content)
    assert main(["encode", str(copy.path), str(folder), "--out", str(tmp_path / "codes.npz")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "it is damaged; so it is unknown whether the run finished. To repair it: latentbits train" in said
    assert main(["report", str(copy.path), "--diagnostics-seconds", "0", "--gibbs-steps", "3"]) == 0


def test_an_unfinished_run_says_so(tmp_path, pictures, capsys):
    config = tiny(joint={"epochs": 2})
    run = lb.train(config, tmp_path / "run", max_minutes=1e-9, quiet=True)
    while not (run.path / "rbm.safetensors").is_file():
        lb.train(config, run.path, resume=True, max_minutes=1e-9, quiet=True)
    folder, _ = pictures
    assert main(["encode", str(run.path), str(folder), "--out", str(tmp_path / "codes.npz")]) == 0
    assert "is not finished (in the stage joint)" in capsys.readouterr().err
    assert main(["export", str(run.path), str(tmp_path / "shared")]) == 0
    assert "is not finished" in capsys.readouterr().err


def test_inpainted_means_are_smooth_and_progress_is_told(run):
    model, told = lb.load(run.path), []
    x, known = torch.zeros(3, 64), torch.arange(64) < 32
    means = model.inpaint(x, known, 4, 5, seeded(0), means=True, progress=told.append)
    draws = model.inpaint(x, known, 4, 5, seeded(0))
    assert told == [1, 2, 3, 4]
    assert set(draws.unique().tolist()) <= {0.0, 1.0}
    assert ((means[:, 32:] > 0) & (means[:, 32:] < 1)).all()
    assert (means[:, :32] == 0).all()


def test_scores_on_few_samples_are_warned_of(run, pictures, tmp_path, capsys, monkeypatch):
    folder, _ = pictures
    command = ["score", str(run.path), str(folder), "--samples", "50", "--out", str(tmp_path / "s.csv"), "--overwrite"]
    assert main(command) == 0
    assert "carry the whole weight" not in capsys.readouterr().err
    monkeypatch.setattr(codes_cli, "FEWEST_EFFECTIVE", 60.0)
    assert main(command) == 0
    assert "carry the whole weight" in capsys.readouterr().err
    rows = (tmp_path / "s.csv").read_text().splitlines()
    assert rows[0].split(",")[-1] == "effective_sample_size"
    assert all(1 <= float(row.split(",")[-1]) <= 50 for row in rows[1:])


def test_names_from_a_file_cannot_leave_the_folder(run, tmp_path):
    file = tmp_path / "codes.npz"
    names = ["../../out.png", "/etc/passwd", "a/b\\c?.png", ""]
    lb.save_codes(file, Codes(torch.zeros(4, 8), names))
    assert main(["decode", str(run.path), str(file), "--out", str(tmp_path / "d")]) == 0
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        "000000-out.png", "000001-passwd.png", "000002-b-c-.png", "000003-.png",
    ]  # fmt: skip
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "not found; `latentbits encode` writes such a file"),
        (lambda path: path.write_bytes(b"no zip"), "found another or a damaged file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "found another or a damaged file"),
        (lambda path: np.savez(path, names=["a"], other=[1]), "found another or a damaged file"),
        (lambda path: np.savez(path, names=["a"], bits=np.zeros((1, 1)), count=8), "found another or a damaged file"),
        (lambda path: np.savez(path, names=np.array([{}], dtype=object), latents=[[1.0]]), "found another or a"),
        (lambda path: np.savez(path, names=["a"], latents=[[np.nan]]), "expected finite codes and a name for each"),
        (lambda path: np.savez(path, names=["a", "b"], latents=[[1.0]]), "expected finite codes and a name for each"),
    ],
)
def test_a_file_that_holds_no_codes_is_named(tmp_path, damage, message):
    file = tmp_path / "codes.npz"
    lb.save_codes(file, Codes(torch.ones(3, 8), ["a", "b", "c"]))
    damage(file)
    with pytest.raises(CodesError, match=message):
        lb.load_codes(file)


def test_a_bomb_of_codes_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(codes, "MOST_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "codes.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("names.npy", bytes(20_000))
    with pytest.raises(CodesError, match="expected codes of up to 10,000 bytes, found 20,000"):
        lb.load_codes(tmp_path / "codes.npz")


def test_what_has_no_latents_or_does_not_fit_is_refused(run, pictures, tmp_path, capsys):
    folder, _ = pictures
    alone = tiny(model={"network": "none"}, autoencoder={"epochs": 0}, joint={"epochs": 0})
    rbm = lb.train(alone, tmp_path / "rbm", quiet=True)
    assert main(["encode", str(rbm.path), str(folder), "--out", str(tmp_path / "x.npz")]) == 2
    assert "expected a model with an encoder and a decoder, found a RBM" in capsys.readouterr().err
    lb.save_codes(tmp_path / "wide.npz", Codes(torch.ones(3, 9), ["a", "b", "c"]))
    assert main(["decode", str(run.path), str(tmp_path / "wide.npz"), "--out", str(tmp_path / "d")]) == 2
    assert "CODES: expected 8 latents per code, got 9" in capsys.readouterr().err
    assert main(["encode", "mnist-mlp-bets", str(folder)]) == 2
    assert "did you mean mnist-mlp-best" in capsys.readouterr().err
    assert main(["score", str(run.path), "--samples", "1", "--out", str(tmp_path / "s.csv")]) == 2
    assert main(["inpaint", str(run.path), "--draws", "0", "--out", str(tmp_path / "i.png")]) == 2


def test_pretrained_models_take_pictures_by_their_name(pictures, tmp_path):
    folder, _ = pictures
    assert main(["encode", "mnist-mlp-best", str(folder), "--out", str(tmp_path / "codes.npz")]) == 0
    assert lb.load_codes(tmp_path / "codes.npz").z.shape == (40, 200)
    x = lb.read_images(folder, Form(1, 28, 28))
    assert x.z.shape == (40, 784)
    assert float(x.z.float().mean()) == pytest.approx(
        1 - float(lb.read_images(folder, Form(1, 28, 28), invert=True).z.float().mean())
    )
