"""Hosts and libraries of every landed version of the contract, against each other.

A host compiled with each landed plugin.h (a copy for each minor version lies here) against today's
library, and today's hosts against a library built from each landed version (out of the history).
All load, decide alike and write inside the structs.
"""
import os
import re
import shutil
import subprocess

import pytest

from conftest import BUILD, ROOT

HERE = os.path.join(ROOT, "tests", "contract")
INCLUDES = ["-I", os.path.join(ROOT, "plugin", "include"), "-I", os.path.join(ROOT, "hooks", "include"), "-I", HERE]
HEADERS = {"1.0": '"plugin_1_0.h"', "1.1": '"plugin_1_1.h"', "today": '"recoup/plugin.h"'}
LANDED = {"1.0": "2df7480"}  # minor version: the last commit that spoke it
# Leaks are the walk's part (walk_test.py): in these programs the leak sanitizer's tracer crashed now and then.
CLEAN = {**{k: v for k, v in os.environ.items() if not k.startswith("RECOUP_")}, "ASAN_OPTIONS": "detect_leaks=0"}
LAYERS = 12
SELECTIVE = "recompute_granularity: selective\n"
OPTIONS = {
    "nothing": "",
    "mlp of the first": SELECTIVE + "recompute_modules: [mlp]\nrecompute_mlp_num_layers: 5\n",
    "the last ones": SELECTIVE + "recompute_modules: [core_attn, mlp]\nrecompute_mlp_layers: last-3-\n",
    "experts": SELECTIVE + "recompute_modules: [moe, mlp]\n",
    "activation": SELECTIVE + "recompute_modules: [mlp]\nmlp_recompute_level: activation\n",
    "distributed": SELECTIVE + "recompute_modules: [mlp]\ndistribute_saved_activations: true\n",
    "by stage": SELECTIVE + "recompute_modules: [mlp]\nrecompute_layer_scope: stage\nrecompute_mlp_num_layers: 2\n",
    "blocks": "recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 4\n",
    "uniform": "recompute_granularity: full\nrecompute_method: uniform\nrecompute_num_layers: 3\n",
    "refused": SELECTIVE + "recompute_modules: [mlp]\nrecompute_mlp_num_layers: 0\n",
}


def run(host, library, yaml):
    return subprocess.run([host, library, yaml, str(LAYERS)], capture_output=True, text=True, env=CLEAN)


@pytest.fixture(scope="session")
def hosts(tmp_path_factory):
    """{version: program}, in C with each header and in C++ with today's."""
    folder = tmp_path_factory.mktemp("hosts")
    checks = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-Wall", "-Wextra", "-Werror"]
    programs = {}
    for version, header in HEADERS.items():
        programs[version] = folder / f"c-{version}"
        subprocess.run(["gcc", "-std=c11", *checks, f"-DPLUGIN_HEADER={header}", *INCLUDES,
                        os.path.join(HERE, "decide.c"), "-ldl", "-o", programs[version]], check=True)
    programs["today in C++"] = folder / "cc-today"
    subprocess.run(["g++", "-std=c++17", *checks, *INCLUDES, os.path.join(HERE, "decide.cc"), "-ldl",
                    "-o", programs["today in C++"]], check=True)
    return programs


def built(version):
    """The policy library of a landed version, built once in the build folder."""
    if version == "today":
        return os.path.join(BUILD, "librecoup_policy.so")
    commit = LANDED[version]
    if subprocess.run(["git", "-C", ROOT, "cat-file", "-e", commit + "^{commit}"], capture_output=True).returncode:
        pytest.skip(f"no history here: version {version} is commit {commit} (git fetch --unshallow)")
    folder = os.path.join(BUILD, "contract", commit)
    library = os.path.join(folder, "build", "librecoup_policy.so")
    if not os.path.exists(library):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        archive = os.path.join(folder, "source.tar")
        subprocess.run(["git", "-C", ROOT, "archive", "-o", archive, commit], check=True)
        subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
        subprocess.run(["cmake", "-S", folder, "-B", os.path.join(folder, "build"), "-DRECOUP_TORCH=OFF",
                        "-DBUILD_TESTING=OFF"], check=True, capture_output=True)
        subprocess.run(["cmake", "--build", os.path.join(folder, "build"), "--target", "recoup_policy"],
                       check=True, capture_output=True)
    return library


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("host, library", [("1.0", "today"), ("1.1", "today"), ("1.1", "1.0"), ("today", "1.0"),
                                           ("today in C++", "1.0"), ("today in C++", "today")])
def test_versions_decide_alike(hosts, host, library, options):
    expected = run(hosts["today"], built("today"), OPTIONS[options])
    got = run(hosts[host], built(library), OPTIONS[options])
    assert (got.returncode, got.stdout) == (expected.returncode, expected.stdout), got.stderr
    assert expected.returncode == (1 if options == "refused" else 0), expected.stderr
    assert len(expected.stdout.splitlines()) == (1 if options == "refused" else LAYERS)


@pytest.mark.parametrize("options, named", [
    ("blocks", "recompute_granularity: full"), ("distributed", "distribute_saved_activations"),
    ("by stage", "recompute_layer_scope: stage"), ("mlp of the first", None)])
def test_a_host_of_1_0_is_told_what_nobody_could_check(hosts, options, named):
    said = [line for line in run(hosts["1.0"], built("today"), OPTIONS[options]).stderr.splitlines()
            if "contract 1.0" in line]
    assert said == [] if named is None else len(said) == 1 and named in said[0]


def declarations(text):
    """A header without its comments and the layout of its lines."""
    return re.sub(r"/\*.*?\*/|\s+", " ", text, flags=re.S).split()


def header(name):
    with open(os.path.join(ROOT, name)) as file:
        return file.read()


def test_the_copies_are_what_landed():
    """A copy that was touched would prove nothing."""
    for version, commit in LANDED.items():
        if subprocess.run(["git", "-C", ROOT, "cat-file", "-e", commit], capture_output=True).returncode:
            pytest.skip("no history here")
        landed = subprocess.run(["git", "-C", ROOT, "show", f"{commit}:plugin/include/recoup/plugin.h"],
                                capture_output=True, text=True, check=True).stdout
        assert header("tests/contract/" + HEADERS[version].strip('"')) == landed, version


def test_todays_header_is_the_copy_of_its_version_or_a_new_one():
    """Who appends to plugin.h raises RECOUP_ABI_MINOR, and the copy of the version before stays."""
    today = header("plugin/include/recoup/plugin.h")
    minor = re.search(r"#define RECOUP_ABI_MINOR (\d+)u", today)[1]
    copy = os.path.join(HERE, f"plugin_1_{minor}.h")
    assert os.path.exists(copy), f"copy plugin.h to {copy}, and name it in HEADERS"
    assert declarations(header(copy)) == declarations(today), \
        f"plugin.h differs from version 1.{minor}; where that has landed, raise RECOUP_ABI_MINOR"
