"""bench/memory.py: what is computed is what a process takes, and what the page says."""
import os
import re

import pytest

from conftest import ROOT, script


@pytest.mark.parametrize("ranks", [1, 4])
def test_what_is_computed_is_what_a_process_takes(ranks):
    printed = script("bench/memory.py", "--measure", ranks=ranks).stdout
    found = re.findall(r"zero (\d) ranks (\d).*held (\S+) (\S+) peak (\S+) (\S+)", printed)
    assert [(zero, r) for zero, r, *_ in found] == [(str(zero), str(ranks)) for zero in range(4)]
    for _, _, held, held_measured, peak, peak_measured in found:
        assert float(held) == pytest.approx(float(held_measured), rel=0.1)
        assert float(peak) == pytest.approx(float(peak_measured), rel=0.1)


def test_the_page_has_the_table_that_is_printed():
    with open(os.path.join(ROOT, "bench", "README.md"), encoding="utf-8") as file:
        assert script("bench/memory.py", "--table").stdout.strip() in file.read()
