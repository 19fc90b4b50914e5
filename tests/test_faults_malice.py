"""Files that mean harm: pickles, paths and links that lead elsewhere, bombs, enormous headers. They are refused before
memory or disk suffers, in processes that may take little of it, and nothing outside of what was named is written.
"""

import io
import json
import lzma
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib

import children
import faults
import numpy as np
import pytest
import torch
from PIL import Image
from test_faults_kill import finish, said, started
from test_train import tiny

import latentbits as lb
from latentbits import colour
from latentbits.data import MNIST_FILES

GIB = 2**30
MOST_ADDRESSES, MOST_MEMORY = GIB, 256 * 2**20
FEW = "--samples 5 --chains 10 --temperatures 5".split()


class Harm:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled(folder):
    return pickle.dumps(Harm(folder.parent / "harmed"))


def deflated(begin, part, times):
    """A raw deflate stream of some bytes, and then of a part that is repeated, packed once."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * times + b"\x03\x00"


def deflated_zeros(size):
    part = min(size, 2**24)
    return deflated(b"", bytes(part), size // part)


def gzipped(begin, part=bytes(2**24), times=0):
    """The same as a gzip file, whose checksum at the end nothing will come to."""
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + deflated(begin, part, times) + bytes(8)


def zip_of(name, size, stream, claimed=None):
    """A zip file with one deflated entry."""
    crc, encoded, claimed = 0, name.encode(), claimed or size
    fields = struct.pack("<HHHHHIII", 20, 0, 8, 0, 33, crc, len(stream), min(claimed, 2**32 - 1))
    local = b"PK\x03\x04" + fields + struct.pack("<HH", len(encoded), 0) + encoded
    central = b"PK\x01\x02\x14\x00" + fields + struct.pack("<HHHHHII", len(encoded), 0, 0, 0, 0, 0, 0) + encoded
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(stream), 0)
    return local + stream + central + end


def png(pixels=None):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8) if pixels is None else pixels).save(stream, "PNG")
    return stream.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(*chunks):
    whole = png()
    return whole[:33] + b"".join(chunks) + whole[33:]


def zlib_zeros(size):
    return b"\x78\x9c" + deflated_zeros(size) + struct.pack(">I", 1)


def tar_header(name, size, kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def pax_header(**values):
    return tarfile.TarInfo.create_pax_global_header(values).replace(b"g" * 1, b"g")


def safetensors(header, payload=b"", length=None):
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + payload


# ----------------------------------------------------------------------------- each makes a file in a folder, and
# returns the command that is to read it; `run` is a finished run there, `out` a place to write to


def object_codes(folder):
    np.savez(folder / "codes.npz", names=["a"], latents=np.array([Harm(folder.parent / "harmed")], dtype=object))
    return ["decode", folder / "run", folder / "codes.npz", "--out", folder / "out"]


def pickle_for_codes(folder):
    (folder / "codes.npz").write_bytes(pickled(folder))
    return ["decode", folder / "run", folder / "codes.npz", "--out", folder / "out"]


def pickle_for_weights(folder):
    torch.save({"weight": Harm(folder.parent / "harmed")}, folder / "run" / "model.safetensors")
    return ["sample", folder / "run", "--out", folder / "out.png"]


def pickle_for_checkpoint(folder):
    for name in ("checkpoint", "checkpoint-previous"):
        (folder / "run" / f"{name}.safetensors").write_bytes(pickled(folder))
    return ["train", "digits", "--run", folder / "run", "--resume"]


def pickle_for_configuration(folder):
    (folder / "run" / "config.json").write_bytes(pickled(folder))
    return ["sample", folder / "run", "--out", folder / "out.png"]


def pickle_for_unfinished_evaluation(folder):
    (folder / "run" / "unfinished-evaluation").mkdir()
    (folder / "run" / "unfinished-evaluation" / "bound-0.safetensors").write_bytes(pickled(folder))
    return ["evaluate", folder / "run", *FEW, "--samples", "0"]


def pickle_for_imagenet(folder):
    for name in colour.IMAGENET64_BATCHES:
        np.savez(folder / name, data=np.array([Harm(folder.parent / "harmed")], dtype=object))
    return ["train", "imagenet64-resnet", "--data-dir", folder, "--run", folder / "new"]


def pickled_imagenet(folder):
    for name in colour.IMAGENET64_BATCHES:
        (folder / name.removesuffix(".npz")).write_bytes(pickled(folder))
    return ["train", "imagenet64-resnet", "--data-dir", folder, "--run", folder / "new"]


def tar_of_links(folder):
    with tarfile.open(folder / "all.tar", "w") as archive:
        for i, kind in enumerate(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
        ):
            member = tarfile.TarInfo(f"{i}.png")
            member.type, member.linkname = kind, str(folder / "run" / "config.json")
            archive.addfile(member)
    return ["encode", folder / "run", folder / "all.tar", "--out", folder / "out.npz"]


def folder_of_devices(folder):
    (folder / "pictures").mkdir()
    os.mkfifo(folder / "pictures" / "fifo.png")
    (folder / "pictures" / "zero.png").symlink_to("/dev/zero")
    (folder / "pictures" / "loop.png").symlink_to(folder / "pictures" / "loop.png")
    (folder / "pictures" / "loop").symlink_to(folder)
    (folder / "pictures" / "folder.png").mkdir()
    return ["encode", folder / "run", folder / "pictures", "--out", folder / "out.npz"]


def link_for(name, command, target="outside.txt"):
    def make(folder):
        path = folder / "run" / name
        path.unlink(missing_ok=True)
        path.symlink_to(folder / target)
        return [command[0], folder / "run", *command[1:]]

    return make


def link_for_lock(folder):
    (folder / "run" / ".lock").unlink(missing_ok=True)
    (folder / "run" / ".lock").symlink_to(folder / "outside.txt")
    return ["train", "digits", "--run", folder / "run", "--resume"]


def link_for_events(folder):
    (folder / "run" / "tensorboard").symlink_to(folder / "outside")
    return ["train", "digits", "--run", folder / "run", "--resume", "--tensorboard"]


def link_for_metrics(folder):
    (folder / "run" / "metrics.jsonl").unlink()
    (folder / "run" / "metrics.jsonl").symlink_to(folder / "outside.txt")
    return ["train", "digits", "--run", folder / "run", "--resume"]


def device_for_weights(folder):
    (folder / "run" / "model.safetensors").unlink()
    (folder / "run" / "model.safetensors").symlink_to("/dev/zero")
    return ["sample", folder / "run", "--out", folder / "out.png"]


def picture(name, content):
    def make(folder):
        (folder / "pictures").mkdir()
        (folder / "pictures" / name).write_bytes(content())
        return ["encode", folder / "run", folder / "pictures", "--out", folder / "out.npz"]

    return make


def archive(name, content):
    def make(folder):
        (folder / name).write_bytes(content())
        return ["score", folder / "run", folder / name, "--out", folder / "out.csv", *FEW]

    return make


def enormous_png():
    content = bytearray(png())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def enormous_jpeg():
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(content)


def sparse_pax():
    begin = tarfile.TarInfo("a.png")
    begin.size = GIB
    begin.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.png"}
    return gzipped(begin.tobuf(tarfile.PAX_FORMAT) + b"99999999999\n" + b"1\n" * 250, b"1\n" * 2**19, 1024)


def old_sparse():
    block = (b"%011o\x00" % 512 + b"%011o\x00" % 512) * 21 + b"\x01" + bytes(7)
    header = bytearray(tar_header("a.png", 0, tarfile.GNUTYPE_SPARSE))
    header[482] = 1
    header[148:156] = b"%06o\x00 " % (sum(header[:148]) + sum(header[156:512]) + 8 * 32)
    return gzipped(bytes(header), block * 2**11, 1024)


def wide_xz(content):
    """An xz stream that asks for a dictionary of 4 GiB."""
    packed = bytearray(lzma.compress(content, lzma.FORMAT_XZ, lzma.CHECK_CRC32))
    size = (packed[12] + 1) * 4
    at = packed.index(b"\x21\x01", 12) + 2
    packed[at] = 40
    packed[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(bytes(packed[12 : 12 + size - 4])))
    return bytes(packed)


def cifar(content):
    def make(folder):
        for name in colour.CIFAR10_BATCHES:
            (folder / f"{name}.xz").write_bytes(content())
        return ["train", "cifar10-small", "--data-dir", folder, "--run", folder / "new"]

    return make


def cifar_zeros():
    """1 GiB of zeros, in streams."""
    return lzma.compress(bytes(2**24)) * 64


def long_cifar(folder):
    for name in colour.CIFAR10_BATCHES:
        with open(folder / name, "wb") as stream:
            stream.truncate(700 * 2**20)  # without blocks on the disk
    return ["train", "cifar10-small", "--data-dir", folder, "--run", folder / "new"]


def mnist(suffix, write):
    def make(folder):
        for file in MNIST_FILES.values():
            with open(folder / (file.name + suffix), "wb") as stream:
                write(stream)
        return ["train", "mnist-mlp", "--data-dir", folder, "--run", folder / "new"]

    return make


def codes(**arrays):
    def make(folder):
        np.savez_compressed(folder / "codes.npz", **{name: value() for name, value in arrays.items()})
        return ["decode", folder / "run", folder / "codes.npz", "--out", folder / "out"]

    return make


def npy(shape, kind="|u1"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def claiming_codes(folder):
    with zipfile.ZipFile(folder / "codes.npz", "w") as file:
        file.writestr("names.npy", npy((10**12,), "<U1") + bytes(40))
        file.writestr("bits.npy", npy((10**12, 1)) + bytes(40))
        file.writestr("count.npy", npy((), "<i8") + struct.pack("<q", 8))
    return ["decode", folder / "run", folder / "codes.npz", "--out", folder / "out"]


def codes_bomb(folder):
    (folder / "codes.npz").write_bytes(zip_of("names.npy", 4 * GIB, deflated_zeros(2**28), 2**32 - 2))
    return ["decode", folder / "run", folder / "codes.npz", "--out", folder / "out"]


def claiming_imagenet(folder):
    for name in colour.IMAGENET64_BATCHES:
        with zipfile.ZipFile(folder / name, "w") as file:
            file.writestr("data.npy", npy((200_000, 12288)) + bytes(100))
    return ["train", "imagenet64-resnet", "--data-dir", folder, "--run", folder / "new"]


def model_file(content, sparse=0):
    def make(folder):
        with open(folder / "run" / "model.safetensors", "wb") as stream:
            stream.write(content())
            stream.truncate(max(stream.tell(), sparse))
        return ["sample", folder / "run", "--out", folder / "out.png"]

    return make


def huge_tensor():
    size = 10**12
    return safetensors({"prior.weight": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}})


def sparse_tensor():
    """One that is all there, in a file without blocks on the disk."""
    size = 16 * GIB
    header = {"prior.weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    return safetensors(header)


def changed_configuration(section, **values):
    def make(folder):
        path = folder / "run" / "config.json"
        config = json.loads(path.read_text())
        (config[section] if section else config).update(values)
        path.write_text(json.dumps(config))
        return ["sample", folder / "run", "--out", folder / "out.png"]

    return make


def text(name, content, *command):
    def make(folder):
        (folder / "run" / name).write_bytes(content())
        return [command[0], folder / "run", *command[1:]]

    return make


def long_metrics(folder):
    with open(folder / "run" / "metrics.jsonl", "ab") as stream:
        stream.truncate(100 * GIB)
    return ["train", "digits", "--run", folder / "run", "--resume"]


def mask_bomb(folder):
    (folder / "mask.png").write_bytes(enormous_png())
    return ["inpaint", folder / "run", "--mask", folder / "mask.png", "--out", folder / "out.png"]


REFUSED = {
    "codes with an object array": object_codes,
    "a pickle for codes": pickle_for_codes,
    "a .pt file for weights": pickle_for_weights,
    "a pickle for a checkpoint": pickle_for_checkpoint,
    "a pickle for a configuration": pickle_for_configuration,
    "an object array for ImageNet": pickle_for_imagenet,
    "ImageNet's pickled batches": pickled_imagenet,
    "a tar of links, pipes and devices": tar_of_links,
    "a folder of links, pipes and devices": folder_of_devices,
    "a link for evaluations.jsonl": link_for("evaluations.jsonl", ["evaluate", *FEW, "--raise-images", "0"]),
    "a link for the folder of pictures": link_for("report", ["report"], "outside"),
    "a link for an unfinished evaluation": link_for("unfinished-evaluation", ["evaluate", *FEW], "outside"),
    "a link for events": link_for_events,
    "a link for the lock": link_for_lock,
    "a device for weights": device_for_weights,
    "a PNG of 60,000 x 60,000 pixels": picture("a.png", enormous_png),
    "a JPEG of 65,535 x 65,535 pixels": picture("a.jpg", enormous_jpeg),
    "a PNG with a gigabyte of text": picture("a.png", lambda: png_with(chunk(b"zTXt", b"a\0\0" + zlib_zeros(GIB)))),
    "a PNG with a gigabyte of colours": picture("a.png", lambda: png_with(chunk(b"iCCP", b"a\0\0" + zlib_zeros(GIB)))),
    "a mask of 60,000 x 60,000 pixels": mask_bomb,
    "a zip with a gigabyte in a megabyte": archive("a.zip", lambda: zip_of("a.png", GIB, deflated_zeros(GIB))),
    "a zip entry that claims 4 GiB": archive("a.zip", lambda: zip_of("a.png", 9, deflated_zeros(2**24), 2**32 - 1)),
    "a tar whose name has a gigabyte": archive(
        "a.tar", lambda: gzipped(tar_header("././@LongLink", GIB, tarfile.GNUTYPE_LONGNAME), times=64)
    ),
    "a tar whose header has a gigabyte": archive(
        "a.tar", lambda: gzipped(tar_header("h", GIB, tarfile.XHDTYPE), times=64)
    ),
    "a tar with an endless map of a sparse file": archive("a.tar", sparse_pax),
    "a tar with an endless map of an old sparse file": archive("a.tar", old_sparse),
    "a tar entry that claims 4 GiB": archive("a.tar", lambda: tar_header("a.png", 2**32) + bytes(1024)),
    "xz files with a gigabyte each": cifar(cifar_zeros),
    "xz files that ask for 4 GiB": cifar(lambda: wide_xz(bytes(10_000))),
    "batches of 700 MiB": long_cifar,  # for which there is room
    "text files of 700 MiB": mnist("", lambda stream: stream.truncate(700 * 2**20)),
    "text files of 100 GiB": mnist("", lambda stream: stream.truncate(100 * GIB)),
    "gzip files with a gigabyte each": mnist(".gz", lambda stream: stream.write(gzipped(b"0 ", times=64))),
    "codes that claim 10^12 rows": claiming_codes,
    "codes that claim 4 GiB": codes_bomb,
    "codes that grow 32-fold": codes(
        names=lambda: np.zeros(40_000, "<U1"), bits=lambda: np.zeros((40_000, 1000), np.uint8), count=lambda: 8000
    ),
    "codes of 10^12 bits": codes(names=lambda: ["a"], bits=lambda: np.zeros((1, 1), np.uint8), count=lambda: 10**12),
    "ImageNet that claims its size": claiming_imagenet,
    "a header of 2^62 bytes": model_file(lambda: safetensors({}, length=2**62)),
    "a tensor of 10^12 numbers": model_file(huge_tensor),
    "a tensor of 16 GiB": model_file(sparse_tensor, 16 * GIB),
    "a deep header": model_file(lambda: struct.pack("<Q", 10**6) + b"[" * 10**6),
    "a model of 2^62 weights": changed_configuration("model", latent=2**31 - 1, hidden=2**31 - 1),
    "a model of 160 million weights": changed_configuration("model", layers=[9000, 9000]),  # for which there is room
    "a model of 10^10 weights": changed_configuration("model", layers=[100_000, 100_000]),
    "a model of a million layers": changed_configuration("model", layers=[1] * 10**6),
    "a configuration of 100 GiB": lambda folder: sparse_text(folder, "config.json", "sample"),
    "deep metrics": text("metrics.jsonl", lambda: b"[" * 10**6 + b"\n", "report"),
    "a deep evaluation": text("evaluation.json", lambda: b'{"evaluation": ' + b"[" * 10**6, "report"),
    "metrics of 100 GiB": long_metrics,
}


def sparse_text(folder, name, command):
    with open(folder / "run" / name, "ab") as stream:
        stream.truncate(100 * GIB)
    return [command, folder / "run"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path, before = tmp_path_factory.mktemp("run") / "run", torch.get_num_threads()
    torch.set_num_threads(1)  # as the children have, which otherwise say so before they refuse
    yield lb.train(tiny().model_copy(update={"recipe": "digits"}), path, quiet=True).path
    torch.set_num_threads(before)


def state(folder):
    """What is in a folder: of large files, which have no blocks, and of what a lock or new metrics are, the names."""
    return {
        path: path.read_bytes() if path.is_file() and path.stat().st_size < 2**24 else None
        for path in folder.rglob("*")
        if path.name not in (".lock", "metrics.jsonl")
    }


def guarded(processes, run, make, folder, log):
    """The status of a command with a harmful file in a folder, what changed there, and how much memory it took."""
    folder.mkdir()
    shutil.copytree(run, folder / "run")
    (folder / "outside.txt").write_text("mine")
    (folder / "outside").mkdir()
    command = make(folder)
    before = state(folder)
    status = finish(started(processes, children.guarded_command, command, log, MOST_ADDRESSES))
    after = state(folder)
    assert status in (0, 2), said(log)
    assert "Traceback" not in said(log)
    changed = {str(path.relative_to(folder)) for path in before | after if before.get(path, 0) != after.get(path, 0)}
    assert (folder / "outside.txt").read_text() == "mine"
    assert not list((folder / "outside").iterdir())
    shutil.rmtree(folder)
    return status, changed, int(log.with_name(f"{log.name}.taken").read_text())


def test_harm_is_refused_before_memory_or_disk_suffer(processes, run, tmp_path):
    most, chosen = 0, list(REFUSED)[:: faults.form(3, 1)]
    for i, name in enumerate(chosen):
        log = tmp_path / f"{i}.log"
        status, changed, taken = guarded(processes, run, REFUSED[name], tmp_path / f"{i}", log)
        assert status == 2, name
        assert said(log).startswith("error: "), name
        own = ("run/evaluation.json", "run/unfinished-evaluation", "run/report")  # results from before the refusal
        assert all(path.startswith(own) for path in changed), (name, changed)
        assert taken < MOST_MEMORY, name
        most = max(most, taken)
        faults.progress("harmful files", i + 1, len(chosen))
    assert {path.suffix for path in tmp_path.iterdir()} == {".err", ".out", ".taken"}
    faults.measured("most memory that a refused file took, MiB", most >> 20)
    faults.ran("harmful files that are refused", len(chosen))


# ----------------------------------------------------------------------------- files that are read as what they are


def pictures_with_paths(place):
    def make(folder):
        names = ["../../harmed.png", str(folder.parent / "harmed.png"), "a/../../../harmed.png", "..\\harmed.png"]
        if place == "a.zip":
            with zipfile.ZipFile(folder / place, "w") as file:
                for name in names:
                    file.writestr(name, png())
        else:
            with tarfile.open(folder / place, "w") as file:
                for name in names:
                    member = tarfile.TarInfo(name)
                    member.size = len(png())
                    file.addfile(member, io.BytesIO(png()))
        return ["encode", folder / "run", folder / place, "--out", folder / "out.npz"]

    return make


def codes_with_paths(folder):
    names = ["../../harmed.png", str(folder.parent / "harmed.png"), "a/../../../harmed.png", "\x1b[2J", ""]
    np.savez(folder / "codes.npz", names=names, bits=np.zeros((5, 1), np.uint8), count=8)
    return ["decode", folder / "run", folder / "codes.npz", "--out", folder / "out"]


def names_for_the_terminal(folder):
    (folder / "pictures").mkdir()
    for i, name in enumerate((b"\x1b[2J.png", b"\xff\xfe.png", b"[bold].png", b"a\nb.png")):
        with open(os.path.join(os.fsencode(folder / "pictures"), name), "wb") as stream:
            stream.write(png() if i % 2 else png()[:50])
    return ["score", folder / "run", folder / "pictures", "--out", folder / "out.csv", *FEW]


HARMLESS = {
    "a tar with paths that lead out of it": (pictures_with_paths("a.tar"), {"out.npz"}),
    "a zip with paths that lead out of it": (pictures_with_paths("a.zip"), {"out.npz"}),
    "codes with paths for names": (codes_with_paths, {"out", *(f"out/00000{i}-" for i in range(5))}),
    "names that command a terminal, or are no text": (names_for_the_terminal, {"out.csv"}),
    "a link for metrics": (link_for_metrics, {"run/metrics.jsonl"}),
    "a link for an evaluation": (
        link_for("evaluation.json", ["evaluate", *FEW, "--raise-images", "0"]),
        {"run/evaluation.json", "run/evaluations.jsonl"},
    ),
    "a PNG with a gigabyte for 64 pixels": (
        picture("a.png", lambda: png()[:33] + chunk(b"IDAT", zlib_zeros(GIB)) + chunk(b"IEND", b"")),
        {"out.npz"},
    ),
}


def test_what_is_no_harm_is_read_without_any(processes, run, tmp_path):
    """Paths in archives and codes are names, links are replaced by files, and terminals see text."""
    chosen = list(HARMLESS)[:: faults.form(2, 1)]
    for i, name in enumerate(chosen):
        make, made = HARMLESS[name]
        log = tmp_path / f"{i}.log"
        status, changed, taken = guarded(processes, run, make, tmp_path / f"{i}", log)
        assert (status, said(log).startswith("error:")) == (0, False), said(log)
        assert all(any(path.startswith(each) for each in made) for path in changed), changed
        assert taken < MOST_MEMORY, name
        printed = said(log) + log.with_name(f"{log.name}.out").read_text()
        assert all(c.isprintable() or c == "\n" for c in printed)
    assert not list(tmp_path.rglob("harmed*"))
    faults.ran("harmful files that are read", len(chosen))
