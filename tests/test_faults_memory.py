"""The most memory that training and evaluation take at full size, in processes of their own."""

import children
import faults
from test_faults_kill import finish, said, started

MOST_MIB = 1024


def test_full_size_stays_within_its_memory(processes, tmp_path):
    """mnist-mlp by each stage, and evaluations with many samples or many chains: below a GiB, PyTorch and all."""
    cases = {
        "stage 3, K = 50": (children.train_at_full_size, tmp_path / "run", "joint", faults.form(0.5, 20)),
        f"evaluation of {(few := faults.form(2, 10))} images, K = 50,000, AIS with 5,000 chains, RAISE": (
            children.evaluate_at_full_size,
            few,
            50_000,
            5000,
        ),
    }
    if faults.FULL:
        cases |= {
            "stage 1 of `mnist-mlp`": (children.train_at_full_size, tmp_path / "one", "autoencoder", 20),
            "stage 2": (children.train_at_full_size, tmp_path / "two", "rbm", 20),
            "validation after an epoch": (children.validate_at_full_size,),
            "evaluation of 2,000 images, K = 50, AIS with 5,000 chains, RAISE": (
                children.evaluate_at_full_size,
                2000,
                50,
                5000,
            ),
        }
    taken = {}
    for i, (name, work) in enumerate(cases.items()):
        log = tmp_path / f"{i}.log"
        assert finish(started(processes, children.peak_memory, log, *work), 600) == 0, said(log)
        most, first = map(int, log.with_name(f"{log.name}.memory").read_text().split())
        assert first < most < MOST_MIB, (name, most)
        taken[name] = most
        faults.progress("memory", i + 1, len(cases))
    faults.measured("memory, MiB", taken)
    faults.ran("memory at full size", len(cases))
