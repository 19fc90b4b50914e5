"""docs/reliability.md says what the full form of the tests of faults ran and measured."""

import json
import re

import faults
import pytest

pytestmark = pytest.mark.skipif(not faults.RESULT.is_file(), reason="the full form has not been run to its end")


def test_the_document_has_the_counts_of_the_full_form():
    ran = json.loads(faults.RESULT.read_text())["cases"]
    asked = {fault: full for fault, (_, full) in faults.documented().items()}
    assert ran == {fault: ran[fault] if full is None else full for fault, full in asked.items()}
    assert ran["killed while training or writing"] >= 50
    assert sum(count for fault, count in ran.items() if fault.startswith("wrong ")) >= 500
    assert all(count >= 100 for fault, count in ran.items() if fault.startswith("damaged "))


def test_the_document_has_the_figures_of_the_full_form():
    """Of memory, and of how near healthy steps come to an explosion."""
    figures, text = json.loads(faults.RESULT.read_text())["figures"], faults.DOCUMENT.read_text()
    table = re.findall(r"^\| ([^|]+) \| (\d+) \|$", text, re.MULTILINE)
    assert figures["memory, MiB"] == {name: int(number) for name, number in table}
    assert f"reached {figures['largest free-energy gap of healthy steps, in M log 2']} of it" in " ".join(text.split())
