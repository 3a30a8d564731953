#!/usr/bin/env bash
# What does not fit into tests/run.sh, by name.
#   tests/all.sh               lists it
#   tests/all.sh NAME [ARGS]   runs it; `all`: one after another what needs no GPU
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# name|minutes on 2 cores|command, from the repository's root|what it is
rows=$(grep -v '^ *$' <<'ROWS'
address|25|RECOUP_SANITIZE=address tests/run.sh|GoogleTest with ASan and UBSan
thread|25|RECOUP_SANITIZE=thread tests/run.sh|GoogleTest with TSan
versions|40|tests/torch_versions.sh|engine, plugin and Python extension on LibTorch 2.7 to 2.15
fuzz|60|tests/fuzz.sh 1|configuration and layer expressions under libFuzzer, for an hour
gpu|10|tests/gpu.sh|the engine and the trainer on a GPU
budget|40|"$python" tests/budget/closed_loop.py|the memory budget's closed loop: 45 runs and what they are compared with
budget_cost|5|"$python" tests/budget/controller_cost.py|instructions that a kept budget adds to a step, by callgrind
budget_compile|10|"$python" tests/budget/compile_budget.py|recoup's budget beside torch.compile's
overhead|5|"$python" tests/checkpoint/overhead_vs_python.py|checkpoint's overhead beside torch.utils.checkpoint
counts|2|cmake --build build --target overhead_steps && "$python" tests/checkpoint/overhead_steps.py build|a checkpoint's instructions above what none can do without, by valgrind
layers|3|RECOUP_ALL_LAYERS=1 "$python" -m pytest -q tests/models|what real layers of Hugging Face save, beside the tables
megatron|15|"$python" tests/patches/megatron_versions.py|the Megatron-LM patch on each release
ROWS
)
python=${RECOUP_DEPS:-${XDG_CACHE_HOME:-${HOME:-/nowhere}/.cache}/recoup}/venv/bin/python
cd "$root"

list() { awk -F'|' '{ printf "%-14s %3s min  %s\n", $1, $2, $4 }' <<<"$rows"; }

run_row() {
  local name=$1 command
  shift
  command=$(awk -F'|' -v name="$name" '$1 == name { print $3 }' <<<"$rows")
  printf '== %s: %s %s\n' "$name" "$command" "$*"
  eval "$command" '"$@"'
}

case ${1:-} in
  "") list ;;
  all)
    [ $# -eq 1 ] || { echo "recoup: all takes no arguments" >&2; exit 1; }
    for name in $(cut -d'|' -f1 <<<"$rows"); do [ "$name" = gpu ] || run_row "$name"; done ;;
  *)
    if ! cut -d'|' -f1 <<<"$rows" | grep -qxF -- "$1"; then
      { echo "recoup: tests/all.sh has no \"$1\"; there are:"; list; } >&2
      exit 1
    fi
    run_row "$@" ;;
esac
