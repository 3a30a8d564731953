"""recoup/host.h, in every language that it is for: the host in its comment is compiled and run."""
import os
import re
import subprocess

import pytest

from conftest import BUILD, ROOT

HEADER = os.path.join(ROOT, "plugin", "include", "recoup", "host.h")
POLICY = os.path.join(BUILD, "librecoup_policy.so")
INCLUDES = ["-I", os.path.dirname(os.path.dirname(HEADER)), "-I", os.path.join(ROOT, "hooks", "include")]
STANDARDS = ["c99", "c11", "c17", "c2x", "c++17", "c++20"]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("RECOUP_")}
YAML = "recompute_granularity: selective\nrecompute_modules: [mlp]\n"


def example():
    """The host that the header's comment shows."""
    comment = open(HEADER).read().split("*/")[0]
    return "\n".join(line[4:].lstrip(" ") if line.strip() == "*" else line[5:]
                     for line in comment.splitlines() if re.match(r" \*   ", line)) + "\n"


def build(folder, source, standard):
    language = "c++" if "++" in standard else "c"
    program = folder / f"host-{standard}"
    subprocess.run(["g++" if language == "c++" else "gcc", "-x", language, f"-std={standard}", "-pedantic-errors",
                    "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers", *INCLUDES, "-", "-ldl",
                    "-o", program], input=source, text=True, check=True)
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("c"), example(), "c99")


def run(program, *arguments, **environment):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True,
                          env={**CLEAN, "RECOUP_PLUGIN": POLICY, **environment})


@pytest.mark.parametrize("standard", STANDARDS)
def test_the_example_of_the_comment(standard, tmp_path):
    program = build(tmp_path, example(), standard)
    (tmp_path / "two.yaml").write_text(YAML + "recompute_mlp_num_layers: 2\n")
    ran = run(program, tmp_path / "two.yaml")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ("layer 1: recompute the MLP\nlayer 2: recompute the MLP\n"
                          "layer 3: keep all\nlayer 4: keep all\n")
    assert re.findall(r"Layer (\d): recompute_mlp=(\w+)", ran.stderr) == [
        ("1", "True"), ("2", "True"), ("3", "False"), ("4", "False")]


def test_without_any_option_nothing_is_recomputed(program):
    for plugin in ("", POLICY):  # none named: none is looked for
        ran = run(program, RECOUP_PLUGIN=plugin)
        assert (ran.returncode, ran.stdout.count("keep all"), ran.stderr) == (0, 4, "")
    ran = run(program, RECOUP_PLUGIN="/no/such.so")
    assert ran.returncode == 1 and "/no/such.so" in ran.stderr


def test_options_from_the_environment(program, tmp_path):
    (tmp_path / "all.yaml").write_text(YAML)
    assert run(program, RECOUP_CONFIG=str(tmp_path / "all.yaml")).stdout.count("recompute the MLP") == 4
    assert run(program, RECOUP_RECOMPUTE_MLP_NUM_LAYERS="3").stdout.count("recompute the MLP") == 3


def test_more_layers_than_there_are_is_said(program):
    ran = run(program, RECOUP_RECOMPUTE_MLP_NUM_LAYERS="9")
    assert ran.stdout.count("recompute the MLP") == 4
    assert "WARNING" in ran.stderr and "9" in ran.stderr


@pytest.mark.parametrize("yaml, wanted", [
    (YAML + "recompute_mlp_num_layers: twelve\n", "bad.yaml:3:1: recompute_mlp_num_layers"),
    (YAML + "recompute_mlp_num_layers: 0\n", "bad.yaml:3:1: recompute_mlp_num_layers"),
    ("recompute_granularity: selective\nrecompute_modules: [core_attn]\n", "core_attn"),
    ("recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 2\n", "RECOUP_CAN_FULL"),
    (YAML + "recompute_layer_scope: stage\n", "stage"),
])
def test_bad_options_start_nothing(program, tmp_path, yaml, wanted):
    (tmp_path / "bad.yaml").write_text(yaml)
    ran = run(program, tmp_path / "bad.yaml")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert wanted in ran.stderr and ran.stderr.count("\n") == 1


def test_a_missing_file_or_plugin_is_named_with_what_to_do(program, tmp_path):
    ran = run(program, "/no/such.yaml")
    assert ran.returncode == 1 and "/no/such.yaml: cannot be read" in ran.stderr
    (tmp_path / "all.yaml").write_text(YAML)
    ran = run(program, tmp_path / "all.yaml", RECOUP_PLUGIN="/no/such.so")
    assert ran.returncode == 1 and ran.stdout == ""
    assert "cannot load the plugin /no/such.so" in ran.stderr and "librecoup_policy.so" in ran.stderr
    assert "built with this host's LibTorch" not in ran.stderr  # it has none
    (tmp_path / "text.so").write_text("no library")
    assert "cannot load the plugin" in run(program, tmp_path / "all.yaml", RECOUP_PLUGIN=str(tmp_path / "text.so")).stderr


def test_a_library_that_is_no_plugin_or_another_one(program, tmp_path):
    (tmp_path / "all.yaml").write_text(YAML)
    for name, source in {
            "other": "int other;",
            "data": "int recoup_plugin_v1 = 3;",
            "newer": "const void* recoup_plugin_v1(unsigned v) { (void)v; return 0; }",
            "hookless": '#include "recoup/plugin.h"\n'
                        "static recoup_status init(void** p, const recoup_host_v1* h, char* e, size_t n)"
                        "{ (void)p, (void)h, (void)e, (void)n; return RECOUP_OK; }\n"
                        "static void finalize(void* p) { (void)p; }\n"
                        "static const recoup_plugin_v1 api = {.struct_size = sizeof(recoup_plugin_v1),"
                        ".abi_version = RECOUP_ABI_VERSION, .init = init, .finalize = finalize};\n"
                        "const recoup_plugin_v1* entry(uint32_t) __asm__(RECOUP_ENTRY_SYMBOL);\n"
                        "const recoup_plugin_v1* entry(uint32_t v) { return v == 1 ? &api : 0; }"}.items():
        library = tmp_path / f"{name}.so"
        subprocess.run(["gcc", "-x", "c", "-std=gnu2x", "-shared", "-fPIC", *INCLUDES, "-", "-o", library],
                       input=source, text=True, check=True)
        ran = run(program, tmp_path / "all.yaml", RECOUP_PLUGIN=str(library))
        assert ran.returncode == 1 and ran.stdout == ""
        assert {"hookless": "registered no layer-construction hook",
                "data": "is data, not a function"}.get(name, "from the same recoup") in ran.stderr
