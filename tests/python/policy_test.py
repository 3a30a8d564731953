"""The policy from Python, through the contract: no torch is imported by it."""
import ctypes
import os
import subprocess
import sys

import pytest

import recoup
from recoup import _contract

TWO = "recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_num_layers: 2\n"
PACKAGE = os.path.dirname(os.path.dirname(recoup.__file__))


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/",
                          env={**os.environ, "PYTHONPATH": PACKAGE, **environment})


def test_the_policy_imports_no_torch():
    done = python(f"import recoup, sys; p = recoup.Policy('t', yaml={TWO!r}, num_layers=3);"
                  "print([p.decide(n).mlp for n in (1, 2, 3)], 'torch' in sys.modules, recoup.known_modules())")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[True, True, False] False ('core_attn', 'mlp', ")
    assert done.stderr.splitlines()[-1].startswith("Layer 3: recompute_mlp=False")


def test_decisions():
    lines = []
    policy = recoup.Policy("t", yaml=TWO, num_layers=3, log=lines.append)
    assert policy.layer(1) == {"mlp"} and policy.layer(3) == frozenset()
    assert policy.layer(1, is_moe=True) == frozenset()
    decision = policy.decide(2)
    assert decision.mlp and not decision.mlp_activation_only and decision.full_group == 0
    before = len(lines)
    policy.decide(2, query=True)
    assert len(lines) == before


def test_full_is_a_capability():
    full = "recompute_granularity: full\nrecompute_method: block\nrecompute_num_layers: 2\n"
    policy = recoup.Policy("t", yaml=full, num_layers=3, capabilities=["full"], log=lambda line: None)
    assert [policy.full_group(n) for n in (1, 2, 3)] == [1, 1, 0]
    with pytest.raises(recoup.RecoupError, match="does not recompute whole layers"):
        recoup.Policy("t", yaml=full, num_layers=3)


@pytest.mark.parametrize("options, words", [
    (dict(yaml="recompute_granularity: selectiv\n"), ["options:1", "recompute_granularity", "selective"]),
    (dict(config="/no/such.yaml"), ["/no/such.yaml"]),
    (dict(config="/no/such.yaml", yaml=TWO), ["/no/such.yaml"]),
    (dict(yaml=TWO, modules=["mpl"]), ['"mpl" is no module', "core_attn"]),
    (dict(yaml=TWO, modules=["core_attn"]), ["mlp"]),
    (dict(yaml=TWO, capabilities=["fly"]), ['"fly" is no capability', "full"]),
])
def test_refusals(options, words):
    with pytest.raises(recoup.RecoupError) as error:
        recoup.Policy("t", num_layers=3, **options)
    assert all(word in str(error.value) for word in words), error.value


def test_a_layer_that_is_none_is_refused():
    policy = recoup.Policy("t", yaml=TWO, num_layers=3, log=lambda line: None)
    with pytest.raises(recoup.RecoupError, match="numbered"):
        policy.decide(0)


def test_environment(monkeypatch):
    monkeypatch.delenv("RECOUP_CONFIG", raising=False)
    monkeypatch.setenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS", "1")
    assert recoup.environment() == "environment variable RECOUP_RECOMPUTE_MLP_NUM_LAYERS"
    monkeypatch.delenv("RECOUP_RECOMPUTE_MLP_NUM_LAYERS")
    assert recoup.environment() == ""


class TestTables:
    """Shorter tables (older libraries) and longer ones are spoken to alike."""

    def table(self):
        return _contract.load(recoup.plugin_path())

    def shortened(self, field):
        table = self.table()
        copy = type(table)()
        ctypes.memmove(ctypes.byref(copy), ctypes.byref(table), ctypes.sizeof(copy))
        copy.struct_size = getattr(type(table), field).offset
        return copy

    def test_the_modules_are_the_librarys(self):
        table = self.table()
        assert _contract.has(table, "module") and _contract.modules(table)["mlp"] == 2
        assert _contract.modules(table).items() >= _contract.FIRST_MODULES.items()

    def test_a_table_without_what_came_later(self, monkeypatch):
        old = self.shortened("abi_minor")
        assert not _contract.has(old, "module") and _contract.modules(old) == _contract.FIRST_MODULES
        monkeypatch.setenv("RECOUP_CONFIG", "x.yaml")
        assert _contract.configured(old) == "environment variable RECOUP_CONFIG"
        monkeypatch.delenv("RECOUP_CONFIG")
        monkeypatch.setattr("recoup.policy._table", lambda: old)
        policy = recoup.Policy("t", yaml=TWO, num_layers=3, log=lambda line: None)
        assert [policy.decide(n).mlp for n in (1, 2, 3)] == [True, True, False]

    def test_a_longer_table(self):
        table = self.table()
        longer = type("Longer", (ctypes.Structure,), {
            "_fields_": type(table)._fields_ + [("more", ctypes.c_void_p)]})
        assert ctypes.sizeof(longer) > ctypes.sizeof(type(table))
        copy = type(table)()
        ctypes.memmove(ctypes.byref(copy), ctypes.byref(table), ctypes.sizeof(copy))
        copy.struct_size = ctypes.sizeof(longer)
        assert _contract.has(copy, "finalize") and _contract.has(copy, "module")

    def test_the_mirror_has_the_headers_sizes(self, tmp_path):
        root = os.path.dirname(os.path.dirname(PACKAGE))
        names = {"layer": _contract.Layer, "host": _contract.Host, "plugin": _contract.Plugin,
                 "module_info": _contract.ModuleInfo}
        code = "#include <stdio.h>\n#include \"recoup/plugin.h\"\nint main(void) {\n"
        for name, mirror in names.items():
            last = mirror._fields_[-1][0]
            code += (f'printf("{name} %zu %zu\\n", sizeof(recoup_{name}_v1), '
                     f"offsetof(recoup_{name}_v1, {last}));\n")
        source, program = tmp_path / "sizes.c", tmp_path / "sizes"
        source.write_text(code + "return 0; }\n")
        subprocess.run(["cc", "-I", f"{root}/plugin/include", "-I", f"{root}/hooks/include", str(source), "-o",
                        str(program)], check=True)
        out = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
        assert out.split() == [str(v) for name, mirror in names.items() for v in (
            name, ctypes.sizeof(mirror), getattr(mirror, mirror._fields_[-1][0]).offset)]

    def test_no_plugin(self, tmp_path):
        garbage = tmp_path / "garbage.so"
        garbage.write_text("no library")
        with pytest.raises(ImportError, match="garbage.so is no plugin that can be loaded"):
            _contract.load(str(garbage))


def test_nothing_built_is_one_sentence(tmp_path):
    done = python("import recoup\ntry: recoup.Policy('t')\nexcept ImportError as e: print(e)",
                  RECOUP_BUILD=str(tmp_path))
    assert done.stdout.startswith(f"recoup: librecoup_policy.so is not in {tmp_path}; install the package")
