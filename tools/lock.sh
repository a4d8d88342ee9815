#!/usr/bin/env bash
# Writes requirements/locked-*.txt: each package of the lists beside them, and what it needs in turn, with the hashes of
# its files on the index. For Python 3.10 to 3.12 on Linux. Needs uv (pip install uv). Run it after a change of a list.
set -euo pipefail
cd "$(dirname "$0")/.."
for list in build pinned docs sbom; do
    uv pip compile --universal --python-version 3.10 --generate-hashes --no-annotate --quiet \
        --default-index https://pypi.org/simple --custom-compile-command 'bash tools/lock.sh' \
        --constraint requirements/pinned.txt --output-file "requirements/locked-$list.txt" "requirements/$list.txt"
done
