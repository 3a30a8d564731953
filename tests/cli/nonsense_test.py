"""The 93 inputs of the kinds that its predecessor in Python was tried with (17 of them gave a traceback, others
were taken for sense): exit status 1 and one sentence that names the file or the flag, or CLI11's usage error;
never a crash, never a plan, within seconds and a gigabyte."""
import json
import resource
import subprocess
import os

import pytest

from conftest import BUILD
from plan_test import LLAMA_8B

DEEP = "[" * 100_000
SHAPE = "layers: 4\nhidden: 64\nheads: 4\nsequence: 32\nvocabulary: 256\n"
HF = '{"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 64'


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))


def refused(*arguments):
    """What a run that was refused says: its sentence."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RECOUP_")}
    done = subprocess.run([os.path.join(BUILD, "recoup"), *map(str, arguments)], capture_output=True,
                          env=clean, preexec_fn=limit, timeout=120)
    errors = done.stderr.decode()
    assert done.returncode in (1, 2) and errors, (arguments, done)
    assert "recompute_granularity" not in done.stdout.decode()
    if done.returncode == 1:
        assert errors.splitlines()[-1].startswith("recoup: ")
        assert [line for line in errors.splitlines() if not line.startswith("assumed: ")] == errors.splitlines()[-1:]
    return errors.splitlines()[-1] if done.returncode == 1 else errors


@pytest.fixture
def llama(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_8B))
    return path


BUDGETS = ["0", "-1", "1e9", "nan", "inf", "1.2.3GB", "", "GB", "1EB", "12gib", "1,5GB", "\u0661GB", "1GBB", ".",
           "999999999TiB", "90%", "auto", "1" * 400]
FLAGS = ["--tensor-parallel=0", "--tensor-parallel=-1", "--tensor-parallel=3", "--pipeline-parallel=1e3",
         "--pipeline-parallel=33", "--sequence=99999999999999999999", "--sequence=-0x10", "--microbatch=9223372036854775808",
         "--microbatches=1.5", "--schedule=magic", "--schedule=interleaved", "--flops-per-second=nan",
         "--flops-per-second=1", "--bytes-per-second=-1e12", "--bytes-per-second=3", "--stages=16,17", "--stages=0x32,",
         "--stages=1x100000", "--expert-parallel=2", "--zero=4", "--sequence-parallel=maybe", "--context-parallel=3",
         "--virtual-stages=2", "--first-stage=32", "--precision=int3"]
OUTPUTS = ["/no/such/x.yaml", "/dev/full", "/proc/x"]


@pytest.mark.parametrize("budget", BUDGETS, ids=range(len(BUDGETS)))
def test_budgets(llama, budget):
    assert "--budget" in refused("plan", "--model", llama, f"--budget={budget}")


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_of_a_plan(llama, flag):
    said = refused("plan", "--model", llama, "--budget", "160GiB", flag)
    assert flag.split("=")[0].lstrip("-").split("-")[0] in said


@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs(llama, output):
    said = refused("plan", "--model", llama, "--budget", "160GiB", "-o", output)
    assert said.startswith(f"recoup: {output}: cannot be written")


MODELS = [
    b"", b"\0", b"\xff\xfe", b"{", b"[]", DEEP.encode(), b"null", b"1e400", b'{"a": 1e400}', b"---\n---\n", b",\n",
    b"layers: [1]\n", b"layers: 1\nhidden: .inf\n", b"layers: 1\nlayers: 2\n", b"? {a: b}\n: c\n", b"\xe9t\xe9: 1\n",
    b"&a [*a]\n", b"--num-layers\n", b"--num-layers -5\n", b"--num-layers 1e9",
    (SHAPE + "dropout: 2\n").encode(), (SHAPE + "tensor_parallel: 3\n").encode(),
    SHAPE.replace("heads: 4", "heads: 7").encode(), SHAPE.replace("layers: 4", "layers: 100000000").encode(),
    (SHAPE + "flops_per_second: .nan\n").encode(), (SHAPE + "schedule: gpipe\nmicrobatches: 1000000\n").encode(),
    b'{"num_hidden_layers": 1, "hidden_size": 1, "num_attention_heads": 99999999999999999999}',
    (HF + ', "vocab_size": 1}').encode(), (HF + ', "model_type": 7}').encode(),
    (HF + ', "attention_dropout": -1}').encode(), (HF + ', "num_experts": 4, "mlp_only_layers": "x"}').encode(),
]


@pytest.mark.parametrize("content", MODELS, ids=range(len(MODELS)))
def test_models(tmp_path, content):
    path = tmp_path / "model.any"
    path.write_bytes(content)
    said = refused("plan", "--model", path, "--budget", "1MB")
    assert said.startswith(f"recoup: {path}:")


@pytest.mark.parametrize("content", [DEEP.encode(), b"a: 1\n", b"--num-layers 4"], ids=range(3))
def test_a_file_that_is_called_json_is_read_as_json(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert f"{path}: not valid JSON" in refused("estimate", "--model", path) or "nested deeper" in refused(
        "estimate", "--model", path)


MEASURED = [
    b"", b"\0", b"\xff\xfe", b"[]", b"{}", DEEP.encode(), b'{"traceEvents": 7}', b'{"traceEvents": [1]}',
    b'{"traceEvents": [{"name": "layer 1 mlp", "dur": "long"}]}', b"recoup timeline 1\n", b"recoup timeline 2\n",
    b"recoup timeline 1\nunit layer 1\n", b"recoup timeline 1\nend -1 99999999999999999999 1\n",
    b'{"recoup_profile": 1, "regions": [{"layer": 1, "part": "mlp"}]}',
]


@pytest.mark.parametrize("content", MEASURED, ids=range(len(MEASURED)))
def test_measured_files(tmp_path, content):
    path = tmp_path / "measured"
    path.write_bytes(content)
    assert refused("explain", path).startswith(f"recoup: {path}:")


@pytest.mark.parametrize("path, why", [("/no/such", "cannot be read (No such file or directory); name an existing {}"),
                                       ("/", "is a folder; name a {}"),
                                       ("/proc/self/mem", "cannot be read (Input/output error); name an existing {}")])
def test_paths(path, why):
    assert refused("estimate", "--model", path) == f"recoup: {path}: {why.format('model file')}"
    assert refused("check", path) == f"recoup: {path}: {why.format('YAML file')}"
    assert why.split(";")[0] in refused("explain", path)


def test_there_are_93():
    assert len(BUDGETS) + len(FLAGS) + len(OUTPUTS) + len(MODELS) + len(MEASURED) + 2 == 93
