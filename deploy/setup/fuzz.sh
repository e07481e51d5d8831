#!/usr/bin/env bash
# Fuzz what peers can send (tests/fuzz): libFuzzer, AddressSanitizer and UBSan on the compiled parts' own sources.
# usage: fuzz.sh build                        compile, if something changed since
#        fuzz.sh run [seconds] [target ...]   so long for each target, as many at once as there are cores; begins with the
#                                             corpus and with what earlier runs found (.venv/fuzz-found)
#        fuzz.sh replay target [file ...]     each input once; by default the corpus
#        fuzz.sh grow target                  put into the corpus what reaches lines that nothing in it reaches
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
targets=(handshake server client certificate)
here=$top/tests/fuzz
make=$top/.venv/fuzz
found=$top/.venv/fuzz-found
flags=(-O1 -g -fno-omit-frame-pointer -D_GNU_SOURCE -Wno-unused-function -Wno-unreachable-code
       # An empty buffer is a null pointer with an offset of 0, which the next C standard allows.
       -fsanitize=address,undefined -fno-sanitize=alignment,pointer-overflow -fno-sanitize-recover=undefined)
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc
export PYTHONPATH=$top:$(echo "$top"/.venv/lib/python3*/site-packages)

build() {
  local stamp now python
  now=$(cd "$top" && cat mesh/http2/*.p[yx][xd] ztunnel/pump/*.p[yx][xi] ztunnel/pump/*.h "$here"/*.[ch] "$here"/*.p[yx][xi] "$0" | sha256sum)
  exec 8>"$make.lock"; flock 8
  [ "$(cat "$make/stamp" 2>/dev/null)" = "$now" ] && { flock -u 8; return; }
  rm -rf "$make"; mkdir -p "$make"
  python=(-isystem "$(/usr/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')")
  cd "$top"
  .venv/bin/cython -3 -I . mesh/http2/_session.pyx -o "$make/_session.c"
  .venv/bin/cython -3 -I . --module-name tests.fuzz.fuzz tests/fuzz/fuzz.pyx -o "$make/fuzz.c"
  clang "${flags[@]}" -fsanitize=fuzzer-no-link "${python[@]}" -shared -fPIC "$make/_session.c" -o "$make/_session.so" -lnghttp2 &
  clang "${flags[@]}" -fsanitize=fuzzer-no-link "${python[@]}" -I"$here" -Iztunnel/pump -include seams.h -shared -fPIC "$make/fuzz.c" \
    -o "$make/fuzz.so" -lssl -lcrypto -lnghttp2
  wait $!
  clang "${flags[@]}" -fsanitize=fuzzer -rdynamic "${python[@]}" "$here/driver.c" "$here/mutator.c" -o "$make/driver" \
    -DPYTHON_HOME="\"$(/usr/bin/python3 -c 'import sys; print(sys.base_prefix)')\"" $(/usr/bin/python3-config --embed --ldflags)
  local target; for target in "${targets[@]}"; do ln -f "$make/driver" "$make/$target"; done
  echo "$now" >"$make/stamp"
  flock -u 8
}

dictionary() {
  case $1 in server | client) echo "$here/http2.dict" ;; *) echo "$here/$1.dict" ;; esac
}

# What it says is shown when it fails; the input that did it stays.
fuzz() {
  local target=$1 seconds=$2 log=$found/$1.log
  mkdir -p "$found/$target"
  if nice -n 19 "$make/$target" -max_total_time="$seconds" -max_len=4096 -timeout=60 -print_final_stats=1 \
    -dict="$(dictionary "$target")" -artifact_prefix="$found/$target-" "$found/$target" "$here/corpus/$target" >"$log" 2>&1; then
    awk -v target="$target" '/\tDONE / {cov = $4; ft = $6} /number_of_executed/ {runs = $2} /average_exec/ {each = $2}
      END {printf "%-12s %d inputs, %d a second, %d edges, %d features\n", target, runs, each, cov, ft}' "$log"
  else
    tail -60 "$log"
    echo "fuzz: $target failed; once more: deploy/setup/fuzz.sh replay $target $found/$target-..." >&2
    return 1
  fi
}

run() {
  local seconds=${1:-15}; shift || true
  [ $# -gt 0 ] || set -- "${targets[@]}"
  build
  export -f fuzz dictionary
  export make found here
  printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -c "set -euo pipefail; fuzz {} $seconds"
}

replay() {
  local target=$1; shift
  build
  [ $# -gt 0 ] || set -- "$here/corpus/$target"/*
  "$make/$target" -timeout=120 "$@"
}

grow() {
  build
  # Edges, not how often each is taken: that would be thousands of files.
  "$make/$1" -merge=1 -use_counters=0 "$here/corpus/$1" "$found/$1"
}

what=${1:-run}; shift || true
"$what" "$@"
