#!/bin/sh
# What the Makefile needs from the system. Each word is a step; a step that has nothing to do says nothing.
#
#   venv PYTHON DIR   a virtual environment, installing Debian's python3-venv where it is missing
#   compiler          a C++ compiler, if one can be had; without it the package runs on `reference`
#   vulkan            Mesa's llvmpipe and the validation layers, for the Vulkan tests (Linux)
#   objects           OpenStack Swift, an object store that speaks S3, for the tests of snapshot stores (Debian)
#   devices           prints the devices whose absence must fail the tests
set -eu

apt() {
    command -v apt-get >/dev/null || return 1
    sudo=
    [ "$(id -u)" = 0 ] || sudo=$(command -v sudo) || return 1
    [ -n "${apt_updated:-}" ] || $sudo apt-get update -qq
    apt_updated=1
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "$@" >/dev/null
}

venv() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "nocopy needs Python 3.11 or newer; $1 is $("$1" --version). Try: make PYTHON=python3.12" >&2
        exit 1
    }
    "$1" -c 'import ensurepip, venv' 2>/dev/null || apt python3-venv || {
        echo "$1 has no venv module; install it (Debian: apt-get install python3-venv)" >&2
        exit 1
    }
    "$1" -m venv "$2"
}

compiler() {
    command -v c++ >/dev/null || command -v clang++ >/dev/null || apt g++ ||
        echo "no C++ compiler: the cpu device will be missing; \`nocopy doctor\` says how to get one" >&2
}

vulkan() {
    [ "$(uname)" = Linux ] || return 0
    if [ ! -e /usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json ] ||
        ! ls /usr/share/vulkan/icd.d/lvp_icd*.json >/dev/null 2>&1; then
        apt libvulkan1 mesa-vulkan-drivers vulkan-validationlayers ||
            echo "no Vulkan driver: the Vulkan tests will be skipped" >&2
    fi
}

objects() {
    command -v apt-get >/dev/null || return 0
    /usr/bin/python3 -c 'import swift' 2>/dev/null || apt --no-install-recommends python3-swift ||
        echo "no object server: the tests of remote snapshot stores will be skipped" >&2
}

devices() {
    required=reference
    command -v c++ >/dev/null || command -v clang++ >/dev/null && required=$required,cpu
    [ "$(uname)" = Linux ] && command -v apt-get >/dev/null && required=$required,vulkan
    echo "$required"
}

case "$1" in
    venv) venv "$2" "$3" ;;
    *) for step in "$@"; do "$step"; done ;;
esac
