"""Instructions that one checkpoint costs above what none can do without, counted by callgrind.

    overhead_steps.py BUILD     needs valgrind; overhead_steps must have been built

A minute on a machine with nothing else to do. See overhead_steps.cc for the four ways."""
import glob
import os
import re
import subprocess
import sys
import tempfile

STEPS = 10
WAYS = ("plain", "floor", "one", "parts")


def counted(program):
    """{way: instructions of a step}."""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(["valgrind", "--tool=callgrind", "--instr-atstart=no",
                              f"--callgrind-out-file={folder}/out", program, str(STEPS)],
                             capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"})
        assert run.returncode == 0, run.stderr
        found = {}
        for path in glob.glob(os.path.join(folder, "out*")):
            with open(path) as file:
                text = file.read()
            way = re.search(r"^desc: Trigger: Client Request: (\w+)$", text, re.M)
            if way:
                found[way[1]] = int(re.search(r"^(?:totals|summary): (\d+)", text, re.M)[1]) / STEPS
        return found


def main(build):
    a_step = counted(os.path.join(build, "overhead_steps"))
    print(f"{'a step of an MLP of 8 x 16':28}{'instructions':>14}{'above the floor':>17}")
    for way in WAYS:
        print(f"{way:28}{a_step[way]:14,.0f}" + (f"{a_step[way] - a_step['floor']:17,.0f}" if way in ("one", "parts") else ""))


if __name__ == "__main__":
    main(sys.argv[1])
