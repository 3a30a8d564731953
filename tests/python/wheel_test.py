"""The wheel: built from this clone, installed into an empty environment, used from elsewhere."""
import os
import re
import subprocess
import sys
import venv
import zipfile

import pytest

from conftest import ROOT

TWO = r"recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_num_layers: 2\n"
FIRST_USE = """
import torch, recoup
x = torch.ones(3, requires_grad=True)
recoup.checkpoint(lambda t: t.exp().sin(), x).sum().backward()
print(torch.equal(x.grad, x.exp() * x.exp().cos()))
"""


def environment(**more):
    """Of nobody: what env -i leaves, and the limits of this machine's compilers."""
    keep = {k: v for k, v in os.environ.items() if k.startswith(("CMAKE_C", "CCACHE_"))}
    return {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **keep, **more}


def run(command, **more):
    return subprocess.run([str(c) for c in command], cwd="/", capture_output=True, text=True, timeout=1200,
                          env=environment(**more))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", os.path.join(ROOT, "plugin", "python"), "--no-deps",
         "--no-build-isolation", "--no-index", "-w", str(folder)], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def empty(wheel, tmp_path_factory):
    """The python of an environment that has the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    done = run([python, "-m", "pip", "install", "-q", "--no-index", wheel])
    assert done.returncode == 0, done.stderr
    return python


@pytest.fixture(scope="module")
def with_torch(empty):
    """The same environment with this one's torch."""
    import torch

    folder = run([empty, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip()
    with open(os.path.join(folder, "torch.pth"), "w") as file:
        file.write(os.path.dirname(os.path.dirname(torch.__file__)) + "\n")
    yield empty
    os.remove(os.path.join(folder, "torch.pth"))


def test_what_is_in_it(wheel):
    assert re.fullmatch(r"recoup-[0-9.]+-py3-none-(manylinux_\w+|linux)_(x86_64|aarch64)\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("lib/librecoup_policy.so", "bin/recoup", "include/recoup/plugin.h", "include/recoup/host.hpp",
                 "lib/cmake/recoup/recoupConfig.cmake", "share/recoup/configs/mlp_first_12.yaml",
                 "src/plugin/python/recoup_torch.cc", "src/hooks/checkpoint/checkpoint.cc", "megatron/__main__.py",
                 "sweep/sweep.py", "sweep/pictures.py"):
        assert "recoup/" + name in names
    assert not [n for n in names if n.endswith((".pyc", "recoup_torch.so"))]


class TestWithoutTorch:
    def test_the_policy(self, empty):
        done = run([empty, "-c", f"import recoup; p = recoup.Policy('t', yaml='{TWO}', num_layers=3);"
                    "print([p.decide(n).mlp for n in (1, 2, 3)])"])
        assert done.returncode == 0, done.stderr
        assert done.stdout == "[True, True, False]\n"

    def test_what_needs_torch_says_so(self, empty):
        for name in ("checkpoint", "apply"):
            done = run([empty, "-c", f"import recoup; recoup.{name}"])
            assert done.stderr.splitlines()[-1] == (
                f"ImportError: recoup.{name} needs PyTorch, which is not installed here; recoup.Policy works "
                "without it")

    def test_the_command(self, empty):
        command = os.path.join(os.path.dirname(empty), "recoup")
        version = run([command, "--version"]).stdout.splitlines()
        assert [line.split()[0] for line in version] == ["recoup", "contract:", "policy:", "torch:"]
        good = run([command, "check", os.path.join(ROOT, "configs", "mlp_first_12.yaml")])
        assert good.returncode == 0 and "valid" in good.stdout, good
        sweep = run([command, "sweep", "--help"])
        assert sweep.returncode == 0 and "usage: recoup sweep" in sweep.stdout, sweep
        bad = run([command, "check", os.path.join(ROOT, "README.md")])
        assert bad.returncode != 0 and "README.md" in bad.stdout + bad.stderr

    def test_the_library_needs_nothing_of_the_builders(self, empty):
        path = run([empty, "-c", "import recoup; print(recoup.plugin_path())"]).stdout.strip()
        needed = re.findall(r"NEEDED.*\[(.*)\]", run(["readelf", "-d", path]).stdout)
        assert needed and not [n for n in needed if "yaml" in n or "stdc++" in n], needed

    def test_a_host_in_cpp_finds_it_by_cmake(self, empty, tmp_path):
        prefix = run([empty, "-c", "import recoup; print(recoup.cmake_prefix())"]).stdout.strip()
        (tmp_path / "main.cc").write_text("""
#include <cstdio>
#include "recoup/host.hpp"
int main(int, char** argv) {
  recoup::HostOptions options;
  options.name = "consumer";
  options.num_layers = 3;
  recoup::Host host(argv[1], options);
  for (int n = 1; n <= 3; ++n) std::printf("%d", host.layer({n}).recompute_mlp());
}
""")
        (tmp_path / "CMakeLists.txt").write_text("""
cmake_minimum_required(VERSION 3.22)
project(consumer CXX)
find_package(recoup REQUIRED)
add_executable(consumer main.cc)
target_link_libraries(consumer PRIVATE recoup::host)
""")
        for command in (["cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}"],
                        ["cmake", "--build", tmp_path / "b"]):
            done = run(command)
            assert done.returncode == 0, done.stdout + done.stderr
        done = run([tmp_path / "b" / "consumer", f"{prefix}/lib/librecoup_policy.so"],
                   RECOUP_RECOMPUTE_MLP_NUM_LAYERS="2")
        assert done.stdout == "110", done


class TestWithTorch:
    def test_the_engine_is_built_once(self, with_torch, tmp_path):
        cache = tmp_path / "a cache"
        first = run([with_torch, "-c", FIRST_USE], RECOUP_CACHE=str(cache))
        assert first.returncode == 0, first.stderr
        assert first.stdout == "True\n"
        assert len(re.findall(r"^recoup: building the engine for torch .*, once, into ", first.stderr, re.M)) == 1
        (built,) = (cache / "engine").glob("*/recoup_torch.so")
        assert built.parent.name.startswith("torch") and "cpython" in built.parent.name
        again = run([with_torch, "-c", FIRST_USE], RECOUP_CACHE=str(cache))
        assert again.stdout == "True\n" and "building" not in again.stderr

    @pytest.mark.parametrize("variables, words", [
        (dict(PATH="/nonexistent"), ["needs cmake, g++, ninja or make, not found here"]),
        (dict(RECOUP_CACHE="/proc/no"), ["/proc/no", "nothing can be written", "set RECOUP_CACHE"]),
        (dict(RECOUP_BUILD="/nonexistent"), ["recoup_torch.so is not in /nonexistent"]),
        (dict(CXX="/bin/false"), ["cannot be built for torch", "build.log says why"]),
    ])
    def test_where_it_cannot_be_built(self, with_torch, tmp_path, variables, words):
        done = run([with_torch, "-c", FIRST_USE], **{"RECOUP_CACHE": str(tmp_path / "c"), **variables})
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and last.startswith("recoup._engine.EngineError: recoup: "), done.stderr
        assert all(word in last for word in words), last
        if "RECOUP_BUILD" not in variables:
            policy = run([with_torch, "-c", f"import recoup; print(recoup.Policy('t', yaml='{TWO}', "
                          "num_layers=3).decide(1).mlp)"], **variables)
            assert policy.stdout == "True\n", policy.stderr


def test_megatrons_door_needs_neither_torch_nor_a_compiler(empty, tmp_path):
    for command in ([empty, "-m", "recoup.megatron"], [empty.parent / "recoup-megatron"]):
        done = run([*command, "--help"])
        assert done.returncode == 0 and "--recompute-MODULE-num-layers" in done.stdout, done.stderr
    core = "megatron/core/transformer/"
    tree = {
        core + "transformer_config.py": """
class TransformerConfig:
    recompute_modules: object = None

    def __post_init__(self):
        if self.recompute_granularity is not None:
            allowed_modules = {"core_attn", "mlp"}
            assert not set(self.recompute_modules) - allowed_modules
""", core + "transformer_layer.py": """
class TransformerLayer:
    def __init__(self, config):
        super().__init__(config=config)
        if "mlp" in self.config.recompute_modules:
            self.recompute_mlp = True
"""}
    for path, text in tree.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for command, last in (("apply", "patched"), ("status", "applied"), ("revert", "reverted")):
        done = run([empty.parent / "recoup-megatron", "patch", command, tmp_path])
        assert done.returncode == 0 and last in done.stdout, done.stderr
    assert all((tmp_path / path).read_text() == text for path, text in tree.items())
