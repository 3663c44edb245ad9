#!/usr/bin/env bash
# What needs real brokers, a real etcd and real clients. Usage: real_tests.sh PYTEST [again AT_MOST]
#
# The store's tests mostly wait for leases to end; they run beside the others. With `again`, failed tests are tried once
# more, alone, where no more than AT_MOST failed.
set -uo pipefail
pytest=$1
again=${2:-}
most=${3:-0}
quiet=(-q -m "not soak and not bench")
store_cache=.pytest_cache/store
# From the parts to the whole: what is end to end leaves more behind on the clusters that all share.
order=(tests/integration tests/history tests/e2e)
output=$(mktemp)
trap 'rm -f "$output"' EXIT

tried_again() { # cache directory, pytest's arguments
    local cache=$1
    shift
    [ -n "$again" ] && [ "$(grep -c '": true' "$cache/v/cache/lastfailed" 2>/dev/null || echo 99)" -le "$most" ] || return 1
    echo "failed tests are tried once more"
    "$pytest" "${quiet[@]}" -o "cache_dir=$cache" --last-failed --last-failed-no-failures none "$@"
}

"$pytest" "${quiet[@]}" -o "cache_dir=$store_cache" tests/store >"$output" 2>&1 &
beside=$!
status=0
"$pytest" "${quiet[@]}" "${order[@]}" || tried_again .pytest_cache "${order[@]}" || status=1
wait "$beside"
store=$?
echo "the store, beside the others:"
cat "$output"
if [ "$store" -ne 0 ]; then
    tried_again "$store_cache" tests/store || status=1
fi
exit "$status"
