"""Data sets: what is right comes back, and what is wrong is named."""

import gzip
import hashlib
import io
import lzma
import re
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from latentbits import colour, data
from latentbits.cli import main
from latentbits.data import MNIST_FILES, AmatFile, parse_amat
from latentbits.splits import DataError, Form

SHARED = Path(__file__).parents[2] / "shared" / "data" / "binarized_mnist"
needs_mnist = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the published files are not in {SHARED}")
FILE = AmatFile("small.amat", 3, "0" * 64)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTBITS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def amat(bits):
    return b"".join(b" ".join(b"%d" % bit for bit in row) + b"\n" for row in bits)


def test_digits_are_bits_split_once():
    splits = data.load("digits")
    assert [part.shape for part in splits[1:4]] == [(1197, 64), (300, 64), (300, 64)]
    assert set(splits.train.unique().tolist()) == {0, 1}
    assert splits.checksum == data.load("digits").checksum
    assert splits.mean_logits().isfinite().all()
    from sklearn.datasets import load_digits

    # every image is in one split, binarized at half of the 16 levels
    images = torch.cat(splits[1:4]).numpy()
    expected = load_digits().data > 7.5
    assert sorted(map(bytes, images)) == sorted(map(bytes, expected.astype(np.uint8)))


def test_parse_reads_bits():
    bits = np.random.default_rng(0).integers(0, 2, (3, 784), dtype=np.uint8)
    content = amat(bits)
    file = FILE._replace(sha256=hashlib.sha256(content).hexdigest())
    np.testing.assert_array_equal(parse_amat(content, Path("f"), file), bits)


def test_parse_names_what_is_wrong():
    content = amat(np.zeros((3, 784), np.uint8))
    with pytest.raises(DataError, match=r"f: expected 3 lines of 784 bits, 4,704 bytes .* found 2 lines and 4,000"):
        parse_amat(content[:4000], Path("f"), FILE)
    with pytest.raises(DataError, match="and more bytes"):
        parse_amat(content + b"0", Path("f"), FILE)
    bad = bytearray(content)
    bad[1568 + 4] = ord("7")
    with pytest.raises(DataError, match=r"expected only 0 and 1, found '7' in line 2, value 3; fetch it again"):
        parse_amat(bytes(bad), Path("f"), FILE)
    with pytest.raises(DataError, match=f"expected SHA-256 {'0' * 64}, found"):
        parse_amat(content, Path("f"), FILE)


def test_missing_files_are_named_with_a_remedy(tmp_path):
    with pytest.raises(DataError, match=r"binarized_mnist_train.amat: expected this file, plain or .gz.*--data-dir"):
        data.load("binarized-mnist", tmp_path)


def test_a_failed_download_is_named_with_a_remedy(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("pooch.retrieve", refuse)
    with pytest.raises(DataError, match=r"could not be downloaded .*no route to host.*--data-dir"):
        data.load("binarized-mnist")


def test_a_download_from_a_server_is_checked_and_kept(tmp_path, cache, monkeypatch):
    """Over HTTP from this machine: the right bytes are kept, the wrong ones refused by their checksum."""
    content = amat(np.random.default_rng(1).integers(0, 2, (3, 784), dtype=np.uint8))
    (tmp_path / "small.amat").write_bytes(content)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/small.amat"
    monkeypatch.setattr(AmatFile, "url", property(lambda file: url))
    try:
        right = FILE._replace(sha256=hashlib.sha256(content).hexdigest())
        assert data._find_or_download(right, None).read_bytes() == content
        with pytest.raises(DataError, match=r"could not be downloaded .*hash"):
            data._find_or_download(FILE._replace(name="other.amat"), None)
        assert not (cache / "other.amat").exists()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:50] + b"x" * 20 + b[70:], lambda b: b"not gzip"])
def test_a_damaged_gzip_is_named(tmp_path, damage):
    path = tmp_path / f"{MNIST_FILES['train'].name}.gz"
    path.write_bytes(damage(gzip.compress(np.random.default_rng(0).bytes(5000))))
    with pytest.raises(DataError, match="expected a whole gzip file, found a truncated or corrupted one"):
        data.load("binarized-mnist", tmp_path)


def test_a_gzip_that_grows_without_end_is_not_unpacked(tmp_path):
    path = tmp_path / f"{MNIST_FILES['valid'].name}.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(40):
            stream.write(b"0 " * 2_000_000)
    content = data._uncompressed(path.read_bytes(), path, MNIST_FILES["valid"])
    assert len(content) == MNIST_FILES["valid"].size + 1


def test_unknown_name():
    with pytest.raises(
        DataError, match="expected one of digits, binarized-mnist, cifar10, imagenet64, natural64, got 'mnist'"
    ):
        data.load("mnist")


@needs_mnist
def test_mnist_comes_packed_from_the_cache_the_second_time(cache, monkeypatch):
    first = data.load("binarized-mnist", SHARED)
    assert [part.shape for part in first[1:4]] == [(50_000, 784), (10_000, 784), (10_000, 784)]
    monkeypatch.setattr(data, "parse_amat", lambda *args: pytest.fail("parsed again"))
    second = data.load("binarized-mnist", SHARED)
    assert first.checksum == second.checksum
    assert torch.equal(first.test, second.test)


@needs_mnist
def test_a_damaged_cache_is_made_again(cache):
    first = data.load("binarized-mnist", SHARED)
    for path in cache.iterdir():
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(bytes(content))
    assert data.load("binarized-mnist", SHARED).checksum == first.checksum


CIFAR = SHARED.parent / "cifar10"


def cifar_batches(test=7):
    """Five small training batches and a test batch, as bytes in the binary layout."""
    rng = np.random.default_rng(2)
    rows = [60] * 5 + [test]
    batches = []
    for n in rows:
        records = rng.integers(0, 256, (n, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        batches.append(records)
    return dict(zip(colour.CIFAR10_BATCHES, batches, strict=True))


@pytest.fixture
def small_cifar(monkeypatch):
    monkeypatch.setattr(colour, "_BATCH", 60)
    monkeypatch.setattr(colour, "_VALIDATION", 40)
    return cifar_batches()


def write_batches(batches, folder, suffix):
    folder.mkdir(exist_ok=True)
    for name, records in batches.items():
        content = records.tobytes()
        (folder / (name + suffix)).write_bytes(lzma.compress(content) if suffix else content)


def write_archive(batches, path, monkeypatch):
    with tarfile.open(path, "w:gz") as archive:
        for name, records in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = records.size
            archive.addfile(member, io.BytesIO(records.tobytes()))
    monkeypatch.setattr(colour, "CIFAR10_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("layout", ["plain", "xz", "archive"])
def test_cifar10_in_each_layout(tmp_path, small_cifar, layout, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    if layout == "archive":
        write_archive(small_cifar, folder / colour.CIFAR10_ARCHIVE, monkeypatch)
    else:
        write_batches(small_cifar, folder, ".xz" if layout == "xz" else "")
    for _ in range(2):  # the second time from the cache
        splits = data.load("cifar10", folder)
        train = np.concatenate([records[:, 1:] for records in list(small_cifar.values())[:5]])
        np.testing.assert_array_equal(splits.train, train[:260])
        np.testing.assert_array_equal(splits.valid, train[260:])
        np.testing.assert_array_equal(splits.test, small_cifar["test_batch.bin"][:, 1:])
        assert splits.form.image == (3, 32, 32)


def test_where_cifar10_lies_is_listed(tmp_path, small_cifar, capsys):
    folder = tmp_path / "data"
    write_batches(small_cifar, folder, ".xz")
    (folder / "data_batch_2.bin.xz").unlink()
    assert main(["data", "--data-dir", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"5 of 6 files present in {folder}: data_batch_1.bin.xz, data_batch_3.bin.xz, " in printed
    assert f"absent in {folder}: data_batch_2.bin; downloaded " in printed
    assert printed.count("170 MB") == 1
    assert colour.CIFAR10_URL in printed


def listed(capsys, *options):
    """The lines of each data set's entry, by its name."""
    assert main(["data", *map(str, options)]) == 0
    entries = {}
    for line in capsys.readouterr().out.splitlines():
        if not line.startswith("  "):
            name = line.split(":")[0]
        entries.setdefault(name, []).append(line.strip())
    return entries


def test_each_data_set_says_whether_it_is_present_and_how_large(tmp_path, capsys):
    folder = tmp_path / "data"
    (folder / "mine").mkdir(parents=True)
    entries = listed(capsys, "--data-dir", folder)
    assert set(entries) == {*data.FORMS, "images", "cache"}
    absent = {name for name, lines in entries.items() if any(line.startswith(f"absent in {folder}") for line in lines)}
    assert absent == {"binarized-mnist", "cifar10", "imagenet64", "natural64", "images"}
    size = re.fullmatch(r"present: comes with scikit-learn; ([\d,]+) bytes", entries["digits"][1])
    assert 10_000 < int(size[1].replace(",", "")) < 100_000
    # as files come
    (folder / "train.tar").write_bytes(bytes(2_000_000))
    (folder / "val.tar").write_bytes(bytes(500_000))
    for name in colour.IMAGENET64_BATCHES[1:]:
        (folder / name).write_bytes(bytes(300))
    (folder / "mine" / "a.JPG").write_bytes(bytes(70))
    entries = listed(capsys, "--data-dir", folder)
    assert entries["natural64"][1:] == [f"present in {folder}: train.tar, val.tar; 2.5 MB"]
    assert entries["imagenet64"][1].startswith(f"10 of 11 files present in {folder}: train_data_batch_2.npz, ")
    assert entries["imagenet64"][1].endswith("; 3,000 bytes")
    assert entries["imagenet64"][2].startswith(f"absent in {folder}: {colour.IMAGENET64_BATCHES[0]}; not downloaded")
    assert entries["images"][1] == f"present in {folder}: 1 that end in .png, .jpg, .jpeg; 70 bytes"


def test_one_archive_is_counted_once(tmp_path, capsys):
    archive = tmp_path / colour.CIFAR10_ARCHIVE
    archive.write_bytes(bytes(1_200_000))
    assert listed(capsys, "--data-dir", tmp_path)["cifar10"][1] == f"present in {tmp_path}: {archive.name}; 1.2 MB"
    assert f"the file {archive}, 1.2 MB" in listed(capsys, "--data-dir", archive)["images"][1]


def test_without_a_folder_the_cache_is_looked_in(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LATENTBITS_CACHE", str(tmp_path))
    entries = listed(capsys)
    assert f"absent in {tmp_path}: " in entries["binarized-mnist"][1]
    assert entries["natural64"][1] == "absent: train.tar, val.tar; not downloaded; name their folder with --data-dir"
    assert entries["images"][1].startswith("no place named")
    assert main(["data", "--data-dir", str(tmp_path / "nowhere")]) == 2
    assert "--data-dir: expected a folder or an archive, found nothing at" in capsys.readouterr().err


def test_what_is_wrong_with_cifar10_is_named(tmp_path, small_cifar):
    folder = tmp_path / "data"
    write_batches(small_cifar, folder, "")
    path = folder / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"data_batch_3.bin: expected 60 records of 3,073 bytes, found 184,375 bytes"):
        data.load("cifar10", folder)
    path.write_bytes(b"\x0b" + whole[1:])
    with pytest.raises(DataError, match="expected a label from 0 to 9 before each image, found 11 in record 1"):
        data.load("cifar10", folder)
    path.unlink()
    with pytest.raises(DataError, match=r"expected data_batch_3.bin, plain or .xz, or cifar-10-binary.tar.gz"):
        data.load("cifar10", folder)
    path.with_suffix(".bin.xz").write_bytes(lzma.compress(whole)[:-50])
    with pytest.raises(DataError, match="expected a whole xz file, found a truncated or corrupted one"):
        data.load("cifar10", folder)


def test_a_damaged_cifar10_archive_is_named(tmp_path, small_cifar, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / colour.CIFAR10_ARCHIVE
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="expected SHA-256 c4a38c50"):
        data.load("cifar10", folder)
    monkeypatch.setattr(colour, "CIFAR10_SHA256", hashlib.sha256(b"no archive").hexdigest())
    with pytest.raises(DataError, match="expected the published archive, found a damaged one"):
        data.load("cifar10", folder)
    del small_cifar["test_batch.bin"]
    write_archive(small_cifar, path, monkeypatch)
    with pytest.raises(DataError, match=r"archive with test_batch.bin, which are not in it"):
        data.load("cifar10", folder)


@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"no files in {CIFAR}")
def test_the_real_cifar10_has_its_splits():
    splits = data.load("cifar10", CIFAR)
    assert [len(part) for part in splits[1:4]] == [45_000, 5000, 1000]  # the first 1,000 of the test images
    # published means of the channels over the training images: 0.4914, 0.4822, 0.4465
    train = torch.cat([splits.train, splits.valid]).view(-1, 3, 1024)
    means = [float(train[:, channel].float().mean()) / 255 for channel in range(3)]
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)


@pytest.fixture
def small_imagenet(tmp_path, monkeypatch):
    """Batches of a few images in the published layout, and what they hold."""
    monkeypatch.setattr(colour, "_IMAGENET64_VALIDATION", 5)
    rng = np.random.default_rng(3)
    batches = {}
    for i, name in enumerate(colour.IMAGENET64_BATCHES):
        batches[name] = rng.integers(0, 256, (2 + i % 3, 12288), dtype=np.uint8)
        save = np.savez_compressed if i % 2 else np.savez
        save(tmp_path / name, data=batches[name], labels=np.arange(len(batches[name])))
    return batches


def test_imagenet64_is_its_batches_in_order(tmp_path, small_imagenet):
    splits = data.load("imagenet64", tmp_path)
    train = np.concatenate([small_imagenet[f"train_data_batch_{i}.npz"] for i in range(1, 11)])
    assert splits.form == Form(3, 64, 64, 256)
    assert (splits.train.numpy() == train[:-5]).all()
    assert (splits.valid.numpy() == train[-5:]).all()
    assert (splits.test.numpy() == small_imagenet["val_data.npz"]).all()


HEADER = "{{'descr': '|u1', 'fortran_order': False, 'shape': {}}}"


def with_header(path, text):
    """An npz file whose entry has this for a header."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())


def compressed_wrongly(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("data.npy", bytes(100_000))
    content = path.read_bytes()
    path.write_bytes(content.replace(content[60:64], b"\xff\xff\xff\xff", 1))


def flipped(content, where):
    """The same bytes with one bit changed."""
    return content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "expected train_data_batch_3.npz, and did not find"),
        (lambda path: path.rename(path.with_suffix("")), "found the pickled batch, which could run code"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "found a damaged or other file"),
        (lambda path: path.write_bytes(flipped(path.read_bytes(), 5000)), "found a damaged or other file .*CRC"),
        (lambda path: path.write_bytes(b"no zip"), "found a damaged or other file"),
        (lambda path: np.savez(path, other=np.zeros(3)), "found a damaged or other file"),
        (lambda path: np.savez(path, data=np.zeros((2, 12288), np.float32)), "found .* of float32"),
        (lambda path: np.savez(path, data=np.zeros((2, 3072), np.uint8)), r"found \(2, 3072\) of uint8"),
        (lambda path: np.savez(path, data=np.array([{"a": 1}], dtype=object)), "found .* of object"),
        (lambda path: with_header(path, "(" * 100), "expected an array in npy format"),
        (lambda path: with_header(path, "-" * 9000 + "1"), "expected an array in npy format"),
        (lambda path: with_header(path, HEADER.format("(True, 12288)")), r"found \(True, 12288\)"),
        (lambda path: compressed_wrongly(path), "found a damaged or other file"),
    ],
)
def test_a_wrong_imagenet64_batch_is_named(tmp_path, small_imagenet, damage, message):
    damage(tmp_path / "train_data_batch_3.npz")
    with pytest.raises(DataError, match=message):
        data.load("imagenet64", tmp_path)


def test_an_imagenet64_batch_that_claims_more_than_it_has_is_named(tmp_path, small_imagenet):
    """Or one that claims more than any published batch has, before that much is allocated."""
    path = tmp_path / "train_data_batch_3.npz"
    for rows, message in (
        (3, "found more or fewer"),
        (1, "found more or fewer"),
        (10**9, "expected up to 200,000 rows"),
    ):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (rows, 12288)})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.npy", header.getvalue() + bytes(2 * 12288))
        with pytest.raises(DataError, match=message):
            data.load("imagenet64", tmp_path)
