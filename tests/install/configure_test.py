"""What the configuration decides about LibTorch, CUDA and the platform, and the sentence it says."""
import json
import os
import re
import shutil
import subprocess

import pytest

from conftest import BUILD, ROOT

TORCH = ""
if os.path.exists(os.path.join(BUILD, "librecoup.so")):
    with open(os.path.join(BUILD, "CMakeCache.txt")) as cache:
        TORCH = re.search(r"^CMAKE_PREFIX_PATH:\w+=(.*)$", cache.read(), re.M).group(1)
    while not os.path.exists(os.path.join(TORCH, "include", "torch")):  # given as torch/share/cmake
        TORCH = os.path.dirname(TORCH)
WHOLE = os.path.exists(os.path.join(TORCH, "..", "nvidia", "cudnn"))  # with the CUDA libraries
NVCC = shutil.which("nvcc", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")

needs_torch = pytest.mark.skipif(not TORCH, reason="built without LibTorch")
needs_cuda_wheel = pytest.mark.skipif(not WHOLE, reason="LibTorch's CUDA libraries are not installed")


def can_hide_toolkits():
    return shutil.which("unshare") and subprocess.run(["unshare", "-m", "true"], check=False,
                                                      capture_output=True).returncode == 0


def configure(folder, *options, hide_toolkits=False, fails=False, **environment):
    """What cmake says, in one line; toolkits hidden by an empty folder over each."""
    command = ["cmake", "-G", "Ninja", "-S", ROOT, "-B", str(folder), "-Wno-dev", "-DRECOUP_TESTS=OFF",
               "-DRECOUP_PYTHON=OFF", *options]
    if hide_toolkits:
        empty = folder.parent / "empty"
        empty.mkdir(exist_ok=True)
        command = ["unshare", "-m", "bash", "-c",
                   f'for d in /usr/local/cuda-*; do [ ! -d "$d" ] || mount --bind "{empty}" "$d"; done; '
                   'exec "$@"', "_", *command]
    done = subprocess.run(command, capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", **environment})
    said = " ".join((done.stdout + done.stderr).split())
    assert (done.returncode != 0) == fails, said
    return said


@pytest.fixture
def tree(tmp_path):
    """A LibTorch that a test may change: its files, in folders of its own."""
    root = tmp_path / "a b" / "torch"
    root.mkdir(parents=True)
    for part in ("include", "lib", "share"):
        (root / part).symlink_to(os.path.join(TORCH, part))
    nvidia = root.parent / "nvidia"
    nvidia.mkdir()
    return root


def cuda_headers(tree, *headers):
    for header in headers:
        path = tree.parent / "nvidia" / "cu" / "include" / header
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    library = tree.parent / "nvidia" / "cu" / "lib" / "libcudart.so.0"
    library.parent.mkdir(parents=True, exist_ok=True)
    library.touch()


def test_policy_alone_needs_no_libtorch(tmp_path):
    said = configure(tmp_path / "b", "-DRECOUP_TORCH=OFF")
    assert "LibTorch" not in said


def test_no_libtorch(tmp_path):
    """The tools' folder has no Python that could have one."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("cmake", "ninja", "c++", "g++", "gcc", "cc", "as", "ld", "ar", "ranlib", "nm", "objcopy",
                 "strip", "sh", "bash"):
        if shutil.which(tool, path="/usr/bin:/bin"):
            (tools / tool).symlink_to(shutil.which(tool, path="/usr/bin:/bin"))
    said = configure(tmp_path / "b", "-DCMAKE_DISABLE_FIND_PACKAGE_Torch=ON", "-DRECOUP_PYTHON3=/nowhere",
                     fails=True, PATH=str(tools))
    assert "LibTorch is not found: give -DCMAKE_PREFIX_PATH=FOLDER" in said
    assert "-DRECOUP_TORCH=OFF" in said


@pytest.mark.parametrize("value", ["yes", "on"])
def test_an_unknown_value_of_cuda(tmp_path, value):
    said = configure(tmp_path / "b", f"-DRECOUP_CUDA={value}", fails=True)
    assert f"RECOUP_CUDA={value}: allowed are ON, OFF and AUTO" in said


@needs_torch
def test_off_links_to_nothing_of_cuda(tmp_path):
    said = configure(tmp_path / "b", f"-DCMAKE_PREFIX_PATH={TORCH}", "-DRECOUP_CUDA=OFF")
    assert "without CUDA (RECOUP_CUDA=OFF)" in said
    links = subprocess.run(["ninja", "-C", tmp_path / "b", "-t", "commands", "librecoup.so"],
                           capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    assert "libtorch_cpu.so" in links and "cuda" not in links.replace(TORCH, "")


@needs_torch
def test_a_libtorch_without_cuda(tmp_path, tree):
    """Headers and CPU libraries only: built without the CUDA files, and one line says so."""
    (tree / "lib").unlink()
    (tree / "lib").mkdir()
    for library in ("libtorch_cpu.so", "libc10.so"):
        (tree / "lib" / library).symlink_to(os.path.join(TORCH, "lib", library))
    (tree / "share").unlink()
    said = configure(tmp_path / "b", f"-DCMAKE_PREFIX_PATH={tree}")
    assert said.count("without CUDA") == 1
    assert "without CUDA (this LibTorch is built without it)" in said
    said = configure(tmp_path / "c", f"-DCMAKE_PREFIX_PATH={tree}", "-DRECOUP_CUDA=ON", fails=True)
    assert "RECOUP_CUDA=ON cannot be met" in said and "built without it" in said


@needs_cuda_wheel
@pytest.mark.skipif(not can_hide_toolkits(), reason="no right to hide the CUDA toolkit")
def test_without_a_toolkit_the_wheels_headers_do(tmp_path, tree):
    cuda_headers(tree, "cuda_runtime_api.h", "crt/host_config.h", "cccl/nv/target")
    said = configure(tmp_path / "b", f"-DCMAKE_PREFIX_PATH={tree}", "-DRECOUP_CUDA=ON", hide_toolkits=True)
    assert ", with CUDA" in said
    commands = subprocess.run(["ninja", "-C", tmp_path / "b", "-t", "commands", "librecoup.so"],
                              capture_output=True, text=True, check=True).stdout
    assert "-DRECOUP_CUDA" in commands and "libtorch_cuda.so" in commands and "nvidia/cu/lib" in commands


@needs_cuda_wheel
@pytest.mark.skipif(not can_hide_toolkits(), reason="no right to hide the CUDA toolkit")
def test_without_a_toolkit_missing_headers_are_named(tmp_path, tree):
    cuda_headers(tree, "cuda_runtime_api.h")
    said = configure(tmp_path / "b", f"-DCMAKE_PREFIX_PATH={tree}", hide_toolkits=True)
    assert "without CUDA (no CUDA toolkit, and no crt/host_config.h (pip: nvidia-cuda-crt), nv/target" in said
    said = configure(tmp_path / "c", f"-DCMAKE_PREFIX_PATH={tree}", "-DRECOUP_CUDA=ON", hide_toolkits=True,
                     fails=True)
    assert "RECOUP_CUDA=ON cannot be met" in said and "nvidia-cuda-crt" in said


@needs_torch
@pytest.mark.parametrize("version, words", [("2.6", "recoup needs 2.7 or later"), ("", "no version.h")])
def test_a_libtorch_that_is_too_old_or_none(tmp_path, version, words):
    include = tmp_path / "torch" / "include" / "torch"
    (include / "csrc" / "autograd").mkdir(parents=True)
    (include / "csrc" / "autograd" / "engine.h").touch()
    if version:
        (include / "headeronly").mkdir()
        major, minor = version.split(".")
        (include / "headeronly" / "version.h").write_text(
            f"#define TORCH_VERSION_MAJOR {major}\n#define TORCH_VERSION_MINOR {minor}\n"
            "#define TORCH_VERSION_PATCH 0\n")
    assert words in configure(tmp_path / "b", f"-DCMAKE_PREFIX_PATH={tmp_path}/torch", fails=True)


@needs_torch
def test_rocm(tmp_path, tree):
    (tree / "lib").unlink()
    (tree / "lib").mkdir()
    (tree / "lib" / "libtorch_hip.so").touch()
    said = configure(tmp_path / "b", f"-DCMAKE_PREFIX_PATH={tree}", fails=True)
    assert "LibTorch for ROCm, which recoup does not support" in said


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems(tmp_path, system):
    said = configure(tmp_path / "b", f"-DCMAKE_SYSTEM_NAME={system}", "-DCMAKE_CXX_COMPILER_WORKS=ON",
                     fails=True)
    assert f"recoup supports Linux (x86_64, aarch64) only; this build is for {system}" in said


def test_yaml_sources_that_are_none(tmp_path):
    said = configure(tmp_path / "b", "-DRECOUP_TORCH=OFF", "-DRECOUP_YAML_SOURCE=/nowhere", fails=True)
    assert "RECOUP_YAML_SOURCE=/nowhere: no include/yaml-cpp/yaml.h there" in said


PARENT = """
cmake_minimum_required(VERSION 3.22)
project(parent LANGUAGES CXX)
if(RECOUP_FIRST)
  add_subdirectory("@ROOT@" recoup)
endif()
find_package(Torch REQUIRED)
if(NOT RECOUP_FIRST)
  add_subdirectory("@ROOT@" recoup)
endif()
add_library(kernel STATIC kernel.cu)
target_link_libraries(kernel PRIVATE torch)
if(NOT TORCH_NVCC_FLAGS AND NOT TORCH_CUDA_ARCH_LIST AND NOT CUDA_NVCC_FLAGS MATCHES "arch=")
  if(NOT CMAKE_CUDA_FLAGS MATCHES "arch")
    message(FATAL_ERROR "no architecture flags")
  endif()
endif()
message(STATUS "nvrtc: ${CUDA_NVRTC_LIB}")
if(NOT CUDA_NVRTC_LIB)
  message(FATAL_ERROR "no nvrtc")
endif()
"""


@needs_cuda_wheel
@pytest.mark.skipif(not NVCC, reason="no nvcc")
@pytest.mark.parametrize("first", ["ON", "OFF"])
def test_a_parent_with_a_cuda_file(tmp_path, first):
    """The parent's own find_package(Torch) finds the toolkit, whoever comes first."""
    (tmp_path / "CMakeLists.txt").write_text(PARENT.replace("@ROOT@", ROOT))
    (tmp_path / "kernel.cu").write_text("__global__ void twice(float* x) { x[threadIdx.x] *= 2; }\n")
    path = f"{os.path.dirname(NVCC)}:/usr/bin:/bin"
    command = ["cmake", "-G", "Ninja", "-S", tmp_path, "-B", tmp_path / "b", "-Wno-dev",
               f"-DCMAKE_PREFIX_PATH={TORCH}", f"-DRECOUP_FIRST={first}", "-DTORCH_CUDA_ARCH_LIST=8.0"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", with CUDA" in done.stdout
    done = subprocess.run(["ninja", "-v", "-C", tmp_path / "b", "libkernel.a"], capture_output=True, text=True,
                          env={"PATH": path})
    assert done.returncode == 0, done.stdout
    assert "arch=compute_80" in done.stdout


@needs_torch
def test_sources_of_a_target_compile_as_one(tmp_path):
    """As examples/run.sh builds them, to be quick: no name of one file may meet another file's."""
    configure(tmp_path / "b", f"-DCMAKE_PREFIX_PATH={TORCH}", "-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0",
              "-DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON", "-DRECOUP_WERROR=ON")
    commands = json.loads((tmp_path / "b" / "compile_commands.json").read_text())
    units = {re.search(r"(\w+)\.dir/Unity/", c["file"]).group(1): c for c in commands if "/Unity/" in c["file"]}
    wanted = ("recoup_policy_core", "recoup", "recoup_checkpoint", "gpt_trainer")
    running = {name: subprocess.Popen(units[name]["command"] + " -O0 -g0 -fsyntax-only", shell=True,
                                      cwd=units[name]["directory"], stderr=subprocess.PIPE, text=True) for name in wanted}
    wrong = {name: said for name, process in running.items() if (said := process.communicate()[1]) or process.returncode}
    assert not wrong
