"""RECOUP_PROFILE: what the plugin measures of each part is what a checkpoint frees."""
import json

from conftest import run_trainer


def test_a_profile_counts_what_a_checkpoint_frees_to_the_byte(text, tmp_path):
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
