"""Instructions that one checkpoint costs above what none can do without, counted by callgrind.

    overhead_steps.py BUILD     needs valgrind

The difference of two runs of different length, for each step; see overhead_steps.cc for the four."""
import re
import subprocess
import sys

STEPS = (10, 60)


def instructions(program, mode, steps):
    run = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, mode, str(steps)],
                         capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"})
    found = re.search(r"Collected : (\d+)", run.stderr)
    assert run.returncode == 0 and found, run.stderr
    return int(found.group(1))


def main(build):
    program = f"{build}/overhead_steps"
    a_step = {mode: (instructions(program, mode, STEPS[1]) - instructions(program, mode, STEPS[0])) /
              (STEPS[1] - STEPS[0]) for mode in ("plain", "floor", "one", "parts")}
    print(f"{'a step of an MLP of 8 x 16':28}{'instructions':>14}{'above the floor':>17}")
    for mode, count in a_step.items():
        print(f"{mode:28}{count:14,.0f}" + (f"{count - a_step['floor']:17,.0f}" if mode in ("one", "parts") else ""))


if __name__ == "__main__":
    main(sys.argv[1])
