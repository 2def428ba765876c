# Sourced, after scripts/lib/venv.sh, by what needs PyTorch and transformers; from the repository's root.
#
# ensure_reference_venv
#   Makes .venv-reference (ignored by git, some GB) with the versions of scripts/reference/requirements.txt.

ensure_reference_venv() {
    local venv=.venv-reference requirements=scripts/reference/requirements.txt
    cmp -s "$requirements" "$venv/installed.txt" && return
    find_python
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "PyTorch's reference environment needs Python 3.11 or newer, python3 is $(python3 --version)"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv" ||
        fail "python3 -m venv $venv failed; on Debian and Ubuntu install the package python3-venv"
    echo "Installing PyTorch and transformers into $venv..." >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
        fail "pip could not install $requirements; is the network up, the disk full?"
    cp "$requirements" "$venv/installed.txt"
}
