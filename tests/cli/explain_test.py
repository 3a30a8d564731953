"""recoup explain: timelines, and the files that RECOUP_TRACE and RECOUP_PROFILE write."""
import json
import os
import re

import pytest

from conftest import ROOT, needs_trainer, run_trainer

DATA = os.path.join(ROOT, "tests", "budget", "data")


class TestExplain:
    def test_a_timeline(self, recoup, tmp_path):
        out = tmp_path / "plan.yaml"
        done = recoup("explain", os.path.join(DATA, "alike.timeline"), "--budget", 6378837, "-o", out)
        assert done.returncode == 0, done.stderr
        assert "6,923,264 bytes" in done.stdout and "held by" in done.stdout
        assert "mlp (level activation)" in done.stdout
        assert recoup("check", out, "--layers", 12, "--strict").returncode == 0

    def test_microbatches_may_differ(self, recoup):
        done = recoup("explain", os.path.join(DATA, "pipeline.timeline"), "--budget", 3342336)
        assert done.returncode == 0 and re.search(r"^5 +mlp", done.stdout, re.M)

    def test_below_the_floor(self, recoup):
        done = recoup("explain", os.path.join(DATA, "alike.timeline"), "--budget", 1000)
        assert done.returncode == 1 and "the least is 5,289,984, held by" in done.stderr

    def test_no_timeline(self, recoup, tmp_path):
        path = tmp_path / "x"
        path.write_text("layers: 4")
        done = recoup("explain", path)
        assert done.returncode == 1 and "x:1: is no timeline" in done.stderr


def span(name, category, ms):
    return {"name": name, "cat": category, "ph": "X", "ts": 1.0, "dur": ms * 1e3, "pid": 0, "tid": 1}


class TestTrace:
    SPANS = [span("layer 1 mlp.rest", "forward", 4), span("layer 2 mlp.rest", "forward", 6),
             span("recompute layer 1 mlp.rest", "recompute", 3), span("layer 1 core_attn", "forward", 10)]

    def rows(self, done):
        return [re.split(r"  +", line) for line in done.stdout.splitlines()[3:-2]]

    @pytest.fixture
    def explain(self, recoup, tmp_path):
        def run(content, *arguments):
            path = tmp_path / "measured.json"
            path.write_text(json.dumps(content))
            return recoup("explain", path, *arguments)
        return run

    def test_what_recompute_takes(self, explain):
        done = explain({"traceEvents": self.SPANS, "otherData": {"spans_left_out": 7}})
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("forward 20.000 ms, recompute 3.000 ms (15.0 % of it) in 4 spans")
        assert self.rows(done) == [["1", "core_attn", "1", "0", "10.000 ms", "-", "0.0 %"],
                                   ["2", "mlp.rest", "1", "0", "6.000 ms", "-", "0.0 %"],
                                   ["1", "mlp.rest", "1", "1", "4.000 ms", "3.000 ms", "100.0 %"]]
        assert "7 more spans did not fit" in done.stderr

    def test_a_budget_needs_a_timeline(self, explain):
        done = explain({"traceEvents": self.SPANS}, "--budget", "1GiB")
        assert done.returncode == 1 and "need a timeline" in done.stderr

    def test_a_profile_says_what_to_give_up_first(self, explain):
        def part(layer, name, saved, ms, extra=0):
            return dict(layer=layer, part=name, input_bytes=1, extra_bytes=extra, saved_bytes=saved, forward_ms=ms,
                        recompute_ms=ms)
        done = explain({"recoup_profile": 1, "regions": [part(1, "core_attn", 3000, 3, 1000), part(1, "mlp.rest", 8192, 1),
                                                         part(2, "mlp.rest", 8192, 2), part(3, "mlp.rest", 8192, 9)]})
        assert done.returncode == 0, done.stderr
        lines = [re.split(r"  +", line) for line in done.stdout.splitlines()[2:4]]
        assert lines == [["1-3", "mlp.rest", "8.0 KiB", "8,192", "2.000 ms", "24.0 KiB", "6.000 ms"],
                         ["1", "core_attn", "2.0 KiB", "2,000", "3.000 ms", "2.0 KiB", "3.000 ms"]]

    def test_another_version(self, explain):
        done = explain({"recoup_profile": 2, "regions": []})
        assert done.returncode == 1 and "reads version 1" in done.stderr

    @needs_trainer
    def test_of_a_run(self, recoup, text, tmp_path):
        trace, profile = tmp_path / "trace.json", tmp_path / "profile.json"
        run_trainer(text, environment={"RECOUP_TRACE": str(trace), "RECOUP_RECOMPUTE_MLP_NUM_LAYERS": "3"})
        run_trainer(text, environment={"RECOUP_PROFILE": str(profile)})
        done = recoup("explain", trace)
        assert done.returncode == 0, done.stderr
        assert any(row[0] == "1-3" and row[2] == row[3] == "3" for row in self.rows(done)), done.stdout
        done = recoup("explain", profile)
        assert done.returncode == 0 and re.search(r"^1-4 +mlp.rest ", done.stdout, re.M), done.stdout + done.stderr
