"""The planner: closed forms against the paper and against measured bytes, plans against brute force and
against runs."""
import itertools
import json
import os
import random
import subprocess
import sys

import pytest
import yaml

from conftest import BUILD, ROOT, run_trainer

from memory import Model
from plan import Choice, best, exact, expression, integer_program, to_yaml

KINDS = ["mlp activation", "mlp full"]


def recoup(*arguments, **environment):
    return subprocess.run([sys.executable, os.path.join(ROOT, "hooks", "planner", "main.py"), *map(str, arguments)],
                          capture_output=True, text=True, env={**os.environ, **environment})


class TestPaper:
    """arXiv 2205.05198: equations 1, 2, 4 and 6, and what section 5 says of the two models of table 3."""

    GPT3 = dict(layers=96, hidden=12288, heads=96, sequence=2048)
    MT_NLG = dict(layers=105, hidden=20480, heads=128, sequence=2048)

    @pytest.mark.parametrize("shape", [GPT3, MT_NLG])
    @pytest.mark.parametrize("t", [1, 8])
    def test_a_layers_bytes(self, shape, t):
        sbh = shape["sequence"] * 4 * shape["hidden"]
        scores = 5 * shape["heads"] * shape["sequence"] / shape["hidden"]
        one = Model(**shape, microbatch=4, tensor_parallel=t)
        assert one.layer_bytes() == pytest.approx(sbh * (10 + 24 / t + scores / t))
        both = Model(**shape, microbatch=4, tensor_parallel=t, sequence_parallel=True)
        assert both.layer_bytes() == pytest.approx(sbh / t * (34 + scores))
        kept = both.layer_bytes() - both.layer_bytes(["core_attn"])
        assert kept == pytest.approx(sbh / t * 34)
        assert both.input_bytes() == pytest.approx(2 * sbh / t)
        assert both.layer_bytes(["mlp.act", "mlp.fc1"]) == pytest.approx(sbh / t * 16)

    @pytest.mark.parametrize("shape, term, percent", [(GPT3, 80, 70), (MT_NLG, 64, 65)])
    def test_what_core_attention_is_of_a_layer(self, shape, term, percent):
        m = Model(**shape)
        assert 5 * m.heads * m.sequence / m.hidden == term
        assert round(100 * m.layer_bytes(["core_attn"]) / m.layer_bytes()) == percent


class TestMeasured:
    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    @pytest.mark.parametrize("ranks", [1, 2])
    def test_closed_form_bytes_are_within_a_percent_at_every_n(self, text, dropout, ranks):
        layers = 4
        m = Model(layers=layers, hidden=32, heads=4, ffn=96, sequence=16, microbatch=2, vocabulary=256,
                  dropout=dropout, element_size=4, implementation="libtorch", tensor_parallel=ranks)
        for n in range(layers + 1) if ranks == 1 else (0, 3):
            report = run_trainer(text, "--hidden", "32", "--heads", "4", "--ffn", "96", "--dropout", str(dropout),
                                 "--tensor-parallel", str(ranks), "--steps", "1", processes=ranks,
                                 environment={"RECOUP_RECOMPUTE_MLP_NUM_LAYERS": str(n)})
            planned = (layers * m.layer_bytes() + m.outside_bytes()
                       - n * m.layer_bytes(["mlp.act", "mlp.fc1"]))
            assert planned == pytest.approx(report["saved_bytes"], rel=0.01), n

    def test_a_profile_counts_what_a_checkpoint_frees_to_the_byte(self, text, tmp_path):
        path = tmp_path / "profile.json"
        plain = run_trainer(text, plugin=False)
        profiled = run_trainer(text, environment={"RECOUP_PROFILE": str(path)})
        assert profiled["losses"] == plain["losses"]
        assert profiled["saved_bytes"] == plain["saved_bytes"]
        regions = {(r["layer"], r["part"]): r for r in json.loads(path.read_text())["regions"]}
        assert set(regions) == {(n, p) for n in range(1, 5) for p in ("core_attn", "mlp.fc1", "mlp.rest")}
        rest, core = regions[1, "mlp.rest"], regions[1, "core_attn"]
        assert all(r["recompute_ms"] <= r["forward_ms"] for r in regions.values())

        def freed(yaml_text):
            config = tmp_path / "c.yaml"
            config.write_text("recompute_granularity: selective\n" + yaml_text)
            return plain["saved_bytes"] - run_trainer(text, config=config)["saved_bytes"]

        assert freed("recompute_modules: [mlp]\n") == 4 * (rest["saved_bytes"] + rest["input_bytes"])
        assert freed("recompute_modules: [mlp]\nmlp_recompute_level: activation\n") == 4 * rest["saved_bytes"]
        assert freed("recompute_modules: [core_attn]\n") == 4 * (core["saved_bytes"] - core["extra_bytes"])
        assert freed("recompute_modules: [mlp]\nmlp_activation_layers: 2-3\n") == (
            4 * rest["saved_bytes"] + 2 * rest["input_bytes"])


class TestPlans:
    def brute_force(self, choices, needed):
        found = None
        options = {}
        for c in choices:
            options.setdefault((c.layer, c.kind.split()[0]), [()]).append((c,))
        for parts in itertools.product(*options.values()):
            chosen = [c for part in parts for c in part]
            if sum(c.saves for c in chosen) >= needed:
                costs = sum(c.costs for c in chosen)
                found = costs if found is None else min(found, costs)
        return found

    @pytest.mark.parametrize("seed", range(12))
    def test_layers_that_differ(self, seed):
        rng = random.Random(seed)
        choices = []
        for layer in range(1, 6):
            act, fc1 = rng.randint(1, 50), rng.randint(1, 50)
            choices += [Choice(layer, "mlp activation", act, rng.random()),
                        Choice(layer, "mlp full", act + fc1, 1 + rng.random()),
                        Choice(layer, "core_attn", rng.randint(1, 80), rng.random() * 2)]
        needed = rng.randint(1, 400)
        expected, found = self.brute_force(choices, needed), best(choices, needed)
        assert (found is None) == (expected is None)
        if found:
            assert found.costs == pytest.approx(expected) and found.saves >= needed

    @pytest.mark.parametrize("needed", [0, 1, 8, 9, 25, 61, 100, 132, 160, 240, 241])
    def test_layers_that_are_alike(self, needed):
        choices = [c for layer in range(1, 5) for c in (
            Choice(layer, "mlp activation", 8, 1), Choice(layer, "mlp full", 33, 7),
            Choice(layer, "core_attn", 27, 5))]
        found = exact(choices, needed)
        expected = self.brute_force(choices, needed)
        assert (found is None) == (expected is None)
        if found:
            assert found.costs == pytest.approx(expected)
            assert integer_program(choices, needed).costs == pytest.approx(expected)

    def test_expressions(self):
        assert expression([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"
        assert expression([]) == ""

    def test_yaml_says_what_was_chosen(self):
        chosen = [Choice(n, "mlp full", 1, 1) for n in (1, 2)] + [Choice(3, "mlp activation", 1, 1),
                                                                   Choice(5, "core_attn", 1, 1)]
        assert yaml.safe_load(to_yaml(chosen, "why")) == {
            "recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"],
            "recompute_core_attn_layers": 5, "recompute_mlp_num_layers": 3, "mlp_activation_layers": 3}
        assert yaml.safe_load(to_yaml([], "nothing to do")) is None


SHAPE = dict(layers=4, hidden=16, heads=2, ffn=64, sequence=16, microbatch=2, vocabulary=256, dropout=0.1,
             element_size=4, implementation="libtorch")


class TestCommand:
    @pytest.fixture(scope="class")
    def extremes(self, text):
        return [run_trainer(text, environment={"RECOUP_RECOMPUTE_MLP_NUM_LAYERS": n})["peak_bytes"]
                for n in ("0", "4")]

    def test_a_plan_for_half_way_runs_within_it(self, text, tmp_path, extremes):
        budget = sum(extremes) // 2
        model, out = tmp_path / "model.yaml", tmp_path / "plan.yaml"
        model.write_text(yaml.safe_dump(SHAPE))
        done = recoup("plan", "--model", model, "--budget", budget, "-o", out)
        assert done.returncode == 0, done.stderr
        assert "recompute_mlp" in out.read_text()
        assert run_trainer(text, config=out)["peak_bytes"] <= budget < extremes[0]

    def test_a_plan_from_a_profile_runs_within_it(self, text, tmp_path, extremes):
        budget = sum(extremes) // 2
        profile, report, out = (tmp_path / f for f in ("profile.json", "report.json", "plan.yaml"))
        measured = run_trainer(text, environment={"RECOUP_PROFILE": str(profile)})
        report.write_text(json.dumps({"peak_bytes": measured["peak_bytes"]}))
        done = recoup("plan", "--profile", profile, "--report", report, "--budget", budget, "-o", out)
        assert done.returncode == 0, done.stderr
        assert run_trainer(text, config=out)["peak_bytes"] <= budget

    def test_early_pipeline_stages_keep_more_microbatches(self, tmp_path):
        model = tmp_path / "model.yaml"
        model.write_text(yaml.safe_dump({**TestPaper.GPT3, "pipeline_parallel": 8, "microbatches": 64,
                                         "tensor_parallel": 8, "sequence_parallel": True}))
        whole = Model(**yaml.safe_load(model.read_text()))
        budget = whole.layer_bytes() * 12 * 6.95
        done = recoup("plan", "--model", model, "--budget", int(budget), "--kinds", *KINDS)
        assert done.returncode == 0, done.stderr
        layers = yaml.safe_load(done.stdout)
        chosen = layers.get("recompute_mlp_layers") or f"1-{layers['recompute_mlp_num_layers']}"
        numbers = [n for part in str(chosen).split(",") for n in range(int(part.split("-")[0]),
                                                                       int(part.split("-")[-1]) + 1)]
        stages = [sum(1 for n in numbers if (n - 1) // 12 == stage) for stage in range(8)]
        assert stages[0] > 0 and stages[2:] == [0] * 6 and stages == sorted(stages, reverse=True)
        impossible = recoup("plan", "--model", model, "--budget", "1GB")
        assert impossible.returncode != 0 and "stage 0: no plan fits" in impossible.stderr

    @pytest.mark.parametrize("arguments, message", [
        (("--budget", "1GB"), "give --model, or --profile with --report"),
        (("--budget", "lots", "--model", "x"), "allowed are bytes such as 12GiB"),
        (("--budget", "1GB", "--model", "/no/such.yaml"), "/no/such.yaml"),
    ])
    def test_bad_arguments(self, arguments, message):
        done = recoup("plan", *arguments)
        assert done.returncode != 0 and message in done.stderr

    @pytest.mark.parametrize("key, value, message", [
        ("hiden", 1, "hiden: unknown key; allowed: layers, hidden"),
        ("layers", 0, "layers: must be >= 1, not 0"),
        ("layers", "many", "layers: must be a number, not 'many'"),
        ("implementation", "jax", "implementation: must be megatron or libtorch, not 'jax'"),
        ("pipeline_parallel", 3, "pipeline_parallel: 3 does not divide the 4 layers"),
    ])
    def test_bad_models(self, tmp_path, key, value, message):
        model = tmp_path / "model.yaml"
        model.write_text(yaml.safe_dump({**SHAPE, key: value}))
        done = recoup("plan", "--model", model, "--budget", "1GB")
        assert done.returncode != 0 and f"{model}: {message}" in done.stderr

    def test_report(self, text, tmp_path):
        model = tmp_path / "model.yaml"
        model.write_text(yaml.safe_dump(SHAPE))
        out = tmp_path / "report"
        done = recoup("report", "--trainer", os.path.join(BUILD, "gpt_trainer"), "--plugin",
                      os.path.join(BUILD, "librecoup.so"), "--text", text, "--layers", 4, "--model", model,
                      "-o", out, "--hidden", 16, "--heads", 2, "--ffn", 64, "--context", 16, "--batch", 2,
                      "--steps", 2, "--device", "cpu", OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        rows = json.loads((out / "report.json").read_text())
        assert [r["n"] for r in rows] == [0, 1, 2, 3, 4]
        for r in rows:
            assert r["planned_bytes"] == pytest.approx(r["saved_bytes"], rel=0.01)
            assert f"{r['saved_bytes']:,}" in done.stdout and f"{r['saved_bytes']:,}" in (out / "report.html").read_text()
        assert "http" not in (out / "report.html").read_text().replace("http://www.w3.org", "").split("base64,")[0]
        assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / "report.svg").read_text()
        events = json.loads((out / "trace.json").read_text())["traceEvents"]
        recomputes = [e for e in events if e["cat"] == "recompute"]
        assert len(recomputes) == 4 * 2 and {e["name"] for e in recomputes} == {
            f"recompute layer {n} mlp" for n in range(1, 5)}
        assert all(e["ph"] == "X" and e["dur"] > 0 for e in events)
