"""Stages that run what is built: the engine's tests, and the trainer with a sweep over N."""
import glob
import json
import os
import shutil
import subprocess
import sys

from run import ROOT, Skip, check

SWEEP = os.path.join(ROOT, "examples", "gpt", "sweep.py")


def say(command, **more):
    """Runs it with its output in the log."""
    print("+", " ".join(map(str, command)), flush=True)
    return subprocess.run(command, **more)


def engine(context):
    environment = {**os.environ, "RECOUP_TEST_DEVICE": context.device}
    failed = [name for name in ("engine_gpu_test", "checkpoint_test")
              if say([context.program(name), "--gtest_brief=1"], env=environment).returncode]
    check(not failed, f"{' and '.join(failed)}: the log says which tests")


def memcheck(context):
    if context.dry:
        raise Skip("compute-sanitizer watches GPUs only")
    tool = shutil.which("compute-sanitizer") or next(
        iter(glob.glob(os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "compute-sanitizer"))), None)
    if tool is None:
        raise Skip("compute-sanitizer is not installed")
    done = say([tool, "--error-exitcode", "9", "--print-limit", "5", context.program("engine_gpu_test"),
                "--gtest_filter=*SameBits:*Dropout*:*AnotherStream"],
               env={**os.environ, "RECOUP_TEST_DEVICE": "cuda", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    check(done.returncode == 0, f"compute-sanitizer ended with status {done.returncode}")


def a_text(context):
    """A text to train on: the pack's, or this repository's own."""
    packed = os.path.join(ROOT, "build-gpu-pack", "text.txt")
    if os.path.exists(packed):
        return packed
    path = os.path.join(context.output, "text.txt")
    with open(path, "wb") as out:
        for name in sorted(glob.glob(os.path.join(ROOT, "hooks", "*", "*.cc")) +
                           glob.glob(os.path.join(ROOT, "plugin", "*.cc"))):
            with open(name, "rb") as file:
                out.write(file.read())
    return path


def trainer(context):
    layers, steps = (4, 4) if context.dry else (12, 20)
    sizes = {"hidden": 64, "ffn": 256, "heads": 2, "context": 32, "batch": 2} if context.dry else {
        "hidden": 1024, "ffn": 4096, "heads": 16, "context": 512, "batch": 8}
    folder = os.path.join(context.output, "trainer")
    command = [sys.executable, SWEEP, "--trainer", context.program("gpt_trainer"),
               "--plugin", context.program("librecoup.so"), "--text", a_text(context), "--layers", str(layers),
               "--n", "0", str(layers // 2), str(layers), "--steps", str(steps), "--rounds", "2",
               "--json", folder + ".table.json", "--device", context.device]
    for flag, value in sizes.items():
        command += [f"--{flag}", str(value)]
    check(say(command).returncode == 0, "the sweep: the log says what")
    with open(folder + ".table.json") as file:
        return {"layers": layers, **sizes, "rows": json.load(file)}
