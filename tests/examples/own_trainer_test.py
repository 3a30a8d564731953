"""The trainer of the top README's door: the same losses with and without recoup, and what it logs."""
import os
import subprocess

from conftest import BUILD


def train(*arguments, **environment):
    return subprocess.run([os.path.join(BUILD, "own_trainer"), *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, **environment})


def test_losses_are_equal_and_the_log_tells_the_layers(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text("recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_num_layers: 2\n")
    plugin = os.path.join(BUILD, "librecoup.so")
    plain, with_file = train(), train(plugin, config)
    by_hand = train(plugin, RECOUP_RECOMPUTE_MLP_NUM_LAYERS="3")
    assert plain.returncode == with_file.returncode == by_hand.returncode == 0, with_file.stderr
    assert plain.stdout == with_file.stdout == by_hand.stdout and plain.stdout.count("loss") == 3
    for number, (in_file, in_environment) in enumerate([(True, True), (True, True), (False, True), (False, False)], 1):
        assert f"Layer {number}: recompute_mlp={in_file}" in with_file.stderr
        assert f"Layer {number}: recompute_mlp={in_environment}" in by_hand.stderr


def test_what_is_wrong_is_one_sentence(tmp_path):
    failed = train("/no/such.so")
    assert failed.returncode == 1 and "cannot load the plugin /no/such.so" in failed.stderr
    failed = train(os.path.join(BUILD, "librecoup.so"), tmp_path / "none.yaml")
    assert failed.returncode == 1 and "none.yaml" in failed.stderr and not failed.stdout
