"""What is installed: moved elsewhere and used by a project of somebody else's in an empty environment.

The project (consumer/) also is the parent of recoup's sources, by add_subdirectory and FetchContent.
"""
import os
import re
import shutil
import subprocess
import tarfile

import pytest

from conftest import BUILD, ROOT

CONSUMER = os.path.join(ROOT, "tests", "install", "consumer")
CONFIG = os.path.join(ROOT, "configs", "mlp_first_12.yaml")
WITH_TORCH = os.path.exists(os.path.join(BUILD, "librecoup.so"))
DECISIONS = "1 1\n12 1\n13 0\n"


def run(*command, fails=False, **more):
    """The output of a command in an empty environment."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", **more})
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def cache(name):
    with open(os.path.join(BUILD, "CMakeCache.txt")) as file:
        return re.search(rf"^{name}:\w+=(.*)$", file.read(), re.M).group(1)


def build_consumer(folder, how, *options, target="trainer"):
    run("cmake", "-G", "Ninja", "-S", CONSUMER, "-B", folder, f"-DHOW={how}", *options)
    run("cmake", "--build", folder, "--target", target)
    return folder / target


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Installed into a path with a space, then moved."""
    folder = tmp_path_factory.mktemp("install")
    said = run("cmake", "--install", BUILD, "--prefix", folder / "first place")
    assert "Installing" in said
    shutil.move(folder / "first place", folder / "second place")
    return folder / "second place"


def test_nothing_names_where_it_was_built(prefix):
    for path in prefix.rglob("*"):
        if path.suffix in (".cmake", ".h", ".hpp", ".yaml"):
            text = path.read_text()
            assert ROOT not in text and "first place" not in text, path


def test_host_and_policy(prefix, tmp_path):
    trainer = build_consumer(tmp_path / "b", "find_package", f"-DCMAKE_PREFIX_PATH={prefix}",
                             "-DCOMPONENTS=host;policy")
    assert run(trainer, CONFIG).startswith(DECISIONS)
    assert run(trainer, prefix / "share" / "recoup" / "configs" / "mlp_first_12.yaml").startswith(DECISIONS)


@pytest.mark.skipif(not WITH_TORCH, reason="built without LibTorch")
def test_checkpoint_and_plugin(prefix, tmp_path):
    torch = cache("CMAKE_PREFIX_PATH")
    engine = build_consumer(tmp_path / "b", "find_package", f"-DCMAKE_PREFIX_PATH={prefix};{torch}",
                            "-DCOMPONENTS=host;policy;checkpoint;plugin", target="engine")
    assert run(engine) == "equal\n"
    assert (tmp_path / "b" / "plugin.txt").read_text() == str(prefix / "lib" / "librecoup.so")


@pytest.mark.skipif(not WITH_TORCH, reason="built without LibTorch")
def test_the_engine_of_another_libtorch_is_refused(prefix, tmp_path):
    version = tmp_path / "other" / "include" / "torch" / "headeronly" / "version.h"
    version.parent.mkdir(parents=True)
    version.write_text("#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 99\n"
                       "#define TORCH_VERSION_PATCH 0\n")
    (tmp_path / "other" / "include" / "torch" / "csrc" / "autograd").mkdir(parents=True)
    (tmp_path / "other" / "include" / "torch" / "csrc" / "autograd" / "engine.h").touch()
    said = run("cmake", "-S", CONSUMER, "-B", tmp_path / "b", "-DHOW=find_package", "-DRECOUP_CUDA=OFF",
               f"-DCMAKE_PREFIX_PATH={prefix};{tmp_path}/other",
               "-DCOMPONENTS=host;policy;checkpoint", fails=True)
    assert "LibTorch 2.99.0 is found: build it again with" in " ".join(said.split())


@pytest.mark.parametrize("components, words", [
    ("host;policy;budget", "there is no component budget"),
    ("host;policy;plugin", "built with RECOUP_TORCH=OFF"),
])
def test_components_that_are_not_there(prefix, tmp_path, components, words):
    place = tmp_path / "place"
    shutil.copytree(prefix, place)
    for file in (place / "lib" / "cmake" / "recoup").glob("*Torch*"):
        file.unlink()
    said = run("cmake", "-S", CONSUMER, "-B", tmp_path / "b", "-DHOW=find_package",
               f"-DCMAKE_PREFIX_PATH={place}", f"-DCOMPONENTS={components}", fails=True)
    assert words in " ".join(said.split())


def test_another_version_is_refused(prefix, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(x CXX)\nfind_package(recoup 0.2 REQUIRED)\n")
    said = run("cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}", fails=True)
    assert "0.1.0" in said


@pytest.mark.parametrize("how", ["add_subdirectory", "FetchContent"])
def test_sources_below_a_parent(tmp_path, how):
    """Nothing of recoup's leaks: the consumer's CMakeLists.txt checks what a parent could see."""
    trainer = build_consumer(tmp_path / "b", how, f"-DRECOUP_SOURCE={ROOT}")
    assert run(trainer, CONFIG).startswith(DECISIONS)
    text = (tmp_path / "b" / "build.ninja").read_text()
    assert "_test" not in text and "gpt_trainer" not in text


def plugins(prefix):
    return [path for path in (prefix / "lib" / "librecoup_policy.so", prefix / "lib" / "librecoup.so")
            if path.exists()]


def test_each_plugin_exports_one_symbol(prefix):
    for path in plugins(prefix):
        names = [line.split()[-1] for line in run("nm", "-D", "--defined-only", path).splitlines()]
        assert names == ["recoup_plugin_v1"], path


def test_what_the_plugins_need(prefix):
    """The policy: the C library. The engine: LibTorch beside it, and no yaml-cpp either."""
    for path in plugins(prefix):
        needed = re.findall(r"\[(lib[\w+-]+)", run("readelf", "-d", path))
        needed.remove(path.stem)  # its own name
        own = {"libc", "libm", "libgcc_s", "libstdc++", "libdl"}
        if path.stem == "librecoup_policy":
            assert set(needed) <= own - {"libstdc++"}
        else:
            others = {name for name in needed if name not in own}
            assert others <= {"libtorch", "libtorch_cpu", "libtorch_cuda", "libc10", "libc10_cuda",
                              "libcudart"}
        assert "NODELETE" in run("readelf", "-d", path)


def test_the_oldest_glibc(prefix):
    """2.34: Debian 12, Ubuntu 22.04, RHEL 9 and later."""
    text = run("readelf", "--version-info", prefix / "lib" / "librecoup_policy.so")
    newest = max(tuple(int(n) for n in v.split(".")) for v in re.findall(r"GLIBC_([\d.]+)", text))
    assert newest <= (2, 34)


def test_no_debug_information_is_shipped(prefix):
    for path in [*plugins(prefix), *(prefix / "lib").glob("*.a")]:
        assert ".debug_info" not in run("readelf", "-S", "--wide", path), path


def test_beside_another_yaml(prefix, tmp_path):
    """A host with a yaml-cpp of the same name loaded for everyone: the decisions are the same."""
    trainer = build_consumer(tmp_path / "b", "find_package", f"-DCMAKE_PREFIX_PATH={prefix}",
                             "-DCOMPONENTS=host;policy")
    yaml = next((path for path in ("/usr/lib/x86_64-linux-gnu/libyaml-cpp.so",
                                   "/usr/lib/aarch64-linux-gnu/libyaml-cpp.so") if os.path.exists(path)), "")
    for path in plugins(prefix)[:1]:
        assert run(trainer, CONFIG, path, LD_PRELOAD=yaml).startswith(DECISIONS)


def test_packages(tmp_path):
    run("cpack", "--config", os.path.join(BUILD, "CPackConfig.cmake"), "-B", tmp_path)
    (archive,) = tmp_path.glob("recoup-*.tar.gz")
    with tarfile.open(archive) as file:
        names = {os.path.basename(name) for name in file.getnames()}
    assert {"plugin.h", "librecoup_policy.so", "recoupConfig.cmake"} <= names
    if shutil.which("dpkg-deb"):
        (package,) = tmp_path.glob("recoup-*.deb")
        assert "libc6" in run("dpkg-deb", "--field", package, "Depends")
        assert "./usr/lib" in run("dpkg-deb", "--contents", package)
