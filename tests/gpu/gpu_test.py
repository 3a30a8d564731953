"""tests/gpu.sh without a GPU: what it refuses, its stages on a CPU, and that a stage's end is told."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import BUILD, ROOT

RUN = os.path.join(ROOT, "tests", "gpu", "run.py")
STAGES = "engine graphs trainer tradeoff overhead apply layer collectives memcheck llmc megatron"


def gpu_sh(*arguments, **environment):
    return subprocess.run([os.path.join(ROOT, "tests", "gpu.sh"), *map(str, arguments)], capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment})


def program(folder, name, text):
    (folder / name).write_text("#!/bin/sh\n" + text)
    (folder / name).chmod(0o755)


@pytest.fixture
def machine(tmp_path):
    """A machine with a GPU, CUDA 13 and a torch for it, as far as programs on PATH say so."""
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "version.py").write_text("cuda: Optional[str] = '13.0'\n")
    program(tmp_path, "python3", f'[ "$1" != -c ] || {{ echo "{torch}"; exit; }}\nexec {sys.executable} "$@"\n')
    program(tmp_path, "nvidia-smi", """case $* in
-L) echo "GPU 0: A GPU" ;;
*memory.free*) echo 80000 ;;
*) echo "| Driver Version: 580.1  CUDA Version: 13.0 |" ;;
esac
""")
    program(tmp_path, "nvcc", 'echo "Cuda compilation tools, release 13.0, V13.0.88"\n')
    program(tmp_path, "c++", "exit 0\n")  # every header is there
    program(tmp_path, "cmake", "echo too far; exit 9\n")

    def run(*arguments, **environment):
        return gpu_sh(*arguments, **{"PATH": f"{tmp_path}:/usr/bin:/bin", "CXX": "c++",
                                     "RECOUP_BUILD": str(tmp_path / "build"), **environment})
    return tmp_path, run


def refused(done, words):
    assert done.returncode == 1
    assert done.stderr.startswith("recoup: ") and done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr


def test_the_machine_of_these_tests_is_taken(machine):
    folder, run = machine
    done = run()
    assert "too far" in done.stdout and "cmake failed" in done.stderr, done  # all checks passed


def test_the_commands_of_the_readme_are_taken(machine):
    """Up to the build, on the machine of these tests; --pack has a test of its own."""
    folder, run = machine
    with open(os.path.join(ROOT, "tests", "gpu", "README.md")) as file:
        lines = re.findall(r"^tests/gpu\.sh([^#\n]*)", re.search(r"```bash\n(.*?)```", file.read(), re.S).group(1), re.M)
    assert lines.pop(0).strip() == "--pack"
    assert len(lines) == 3
    for line in lines:
        assert "too far" in run(*line.split()).stdout, line


@pytest.mark.skipif(not shutil.which("dpkg"), reason="packs are made on Debian")
def test_pack(tmp_path):
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    shutil.copy(os.path.join(ROOT, "tests", "gpu.sh"), tmp_path / "tests")
    shutil.copy(RUN, tmp_path / "tests" / "gpu")
    done = subprocess.run([tmp_path / "tests" / "gpu.sh", "--pack"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pack = tmp_path / "build-gpu-pack"
    for header in ("yaml-cpp/yaml.h", "CLI/CLI.hpp", "nlohmann/json.hpp", "gloo/config.h", "gtest/gtest.h", "gmock/gmock.h"):
        assert (pack / "usr" / "include" / header).is_file(), header
    assert list(pack.glob("usr/lib/*/libyaml-cpp.a")) and list(pack.glob("usr/lib/*/libgtest.a"))
    assert sum(f.lstat().st_size for f in pack.rglob("*")) < 40e6


def test_no_gpu(machine):
    folder, run = machine
    program(folder, "nvidia-smi", "exit 1\n")
    refused(run(), "nvidia-smi shows no GPU here: tests/gpu.sh --dry-run runs the same on the CPU")


def test_a_torch_without_cuda(machine):
    folder, run = machine
    (folder / "torch" / "version.py").write_text("cuda: Optional[str] = None\n")
    refused(run(), "is built without CUDA")


def test_an_old_driver(machine):
    folder, run = machine
    program(folder, "nvidia-smi", 'case $* in -L) echo "GPU 0" ;; *memory*) echo 80000 ;; *) echo "CUDA Version: 12.4" ;; esac\n')
    refused(run(), "the driver knows CUDA up to 12.4, and the torch of python3 is built with 13.0")


def test_another_toolkit(machine):
    folder, run = machine
    program(folder, "nvcc", 'echo "Cuda compilation tools, release 12.8, V12.8.1"\n')
    refused(run(CUDA_HOME="", CUDA_PATH=""), "nvcc is of CUDA 12.8, and the torch of python3 is built with 13.0")


def test_too_little_memory(machine):
    folder, run = machine
    program(folder, "nvidia-smi", 'case $* in -L) echo "GPU 0" ;; *memory*) echo 812 ;; *) echo "CUDA Version: 13.0" ;; esac\n')
    refused(run(), "the GPU has 812 MB free, and 6000 are needed")


def test_no_pack(machine):
    folder, run = machine
    program(folder, "c++", "echo absent yaml-cpp/yaml.h; echo absent gtest/gtest.h\n")
    refused(run(), "not here: yaml-cpp/yaml.h, gtest/gtest.h: tests/gpu.sh --pack")
    assert not (folder / "build").exists()


def test_no_torch(machine):
    folder, run = machine
    for name in ("python3", "python"):
        program(folder, name, f'[ "$1" != -c ] || exit 1\nexec {sys.executable} "$@"\n')
    refused(run(), "no Python here has torch")


@pytest.mark.parametrize("arguments, words", [
    (["nothing"], f"there is no stage nothing: {STAGES}"),
    (["--dry-run", "nothing"], f"there is no stage nothing: {STAGES}"),
    (["--pack", "engine"], "--pack takes no stages"),
    (["engine", "--pack"], "--pack takes no stages"),
    (["--build"], "--build needs a folder"),
    (["--dry-run", "--build", "/nonexistent"], "--build /nonexistent: no build is there"),
])
def test_bad_arguments(arguments, words):
    refused(gpu_sh(*arguments), words)


@pytest.mark.parametrize("minutes", ["0", "-1", "1.5", "x", "08"])
def test_bad_limit(minutes):
    refused(gpu_sh("--dry-run", RECOUP_GPU_MINUTES=minutes), f"RECOUP_GPU_MINUTES={minutes}: whole minutes")


def test_the_stages_are_listed():
    done = gpu_sh("--list")
    assert done.returncode == 0
    assert " ".join(line.split()[0] for line in done.stdout.splitlines()) == STAGES


def run_stages(build, output, *arguments):
    output.mkdir()
    done = subprocess.run([sys.executable, RUN, "--build", build, "--output", output, *arguments], capture_output=True,
                          text=True)
    return done, json.loads((output / "summary.json").read_text())["stages"]


def test_a_failure_stops_no_other_stage(tmp_path):
    program(tmp_path, "engine_gpu_test", "exit 3\n")
    program(tmp_path, "checkpoint_test", "exit 0\n")
    done, stages = run_stages(tmp_path, tmp_path / "out", "--dry-run", "engine", "llmc", "memcheck")
    assert done.returncode == 1
    assert stages["engine"] == {"result": "FAILED", "seconds": stages["engine"]["seconds"],
                                "why": "engine_gpu_test: the log says which tests"}
    assert stages["llmc"]["why"] == f"librecoup_policy.so is not in {tmp_path}"
    assert stages["memcheck"]["result"] == "skipped"


def test_a_stage_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    program(tmp_path, "engine_gpu_test", f"echo $$ >{tmp_path}/pid; sleep 600\n")
    done, stages = run_stages(tmp_path, tmp_path / "out", "--dry-run", "--seconds", "3", "engine", "memcheck")
    assert done.returncode == 1
    assert stages["engine"]["why"].startswith("took longer than ")
    assert stages["memcheck"]["why"] == "no time was left for it"
    if (tmp_path / "pid").exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


def test_dry_run(tmp_path):
    """All stages but the engine's tests, which ctest runs."""
    done = gpu_sh("--dry-run", "--build", BUILD, "-o", tmp_path / "out", *STAGES.split()[1:],
                  PATH=f"{os.path.dirname(sys.executable)}:/usr/bin:/bin", HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]
    assert {name: row["result"] for name, row in stages.items()} == {
        name: "skipped" if name in ("graphs", "memcheck", "megatron") else "passed" for name in STAGES.split()[1:]}
    assert all(row["equal"] for row in stages["trainer"]["data"]["rows"])
    assert len(stages["tradeoff"]["data"]["rows"]) == 5
    assert [row["call"] for row in stages["overhead"]["data"]["rows"]][0] == "none"
    assert stages["collectives"]["data"]["ran"] == ["one rank, gloo", "two ranks"]
    assert "tradeoff" in (tmp_path / "out" / "summary.svg").read_text()
