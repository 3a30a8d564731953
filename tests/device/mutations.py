"""Takes single lines out of the engine and demands that the test named beside each notices.

  mutations.py BUILD              all of them, a table
  mutations.py BUILD --some 3     three, chosen by the commit: what CI runs

BUILD is a build folder with device_test and checkpoint_test. The sources are changed in a copy; only the files
that see the change are compiled again and linked before the engine's library. A mutant that does not compile,
hangs, or dies before the named test fails counts as nothing: the run fails.
"""
import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FRAMEWORK = "hooks/checkpoint/libtorch_framework.cc"
STATE = "hooks/checkpoint/recompute_state.cc"
RNG = "hooks/checkpoint/rng.cc"
RECOMPUTE = "hooks/include/recoup/checkpoint/recompute.h"
ON = "OnTheDevice."

# (what is taken out, file, text, text in its place, binary, the test that must fail)
MUTATIONS = [
    ("the forward's stream waits for the caller's", FRAMEWORK, "ready.block(stream);", "", "device_test",
     ON + "PackedInputsComeBackOnTheCallersStream"),
    ("the caller's stream records its work", FRAMEWORK, "ready.record(current);", "", "device_test",
     ON + "PackedInputsComeBackOnTheCallersStream"),
    ("inputs are in use on the forward's stream", FRAMEWORK,
     "guard.recordDataPtrOnStream(leaf.storage().data_ptr(), stream);", "", "device_test",
     ON + "PackedInputsComeBackOnTheCallersStream"),
    ("the recompute records its end", FRAMEWORK, "event->record(stream);", "", "device_test",
     ON + "AReaderOnAnotherStreamWaitsForTheRecompute"),
    ("a reader waits for the recompute", FRAMEWORK, "done.event->block(current);", "", "device_test",
     ON + "AReaderOnAnotherStreamWaitsForTheRecompute"),
    ("what is read is in use on the reader's stream", FRAMEWORK,
     "if (t.has_storage()) guard.recordDataPtrOnStream(t.storage().data_ptr(), current);", "", "device_test",
     ON + "AReaderOnAnotherStreamWaitsForTheRecompute"),
    ("the recompute runs on the forward's streams", STATE,
     "streams_.push_back(std::make_unique<c10::StreamGuard>(stream));", "", "device_test",
     ON + "AReaderOnAnotherStreamWaitsForTheRecompute"),
    ("the recompute draws as the forward did", STATE,
     "for (const auto& drawn : state.rng_) rng_.push_back(std::make_unique<ScopedRng>(drawn));", "", "device_test",
     ON + "DropoutDrawsTheSameAgain"),
    ("devices' generators are watched", STATE, "before_.emplace_back(at::globalContext().defaultGenerator(device));", "",
     "device_test", ON + "DropoutDrawsTheSameAgain"),
    ("a recompute sets the generator", RNG, "  state.restore();", "", "device_test", ON + "DropoutDrawsTheSameAgain"),
    ("a recompute sets the generator back", RNG, "    before_.restore();", "", "device_test",
     ON + "DropoutDrawsTheSameAgain"),
    ("recomputes of one generator exclude each other", RNG, "exclusive_(exclusive_to(state.generator())), before_",
     "before_", "checkpoint_test", "Threads.BackwardElsewhereWithDropout"),
    ("one recompute of a region at a time", RECOMPUTE,
     "const auto recomputing = framework_.lock(recompute_mutex_);", "", "checkpoint_test",
     "Threads.OneRecomputeOfARegionAtATime"),
    ("what is wrong half-way is dropped", RECOMPUTE, "clear_all_held();  // nothing half-recomputed outlives the error", "",
     "device_test", ON + "AnExceptionWithWorkQueuedLeavesAllUsable"),
    ("saved tensors' versions are checked", RECOMPUTE, "if (const auto why = framework_.changed(slots_[i].record); "
     "!why.empty()) fail(i, why);", "", "checkpoint_test", "*ModifiedAfter*"),
    ("a backward's end frees what it recomputed", FRAMEWORK,
     "if (const auto alive = region.lock()) alive->clear_held();", "", "checkpoint_test", "Backward.PartialBackwardsRecomputeWhatTheyNeed"),
    ("early stop", RECOMPUTE, "if (free && (done || !error_.empty())) framework_.stop(this);",
     "if (free && !error_.empty()) framework_.stop(this);", "checkpoint_test", "*"),
]


def commands(build, target):
    run = subprocess.run(["ninja", "-C", build, "-t", "commands", target], capture_output=True, text=True, check=True)
    return [line for line in run.stdout.splitlines() if line]


def compiled(build, target, changed, folder):
    """Objects of the engine's files that see `changed`, made from the copy in `folder`."""
    objects = []
    sources = [changed] if changed.endswith(".cc") else [
        os.path.join("hooks/checkpoint", f) for f in sorted(os.listdir(os.path.join(ROOT, "hooks/checkpoint")))
        if f.endswith(".cc") and os.path.basename(changed) in seen_by(os.path.join(ROOT, "hooks/checkpoint", f))]
    for source in sources:
        line = next(c for c in commands(build, target) if c.rstrip().endswith(os.path.join(ROOT, source)))
        object_file = os.path.join(folder, os.path.basename(source) + ".o")
        words = [w.replace(os.path.join(ROOT, "hooks"), os.path.join(folder, "hooks")) for w in shlex.split(line)]
        words[words.index("-o") + 1] = object_file
        words.append("-Wno-error")  # a mutation may leave something unused
        subprocess.run(words, cwd=build, check=True, capture_output=True)
        objects.append(object_file)
    return objects


def seen_by(path, known=None):
    """The names of the project's headers that a file includes, directly or not."""
    known = set() if known is None else known
    with open(path) as file:
        for name in re.findall(r'#include "([^"]+)"', file.read()):
            for folder in (os.path.dirname(path), os.path.join(ROOT, "hooks/include")):
                header = os.path.join(folder, name)
                if os.path.exists(header) and os.path.basename(header) not in known:
                    known.add(os.path.basename(header))
                    seen_by(header, known)
    return known


def verdict(build, mutation):
    """Whether the mutant is caught, and in what words."""
    _, changed, text, instead, binary, test = mutation
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(os.path.join(ROOT, "hooks"), os.path.join(folder, "hooks"))
        path = os.path.join(folder, changed)
        with open(path) as file:
            source = file.read()
        if source.count(text) != 1:
            return False, f"{changed} has this text {source.count(text)} times: {text.strip()}"
        with open(path, "w") as file:
            file.write(source.replace(text, instead))
        try:
            objects = compiled(build, binary, changed, folder)
        except subprocess.CalledProcessError as error:
            return False, "does not compile: " + error.stderr.decode().splitlines()[0]
        link = commands(build, binary)[-1]
        mutant = os.path.join(folder, binary)
        link = re.sub(rf"-o {binary}\b", f"{' '.join(map(shlex.quote, objects))} -o {shlex.quote(mutant)}", link, count=1)
        linked = subprocess.run(link, shell=True, cwd=build, capture_output=True, text=True)
        if linked.returncode != 0 or not os.path.exists(mutant):
            return False, "does not link: " + (linked.stderr.splitlines() or [link])[0]
        for attempt in range(5):  # what is random is tried again
            try:
                run = subprocess.run([mutant, f"--gtest_filter={test}"], capture_output=True, text=True, timeout=120,
                                     env={**os.environ, "OMP_NUM_THREADS": "1"})
            except subprocess.TimeoutExpired:
                return False, "hangs"
            failed = re.findall(r"^\[  FAILED  \] (\S+)", run.stdout, re.M)
            if failed:
                return True, failed[0]
            if run.returncode != 0:
                return False, f"dies before the test fails (exit status {run.returncode})"
        return False, "not noticed"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--some", type=int, help="so many, chosen by the commit")
    options = parser.parse_args()
    chosen = MUTATIONS
    if options.some:
        commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True).stdout or b"0"
        start = zlib.crc32(commit)
        chosen = [MUTATIONS[(start + i * 7) % len(MUTATIONS)] for i in range(options.some)]
    bad = 0
    for mutation in chosen:
        caught, words = verdict(os.path.abspath(options.build), mutation)
        bad += not caught
        print(f"{'caught' if caught else 'NOT CAUGHT':<11} {mutation[0]:<48} {words}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} caught")
    sys.exit(bad != 0)


if __name__ == "__main__":
    main()
