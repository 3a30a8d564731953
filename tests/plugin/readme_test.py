"""plugin/README.md: its code compiles and runs, its tables are the code's."""
import glob
import importlib.util
import os
import re
import subprocess

import pytest

from conftest import BUILD, ROOT

README = open(os.path.join(ROOT, "plugin", "README.md")).read()
BLOCKS = re.findall(r"(<!-- not run: [^\n]+ -->\n)?```(\w*)\n(.*?)```", README, re.S)
INCLUDES = ["-I", os.path.join(ROOT, "plugin", "include"), "-I", os.path.join(ROOT, "hooks", "include")]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("RECOUP_")}
YAML = "recompute_granularity: selective\nrecompute_modules: [core_attn, mlp]\n" \
       "recompute_mlp_num_layers: 2\nmlp_activation_layers: 2\n"


def block(language, number=0):
    return [code for mark, of, code in BLOCKS if of == language and not mark][number]


def test_every_block_is_run_or_says_why_not():
    run = [of for mark, of, _ in BLOCKS if not mark]
    assert run == ["cpp", "cpp", "sh"]
    assert [of for mark, of, _ in BLOCKS if mark] == ["cmake", "text", "text"]


def test_the_whole_host(tmp_path):
    library = os.path.join(BUILD, "librecoup.so")
    if not os.path.exists(library):
        pytest.skip("librecoup.so is not built here")
    torch = importlib.util.find_spec("torch").submodule_search_locations[0]
    (tmp_path / "host.cc").write_text(block("cpp"))
    subprocess.run(["g++", "-std=c++17", "-w", *INCLUDES, "-isystem", f"{torch}/include", "-isystem",
                    f"{torch}/include/torch/csrc/api/include", tmp_path / "host.cc", f"-L{torch}/lib", "-ltorch",
                    "-ltorch_cpu", "-lc10", "-Wl,--unresolved-symbols=ignore-in-shared-libs", "-ldl",
                    f"-Wl,-rpath,{torch}/lib", "-o", tmp_path / "host"], check=True)
    (tmp_path / "two.yaml").write_text(
        "recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_num_layers: 2\n")
    ran = subprocess.run([tmp_path / "host", library, tmp_path / "two.yaml"], capture_output=True, text=True, env=CLEAN)
    assert ran.returncode == 0 and ran.stdout.startswith("trained with recoup "), ran.stderr
    assert re.findall(r"Layer (\d): recompute_mlp=(\w+)", ran.stderr) == [
        ("1", "True"), ("2", "True"), ("3", "False"), ("4", "False")]
    assert "WARNING" not in ran.stderr
    missing = subprocess.run([tmp_path / "host", "/no/such.so", "x"], capture_output=True, text=True, env=CLEAN)
    assert missing.returncode == 1 and "give the path of librecoup.so" in missing.stderr


def test_more_than_the_mlp(tmp_path):
    """With numbers for tensors, and no plugin: what a host's forward computes."""
    source = "#include <algorithm>\n#include <cstdio>\n#include <tuple>\n" + block("cpp", 1) + """
struct Layer {
  recoup::Layer recoup;
  double forward(double x) { return x + 1; }
};
int main() {
  const double y = layer_forward(
      recoup::Layer(), [](double x) { return std::pair(x, 2 * x); }, [](double g, double u) { return g * u; },
      [](double q, double k, double v) { return q + k + v; }, 1.0, 2.0, 3.0);
  std::vector<std::shared_ptr<Layer>> layers(3, std::make_shared<Layer>());
  std::printf("%g %g\\n", y, model_forward(layers, 4.0));
}
"""
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", *INCLUDES, "-x", "c++", "-", "-ldl", "-o",
                    tmp_path / "more"], input=source, text=True, check=True)
    assert subprocess.run([tmp_path / "more"], capture_output=True, text=True).stdout == "72 7\n"


def test_the_policy_alone(tmp_path):
    ran = subprocess.run(["bash", "-ec", block("sh")], cwd=ROOT, capture_output=True, text=True,
                         env={**CLEAN, "BUILD": str(tmp_path / "build")})
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "build" / "librecoup_policy.so").exists()


def test_the_table_of_variables_is_the_codes():
    read = set()
    for folder in ("plugin/*", "plugin/include/recoup/*", "hooks/*/*"):
        for path in glob.glob(os.path.join(ROOT, folder)):
            if path.endswith((".cc", ".h", ".hpp")):
                read |= set(re.findall(r'(?:getenv\(|Variable\[\] = )"(RECOUP_\w+)"', open(path).read()))
    table = README.split("## Environment variables")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(RECOUP_\w+)` \|", table, re.M)) == read


def test_the_options_are_the_headers():
    table = README.split("## HostOptions")[1].split("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`[^|]+) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    header = open(os.path.join(ROOT, "plugin", "include", "recoup", "host.hpp")).read()
    struct = re.sub(r"//.*", "", header.split("struct HostOptions {")[1].split("\n};")[0])
    struct = re.sub(r"struct \w+ \{.*?\};", "", struct, flags=re.S)  # a type of a field
    fields = re.findall(r"(\w+)(?: = [^;,]+)?[;,]", re.sub(r"\([^)]*\)|<[^;]*>", "", struct))
    assert named == set(fields)


def test_the_log_is_as_shown(tmp_path):
    program = tmp_path / "decide"
    subprocess.run(["g++", "-std=c++17", *INCLUDES, os.path.join(ROOT, "tests", "contract", "decide.cc"), "-ldl", "-o",
                    program], check=True)
    ran = subprocess.run([program, os.path.join(BUILD, "librecoup_policy.so"), YAML, "4"], capture_output=True,
                         text=True, env=CLEAN)
    shown = [code for _, of, code in BLOCKS if of == "text"][0]
    assert ran.stderr == shown
