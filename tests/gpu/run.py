"""The stages of tests/gpu.sh: each in a process of its own, with its own limit, none stopped by another's failure.

Writes OUTPUT/NAME.log and NAME.json for each stage and OUTPUT/summary.json for all. Exit status: 0, or 1
where a stage failed. A stage is a function of a module beside this one; it returns what it measured,
raises Skip with a reason, or any other exception.
"""
import argparse
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SKIPPED = 77  # exit status, as Automake has it


class Skip(Exception):
    """The stage cannot run here; the text says why."""


@dataclasses.dataclass
class Stage:
    seconds: int  # its limit
    targets: str  # what it needs of the build
    function: str
    what: str


STAGES = {
    "engine": Stage(150, "engine_gpu_test checkpoint_test", "programs.engine", "the engine's tests"),
    "graphs": Stage(90, "recoup_torch.so", "graphs.run", "a recompute with dropout in CUDA graphs, bit-equal to eager"),
    "trainer": Stage(120, "gpt_trainer librecoup.so", "programs.trainer", "the trainer, N = 0, half, all: equal losses"),
    "tradeoff": Stage(150, "recoup_torch.so librecoup_policy.so", "tradeoff.run",
                      "bf16: memory and step time beside torch.utils.checkpoint and beside none"),
    "overhead": Stage(90, "recoup_torch.so", "overhead.run", "what one call costs on the host and on the device"),
    "apply": Stage(120, "recoup_torch.so librecoup_policy.so", "llama.run",
                   "recoup.apply on a random Llama of 1 B parameters"),
    "layer": Stage(60, "recoup", "layer.run", "the layer of Llama-3 8B: bytes predicted by recoup estimate and measured"),
    "collectives": Stage(90, "gpt_trainer librecoup.so recoup_torch.so librecoup_policy.so", "collectives.run",
                         "NCCL (Gloo on a CPU): DDP on one rank, tensor parallel on two where there are two"),
    "memcheck": Stage(100, "engine_gpu_test", "programs.memcheck", "some of the engine's tests under compute-sanitizer"),
    "llmc": Stage(180, "librecoup_policy.so", "llmc.run",
                  "llm.c, patched, of the checkout that RECOUP_LLMC names; a trainer like it without"),
    "megatron": Stage(180, "recoup_torch.so librecoup_policy.so", "megatron_lm.run",
                      "Megatron-LM of the folder that RECOUP_MEGATRON names, or of the pack, by -m recoup.megatron"),
}


@dataclasses.dataclass
class Context:
    """What a stage is given."""
    build: str
    output: str
    dry: bool

    @property
    def device(self):
        return "cpu" if self.dry else "cuda"

    def program(self, name):
        path = os.path.join(self.build, name)
        check(os.path.exists(path), f"{name} is not in {self.build}")
        return path

    def torch(self):
        """torch, with recoup's Python package beside it."""
        if self.dry and not os.path.exists(os.path.join(self.build, "recoup_torch.so")):
            raise Skip(f"recoup_torch.so is not in {self.build}")
        self.program("recoup_torch.so")
        os.environ["RECOUP_BUILD"] = self.build
        sys.path.insert(0, os.path.join(ROOT, "plugin", "python"))
        try:
            import torch
        except (ImportError, OSError) as error:
            if not self.dry:
                raise
            raise Skip(f"torch cannot be imported: {error}") from None
        return torch


def check(condition, words):
    """A failure in one sentence."""
    if not condition:
        raise SystemExit(f"FAILED: {words}")


def child(name, context):
    """Runs one stage in this process."""
    sys.modules["run"] = sys.modules["__main__"]  # one Skip
    module, function = STAGES[name].function.split(".")
    data, status = {}, 0
    try:
        data = getattr(importlib.import_module(module), function)(context) or {}
    except Skip as reason:
        data, status = {"why": str(reason)}, SKIPPED
    except SystemExit as failure:
        print(failure)
        data, status = {"why": str(failure)}, 1
    except Exception as error:  # the stage's own log has the rest
        traceback.print_exc()
        data, status = {"why": f"{type(error).__name__}: {error}".splitlines()[0]}, 1
    with open(os.path.join(context.output, f"{name}.json"), "w") as file:
        json.dump(data, file, indent=1)
    return status


def run_stage(name, context, limit):
    """{result, seconds, why or data} of one stage."""
    command = [sys.executable, os.path.abspath(__file__), "--build", context.build, "--output", context.output,
               "--child", name] + (["--dry-run"] if context.dry else [])
    result = os.path.join(context.output, f"{name}.json")
    log = os.path.join(context.output, f"{name}.log")
    if os.path.exists(result):
        os.remove(result)
    start = time.monotonic()
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        try:  # and whatever it started
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    row = {"result": {0: "passed", SKIPPED: "skipped"}.get(status, "FAILED"),
           "seconds": round(time.monotonic() - start, 1)}
    if status is None:
        row["why"] = f"took longer than {limit:.0f} s"
    elif os.path.exists(result):
        with open(result) as file:
            data = json.load(file)
        if status == 0:
            row["data"] = data
        else:
            row["why"] = data["why"].removeprefix("FAILED: ")
    else:
        row["why"] = f"ended with status {status}"
    return row


def machine(context):
    """What the results were measured on."""
    about = {"device": context.device, "cores": os.cpu_count(), "python": sys.version.split()[0]}
    if not context.dry:
        query = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
                               capture_output=True, text=True)
        about["gpus"] = query.stdout.strip().splitlines()
    return about


def picture(summary, context):
    """Draws it where that can be done; it can be drawn elsewhere later."""
    try:
        import picture
        picture.draw(summary, os.path.join(context.output, "summary.svg"))
    except ImportError:
        print("   no matplotlib here: tests/gpu/picture.py draws summary.json elsewhere")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="name and targets of each stage")
    parser.add_argument("--build", help="folder of the build")
    parser.add_argument("--output", help="folder of the results")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--child", choices=STAGES)
    parser.add_argument("--seconds", type=float, default=600, help="for all stages together")
    parser.add_argument("stages", nargs="*")
    options = parser.parse_args()
    if options.list:
        for name, stage in STAGES.items():
            print(f"{name}|{stage.targets}|{stage.seconds}|{stage.what}")
        return 0
    context = Context(os.path.abspath(options.build), os.path.abspath(options.output), options.dry_run)
    if options.dry_run:  # small models lose more by waiting for threads than they gain
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.child:
        return child(options.child, context)

    end = time.monotonic() + options.seconds
    summary = {"machine": machine(context), "stages": {}}
    for name in options.stages or STAGES:
        # A dry run is often a busy machine's.
        limit = min(STAGES[name].seconds * (3 if context.dry else 1), end - time.monotonic())
        print(f"== {name}: {STAGES[name].what} (at most {max(limit, 0):.0f} s)", flush=True)
        row = run_stage(name, context, limit) if limit > 0 else {
            "result": "FAILED", "seconds": 0, "why": "no time was left for it"}
        summary["stages"][name] = row
        with open(os.path.join(context.output, f"{name}.log"), "a+") as file:
            file.seek(0)
            lines = file.read().splitlines()
        print("\n".join(f"   {line}" for line in lines[-12:]), flush=True)
        with open(os.path.join(context.output, "summary.json"), "w") as file:  # whole after each stage
            json.dump(summary, file, indent=1)
    print(f"== Stages on {context.device}: {context.output}/summary.json")
    picture(summary, context)
    for name, row in summary["stages"].items():
        print(f"{name:12}{row['seconds']:7.1f} s  {row['result']}" + (f": {row['why']}" if "why" in row else ""))
    return int(any(row["result"] == "FAILED" for row in summary["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
