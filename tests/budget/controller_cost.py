"""Instructions that a kept budget adds to a step that is not measured, counted by callgrind.

    python tests/budget/controller_cost.py     needs valgrind

The smallest example trains without a budget and with one that recomputes the same (nothing), in runs
of two lengths each; the differences are of steps alone. What a budget adds is a decision in each
layer's forward, the first part of each microbatch through the engine, and a step's end.
"""
import os
import re
import subprocess
import sys
import tempfile

import closed_loop
from closed_loop import BUILD

FLAGS = ["--layers", "4", "--hidden", "16", "--heads", "2", "--ffn", "64", "--context", "16", "--batch", "2",
         "--device", "cpu"]
STEPS = (10, 40)


def instructions(text, steps, environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RECOUP_")}
    run = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
                          os.path.join(BUILD, "gpt_trainer"), "--text", text, "--steps", str(steps), *FLAGS,
                          "--plugin", os.path.join(BUILD, "librecoup.so")],
                         capture_output=True, text=True, env={**clean, "OMP_NUM_THREADS": "1", **environment})
    found = re.search(r"Collected : (\d+)", run.stderr)
    assert run.returncode == 0 and found, run.stderr
    return int(found[1])


def main():
    with tempfile.TemporaryDirectory() as folder:
        text = closed_loop.write_text(folder)
        config = os.path.join(folder, "config.yaml")
        with open(config, "w") as file:
            file.write("recompute_granularity: selective\nrecompute_modules: [mlp]\n")
        cases = {"without a budget": {"RECOUP_RECOMPUTE_MLP_NUM_LAYERS": "0"},
                 "with one": {"RECOUP_CONFIG": config, "RECOUP_MEMORY_BUDGET": "1TiB"}}
        a_step = {name: (instructions(text, STEPS[1], env) - instructions(text, STEPS[0], env)) / (STEPS[1] - STEPS[0])
                  for name, env in cases.items()}
    for name, count in a_step.items():
        print(f"{name:20}{count:14,.0f} instructions a step")
    without, with_one = a_step.values()
    share = (with_one - without) / without
    print(f"{'added':20}{with_one - without:14,.0f} = {100 * share:.3f} %")
    return 0 if share <= 0.005 else 1


if __name__ == "__main__":
    sys.exit(main())
