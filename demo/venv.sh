# Sourced by the scripts in demo/ and tests/: makes .venv with requirements.txt in it, once, and sets $python.
# PYTHON=python3 bash demo/run.sh … takes that one as it is and installs nothing.
python=${PYTHON:-$PWD/.venv/bin/python}
if [ -z "${PYTHON:-}" ] && ! cmp -s requirements.txt .venv/installed; then
    echo "Installing requirements.txt into .venv (a few minutes, once) …"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed" >&2; exit 2; }
    python3 -m venv .venv
    "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt .venv/installed
fi
