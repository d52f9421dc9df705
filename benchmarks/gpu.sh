#!/bin/sh
# Everything that a machine with a GPU can say, in under 10 minutes, into small JSON files:
#
#     sh benchmarks/gpu.sh [FOLDER]          # build/gpu without; copied to $OUT as well, where that is set
#
# docs/export.md says what to install before and what is in the files. A second call goes on: parts that are done are not
# run again. No network, no installation: a part whose library is missing says so in its file, one that fails leaves
# NAME.error.txt, one that takes too long is stopped; all three are tried again by the next call, and the exit code is 1
# until every part is measured. DEVICE=cpu SIZES=tiny tries the same code on a CPU. PYTHON names the interpreter,
# .venv/bin/python or python3 without it.
set -u
cd "$(dirname "$0")/.." || exit 2
FOLDER=${1:-build/gpu}
DEVICE=${DEVICE:-cuda}
SIZES=${SIZES:-full}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}runtime:train:export:benchmarks"
mkdir -p "$FOLDER" || exit 2
total=0 measured=0
# limits in seconds, together under 10 minutes
for part in environment:60 parity-onnxruntime:90 parity-torch:90 bench-onnxruntime:140 bench-torch:150 training:60; do
    name=${part%:*}
    total=$((total + 1))
    if [ -e "$FOLDER/$name.json" ] && ! grep -q '^ "skipped": ' "$FOLDER/$name.json"; then
        echo "$name: done before"
        measured=$((measured + 1))
    else
        timeout --foreground "${part#*:}" "$PYTHON" benchmarks/gpu.py "$name" --device "$DEVICE" --sizes "$SIZES" --folder "$FOLDER"
        code=$?
        case $code in
        0 | 1) ;; # it has said what
        124) echo "$name: stopped after ${part#*:} s" ;;
        *) echo "$name: failed with code $code" ;;
        esac
        [ $code -eq 0 ] && measured=$((measured + 1))
    fi
    if [ -n "${OUT:-}" ]; then cp "$FOLDER"/*.json "$FOLDER"/*.txt "$OUT"/ 2>/dev/null; fi
done
echo "$measured of $total parts are measured, in $FOLDER"
[ $measured -eq $total ]
