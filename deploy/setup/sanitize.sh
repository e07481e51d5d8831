#!/usr/bin/env bash
# Run tests with the compiled parts under AddressSanitizer and UndefinedBehaviorSanitizer, on a copy of the tree.
# An error ends the run; memory that the compiled parts leaked is one.
# usage: sanitize.sh [arguments of pytest]; by default the tests of HTTP/2 and of the pump
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
copy=$(mktemp -d /tmp/gossamer-sanitize.XXXXXX)
trap 'rm -rf "$copy"' EXIT
modules=(mesh/http2/_session mesh/http2/_connection ztunnel/pump/_pump)
flags=(-shared -fPIC -O1 -g -fno-omit-frame-pointer -D_GNU_SOURCE -Wno-unused-function
       -fsanitize=address,undefined -fno-sanitize=alignment -fno-sanitize-recover=undefined)

tar -C "$top" --exclude=./.venv --exclude=./.git --exclude='*.so' --exclude=__pycache__ -cf - . | tar -C "$copy" -xf -
cd "$copy"
for module in "${modules[@]}"; do
  "$top/.venv/bin/cython" -3 -I . "$module.pyx" -o "$module.c"
  gcc "${flags[@]}" "-I$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')" "$module.c" \
    -o "$module$(python3 -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')" -lssl -lcrypto -lnghttp2
done

# Envoy is left out: it does not start under a preloaded sanitizer. What asks the C heap how large it is, too: the
# sanitizer has another one; and what turns keep others waiting for: they are a matter of time, and all is slow here.
[ $# -gt 0 ] || set -- -q tests/unit/mesh/http2 tests/unit/ztunnel/pump --ignore tests/unit/ztunnel/pump/test_engine_envoy.py \
  --ignore tests/unit/ztunnel/pump/test_turn.py \
  --deselect tests/unit/ztunnel/pump/test_limits.py::test_connections_that_have_been_busy_shrink_when_they_are_idle
log=$copy/log
rc=0
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
  ASAN_OPTIONS=detect_leaks=1:malloc_context_size=12:exitcode=0 UBSAN_OPTIONS=print_stacktrace=1 \
  "$top/.venv/bin/python" -m pytest -p no:cacheprovider "$@" >"$log" 2>&1 || rc=$?
# Python and its packages never free some of theirs: only leaks with a frame of ours count.
python3 - "$log" <<'END' || rc=1
import re, sys
text = open(sys.argv[1], errors="replace").read()
ours = [part for part in re.split(r"\n\n", text) if "leak of" in part and re.search(r"_pump|_session|_connection", part)]
found = re.findall(r"ERROR: AddressSanitizer: (?!detected memory leaks).*|.*runtime error: .*", text)
print("\n\n".join(ours + found))
sys.exit(bool(ours or found))
END
grep -E '^(FAILED|ERROR)|passed|failed' "$log" || tail -40 "$log"
exit $rc
