#!/usr/bin/env bash
# run.sh DATASET METHOD [key=value ...]: pre-train any method by its configuration.
set -euo pipefail
from="$PWD"
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/../env.sh"
install ""
here="$PWD"
cd "$from" # paths in the overrides are the caller's
exec clsp pretrain --config-path "$here/scripts/pretrain/$1" --config-name "$2" "${@:3}"
