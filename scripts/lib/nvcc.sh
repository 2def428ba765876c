# Sourced, after lib/venv.sh, by the scripts that need the CUDA compiler.
#
# find_nvcc
#   Sets $nvcc to the one that build.rs uses: the first that runs and is of a version it takes, among NVCC, CUDA_HOME,
#   CUDA_PATH, .cuda, /usr/local/cuda and PATH. Fails, with nothing printed, if there is none.

pinned_nvcc=.cuda/nvidia/cu13/bin/nvcc

nvcc_version() {
    "$1" --version 2>/dev/null | sed -n 's/^Cuda compilation tools,.* V//p'
}

# As VERSIONS in build.rs: from 12.8 on, and before 14.
usable_nvcc() {
    local version
    [ -x "$1" ] && version=$(nvcc_version "$1") || return 1
    [[ $version =~ ^(12\.([89]|[1-9][0-9])|13\.[0-9]+)(\.|$) ]]
}

find_nvcc() {
    nvcc=${NVCC:-}
    if [ -n "$nvcc" ]; then
        nvcc=$(command -v "$nvcc") && usable_nvcc "$nvcc" || fail "NVCC is set to $NVCC, which is no usable nvcc 13.0"
        return
    fi
    for nvcc in ${CUDA_HOME:+"$CUDA_HOME/bin/nvcc"} ${CUDA_PATH:+"$CUDA_PATH/bin/nvcc"} "$pinned_nvcc" \
        /usr/local/cuda/bin/nvcc $(type -ap nvcc); do
        ! usable_nvcc "$nvcc" || return 0
    done
    nvcc=''
    return 1
}
