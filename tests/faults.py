"""What the tests of faults share: short and full form, counts, processes of their own, folders before and after.

``make test-faults`` runs the full form (FAULTS=full), ``make test`` the short one. A test says how many cases it ran;
the short form holds that against the table of docs/reliability.md, the full form writes results/faults.json, which a
test holds against the same table.
"""

import hashlib
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path

from latentbits.files import write_json
from latentbits.records import provenance

FULL = os.environ.get("FAULTS") == "full"
HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "reliability.md"
RESULT = HERE.parent / "results" / "faults.json"
WARM_UP = "LATENTBITS_TESTS_WARM_UP"
TALLY = {}
FIGURES = {}
BEGAN = time.monotonic()


def form(short, full):
    """One of two values, by the form that runs."""
    return full if FULL else short


def documented():
    """Fault -> cases of the short and of the full form, from the document's table."""
    rows = re.findall(r"^\| (.+?) \|.*\| ([\d,]+) \| ([\d,]+|each) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {
        fault: (int(short.replace(",", "")), None if full == "each" else int(full.replace(",", "")))
        for fault, short, full in rows
    }


def ran(fault, cases):
    """Say how many cases of a fault a test has run."""
    TALLY[fault] = cases
    if not FULL:
        assert documented()[fault][0] == cases


def measured(name, value):
    """Write down a figure of the full form beside the counts."""
    FIGURES[name] = value


def write_down():
    """Write what the full form ran to its file."""
    if FULL and TALLY:
        origin = provenance() | {"command": "make test-faults", "seconds": round(time.monotonic() - BEGAN)}
        write_json(RESULT, {"cases": dict(sorted(TALLY.items())), "figures": FIGURES, **origin})


def progress(fault, done, cases):
    """Show how far a test of the full form has come."""
    if FULL:
        print(f"{fault}: {done} of {cases}", file=sys.__stderr__, flush=True)


def snapshot(folder):
    """Every path below a folder with what is there: a file's digest, a link's target, or that it is a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        else:
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def server():
    """Processes forked from one that has imported everything and compiled all loops, on one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["children"])
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONPATH", WARM_UP)}
    os.environ[WARM_UP] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"  # a process that ran on several threads could not be forked
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), before["PYTHONPATH"] or ""])
    try:
        first = context.Process(target=os.getpid)
        first.start()
        first.join()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    return context
