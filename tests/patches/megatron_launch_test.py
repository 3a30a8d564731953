"""recoup.megatron as jobs start it: the launcher, imports at any time, Megatron's command line."""
import os
import subprocess
import sys

import pytest

import megatron_versions as megatron

ROOT = megatron.ROOT
PACKAGE = os.path.join(ROOT, "plugin", "python")

# A script of ours that stands for a job's: it finds Megatron itself, as pretrain scripts do.
SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import cpu_megatron as cpu
gpt = cpu.model({options})
print("mlp", [int(layer.recompute_mlp) for layer in gpt.decoder.layers], sys.argv[1:])
"""

# Megatron's own parser is in no wheel: a stand-in with the functions that recoup changes.
ARGUMENTS = '''
import argparse
import dataclasses

from megatron.core.transformer import TransformerConfig


def add_megatron_arguments(parser):
    parser.add_argument("--num-layers", type=int)
    parser.add_argument("--recompute-granularity", choices=["full", "selective"])
    parser.add_argument("--recompute-modules", nargs="*")
    parser.add_argument("--recompute-activations", action="store_true")
    return parser


def parse_args():
    return add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)).parse_args()


def validate_args(args, defaults={}):
    if args.recompute_activations:
        args.recompute_granularity = "selective"
    return args


def core_transformer_config_from_args(args, **more):
    known = {f.name for f in dataclasses.fields(TransformerConfig)}
    return dict({k: v for k, v in vars(args).items() if k in known}, **more)
'''
JOB = """
import cpu_megatron as cpu
from megatron.training.arguments import core_transformer_config_from_args, parse_args, validate_args
args = validate_args(parse_args())
gpt = cpu.model(**core_transformer_config_from_args(args))
print("mlp", [int(layer.recompute_mlp) for layer in gpt.decoder.layers])
"""


def start(*command, paths=(), **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RECOUP_") or k == "RECOUP_BUILD"}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300,
                          env={**clean, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
                               "PYTHONPATH": os.pathsep.join([*map(str, paths), PACKAGE]), **environment})


def result(done):
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stdout.splitlines() if line.startswith("mlp"))


@pytest.fixture(scope="module")
def tree():
    return megatron.wheel(megatron.VERSIONS[-1])


@pytest.fixture
def yaml(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("recompute_granularity: selective\nrecompute_modules: [mlp]\nrecompute_mlp_num_layers: 2\n")
    return path


@pytest.fixture
def script(tmp_path, tree):
    path = tmp_path / "job" / "pretrain.py"
    path.parent.mkdir()

    def write(options="", first=""):
        path.write_text(first + SCRIPT.format(paths=[tree, megatron.HERE], options=options))
        return path
    return write


def test_help_needs_neither_torch_nor_megatron_nor_a_library():
    done = subprocess.run([sys.executable, "-S", "-m", "recoup.megatron", "--help"], capture_output=True,
                          text=True, env={"PYTHONPATH": PACKAGE, "RECOUP_BUILD": "/nowhere"})
    assert done.returncode == 0 and "--recompute-MODULE-num-layers" in done.stdout


def test_what_is_wrong_is_one_sentence(tmp_path):
    for arguments, message in [([], "give the script to run"), (["no.py"], "no.py: no such script"),
                               (["-m"], "expected one argument"),
                               (["patch", "apply", tmp_path], "give the folder of Megatron-LM")]:
        done = start("-m", "recoup.megatron", *arguments)
        assert done.returncode and message in done.stderr and "Traceback" not in done.stderr


def test_the_launcher_waits_for_a_script_that_finds_megatron_itself(script, yaml):
    done = start("-m", "recoup.megatron", "--recoup-config", yaml, script(), "--mine", "1")
    assert result(done) == "mlp [1, 1, 0, 0] ['--mine', '1']"
    assert "recoup: INFO: Layer 1: recompute_mlp=True" in done.stderr  # visible by default
    done = start("-m", "recoup.megatron", script(
        "recompute_granularity='selective', recompute_modules=['mlp'], recompute_mlp_num_layers=3"))
    assert result(done) == "mlp [1, 1, 1, 0] []"


def test_an_import_as_the_first_line_before_megatron_can_be_found(script, yaml):
    done = start(script(first="import recoup.megatron\n"), RECOUP_CONFIG=str(yaml))
    assert result(done) == "mlp [1, 1, 0, 0] []"


@pytest.mark.parametrize("before, message", [
    ("config = cpu.config()", "a TransformerConfig was made before recoup.megatron was imported"),
    ("gpt = cpu.model()", "a model was built before recoup.megatron was imported, and RECOUP_CONFIG decides"),
])
def test_late_is_an_error_with_a_sentence(before, message, tree, tmp_path, yaml):
    late = tmp_path / "late.py"
    late.write_text(f"import cpu_megatron as cpu\n{before}\nimport recoup.megatron\n"
                    "cpu.GPTModel(config, cpu.get_gpt_layer_local_spec(), vocab_size=64, max_sequence_length=16)\n")
    done = start(late, paths=[tree, megatron.HERE], RECOUP_CONFIG=str(yaml))
    assert done.returncode == 1 and "RuntimeError: recoup: " + message in done.stderr


def test_late_works_where_it_can(tree, tmp_path, yaml):
    late = tmp_path / "late.py"
    late.write_text("import cpu_megatron as cpu\nimport recoup.megatron\n"
                    "gpt = cpu.model()\nprint('mlp', [int(l.recompute_mlp) for l in gpt.decoder.layers])\n")
    assert result(start(late, paths=[tree, megatron.HERE], RECOUP_CONFIG=str(yaml))) == "mlp [1, 1, 0, 0]"


def test_a_sitecustomize_of_somebody_elses_still_runs(script, yaml, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n")
    done = start("-m", "recoup.megatron", "--recoup-config", yaml, script(), paths=[tmp_path])
    assert result(done) == "mlp [1, 1, 0, 0] []" and "theirs" in done.stdout


@pytest.fixture
def job(tmp_path, tree):
    training = tmp_path / "megatron" / "training"
    training.mkdir(parents=True)
    (training / "__init__.py").write_text("")
    (training / "arguments.py").write_text(ARGUMENTS)
    script = tmp_path / "job.py"
    script.write_text(JOB)
    return lambda *arguments, **environment: start(
        "-m", "recoup.megatron", script, "--num-layers", 4, *arguments,
        paths=[tree, tmp_path, megatron.HERE], **environment)


SELECTIVE = ("--recompute-granularity", "selective", "--recompute-modules", "mlp")


def test_megatrons_command_line_takes_the_options(job, yaml):
    assert result(job(*SELECTIVE, "--recompute-mlp-num-layers", 3)) == "mlp [1, 1, 1, 0]"
    assert result(job(*SELECTIVE, "--recompute-mlp-layers", "!2")) == "mlp [1, 0, 1, 1]"
    assert result(job("--recompute-activations", "--recoup-config", yaml)) == "mlp [1, 1, 0, 0]"


@pytest.mark.parametrize("arguments, message", [
    ((*SELECTIVE, "--recompute-mlp-num-layers", 0), "ValueError: --recompute-mlp-num-layers must be >= 1"),
    (("--recompute-mlp-num-layers", 3),
     "ValueError: --recompute-mlp-num-layers requires --recompute-granularity selective"),
    (("--recompute-granularity", "selective", "--recompute-modules", "core_attn",
      "--recompute-mlp-num-layers", 3),
     'ValueError: --recompute-mlp-num-layers requires "mlp" in --recompute-modules'),
    ((*SELECTIVE, "--recompute-mlp-num-layers", "twelve"), 'argument --recompute-mlp-num-layers: must be an integer >= 1, not "twelve"'),
    ((*SELECTIVE, "--recompute-mlp-num-layers", -1), "ValueError: --recompute-mlp-num-layers must be >= 1"),
])
def test_megatrons_command_line_refuses(arguments, message, job):
    done = job(*arguments)
    assert done.returncode and message in done.stderr
