"""Patches megatron-core wheels, runs the checks on each, reverts, and compares with the original.

    python tests/patches/megatron_versions.py [VERSION ...]

A version is a wheel's, or a folder of $RECOUP_MEGATRON that holds a checkout (such as "main"). Checks are
numbered by the lines of the table in patches/megatron/README.md. Wheels go to $RECOUP_DEPS/megatron/VERSION
(default: the user's cache), work is done on copies.
"""
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from xml.etree import ElementTree

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HERE = os.path.join(ROOT, "tests", "patches", "megatron")
PATCHES = os.path.join(ROOT, "patches", "megatron")
PACKAGE = os.path.join(ROOT, "plugin", "python")
VERSIONS = ("0.13.1", "0.14.0", "0.15.3", "0.16.1")


def wheel(version):
    """The folder of an installed, untouched wheel."""
    cache = os.environ.get("RECOUP_DEPS") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "recoup")
    folder = os.path.join(cache, "megatron", version)
    if not os.path.isdir(folder):
        with tempfile.TemporaryDirectory() as unpacked:
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile",
                            "--target", unpacked, f"megatron-core=={version}"], check=True)
            os.makedirs(os.path.dirname(folder), exist_ok=True)
            shutil.copytree(unpacked, folder + ".part", dirs_exist_ok=True)
        os.rename(folder + ".part", folder)
    return folder


def run(command, tree, paths=(), **environment):
    """The finished process of a Python command that imports Megatron from `tree`."""
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join([*paths, tree, HERE, PATCHES, PACKAGE]), **environment})


def patcher(command, tree):
    done = subprocess.run([sys.executable, os.path.join(PATCHES, "patch_megatron.py"), command, tree],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def checks(files, tree, **environment):
    """{check: passed, or why it does not apply} of files of checks, run by pytest in one process."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.xml")
        done = run(["-m", "pytest", "-q", "-rA", "-W", "ignore", "-p", "no:cacheprovider", "--rootdir", HERE,
                    f"--junitxml={report}", *(os.path.join(HERE, file) for file in files)], tree, **environment)
        cases = ElementTree.parse(report).iter("testcase") if os.path.exists(report) else []
    results = {}
    for case in cases:
        name = "::".join([*case.get("classname").split(".")[1:], case.get("name")])
        skipped = case.find("skipped")
        results[name] = (f"n/a: {skipped.get('message')}" if skipped is not None
                         else case.find("failure") is None and case.find("error") is None)
    if not results or not all(results.values()):
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    return results or {"ran": False}


def same(left, right):
    """diff -r, empty or not; bytecode aside."""
    comparison = filecmp.dircmp(left, right, ignore=["__pycache__"])

    def walk(c):
        _, differ, errors = filecmp.cmpfiles(c.left, c.right, c.common_files, shallow=False)
        return not (c.left_only or c.right_only or differ or errors) and all(
            walk(sub) for sub in c.subdirs.values())

    return walk(comparison)


def source(version):
    """The folder of a version: a wheel, or the checkout $RECOUP_MEGATRON/VERSION; None: neither."""
    given = os.path.join(os.environ.get("RECOUP_MEGATRON", os.devnull), version)
    if os.path.isdir(os.path.join(given, "megatron", "core")):
        return given
    return wheel(version) if version in VERSIONS else None


def moe_jobs(version, ranks, *jobs):
    """{job: passed, or why it does not apply} of megatron/moe_ranks.py, by torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        done = run(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
                    os.path.join(HERE, "moe_ranks.py"), folder, *jobs], source(version), RECOUP_ENGINE="recoup")
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
            return {"ran": False}
        found = []
        for rank in range(ranks):
            with open(os.path.join(folder, f"{rank}.json")) as file:
                found.append(json.load(file))
    return {job: _as_megatrons([rank[job] for rank in found]) for job in found[0]}


def _as_megatrons(ranks):
    """Trained and counted as without recompute and as with Megatron's own; router, combine and fc2 once."""
    if "n/a" in ranks[0]:
        return f"n/a: {ranks[0]['n/a']}"
    for engines in ranks:
        none, recoups, megatrons = (engines[name] for name in ("none", "recoup", "megatron"))
        same = all(none[what] == recoups[what] == megatrons[what] for what in ("trained", "counted"))
        once = all(recoups["calls"][what] == none["calls"][what] == megatrons["calls"][what] / 2
                   for what in ("forward", "token_combine", "fc2"))
        if not (same and once and recoups["calls"]["token_dispatch"] == 2 * none["calls"]["token_dispatch"]):
            return False
    return True


def verify(version):
    """{check: passed, or why it does not apply} for one version; a process for each kind of run."""
    original = source(version)
    with tempfile.TemporaryDirectory() as folder:
        tree, reference = os.path.join(folder, "tree"), os.path.join(folder, "reference.pt")
        shutil.copytree(os.path.join(original, "megatron"), os.path.join(tree, "megatron"),
                        ignore=shutil.ignore_patterns("__pycache__"))
        pristine = os.path.join(folder, "pristine")
        shutil.copytree(tree, pristine)
        plain = run([os.path.join(HERE, "cpu_megatron.py"), reference], tree)
        assert plain.returncode == 0, plain.stderr
        results = {}
        for engine, files in (("megatron", ["runtime_checks.py", "hybrid_checks.py"]),
                              ("recoup", ["runtime_checks.py", "engine_checks.py", "moe_checks.py"])):
            for name, passed in checks(files, tree, RECOUP_ENGINE=engine,
                                       MEGATRON_REFERENCE=reference).items():
                results[f"run time, {engine}'s engine: {name}"] = passed
        patcher("apply", tree)
        results["applied twice is applied once"] = patcher("apply", tree) == "nothing to do\n"
        for name, passed in checks(["patched_checks.py"], tree, MEGATRON_REFERENCE=reference).items():
            results[f"patched: {name}"] = passed
        patcher("revert", tree)
        results["reverted: diff -r is empty"] = same(tree, pristine)
        return results


def main():
    versions = sys.argv[1:] or VERSIONS
    table = {}
    for version in versions:
        if source(version) is None:
            print(f"{version}: n/a: no wheel, and no checkout in $RECOUP_MEGATRON/{version}")
            continue
        results = verify(version)
        for ranks in (2, 4):
            for name, passed in moe_jobs(version, ranks).items():
                results[f"section 3, {ranks} ranks: {name}"] = passed
        for name, passed in results.items():
            table.setdefault(name, {})[version] = passed
    width = max(map(len, table))
    print(f"{'':{width}}  " + "  ".join(f"{v:>7}" for v in versions))
    for name, row in table.items():
        print(f"{name:{width}}  " + "  ".join(f"{_word(row.get(v)):>7}" for v in versions))
    return 0 if all(row.get(v, True) for row in table.values() for v in versions) else 1


def _word(result):
    return {True: "ok", False: "FAILED", None: "-"}.get(result, result)


if __name__ == "__main__":
    sys.exit(main())
