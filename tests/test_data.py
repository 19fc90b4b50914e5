"""Data sets: what is right comes back, and what is wrong is named."""

import gzip
import hashlib
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from latentbits import data
from latentbits.data import MNIST_FILES, AmatFile, DataError, parse_amat

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
    with pytest.raises(DataError, match="expected one of digits, binarized-mnist, got 'mnist'"):
        data.load("mnist")


@needs_mnist
def test_mnist_comes_packed_from_the_cache_the_second_time(cache, monkeypatch):
    first = data.load("binarized-mnist", SHARED)
    assert [part.shape for part in first[1:4]] == [(50_000, 784), (10_000, 784), (10_000, 784)]
    monkeypatch.setattr(data, "parse_amat", lambda *args: pytest.fail("parsed again"))
    started = time.monotonic()
    second = data.load("binarized-mnist", SHARED)
    assert time.monotonic() - started < 2
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
