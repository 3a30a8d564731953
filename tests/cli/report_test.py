"""recoup report: a sweep's measured rows beside the closed forms."""
import json

import pytest

# Measured by examples/gpt/sweep.py with the model below on a CPU.
ROWS = [("plain", 2976264, 3237384), ("N = 0", 2976264, 3237384), ("N = 2", 2451976, 2713096), ("N = 4", 1927688, 2286856)]
MODEL = ("layers: 4\nhidden: 64\nheads: 4\nffn: 256\nsequence: 64\nmicrobatch: 2\nvocabulary: 256\ndropout: 0\n"
         "element_size: 4\nimplementation: libtorch\noptimizer: none\n")


@pytest.fixture
def report(recoup, tmp_path):
    def run(content, *arguments):
        path = tmp_path / "sweep.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        (tmp_path / "m.yaml").write_text(MODEL)
        return recoup("report", path, *(a.format(tmp_path) for a in arguments))
    return run


def rows(**change):
    return [{"recompute": name, "equal": True, "saved by forward": saved, "peak": peak, "step time": 1.5, **change}
            for name, saved, peak in ROWS]


def test_predictions_are_within_a_percent_of_what_was_measured(report):
    done = report(rows(), "--model", "{}/m.yaml")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and lines[3].startswith("N = 2      yes       x1.500         2,451,976  2,453,504")
    offs = [float(word) for line in lines[1:] for word in line.replace(" %", "").split() if word[0] in "+-"]
    assert len(offs) == 8 and all(abs(off) < 0.1 for off in offs)


def test_without_a_model_and_other_series(report):
    assert report(rows()).stdout.splitlines()[4].split() == ["N", "=", "4", "yes", "x1.500", "1,927,688", "2,286,856"]
    done = report([{**rows()[0], "recompute": "mine"}], "--model", "{}/m.yaml")
    assert done.returncode == 0 and done.stdout.splitlines()[1].split()[-2:] == ["-", "-"]


@pytest.mark.parametrize("content, message", [
    ("{", "is no sweep.json"), ("[]", "is no sweep.json"), ("[" * 9999, "is no sweep.json"), ([7], "[0]: recompute: is missing"),
    (rows(peak="abc"), "[0]: peak: must be a number"), (rows(peak=None), "[0]: peak: must be a number"),
    (rows(peak=-1), "[0]: peak: must be a number"), (rows(equal=0), "[0]: equal: must be true or false"),
    (rows(equal=False), "losses differ from those without recompute")], ids=range(9))
def test_what_is_refused(report, content, message):
    done = report(content)
    assert done.returncode == 1 and message in done.stderr and "sweep.json: " in done.stderr


def test_flags_without_a_model(report):
    done = report(rows(), "--sequence", "64")
    assert done.returncode == 1 and "--model" in done.stderr
