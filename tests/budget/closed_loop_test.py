"""Six of the closed loop's runs, of small models; tests/all.sh budget runs all."""
import pytest

import closed_loop


@pytest.mark.parametrize("name", closed_loop.SMALL)
def test_the_budget_is_kept_at_the_predicted_peak(name, text):
    table, failures = closed_loop.run({name: closed_loop.SMALL[name]}, text)
    assert not failures, "\n".join(failures)
    case, shares = closed_loop.SMALL[name]
    assert len(table) == 1 + len(shares) * case.processes
