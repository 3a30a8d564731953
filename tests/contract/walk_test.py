"""The whole contract walked by a C11 host (walk.c): as it is, under sanitizers, under valgrind."""
import os
import shutil
import subprocess

import pytest

from conftest import BUILD, ROOT

POLICY = os.path.join(BUILD, "librecoup_policy.so")
INCLUDES = ["-I", os.path.join(ROOT, "plugin", "include"), "-I", os.path.join(ROOT, "hooks", "include")]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("RECOUP_")}


def host(folder, *options):
    program = folder / "walk"
    subprocess.run(["gcc", "-std=c11", "-g", "-O1", "-D_GNU_SOURCE", "-pedantic-errors", "-Wall", "-Wextra", "-Werror",
                    *options, *INCLUDES, os.path.join(ROOT, "tests", "contract", "walk.c"), "-ldl", "-lpthread",
                    "-o", program], check=True)
    return program


def walked(*command):
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=CLEAN)
    assert (ran.returncode, ran.stdout) == (0, "ok\n"), ran.stdout + ran.stderr


def test_a_thousand_loads(tmp_path):
    walked(host(tmp_path), POLICY, 1000)


def test_the_host_under_sanitizers(tmp_path):
    walked(host(tmp_path, *SANITIZE), POLICY, 100)


def test_host_and_library_under_sanitizers(tmp_path):
    folder = os.path.join(BUILD, "contract", "sanitized")
    subprocess.run(["cmake", "-S", ROOT, "-B", folder, "-DRECOUP_TORCH=OFF", "-DBUILD_TESTING=OFF",
                    "-DRECOUP_SANITIZE=address"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", folder, "--target", "recoup_policy"], check=True, capture_output=True)
    walked(host(tmp_path, *SANITIZE), os.path.join(folder, "librecoup_policy.so"), 10)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_under_valgrind(tmp_path):
    walked("valgrind", "-q", "--leak-check=full", "--error-exitcode=9", host(tmp_path), POLICY, 3)


@pytest.mark.parametrize("name", ["librecoup_policy.so", "librecoup.so"])
def test_one_symbol_is_exported_and_the_library_stays(name):
    path = os.path.join(BUILD, name)
    if not os.path.exists(path):
        pytest.skip(f"{name} is not built here")
    symbols = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    assert [line.split()[1:] for line in symbols.splitlines()] == [["T", "recoup_plugin_v1"]]
    assert "NODELETE" in subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout


def test_the_hosts_headers_say_which_language_they_need(tmp_path):
    def compiled(header, *flags):
        return subprocess.run(["g++", *flags, "-fsyntax-only", "-Wall", "-Wextra", "-Wconversion", "-Wshadow",
                               "-Werror", *INCLUDES, "-x", "c++", "-"], input=f'#include "{header}"\n',
                              capture_output=True, text=True)

    old = compiled("recoup/host.hpp", "-std=c++14")
    assert old.returncode != 0 and "recoup/host.hpp needs C++17: compile with -std=c++17" in old.stderr
    for standard in ("c++17", "c++20", "c++23"):
        for header in ("host.hpp", "layer.hpp", "region.hpp", "load.h", "plugin.h"):
            assert compiled(f"recoup/{header}", f"-std={standard}").stderr == ""
    for standard in ("c99", "c11", "c2x"):
        for header in ("plugin.h", "load.h"):
            subprocess.run(["gcc", f"-std={standard}", "-pedantic-errors", "-Wall", "-Wextra", "-Werror",
                            "-Wno-unused-function", "-fsyntax-only", *INCLUDES, "-x", "c", "-"],
                           input=f'#include "recoup/{header}"\n', text=True, check=True)
