"""llm.c, patched: the same losses with N layers recomputed, in less memory.

RECOUP_LLMC names a checkout of https://github.com/karpathy/llm.c, of which a copy is patched and
compiled with nvcc for this GPU. Without one, the stand-in of tests/patches is compiled for the CPU.
"""
import array
import os
import random
import re
import shutil
import subprocess
import sys

from programs import say
from run import ROOT, check

PATCH = os.path.join(ROOT, "patches", "llmc", "patch_llmc.py")


def patched(context, source):
    """A patched copy of a checkout."""
    tree = os.path.join(context.output, "llmc")
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns(".git", "*.bin", "build"))
    check(say([sys.executable, PATCH, "apply", tree]).returncode == 0, "the patch does not apply")
    return tree


def train(program, *flags, policy):
    """(losses, the line with the activations' size)"""
    done = subprocess.run([program, *flags], capture_output=True, text=True, cwd=os.path.dirname(program),
                          env={**os.environ, "RECOUP_PLUGIN": policy})
    print(done.stdout[-3000:], done.stderr[-1000:], flush=True)
    check(done.returncode == 0, f"{os.path.basename(program)} {' '.join(flags)} ended with status {done.returncode}")
    # Times differ from run to run; losses and gradient norms (or hashes) must not.
    steps = re.findall(r"^step +\d+/?\d*.*?loss[: ]+([\d.]+)(?:.*?norm ([\d.]+))?", done.stdout, re.M)
    check(len(steps) > 2, f"{os.path.basename(program)} printed no losses")
    return steps, re.findall(r"^.*activations.*$", done.stdout, re.M)[:1]


def stand_in(context):
    tree = os.path.join(context.output, "llmc.stand-in")
    os.makedirs(os.path.join(tree, "llmc"), exist_ok=True)
    shutil.copy(os.path.join(ROOT, "tests", "patches", "llmc", "standin.c"), os.path.join(tree, "train_gpt2.c"))
    with open(os.path.join(tree, "llmc", "dataloader.h"), "w") as file:
        file.write("#define DATALOADER\n")
    check(say([sys.executable, PATCH, "apply", tree]).returncode == 0, "the patch does not apply")
    program = os.path.join(tree, "train_gpt2")
    check(say(["gcc", "-O2", program + ".c", "-o", program, "-lm", "-ldl"]).returncode == 0, "gcc failed")
    return program, [[], ["-rc", "3"], ["-rc", "6"]]


def cuda(context, source):
    tree = patched(context, source)
    # CUDA 13 takes a location where 12 took a device; upstream has not followed.
    path = os.path.join(tree, "llmc", "cuda_utils.cuh")
    with open(path) as file:
        text = file.read()
    toolkit = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    if int(re.search(r"release (\d+)", toolkit).group(1)) >= 13:
        text = text.replace("cudaMemAdviseSetPreferredLocation, cudaCpuDeviceId)",
                            "cudaMemAdviseSetPreferredLocation, cudaMemLocation{cudaMemLocationTypeHost, 0})")
        with open(path, "w") as file:
            file.write(text)
    arch = "80"  # where nothing will run
    if not context.dry:
        said = subprocess.run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True,
                              text=True, check=True).stdout
        arch = said.split()[0].replace(".", "")
    program = os.path.join(tree, "train_gpt2cu")
    link = ["-c"] if context.dry else ["-lcublas", "-lcublasLt", "-lnvidia-ml", "-ldl"]
    check(say(["nvcc", "-O3", "--threads=0", "--use_fast_math", "-std=c++17", f"-arch=sm_{arch}", "-DENABLE_BF16",
               os.path.join(tree, "train_gpt2.cu"), *link, "-o", program]).returncode == 0, "nvcc failed")
    tokens = array.array("H", random.Random(1).choices(range(50257), k=100_000))
    header = array.array("i", [20240520, 1, len(tokens)] + [0] * 253)
    data = os.path.join(tree, "tokens_train.bin")
    with open(data, "wb") as file:
        header.tofile(file)
        tokens.tofile(file)
    if context.dry:  # and nothing linked: that takes the driver's library
        return None, []
    flags = ["-i", data, "-j", data, "-e", "d6", "-b", "4", "-t", "256", "-x", "4", "-v", "0", "-s", "0", "-h", "0", "-r", "0"]
    return program, [flags, [*flags, "-rc", "3"], [*flags, "-rc", "6"]]


def run(context):
    policy = context.program("librecoup_policy.so")
    source = os.environ.get("RECOUP_LLMC")
    if source and shutil.which("nvcc"):
        check(os.path.isfile(os.path.join(source, "train_gpt2.cu")), f"RECOUP_LLMC={source}: no train_gpt2.cu there")
        what = "train_gpt2.cu"
        program, runs = cuda(context, source)
    else:
        what = "a stand-in on the CPU (RECOUP_LLMC names no checkout, or nvcc is missing)"
        program, runs = stand_in(context)
    results = [train(program, *flags, policy=policy) for flags in runs]
    for flags, (steps, _) in zip(runs[1:], results[1:]):
        check(steps == results[0][0], f"{' '.join(flags[-2:])}: losses differ from those without recompute")
    print(f"{what}: {len(results)} runs with equal losses" if results else f"{what}: compiled, not run")
    return {"what": what, "runs": [{"flags": flags, "steps": steps, "activations": size}
                                   for flags, (steps, size) in zip(runs, results)]}
