#!/usr/bin/env bash
# The whole of CLSP on the offline data set; see `clsp demo --help` for the options it takes.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"
install ""
exec clsp demo "$@"
