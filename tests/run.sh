#!/usr/bin/env bash
# All tests, on a fresh machine too: bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source demo/venv.sh
exec "$python" -m pytest -q -rs tests "$@"                          # -rs: what is skipped, and why
