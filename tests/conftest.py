"""Fixtures: the CPU paths of the samplers, and the number of threads put back."""

import multiprocessing
import os
from importlib import import_module

# Cores are often shared: a thread that spins while it waits for one without a core costs 100 times more.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import faults
import pytest
import torch

from latentbits import nets

gibbs = import_module("latentbits.gibbs")  # the package exports a function of the same name


@pytest.fixture
def with_threads():
    """A function that sets torch's number of threads; the number is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def set_bfloat16_units(monkeypatch):
    """A function that says whether this CPU has bfloat16 matrix units; without them the products run too."""
    monkeypatch.setattr(gibbs, "FEWEST_CHAINS_FOR_TWO_TERMS", 1)
    return lambda present: monkeypatch.setattr(gibbs, "has_bfloat16_units", lambda: present)


@pytest.fixture
def set_fast_bfloat16(monkeypatch):
    """A function that says whether layers are faster in bfloat16; where they are not, they work in float32."""
    return lambda present: monkeypatch.setattr(nets, "has_fast_bfloat16", lambda device: present)


@pytest.fixture(params=["two terms", "fused", "plain"])
def to_path(request, set_bfloat16_units):
    """Put an RBM on each path of the samplers: bfloat16 terms, float32 products, plain float64."""
    set_bfloat16_units(request.param == "two terms")

    def place(rbm):
        rbm = rbm.double() if request.param == "plain" else rbm
        weights = gibbs.Weights(rbm, 1000)
        assert (weights.fused, weights.two_terms) == (request.param != "plain", request.param == "two terms")
        return rbm

    return place


@pytest.fixture(scope="session")
def processes():
    """Where the processes of tests/children.py come from."""
    yield faults.server()
    for process in multiprocessing.active_children():  # of tests that have failed; training takes its time at SIGTERM
        process.kill()


@pytest.fixture(scope="session", autouse=True)
def faults_written_down():
    """In the full form, write at the end what the tests of faults ran."""
    yield
    faults.write_down()
