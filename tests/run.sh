#!/usr/bin/env bash
# Sets everything up, then runs all tests: GoogleTest through ctest, then pytest. Ends with the minutes
# that each part took.
#   RECOUP_SANITIZE=address|thread tests/run.sh    with ASan and UBSan, or with TSan (GoogleTest only)
#   tests/all.sh                                   lists what takes longer
source "$(dirname "${BASH_SOURCE[0]}")/../examples/setup.sh"
SECONDS=0
minutes=
took() { minutes+=$(printf '%6.1f min  %s' "$((SECONDS * 10 / 60))e-1" "$1")$'\n'; SECONDS=0; }

set_up tests
took "set-up and build"

if [ -n "$sanitize" ]; then
  export ASAN_OPTIONS=detect_leaks=1:alloc_dealloc_mismatch=0 \
    UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=ignore_noninstrumented_modules=1
  # One thread: LibTorch's OpenMP is not instrumented.
  export OMP_NUM_THREADS=1
fi

say "GoogleTest"
ctest --test-dir "$build" --output-on-failure
took "GoogleTest"
if [ -z "$sanitize" ]; then
  say "pytest"
  "$python" -m pytest -q "$root/tests"
  took "pytest (by folder above)"
fi
say "Minutes"
printf '%s' "$minutes"
