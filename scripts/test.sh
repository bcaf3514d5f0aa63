#!/usr/bin/env bash
# Install what the tests need, check the style and run all tests; arguments go to pytest.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"
install "[test]"
ruff check .
ruff format --check .
lint-imports
mypy
exec python -m pytest -n "$(nproc 2>/dev/null || sysctl -n hw.ncpu)" "$@"
