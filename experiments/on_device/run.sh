#!/bin/sh
# Checks on one device, in at most five minutes; README.md says which. Each part is a process of its own, because the
# highest use of memory is of a process. What is given goes to run.py: --output FILE.
set -u
cd "$(dirname "$0")/../.." || exit 1
end=$(($(date +%s) + ${SECONDS_IN_ALL:-300}))
for part in quickstart scores tokens device host int8; do
    left=$((end - $(date +%s)))
    [ "$left" -gt 0 ] || { echo "$part: no time is left" >&2; continue; }
    timeout "$left" "${PYTHON:-python}" experiments/on_device/run.py "$@" "$part" || echo "$part: not finished" >&2
done
"${PYTHON:-python}" experiments/on_device/run.py "$@" --table
