# shellcheck shell=bash
# Shared by the scripts in ci/ and by e2e/run. Source this file.

# Tools and build results are kept outside the clone, so that the next run builds only what changed.
export NANO_CACHE="${NANO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nano-webhooks}"
mkdir -p "$NANO_CACHE"

# fail MESSAGE...: prints an error with the name of the script and exits.
fail() {
    echo "$0: $*" >&2
    exit 1
}

# hash_input FILE...: prints one hash of the files and the Python version.
hash_input() {
    cat "$@" <(python3 --version) | sha256sum
}

# install_python_tools NAME REQUIREMENTS: installs the pinned packages into $NANO_CACHE/venv-NAME.
# Reinstalls them when the requirements or the Python version changed. The stamp is written last,
# so an interrupted installation is repeated.
install_python_tools() {
    local venv=$NANO_CACHE/venv-$1 requirements=$2 wanted
    command -v python3 >/dev/null || fail "python3 is missing"
    wanted=$(hash_input "$requirements")
    (
        flock -w 900 9 || fail "another run has been installing into $venv for 15 minutes"
        if [[ "$(cat "$venv/stamp" 2>/dev/null)" == "$wanted" ]]; then
            exit 0
        fi
        rm -rf "$venv"
        # Debian packages the pip that venv would copy separately. The system's pip does the job.
        python3 -m venv --without-pip "$venv"
        python3 -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check \
            --no-input --no-deps --require-hashes --requirement "$requirements" ||
            fail "could not install the packages of $requirements"
        echo "$wanted" >"$venv/stamp"
    ) 9>"$venv.lock"
}

# install_node_packages NAME FOLDER: installs FOLDER/package-lock.json into $NANO_CACHE/node-NAME.
install_node_packages() {
    local target=$NANO_CACHE/node-$1 folder=$2 wanted
    command -v npm >/dev/null || fail "npm is missing"
    wanted=$(cat "$folder/package.json" "$folder/package-lock.json" | sha256sum)
    (
        flock -w 900 9 || fail "another run has been installing into $target for 15 minutes"
        if [[ "$(cat "$target/stamp" 2>/dev/null)" == "$wanted" ]]; then
            exit 0
        fi
        rm -rf "$target"
        mkdir -p "$target"
        cp "$folder/package.json" "$folder/package-lock.json" "$target/"
        (cd "$target" && npm ci --silent --ignore-scripts --no-audit --no-fund) ||
            fail "could not install the packages of $folder/package-lock.json"
        echo "$wanted" >"$target/stamp"
    ) 9>"$target.lock"
}

# install_debian_packages PACKAGE...: installs the packages where apt-get exists.
# Prints nothing; the caller checks whether the programs are there afterwards.
install_debian_packages() {
    if [[ $# -gt 0 ]] && command -v apt-get >/dev/null; then
        (apt-get update && apt-get install -y --no-install-recommends "$@") \
            </dev/null >"$NANO_CACHE/apt.log" 2>&1 || true
    fi
}
