# Sourced by the scripts that need Python packages.
#
# ensure_venv DIR REQUIREMENT...
#   Makes the virtual environment DIR if it is not there and installs the requirements into it without their own
#   dependencies (each script names all it needs). Does nothing when the same list was installed before.

fail() {
    echo "error: $*" >&2
    exit 1
}

find_python() {
    command -v python3 >/dev/null || fail "python3 is not on PATH; install Python 3.9 or newer"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
        fail "$(python3 --version) is too old; install Python 3.9 or newer"
}

ensure_venv() {
    local dir=$1
    shift
    local stamp name
    name=$(printf '%s\n' "$@" | cksum | cut -d' ' -f1)
    stamp=$dir/.installed-$name
    [ -e "$stamp" ] && [ -x "$dir/bin/python" ] && return
    find_python
    if [ ! -x "$dir/bin/python" ]; then
        python3 -m venv "$dir" ||
            fail "python3 -m venv $dir failed; on Debian and Ubuntu install the package python3-venv"
    fi
    [ $# -eq 0 ] || "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$@" ||
        fail "pip could not install: $*; is the network up?"
    : >"$stamp"
}
