"""The set-up: what it installs where, and that each refusal is one sentence that says what to do.

A copy of the scripts in a path with a space runs with a PATH that has only what a test names, some of
it shims: nothing is downloaded, nothing is compiled.
"""
import os
import pathlib
import shutil
import stat
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = ("bash sh env dirname readlink grep sed cut sort tr paste cat cksum cmp cp mkdir rm tee awk find xargs "
        "chmod flock df getconf uname id sleep true head").split()

# A Python that knows only what set-up asks; pip writes its arguments down.
PYTHON = """#!/bin/bash
case "$*" in
  *"%d.%d"*) echo "${FAKE_VERSION:-3.11}" ;;
  *"import venv"*) exit 0 ;;
  *"-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
  *"-m pip"*) sleep "${FAKE_PIP_SECONDS:-0}"; echo "$@" >>"$RECOUP_DEPS/pip-calls"
    [ -z "${FAKE_PIP:-}" ] || { echo "$FAKE_PIP" >&2; exit 1; } ;;
  *platlib*) echo "$RECOUP_DEPS/venv/site/torch" ;;
  *'"include"'*) echo /usr/include/python3 ;;
  *--version*) echo "Python ${FAKE_VERSION:-3.11}.0" ;;
  *sweep.py*) echo "the sweep ran" ;;
  *"-m pytest"*) echo "pytest ran" ;;
  *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""
# CMake and ninja that write down what they were asked for.
CMAKE = """#!/bin/bash
while [ $# -gt 0 ]; do [ "$1" != -B ] || build=$2; echo "$1" >>"$RECOUP_BUILD/cmake-calls"; shift; done
: >"$build/build.ninja"; echo "-- recoup: LibTorch of a test"
"""
NINJA = """#!/bin/bash
echo "$@" >>"$RECOUP_BUILD/ninja-calls"
printf '#!/bin/bash\\necho "the trainer ran: $*"\\n' >"$RECOUP_BUILD/gpt_trainer"; chmod +x "$RECOUP_BUILD/gpt_trainer"
"""
# A compiler whose headers are all there but those in $LACKS.
GXX = """#!/bin/bash
while read -r line; do
  case $line in "absent "*) case " $LACKS " in *" ${line#absent } "*) echo "$line" ;; esac ;; esac
done
exit 0
"""


class Machine:
    """A machine with the tools that a test gives it."""

    def __init__(self, folder):
        self.folder = folder / "a b"
        self.clone, self.bin = self.folder / "re coup", self.folder / "bin"
        self.deps, self.build = self.folder / "de ps", self.folder / "bu ild"
        for part in ("examples", "configs"):
            shutil.copytree(ROOT / part, self.clone / part)
        (self.clone / "tests").mkdir()
        shutil.copy(ROOT / "tests" / "run.sh", self.clone / "tests")
        for part in ("hooks", "plugin"):
            (self.clone / part).mkdir()
        self.bin.mkdir()
        for tool in BASE:
            (self.bin / tool).symlink_to(shutil.which(tool))
        for tool, text in (("python3", PYTHON), ("cmake", CMAKE), ("ninja", NINJA), ("g++", GXX),
                           ("bible", "#!/bin/bash\necho In the beginning\n")):
            self.shim(tool, text)

    def shim(self, tool, text):
        path = self.bin / tool
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def environment(self, **variables):
        return {"PATH": str(self.bin), "RECOUP_DEPS": str(self.deps), "RECOUP_BUILD": str(self.build),
                "HOME": str(self.folder), **variables}

    def run(self, *arguments, script="examples/run.sh", environment=None, **variables):
        environment = self.environment(**variables) if environment is None else environment
        return subprocess.run([self.clone / script, *arguments], env=environment, capture_output=True,
                              text=True)

    def refuses(self, *words, **variables):
        """One sentence on stderr with these words, and nothing that looks installed."""
        run = self.run(**variables)
        assert run.returncode == 1, run.stdout + run.stderr
        sentence = run.stderr.strip().splitlines()[-1]
        assert sentence.startswith("recoup: "), run.stderr
        for word in words:
            assert word in sentence
        for mark in ("installed.txt", "lean.txt"):
            assert not (self.deps / mark).exists()
        assert not (self.build / "build.ninja").exists()
        return run

    def pip_calls(self):
        calls = self.deps / "pip-calls"
        return calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_without_a_gpu_only_the_cpu_part_is_installed_and_only_the_trainer_built(machine):
    run = machine.run("--steps", "5")
    assert run.returncode == 0, run.stderr
    (call,) = machine.pip_calls()
    assert "--no-deps" in call and call.endswith("requirements-lean.txt")
    assert "0.6 GB to download" in run.stdout
    assert "LibTorch of a test" in run.stdout  # the configuration's own lines are shown
    assert (machine.build / "ninja-calls").read_text().split()[-2:] == ["gpt_trainer", "librecoup.so"]
    assert "the trainer ran" in run.stdout and "--steps 5" in run.stdout
    assert "the sweep ran" in run.stdout

    again = machine.run()  # all there: nothing is installed or configured again
    assert again.returncode == 0, again.stderr
    assert len(machine.pip_calls()) == 1
    assert (machine.build / "cmake-calls").read_text().splitlines().count("-S") == 1

    shutil.rmtree(machine.build)  # a fresh clone of the same user
    assert machine.run().returncode == 0
    assert len(machine.pip_calls()) == 1


@pytest.mark.parametrize("how", ["RECOUP_FULL", "a GPU"])
def test_the_whole_libtorch_where_it_is_wanted(machine, how):
    if how == "a GPU":
        machine.shim("nvidia-smi", '#!/bin/bash\necho "GPU 0: one"\n')
    run = machine.run(**({"RECOUP_FULL": "1"} if how == "RECOUP_FULL" else {}))
    assert run.returncode == 0, run.stderr
    assert machine.pip_calls()[0].endswith("requirements.txt")
    assert "4.7 GB" in run.stdout


def test_the_tests_take_the_whole_libtorch_and_build_everything(machine):
    machine.shim("ctest", "#!/bin/bash\necho ctest ran\n")
    run = machine.run(script="tests/run.sh", LACKS="gtest/gtest.h")
    assert run.returncode == 1 and "missing: gtest/gtest.h" in run.stderr  # the trainer needs none
    machine.shim("python3", PYTHON.replace("/usr/include/python3", str(machine.folder)))
    (machine.folder / "Python.h").touch()
    run = machine.run(script="tests/run.sh")
    assert run.returncode == 0, run.stderr
    assert machine.pip_calls()[0].endswith("requirements.txt")
    for call in machine.pip_calls()[1:]:  # where this machine has no toolkit
        assert call.endswith("requirements-headers.txt")
    assert "-DRECOUP_TESTS=ON" in (machine.build / "cmake-calls").read_text()
    assert (machine.build / "ninja-calls").read_text().strip().endswith("ild")  # no target: all
    assert "ctest ran" in run.stdout and "pytest ran" in run.stdout
    assert run.stdout.split("== Minutes\n")[1].splitlines()[0].strip() == "0.0 min  set-up and build"


def test_a_build_for_the_tests_stays_one(machine):
    """The trainer's set-up afterwards changes neither LibTorch nor what is configured."""
    test_the_tests_take_the_whole_libtorch_and_build_everything(machine)
    calls = (machine.build / "cmake-calls").read_text()
    assert machine.run().returncode == 0
    assert (machine.build / "cmake-calls").read_text() == calls


def test_a_gpu_tool_without_a_gpu_is_no_gpu(machine):
    machine.shim("nvidia-smi", '#!/bin/bash\necho "No devices were found"\nexit 6\n')
    assert machine.run().returncode == 0
    assert machine.pip_calls()[0].endswith("requirements-lean.txt")


def test_an_installed_libtorch_is_used_as_it_is(machine):
    """The caches of earlier set-ups, and folders of somebody else: no pip, no writing."""
    machine.shim("python3", "#!/bin/bash\nexit 1\n")
    (machine.deps / "venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "requirements.txt", machine.deps / "installed.txt")
    shutil.copy(ROOT / "examples" / "requirements-headers.txt", machine.deps / "headers.txt")
    python = machine.deps / "venv" / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    before = sorted(p.name for p in machine.deps.rglob("*"))
    run = machine.run()
    assert run.returncode == 0, run.stderr
    assert sorted(p.name for p in machine.deps.rglob("*")) == before


def test_two_at_once_install_once(machine):
    environment = machine.environment(FAKE_PIP_SECONDS="1")
    both = [subprocess.Popen([machine.clone / "examples" / "run.sh"], env=environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    for one in both:
        text, _ = one.communicate()
        assert one.returncode == 0, text
    assert len(machine.pip_calls()) == 1


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_installs_nothing(machine, flag):
    run = machine.run(flag)
    assert run.returncode == 0, run.stderr
    assert "RECOUP_FULL" in run.stdout and "gpt_trainer" in run.stdout
    assert not machine.deps.exists() and not machine.build.exists()


def test_without_the_bible_the_sources_are_read(machine):
    (machine.bin / "bible").unlink()
    (machine.clone / "hooks" / "a.cc").write_text("text to learn")
    run = machine.run()
    assert run.returncode == 0, run.stderr
    assert "bible-kjv is not installed" in run.stdout
    assert "text to learn" in (machine.build / "bible.txt").read_text()


def test_home_unset(machine):
    run = machine.run(environment={"PATH": str(machine.bin)})
    assert run.returncode == 1
    assert run.stderr == ("recoup: HOME is not set: set RECOUP_DEPS to the folder that LibTorch shall "
                          "live in\n")


def test_another_system(machine):
    machine.shim("uname", "#!/bin/bash\necho Darwin\n")
    machine.refuses("runs on Linux, not on Darwin")


def test_another_processor(machine):
    machine.shim("uname", '#!/bin/bash\n[ "$1" = -m ] && echo riscv64 || echo Linux\n')
    machine.refuses("no wheel for riscv64", "aarch64")


@pytest.mark.parametrize("answer, words", [("exit 1", "another C library"), ("echo glibc 2.17", "2.17")])
def test_another_c_library(machine, answer, words):
    machine.shim("getconf", f"#!/bin/bash\n{answer}\n")
    machine.refuses("glibc 2.28 or later", words)


def test_a_python_without_a_wheel(machine):
    machine.refuses("no wheel for Python 3.15", "3.10 to 3.14", FAKE_VERSION="3.15")


def test_a_second_python_serves(machine):
    machine.shim("python3", '#!/bin/bash\necho 3.15\n')
    machine.shim("python3.13", PYTHON)
    assert machine.run(FAKE_VERSION="3.13").returncode == 0


def test_no_python(machine):
    (machine.bin / "python3").unlink()
    machine.refuses("Python is missing", "python3-venv")


def test_not_debian(machine):
    (machine.bin / "cmake").unlink()
    run = machine.refuses("missing: cmake, yaml-cpp/yaml.h;", "this system's packages", "libyaml-cpp-dev",
                          LACKS="yaml-cpp/yaml.h")
    assert "apt-get" not in run.stderr


def test_no_compiler_names_the_headers_too(machine):
    (machine.bin / "g++").unlink()
    machine.refuses("missing: g++, yaml-cpp/yaml.h, CLI/CLI.hpp", "g++")


def test_not_root(machine):
    machine.shim("apt-get", "#!/bin/bash\nexit 1\n")
    machine.shim("id", "#!/bin/bash\necho 1000\n")
    (machine.bin / "ninja").unlink()
    machine.refuses("missing: ninja;", "sudo apt-get install ninja-build")


def test_root_installs_what_is_missing_and_only_that(machine):
    (machine.bin / "ninja").unlink()
    (machine.bin / "spare").write_text(NINJA)
    machine.shim("id", "#!/bin/bash\necho 0\n")
    machine.shim("apt-get", f"""#!/bin/bash
echo "$@" >>"{machine.folder}/apt-calls"
[ "$1" = update ] || {{ cp "{machine.bin}/spare" "{machine.bin}/ninja"; chmod 755 "{machine.bin}/ninja"; }}
""")
    run = machine.run()
    assert run.returncode == 0, run.stderr
    calls = (machine.folder / "apt-calls").read_text().splitlines()
    assert calls[-1].split()[0] == "install" and calls[-1].split()[-1] == "ninja-build"
    assert sum(not word.startswith("-") for word in calls[-1].split()) == 2


def test_root_with_a_dead_mirror(machine):
    (machine.bin / "ninja").unlink()
    machine.shim("id", "#!/bin/bash\necho 0\n")
    machine.shim("apt-get", "#!/bin/bash\necho 'E: no network' >&2\nexit 100\n")
    machine.refuses("apt-get could not install ninja-build", "run again")


def test_too_little_disk(machine):
    machine.shim("df", "#!/bin/bash\necho x 1 1 812 1 x\n")
    machine.refuses("needs 2500 MB", "812 MB are free", "RECOUP_DEPS")


def test_a_folder_that_cannot_be_written_to(machine):
    machine.refuses("/proc/recoup cannot be written to", "RECOUP_DEPS", RECOUP_DEPS="/proc/recoup")


@pytest.mark.parametrize("said, words", [
    ("NewConnectionError: Failed to establish a new connection: [Errno 111] Connection refused\n"
     "ERROR: No matching distribution found for torch", ("does not answer", "PIP_INDEX_URL")),
    ("ERROR: No matching distribution found for torch", ("has no torch==", "PIP_INDEX_URL")),
    ("OSError: [Errno 28] No space left on device", ("the disk is full", "RECOUP_DEPS")),
    ("something else", ("pip failed",)),
])
def test_pip_fails(machine, said, words):
    run = machine.refuses(*words, FAKE_PIP=said)
    assert said.splitlines()[0] in run.stderr  # pip's own words too
    assert machine.run().returncode == 0  # and a second run goes on


def test_a_dead_index_with_the_real_pip(machine):
    machine.shim("python3", f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    machine.refuses("does not answer", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0",
                    PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)


def test_a_failing_configuration_names_its_log(machine):
    machine.shim("cmake", "#!/bin/bash\necho 'CMake Error at x:1: no good'\nexit 1\n")
    run = machine.run()
    assert run.returncode == 1
    assert "no good" in run.stderr and f"{machine.build}/configure.log" in run.stderr
    assert "the trainer ran" not in run.stdout
