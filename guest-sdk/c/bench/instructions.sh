#!/bin/sh
# Instructions per call of a guest, by callgrind: instructions.sh BOUNDARY GUEST.so FILTER
# Prints one number. The difference of two runs leaves out loading; the same of the empty function, the host's part.
set -eu
boundary=$1 guest=$2 filter=$3
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
total() {
  valgrind --tool=callgrind --callgrind-out-file="$tmp/out" "$boundary" "$@" >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2; exit 1; }
  sed -n 's/^summary: //p;s/^totals: //p' "$tmp/out" | head -n 1
}
# 1,000 calls warm up in each run; what differs is measured calls of the guest, and as many of the empty function.
g1=$(total "$guest" "$filter" 2000) g2=$(total "$guest" "$filter" 4000)
e1=$(total - - 2000) e2=$(total - - 4000)
echo $(((g2 - g1 - (e2 - e1)) / 2000))
