#!/usr/bin/env bash
# Sets everything up, then runs all tests: GoogleTest through ctest, then pytest.
#   RECOUP_SANITIZE=address|thread tests/run.sh    with ASan and UBSan, or with TSan (GoogleTest only)
source "$(dirname "${BASH_SOURCE[0]}")/../examples/setup.sh"
set_up tests

if [ -n "$sanitize" ]; then
  export ASAN_OPTIONS=detect_leaks=1:alloc_dealloc_mismatch=0 \
    UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=ignore_noninstrumented_modules=1
  # One thread: LibTorch's OpenMP is not instrumented.
  export OMP_NUM_THREADS=1
fi

say "GoogleTest"
ctest --test-dir "$build" --output-on-failure
if [ -z "$sanitize" ]; then
  say "pytest"
  "$python" -m pytest -q "$root/tests"
fi
