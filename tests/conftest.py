"""What the Python tests share."""
import collections
import json
import os
import subprocess
import sys
import tempfile

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.environ.get("RECOUP_BUILD", os.path.join(ROOT, "build"))
needs_trainer = pytest.mark.skipif(not os.path.exists(os.path.join(BUILD, "gpt_trainer")),
                                   reason="a build without LibTorch has no trainer")
# A model that trains in no time, for gpt_trainer.
SMALL = ["--hidden", "16", "--heads", "2", "--ffn", "64", "--context", "16", "--batch", "2", "--device", "cpu"]


SECONDS = collections.Counter()  # of the tests of each folder


def pytest_runtest_logreport(report):
    SECONDS[os.path.dirname(report.nodeid.split("::")[0])] += report.duration


def pytest_terminal_summary(terminalreporter):
    for folder, seconds in SECONDS.most_common():
        terminalreporter.write_line(f"{seconds / 60:6.1f} min  {folder or '.'}")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text of our own to train on."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n} bottles of milk on the wall, take one down. " for n in range(200)))
    return str(path)


def run_trainer(text, *flags, plugin=True, config=None, environment=None, processes=1):
    """Trains a tiny model; the trainer's report with its stderr. Several processes through torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        command = [os.path.join(BUILD, "gpt_trainer"), "--text", text, "--report", report,
                   "--layers", "4", "--steps", "3", *SMALL, *flags]
        if plugin:
            command += ["--plugin", os.path.join(BUILD, "librecoup.so")]
        if config:
            command += ["--config", str(config)]
        if processes > 1:
            command = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--standalone",
                       "--nproc-per-node", str(processes), *command]
        run = subprocess.run(command, capture_output=True, text=True,
                             env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})})
        assert run.returncode == 0, run.stderr
        with open(report) as file:
            return {**json.load(file), "stderr": run.stderr}


@pytest.fixture
def recoup():
    """Runs the program `recoup`: exit status 0, 1 (refused, one sentence) or 2 (wrong usage), never a crash."""
    def run(*arguments, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RECOUP_")}
        done = subprocess.run([os.path.join(BUILD, "recoup"), *map(str, arguments)], capture_output=True,
                              text=True, env={**clean, **environment})
        assert done.returncode in (0, 1, 2), (arguments, done)
        assert done.returncode == 0 or done.stderr, arguments
        return done
    return run
