#!/usr/bin/env bash
# Debian's Python for ARM in FOLDER/root, and packages that running an artifact takes in FOLDER/site. Nothing else on this system changes.
#     python.sh FOLDER PIP...      PIP... calls pip, of any Python
set -euo pipefail
folder=$(realpath -m "$1")
shift
[ ! -e "$folder/complete" ] || exit 0
rm -rf "$folder"
mkdir -p "$folder"/{root,state/lists/partial,cache/archives/partial}
touch "$folder/state/status"

arm_apt() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Acquire::http::Timeout=20 \
    -o Dir::State="$folder/state" -o Dir::State::status="$folder/state/status" -o Dir::Cache="$folder/cache" "$@"
}

arm_apt update
arm_apt install -y --download-only --no-install-recommends python3-minimal libpython3-stdlib libstdc++6 >/dev/null
for archive in "$folder"/cache/archives/*.deb; do dpkg-deb -x "$archive" "$folder/root"; done
# Where all files lie under usr, the loader's name is one in lib still.
[ -e "$folder/root/lib" ] || ln -s usr/lib "$folder/root/lib"
version=$(basename "$(readlink "$folder/root/usr/bin/python3")")
"$@" install -q --no-deps --target "$folder/site" --only-binary=:all: --python-version "${version#python}" \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 numpy safetensors platformdirs
rm -rf "$folder/cache" "$folder/state"
touch "$folder/complete"
