#!/usr/bin/env bash
# Fuzzes the policy: tests/fuzz.sh [HOURS]     default: 0.0167, a minute; the three fuzzers at once
#
#   config   configurations as bytes
#   keys     configurations by a mutator that knows the keys
#   layers   layer expressions against a second, naive implementation
#
# Needs clang with libFuzzer; exits with 77 and a sentence where there is none. What was found new
# stays in $RECOUP_BUILD/fuzz/corpus and is the start of the next run; an input that fails is kept in
# $RECOUP_BUILD/fuzz, and the exit status is 1.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${RECOUP_BUILD:-$root/build}/fuzz
hours=${1:-0.0167}
[[ $hours =~ ^[0-9]+(\.[0-9]+)?$ ]] || { echo "usage: tests/fuzz.sh [HOURS], such as 0.5" >&2; exit 2; }
seconds=$(awk -v h="$hours" 'BEGIN { s = int(h * 3600 + 0.5); print s < 1 ? 1 : s }')

mkdir -p "$build"
if ! command -v clang++ >/dev/null ||
  ! echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
    clang++ -x c++ -fsanitize=fuzzer,address,undefined -o "$build/try" - 2>/dev/null; then
  echo "recoup: no fuzzing: clang++ with libFuzzer is not installed (Debian: clang libclang-rt-dev)"
  exit 77
fi

[ -f "$build/build.ninja" ] ||
  cmake -G Ninja -S "$root" -B "$build" -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DRECOUP_TORCH=OFF -DRECOUP_CLI=OFF -DRECOUP_TESTS=OFF -DRECOUP_FUZZ=ON \
    -DRECOUP_SANITIZE=address >"$build/configure.log" || { cat "$build/configure.log" >&2; exit 1; }
ninja -C "$build" fuzzers

export UBSAN_OPTIONS=print_stacktrace=1
start() {  # start NAME SEEDS...
  local name=$1 corpus=$build/corpus/$1
  shift
  mkdir -p "$corpus"
  (cd "$build" && "./${name}_fuzz" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -dict="$root/tests/fuzz/$dict.dict" -artifact_prefix="$build/$name-" -print_final_stats=1 \
    "$corpus" "$@" >"$build/$name.log" 2>&1) &
  running[$name]=$!
}
declare -A running
dict=config
start config "$root/configs" "$root/tests/fuzz/seeds/config"
start keys "$root/configs" "$root/tests/fuzz/seeds/config"
dict=layers
start layers "$root/tests/fuzz/seeds/layers"

status=0
for name in config keys layers; do
  if wait "${running[$name]}"; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$build/$name.log")
    echo "recoup: fuzzing $name: $runs inputs in $seconds s, nothing found"
  else
    status=1
    echo "recoup: fuzzing $name: failed; $build/$name.log ends:" >&2
    tail -n 25 "$build/$name.log" >&2
  fi
done
exit $status
