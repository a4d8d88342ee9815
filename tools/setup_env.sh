#!/usr/bin/env bash
# Makes the environment in the folder $1, with pinned versions and hashes. Can be run again after an interruption.
set -euo pipefail
cd "$(dirname "$0")/.."
env_dir=$1
base=${BASE_PYTHON:-python3}
locked=${LOCKED:-requirements/locked-pinned.txt} # tools/check_compatibility.py has others
step() { printf '==> %s\n' "$*"; }

version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case "$version" in
    3.10 | 3.11 | 3.12) ;;
    *)
        echo "Python 3.10, 3.11 or 3.12 is needed; $base is $version. Name another: make setup BASE_PYTHON=python3.11" >&2
        exit 1
        ;;
esac

step "[1/4] Environment in $env_dir (Python $version)"
[ -x "$env_dir/bin/python" ] && "$env_dir/bin/python" -m pip --version >/dev/null 2>&1 || "$base" -m venv --clear "$env_dir"
python=$env_dir/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1

step "[2/4] torch and the other packages (the first time some GB and a few minutes)"
install=("$python" -m pip install --quiet --require-hashes)
"${install[@]}" -r requirements/locked-build.txt
"${install[@]}" --progress-bar on --no-build-isolation --use-pep517 -r "$locked"

step "[3/4] Detectron2 (its Python sources; no compiler needed)"
if ! "$python" -c 'import importlib.metadata as m, sys; sys.exit(not any(d.name in ("detectron2", "sal-detectron2") for d in m.distributions()))'; then
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -m pip install --quiet --upgrade --no-deps --only-binary=:all: --python-version 3.10 --implementation cp --abi none \
        --platform any --require-hashes -r requirements/detectron2.txt --target "$site"
    rm -f "$site"/detectron2/_C*.so # for CPython 3.10 alone: every Python runs the same code
fi
"$python" tools/check_detectron2.py

step "[4/4] soma_det itself"
"$python" -m pip install --quiet --no-deps --no-build-isolation -e .
"$python" -c 'import soma_det, detectron2.engine; print("Ready: soma_det", soma_det.__version__)'
