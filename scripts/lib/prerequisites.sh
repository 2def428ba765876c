# Sourced, after lib/venv.sh, by the scripts that build the project or set up Python for it.
#
# need_rust, need_python
#   End with an error that names the remedy where a tool is missing, before any time is spent.

need_rust() {
    command -v cargo >/dev/null || fail "cargo is not on PATH; install Rust 1.89 or newer from https://rustup.rs"
    command -v g++ >/dev/null ||
        fail "g++ is not on PATH; some dependencies compile C and C++ (on Debian and Ubuntu install the package g++)"
}

need_python() {
    find_python
    # Debian has venv without ensurepip until python3-venv is installed; `python3 -m venv` then leaves half an environment.
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        fail "python3 cannot make virtual environments; on Debian and Ubuntu install the package python3-venv"
}
