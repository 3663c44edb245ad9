#!/usr/bin/env bash
# What needs real brokers, a real etcd and real clients. Usage: real_tests.sh PYTEST [again AT_MOST]
#
# Most of these tests mostly wait: for leases and sessions to end, for brokers to start. So there are lanes beside each
# other, each a pytest of its own with clusters of its own. With `again`, failed tests are tried once more, alone, where
# no more than AT_MOST failed in a lane.
set -uo pipefail
pytest=$1
again=${2:-}
most=${3:-0}
quiet=(-q -m "not soak and not bench")
lanes=(store integration history endpoint)
declare -A paths=(
    [store]="tests/store tests/integration/test_[a-l]*.py"
    [integration]="tests/integration/test_[m-z]*.py"
    [history]="tests/history tests/e2e/test_[a-h]*.py"
    [endpoint]="tests/e2e/test_[i-z]*.py"
)
outputs=$(mktemp -d)
trap 'rm -rf "$outputs"' EXIT

in_lane() { # lane, further arguments of pytest
    local lane=$1
    shift
    # shellcheck disable=SC2086 # a lane is several paths, and patterns
    "$pytest" "${quiet[@]}" -o "cache_dir=.pytest_cache/$lane" "$@" ${paths[$lane]}
}

few_failed() { # lane
    local failed
    failed=$(grep -c '": true' ".pytest_cache/$1/v/cache/lastfailed" 2>/dev/null || echo 99)
    [ -n "$again" ] && [ "$failed" -le "$most" ]
}

pids=()
for lane in "${lanes[@]}"; do
    in_lane "$lane" >"$outputs/$lane" 2>&1 &
    pids+=($!)
done
status=0
for number in "${!lanes[@]}"; do
    lane=${lanes[$number]}
    wait "${pids[$number]}"
    results[$number]=$?
    echo "$lane, after $SECONDS s:"
    cat "$outputs/$lane"
done
for number in "${!lanes[@]}"; do
    lane=${lanes[$number]}
    [ "${results[$number]}" -eq 0 ] && continue
    if few_failed "$lane"; then
        echo "failed tests of $lane are tried once more"
        in_lane "$lane" --last-failed --last-failed-no-failures none && continue
    fi
    status=1
done
exit "$status"
