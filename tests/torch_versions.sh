#!/usr/bin/env bash
# Builds engine, plugin and Python extension against several LibTorch versions, one after another, runs
# the tests that need LibTorch on each, and prints the table.
#   tests/torch_versions.sh [--compile] [VERSION...]     default: 2.7 2.9 2.11 2.13 2.15
#   --compile   builds the three libraries, runs nothing
# Each version's wheel is unpacked once, without its dependencies, into RECOUP_DEPS (0.7 GB each).
source "$(dirname "${BASH_SOURCE[0]}")/../examples/setup.sh"

compile_only=
if [ "${1:-}" = --compile ]; then compile_only=1; shift; fi
[ $# -gt 0 ] || set -- 2.7 2.9 2.11 2.13 2.15
for version; do
  [[ $version =~ ^[0-9]+\.[0-9]+(\.[0-9]+)?$ ]] ||
    stop "$version is no version: tests/torch_versions.sh [--compile] [VERSION...], such as 2.11 or 2.11.0"
done

# What torch's wheel says that libtorch_cpu.so's two CUDA libraries are called.
cuda_requirements() {
  "$python" - "$1" <<'PYTHON'
import glob, re, sys
(metadata,) = glob.glob(sys.argv[1] + "/torch-*.dist-info/METADATA")
text = open(metadata).read()
named = re.findall(r"Requires-Dist: (nvidia-cuda-(?:runtime|cupti)\S*?) ?\(?(==[\d.]+)", text)
if not named:  # by a package that stands for them all
    major_minor = re.search(r"cuda-toolkit\S*\s*\(?==(\d+\.\d+)", text).group(1)
    named = [("nvidia-cuda-runtime", f"=={major_minor}.*"), ("nvidia-cuda-cupti", f"=={major_minor}.*")]
print("\n".join(sorted({name + version for name, version in named})))
PYTHON
}

# Headers and the CPU's libraries of a version into $deps/torch-VERSION.
unpack() {
  local version=$1 folder=$deps/torch-$1 half=$deps/torch-$1.part exact=$1
  [ ! -d "$folder" ] || return 0
  [[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || exact=$version.*
  needs_space 3000 "LibTorch $version"
  say "LibTorch $version: 0.6 to 0.9 GB to download, 0.7 GB in $folder"
  rm -rf "$half"
  pip_install --no-deps --target "$half" "torch==$exact"
  pip_install --no-deps --target "$half" $(cuda_requirements "$half")
  find "$half/torch/lib" -name '*cuda*' -o -name '*nvshmem*' -o -name '*nvrtc*' | xargs rm -f
  rm -rf "$half"/torch/{share,bin,test,testing,_inductor,distributed}
  mv "$half" "$folder"
}

# The version that the plugin says it was built with.
version_of_plugin() {
  "$python" - "$1" <<'PYTHON'
import ctypes, sys
class Plugin(ctypes.Structure):  # the head of recoup_plugin_v1
    _fields_ = [("struct_size", ctypes.c_size_t), ("abi_version", ctypes.c_uint32), ("name", ctypes.c_char_p),
                ("version", ctypes.c_char_p), ("torch_version", ctypes.c_char_p)]
entry = ctypes.CDLL(sys.argv[1]).recoup_plugin_v1
entry.restype = ctypes.POINTER(Plugin)
print(entry(ctypes.c_uint32(1)).contents.torch_version.decode())
PYTHON
}

# cuda_rng.cc against this version's headers, where there is a toolkit: compiled, not linked.
compile_cuda() {
  local torch=$1/torch toolkit
  toolkit=$(readlink -f "${CUDA_HOME:-/usr/local/cuda}")
  [ -f "$toolkit/include/cuda_runtime_api.h" ] || { echo "not tried"; return; }
  "${CXX:-g++}" "-std=c++$2" -fsyntax-only -DRECOUP_CUDA -I"$root/hooks/include" -isystem "$torch/include" \
    -isystem "$torch/include/torch/csrc/api/include" -isystem "$toolkit/include" \
    -isystem "$toolkit/include/cccl" "$root/hooks/checkpoint/cuda_rng.cc" >"$3" 2>&1 &&
    echo "compiled" || echo "FAILS"
}

failed=0
table="| LibTorch | the plugin says | C++ | builds | tests run | passed | CUDA file |
|---|---|---|---|---|---|---|"
find_tools tests
mkdir -p "$deps"
make_environment
for version; do
  unpack "$version"
  folder=$deps/torch-$version
  out=$build-torch-$version
  targets=(librecoup.so recoup_torch.so)
  [ -n "$compile_only" ] || targets+=(checkpoint_test host_torch_test)
  say "LibTorch $version: building in $out"
  mkdir -p "$out"
  log=$out/versions.log builds=yes run=0 passed=0 says=- standard=17
  # A warning is no failure here: the headers of five versions warn differently.
  if cmake -G Ninja -S "$root" -B "$out" -Wno-dev -DRECOUP_CUDA=OFF -DCMAKE_PREFIX_PATH="$folder/torch" \
    -DPython_EXECUTABLE="$python" -DRECOUP_EXAMPLES=OFF -DCMAKE_BUILD_TYPE=Debug -DCMAKE_UNITY_BUILD=ON \
    -DCMAKE_UNITY_BUILD_BATCH_SIZE=0 -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON >"$log" 2>&1 &&
    ninja -C "$out" "${targets[@]}" >>"$log" 2>&1; then
    ! grep -q 'std=.*++20' "$out/build.ninja" || standard=20
    says=$(version_of_plugin "$out/librecoup.so")
    [[ $says == "$version"* ]] || { builds="another version's"; failed=1; }
    if readelf -d "$out/librecoup.so" | grep -qE 'NEEDED.*(cuda|cudart)'; then builds="needs CUDA"; failed=1; fi
    for test in ${targets[@]:2}; do
      (cd "$out" && "./$test" >"$test.log" 2>&1) || { failed=1; tail -30 "$out/$test.log"; }
      run=$((run + $(sed -n 's/^\[==========\] \([0-9]*\) tests\? .*ran.*/\1/p' "$out/$test.log")))
      passed=$((passed + $(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$out/$test.log")))
    done
  else
    builds=FAILS failed=1
    grep -E 'error|Error' "$log" | head -5
  fi
  [ -z "$compile_only" ] || run="only compiled" passed=-
  cuda=$(compile_cuda "$folder" $standard "$out/cuda.log")
  [ "$cuda" != FAILS ] || failed=1
  table+=$'\n'"| $version | $says | $standard | $builds | $run | $passed | $cuda |"
done
printf '%s\n' "$table"
exit $failed
