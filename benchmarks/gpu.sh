#!/usr/bin/env bash
# Test and measure everything that runs on a GPU: records in OUT, most important first.
#   bash benchmarks/gpu.sh OUT [--device cuda] [--minutes 9] [--stages tests,training] [--small]
set -euo pipefail
cd "$(dirname "$0")/.."
exec python -m benchmarks.gpu "$@"
