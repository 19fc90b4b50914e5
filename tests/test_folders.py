"""Pictures from folders and archives: what is whole comes back, the rest is named."""

import io
import os
import re
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

import latentbits as lb
from latentbits import data, folders, inventory
from latentbits.cli import main
from latentbits.config import AutoencoderConfig, Config, DataConfig, JointConfig, ModelConfig, RBMConfig
from latentbits.recipes import my_images
from latentbits.session import steps_per_epoch
from latentbits.splits import DataError, Form
from latentbits.train_cli import parse_train

SQUARE = Form(3, 8, 8, 256)


def encoded(pixels, ending="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, ending, **options)
    return stream.getvalue()


def random_pixels(seed, height=8, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def files():
    return {f"{number:03}.png": encoded(random_pixels(number)) for number in range(60)}


def write(files, path):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("place", ["folder", "all.tar", "all.zip"])
def test_pictures_come_back_channel_by_channel(tmp_path, files, place):
    path = write(files | {"notes.txt": b"not a picture, and not taken for one"}, tmp_path / place)
    pictures = folders.read_pictures(path, SQUARE)
    assert pictures.names == sorted(files)
    assert pictures.skipped == []
    np.testing.assert_array_equal(pictures.images[7].reshape(3, 8, 8), random_pixels(7).transpose(2, 0, 1))


def test_pictures_are_turned_cropped_and_made_rgb(tmp_path):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200  # the middle square
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    arrow = np.zeros((8, 8, 3), np.uint8)
    arrow[0] = 255  # a white top edge
    grey = np.full((8, 8), 77, np.uint8)
    write(
        {
            "a.png": encoded(wide),
            "b.jpg": encoded(arrow, "JPEG", quality=95, exif=exif),
            "c.PNG": encoded(grey),
        },
        tmp_path / "folder",
    )
    images = folders.read_pictures(tmp_path / "folder", SQUARE).images.reshape(3, 3, 8, 8)
    assert (images[0] == 200).all()
    assert images[1][:, :, 7].min() > 180
    assert images[1][:, :, 0].max() < 80
    assert (images[2] == 77).all()


def test_sixteen_bits_of_grey_keep_their_scale(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    path = write({"grey.png": encoded(ramp)}, tmp_path / "folder")
    images = folders.read_pictures(path, Form(1, 8, 8, 256)).images
    assert np.abs(images[0] - ramp.ravel() / 257.0).max() <= 1
    colour = folders.read_pictures(path, SQUARE).images.reshape(3, 64)
    assert (colour == images).all()


def test_what_is_transparent_is_laid_on_white(tmp_path):
    black = np.zeros((8, 8, 4), np.uint8)  # with noise where nothing is to be seen
    black[:, :4, :3], black[:, 4:, 3] = random_pixels(0)[:, :4], 255
    half = np.full((8, 8, 2), (0, 128), np.uint8)
    palette = io.BytesIO()
    Image.fromarray(random_pixels(1)).quantize(2).save(palette, "PNG", transparency=bytes((0, 0)))
    files = {"a.png": encoded(black), "b.png": encoded(half), "c.png": palette.getvalue()}
    images = folders.read_pictures(write(files, tmp_path / "folder"), SQUARE).images.reshape(3, 3, 8, 8)
    assert (images[0, :, :, :4] == 255).all()
    assert (images[0, :, :, 4:] == 0).all()
    assert np.abs(images[1].astype(int) - 127).max() <= 1
    assert (images[2] == 255).all()


def test_a_zip_is_known_by_its_name_in_any_case_or_by_its_beginning(tmp_path, files):
    content = write(files, tmp_path / "all.zip").read_bytes()
    for name in ("ALL.ZIP", "all", "all.cbz"):
        (tmp_path / name).write_bytes(content)
        assert folders.read_pictures(tmp_path / name, SQUARE).names == sorted(files)


def test_a_damaged_entry_of_a_zip_is_skipped_as_a_damaged_file_of_a_folder_is(tmp_path, files):
    path = write(files, tmp_path / "all.zip")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("007.png").header_offset
    content[start + 60] ^= 1
    path.write_bytes(bytes(content))
    pictures = folders.read_pictures(path, SQUARE)
    assert pictures.names == sorted(files.keys() - {"007.png"})
    assert [(name, "CRC" in reason) for name, reason in pictures.skipped] == [("007.png", True)]
    with pytest.raises(DataError, match=r"007.png is no whole picture \(Bad CRC-32"):
        folders.read_pictures(path, SQUARE, refuse=True)
    assert folders.describe(path).files == 60


def test_an_archive_of_a_folder_is_split_as_the_folder_is(tmp_path, files):
    of_folder = folders.images(write(files, tmp_path / "folder"), SQUARE)
    of_tar = folders.images(
        write({f"./{name}": content for name, content in files.items()}, tmp_path / "a.tar"), SQUARE
    )
    assert of_tar.checksum == of_folder.checksum


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_second_file_of_one_name_is_named(tmp_path, files, kind):
    path, stream = write(files, tmp_path / f"all.{kind}"), io.BytesIO(files["001.png"])
    if kind == "zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("000.png", stream.read())
    else:
        with tarfile.open(path, "a") as archive:
            member = tarfile.TarInfo("000.png")
            member.size = len(files["001.png"])
            archive.addfile(member, stream)
    pictures = folders.read_pictures(path, SQUARE)
    assert (pictures.names, pictures.skipped) == (sorted(files), [("000.png", "replaced by a later one of this name")])
    np.testing.assert_array_equal(pictures.images[0].reshape(3, 8, 8), random_pixels(1).transpose(2, 0, 1))
    assert folders.describe(path).files == 60


def test_what_is_no_whole_picture_is_skipped_and_named_or_refused(tmp_path, files, monkeypatch):
    whole = encoded(random_pixels(0, 40, 40))
    bad = {
        "torn.png": whole[: len(whole) // 2],
        "text.jpg": b"hello",
        "empty.png": b"",
        "gif.png": b"GIF89a" + bytes(50),
    }
    monkeypatch.setattr(folders, "MOST_PIXELS", 1000)
    bad["huge.png"] = whole
    path = write(files | bad, tmp_path / "all.zip")
    pictures = folders.read_pictures(path, SQUARE)
    assert pictures.names == sorted(files)
    assert sorted(name for name, _ in pictures.skipped) == sorted(bad)
    assert "40 x 40 pixels are more than 1,000" in dict(pictures.skipped)["huge.png"]
    with pytest.raises(DataError, match="is no whole picture"):
        folders.read_pictures(path, SQUARE, refuse=True)
    with pytest.warns(UserWarning, match="skipped 5 files that are no whole pictures: .*torn.png"):
        folders.images(path, SQUARE)


@pytest.mark.parametrize("side", [8_000, 10_000, 60_000])  # more than MOST_PIXELS; Pillow's warning; Pillow's error
def test_a_bomb_is_not_unpacked(tmp_path, side):
    """A picture whose header claims too many pixels: refused by the header."""
    header = bytearray(encoded(random_pixels(0)))
    header[16:24] = side.to_bytes(4, "big") * 2
    path = write({"bomb.png": bytes(header)}, tmp_path / "folder")
    with pytest.raises(DataError, match=r"found none; 1 could not be read, such as bomb.png"):
        folders.read_pictures(path, SQUARE)


@pytest.mark.parametrize("name", ["none.tar", "torn.tar", "torn.zip", "bad.zip", "locked.zip", "empty"])
def test_a_missing_or_damaged_place_is_named(tmp_path, files, name):
    path = tmp_path / name
    if name == "torn.tar":
        whole = write(files, path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2 + 700])
    elif name == "torn.zip":
        whole = write(files, path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "bad.zip":  # a compressed stream that is none
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.png", bytes(1000))
            start = archive.infolist()[0].header_offset + 30 + len("a.png")
        content = bytearray(path.read_bytes())
        content[start : start + 4] = b"\xff" * 4
        path.write_bytes(bytes(content))
    elif name == "locked.zip":
        write(files, path)
        path.write_bytes(
            path.read_bytes()
            .replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01")
            .replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
        )
    elif name == "empty":
        path.mkdir()
    with pytest.raises(DataError, match=rf"{name}: expected"):
        folders.read_pictures(path, SQUARE)


def test_own_images_keep_their_split_when_others_come(tmp_path, files):
    path = write(files, tmp_path / "folder")
    config = DataConfig(name="images", size=8)
    before = data.load(config, path)
    assert before.form == data.form_of(config)
    assert sum(len(part) for part in before[1:4]) == 60
    assert len(before.train) > 35
    assert before.checksum == data.load(config, path).checksum
    write({f"more/{n}.png": encoded(random_pixels(100 + n)) for n in range(40)}, path)
    after = data.load(config, path)
    for old, new in zip(before[1:4], after[1:4], strict=True):
        assert {bytes(row) for row in old.numpy()} <= {bytes(row) for row in new.numpy()}


def test_own_images_become_grey_or_black_and_white(tmp_path):
    """By the luminance of ITU-R 601, which Pillow's documentation states."""
    pixels = random_pixels(1)
    files = {f"{number}.png": encoded(np.roll(pixels, number, 0)) for number in range(60)}
    path = write(files, tmp_path / "folder")
    luminance = pixels.astype(np.float64) @ np.array([299, 587, 114]) / 1000
    for kind, levels in (("grey", 256), ("black-and-white", 2)):
        config = DataConfig(name="images", size=8, kind=kind)
        splits = data.load(config, path)
        assert splits.form == data.form_of(config) == Form(1, 8, 8, levels)
        images = np.concatenate([part.numpy() for part in splits[1:4]]).reshape(-1, 8, 8)
        if levels == 256:
            rolled = np.stack([np.roll(luminance, n, 0) for n in range(8)])
            assert np.abs(images - rolled[:, None]).max((2, 3)).min(0).max() <= 1
        else:
            sure = np.abs(luminance - 128) > 1
            shifted = [(np.roll(luminance >= 128, n, 0), np.roll(sure, n, 0)) for n in range(8)]
            assert all(any((image[where] == white[where]).all() for white, where in shifted) for image in images)
            assert set(np.unique(images)) == {0, 1}
    tall = folders.read_pictures(path, Form(1, 10, 6, 256))
    assert tall.images.shape == (60, 60)


def test_own_images_need_a_place_and_enough_of_them(tmp_path, files):
    with pytest.raises(DataError, match="own pictures are not downloaded; name the folder or archive with --data-dir"):
        data.load(DataConfig(name="images"))
    path = write(dict(list(files.items())[:2]), tmp_path / "folder")
    with pytest.raises(DataError, match="expected enough pictures for training, validation and test, found 2"):
        data.load(DataConfig(name="images", size=8), path)


def test_natural64_takes_its_validation_from_the_end(tmp_path, files, monkeypatch):
    monkeypatch.setattr(folders, "NATURAL64_VALIDATION", 10)
    write(files, tmp_path / "train.tar")
    write(dict(list(files.items())[:5]), tmp_path / "val.tar")
    splits = data.load("natural64", tmp_path)
    assert [len(part) for part in splits[1:4]] == [50, 10, 5]
    assert splits.train.shape[1] == splits.form.dimensions == 3 * 64 * 64
    monkeypatch.setattr(folders, "NATURAL64_VALIDATION", 60)
    with pytest.raises(DataError, match="expected more than 60 pictures, found 60"):
        data.load("natural64", tmp_path)


def test_pictures_behind_links_to_folders_are_found(tmp_path, files):
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    write(files, elsewhere)
    folder.mkdir()
    (folder / "kind").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)  # a loop
    (folder / "itself").symlink_to(folder)
    (folder / "latest").symlink_to(elsewhere)  # which is there already
    direct, linked = folders.read_pictures(elsewhere, SQUARE), folders.read_pictures(folder, SQUARE)
    assert linked.names == [f"kind/{name}" for name in direct.names]
    np.testing.assert_array_equal(linked.images, direct.images)
    assert inventory.own_pictures(folder) == inventory.own_pictures(elsewhere).replace(str(elsewhere), str(folder))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, files, monkeypatch):
    """Not as if it held nothing; who runs this may be one who can read everything."""
    write(files, tmp_path / "pictures")
    (tmp_path / "pictures" / "locked").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    says = r"locked cannot be read \(Permission denied\); make it readable or move it away"
    with pytest.raises(DataError, match=says):
        folders.read_pictures(tmp_path / "pictures", SQUARE)
    assert re.search(says, inventory.own_pictures(tmp_path / "pictures"))  # where other data are listed as well


def test_links_in_a_tar_are_passed_over(tmp_path, files):
    path = write(files, tmp_path / "all.tar")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert folders.read_pictures(path, SQUARE).names == sorted(files)


def test_damaged_pictures_are_refused_where_asked(tmp_path, files):
    path = write(files | {"torn.png": files["000.png"][:40]}, tmp_path / "folder")
    with pytest.raises(DataError, match=r"torn.png is no whole picture .* use --data.damaged skip"):
        data.load(DataConfig(name="images", size=8, damaged="refuse"), path)


def strokes(seed):
    pixels = np.zeros((20, 20), np.uint8)
    pixels[seed % 20, 2:18] = 255
    pixels[3:15, (seed * 7) % 20] = 255
    return pixels


def test_pictures_are_described_by_the_first_of_them(tmp_path):
    grey = {f"{n}.png": encoded(random_pixels(n)[:, :, 0]) for n in range(30)}
    black_and_white = {f"{n}.png": encoded(strokes(n)) for n in range(30)}
    colour = {f"{n}.jpg": encoded(np.kron(random_pixels(n), np.ones((4, 4, 1), np.uint8)), "JPEG") for n in range(30)}
    for kind, files in (("grey", grey), ("black-and-white", black_and_white), ("colour", colour)):
        path = write({"0 torn.png": b"torn"} | files | {"notes.txt": b""}, tmp_path / f"{kind}.zip")
        assert folders.describe(path) == (kind, 31, 30)
        assert folders.describe(path, most=10) == (kind, 31, 10)
    with pytest.raises(DataError, match=r"found none; 1 could not be read, such as torn.png"):
        folders.describe(write({"torn.png": b"torn"}, tmp_path / "torn.zip"))


@pytest.mark.parametrize("place", ["folder", "all.tar", "all.zip"])
def test_no_more_pictures_are_read_than_are_looked_at(tmp_path, files, place, monkeypatch):
    path, read, usual = write(files, tmp_path / place), [], folders._files

    def spy(path, wanted):
        for name, content in usual(path, wanted):
            read.append(bool(content))
            yield name, content

    monkeypatch.setattr(folders, "_files", spy)
    assert folders.describe(path, most=7) == ("colour", 60, 7)
    assert read == [True] * 7 + [False] * 53


@pytest.mark.parametrize("kind", ["colour", "grey", "black-and-white"])
def test_own_pictures_are_trained_by_what_they_are(tmp_path, kind, capsys):
    """From a folder to codes with nothing but its name: the first epochs of each stage, which the options cut short."""
    pixels = {
        "colour": lambda n: np.kron(random_pixels(n), np.ones((4, 4, 1), np.uint8)),
        "grey": lambda n: random_pixels(n)[:, :, 0],
        "black-and-white": strokes,
    }[kind]
    path = write({f"{n}.png": encoded(pixels(n)) for n in range(60)}, tmp_path / "pictures")
    few = ["--autoencoder.epochs", "1", "--rbm.cd-epochs", "1", "--rbm.pcd-epochs", "1", "--joint.epochs", "1"]
    few += ["--autoencoder.batch-size", "20", "--autoencoder.scales", "1.0"]
    run = tmp_path / "run"
    command = ["train", "my-images", "--data", f"images:{path}", "--size=16", "--run", str(run)]
    assert main([*command, *few]) == 0
    said = capsys.readouterr().out
    assert f"60 pictures, {kind} by the first 60. Chosen: 16x16 pixels" in said
    assert data.form_of(lb.Run(run).config.data).image == ((3 if kind == "colour" else 1), 16, 16)
    assert main([*command, *few, "--resume"]) == 0
    # what is typed is what is printed: the options of the first start are the run's
    again = ["train", "my-images", "--run", str(run), "--resume", "--data-dir", str(path)]
    assert "4 + " not in said
    assert "1 + 2 + 1 epochs" in said
    assert main(again) == 0
    assert main([*again, "--joint.epochs", "2"]) == 2
    assert "joint.epochs: 1 -> 2" in capsys.readouterr().err
    assert main(again[:-2]) == 0  # where the pictures are is remembered
    assert main(["encode", str(run), str(path), "--out", str(tmp_path / "codes.npz")]) == 0
    assert len(lb.load_codes(tmp_path / "codes.npz").names) == 60


def test_own_pictures_need_a_place_and_a_size(tmp_path, capsys):
    assert main(["train", "my-images"]) == 2
    no_place = "--data: expected a folder, .tar or .zip of pictures, got none; add --data PICTURES"
    assert no_place in capsys.readouterr().err
    for empty in (["--data", "images:"], ["--data="], ["--data", "--run", str(tmp_path / "run")]):
        assert main(["train", "my-images", *empty]) == 2
        assert no_place in capsys.readouterr().err
    path = write({"0.png": encoded(random_pixels(0))}, tmp_path / "pictures")
    for wrong in ("large", "2", "0", "-5", "10000"):
        assert main(["train", "my-images", "--data", f"images:{path}", "--size", wrong]) == 2
        assert re.search(rf"--data\.size: .*, got {wrong}\n", capsys.readouterr().err)
    assert main(["train", "my-images", "--data", f"images:{path}", "--data.kind", "blue"]) == 2
    assert "--data.kind: Input should be 'colour', 'grey' or 'black-and-white', got blue" in capsys.readouterr().err
    assert main(["train", "my-images", "--data", "images:nowhere"]) == 2
    assert "error: --data: nowhere: expected a folder, a .tar or a .zip of pictures, found nothing there" in (
        capsys.readouterr().err
    )


def test_pictures_can_be_made_another_kind_and_home_is_found(tmp_path, monkeypatch, capsys):
    write({f"{n}.png": encoded(random_pixels(n)[:, :, 0]) for n in range(30)}, tmp_path / "pictures")
    monkeypatch.setenv("HOME", str(tmp_path))
    config, options = parse_train(["my-images", "--data", "images:~/pictures", "--data.kind", "black-and-white"])
    assert config == my_images("black-and-white", 32, 30)
    assert config.model.network == "mlp"
    assert options.data_dir == tmp_path / "pictures"
    assert parse_train(["my-images", "--data=images:~/pictures", "--data.kind=black-and-white"]) == (config, options)
    (tmp_path / "pictures").rename(tmp_path / "a=b")
    assert parse_train(["my-images", "--data", "images:~/a=b"])[1].data_dir == tmp_path / "a=b"
    (tmp_path / "a=b").rename(tmp_path / "pictures")
    underscored = ["my-images", "--data_dir", str(tmp_path / "pictures"), "--data.kind", "black-and-white"]
    assert parse_train(underscored) == (config, options)
    continuous = ["--model.prior=normal", "--autoencoder.epochs=0", "--rbm.cd-epochs=0", "--rbm.pcd-epochs=0"]
    parse_train(["my-images", "--data=images:~/pictures", *continuous, "--joint.objective=iwae"])
    assert "resnet networks, 2048 normal latents," in "".join(capsys.readouterr())
    parse_train(["my-images", "--data", "images:~/pictures", "--data.kind", "black-and-white"])
    said = "".join(capsys.readouterr())
    assert "30 pictures, grey by the first 30, made black-and-white. Chosen: 32x32 pixels (--size), mlp" in said
    assert "warning: 30 pictures are few" in said


@pytest.mark.parametrize("images", [30, 100, 300, 999, 1000, 10**4, 10**6])
@pytest.mark.parametrize("kind", ["colour", "black-and-white"])
def test_few_pictures_get_as_many_updates_as_many_do(images, kind):
    config = my_images(kind, 32, images)
    relaxed = config.joint.objective == "relaxed"  # whose updates cost a quarter
    for stage, least, most in ((config.autoencoder, 1000, 6000), (config.joint, 1000, 12_000 if relaxed else 6000)):
        updates = stage.epochs * steps_per_epoch(8 * images // 10, stage.batch_size)
        assert updates >= least
        assert updates <= most or stage.epochs == 2
        assert stage.warmup <= updates / 10


@pytest.fixture
def run_of_pictures(tmp_path):
    """A small run, the folder of its pictures, and a folder of others."""
    ours = write({f"{n}.png": encoded(strokes(n)) for n in range(60)}, tmp_path / "ours")
    others = write({f"{n}.png": encoded(255 - strokes(n)) for n in range(60)}, tmp_path / "others")
    config = Config(
        recipe="my-images",
        data=DataConfig(name="images", kind="black-and-white", size=8),
        model=ModelConfig(layers=(8,), latent=6, hidden=5),
        autoencoder=AutoencoderConfig(epochs=1, batch_size=20, scales=(1.0,)),
        rbm=RBMConfig(cd_epochs=1, pcd_epochs=0, batch_size=20),
        joint=JointConfig(epochs=0),
    )
    return lb.train(config, tmp_path / "run", data_dir=ours, quiet=True), ours, others


FEW_CHAINS = "--samples 5 --chains 10 --temperatures 5 --raise-images 0".split()


def test_commands_find_the_data_of_training_again(run_of_pictures, monkeypatch, tmp_path, capsys):
    run, ours, _ = run_of_pictures
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", str(run.path), *FEW_CHAINS]) == 0
    assert main(["report", str(run.path), "--gibbs-steps", "1", "--diagnostics-seconds", "0"]) == 0
    assert main(["encode", str(run.path)]) == 0
    assert "other data" not in "".join(capsys.readouterr())
    ours.rename(tmp_path / "moved")
    assert main(["evaluate", str(run.path), *FEW_CHAINS]) == 2
    assert "--data-dir" in capsys.readouterr().err
    assert main(["evaluate", str(run.path), *FEW_CHAINS, "--data-dir", str(tmp_path / "moved")]) == 0
    for damaged in ("", "{", "[]", '{"data_dir": 3}', '{"data_dir": "\\u0000"}'):
        (run.path / "data.json").write_text(damaged)
        assert run.data_dir is None


def test_an_evaluation_of_other_data_says_so_wherever_it_is_shown(run_of_pictures, tmp_path, capsys):
    run, ours, others = run_of_pictures
    with pytest.warns(UserWarning, match=f"{others}: other data than {run.path} was trained on"):
        assert main(["evaluate", str(run.path), *FEW_CHAINS, "--data-dir", str(others)]) == 0
    assert main(["export", str(run.path), str(tmp_path / "shared")]) == 0
    assert "**These are other data than those that it was trained on.**" in (tmp_path / "shared/README.md").read_text()
    assert main(["report", str(run.path), "--gibbs-steps", "1", "--diagnostics-seconds", "0"]) == 0
    assert "of other data than it was trained on" in (run.path / "report/report.html").read_text()
    with pytest.raises(lb.RunError, match="checkpoint is of other data than these; name those"):
        lb.train(run.config, run.path, resume=True, data_dir=others, quiet=True)
    assert main(["evaluate", str(run.path), *FEW_CHAINS, "--data-dir", str(ours)]) == 0
    assert main(["export", str(run.path), str(tmp_path / "again")]) == 0
    assert "other data" not in (tmp_path / "again/README.md").read_text()


NO_ARCHIVES = {
    "picture.png": (encoded(random_pixels(0)), "found a single picture; name its folder, {folder}"),
    "picture": (encoded(random_pixels(0), "JPEG"), "found a single picture; name its folder, {folder}"),
    "notes.txt": (b"six words that are no archive", "found a file of another kind (.txt); name a folder or an archive"),
    "notes": (b"", "found a file of another kind; name a folder or an archive"),
    "torn.tar": (b"no archive", "found a damaged one ("),
    "torn.tar.gz": (b"\x1f\x8b no archive", "found a damaged one ("),
    "torn.zip": (b"PK", "found a damaged one ("),
}


@pytest.mark.parametrize("name", NO_ARCHIVES)
def test_a_file_that_is_no_archive_is_called_what_it_is(tmp_path, name, capsys):
    content, said = NO_ARCHIVES[name]
    path = tmp_path / name
    path.write_bytes(content)
    said = said.format(folder=tmp_path)
    with pytest.raises(DataError) as refusal:
        folders.read_pictures(path, SQUARE)
    assert f"{path}: expected a folder, a .tar or a .zip of pictures, {said}" in str(refusal.value)
    # whoever named it by an option or a word is told by which
    assert main(["train", "my-images", "--data", str(path)]) == 2
    assert f"error: --data: {refusal.value}" in capsys.readouterr().err
    out = str(tmp_path / "codes.npz")
    assert main(["encode", "mnist-mlp", str(path), "--out", out]) == 2
    assert f"error: PICTURES: {path}: expected a folder" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"^--data-dir: "):
        data.load(DataConfig(name="images"), path)


def test_an_empty_folder_and_a_damaged_picture_are_told_with_what_to_do(tmp_path, capsys):
    path = tmp_path / "pictures"
    path.mkdir()
    assert main(["train", "my-images", "--data", str(path)]) == 2
    line = f"error: --data: {path}: expected pictures that end in .png, .jpg, .jpeg, found none; name the folder"
    assert line in capsys.readouterr().err
    write({"whole.png": encoded(random_pixels(0)), "torn.png": b"torn"}, path)
    assert main(["train", "my-images", "--data", str(path), "--run", str(tmp_path / "run")]) == 2
    assert "found 1, and 1 could not be read, such as torn.png (it is no PNG or JPEG)" in capsys.readouterr().err
