#!/usr/bin/env bash
# Debian's Python for ARM in FOLDER/root and packages that running an artifact takes in FOLDER/site, or those of a board that a farm measures on
# in FOLDER/board. Nothing else on this system changes.
#     python.sh FOLDER PYTHON [board]      PYTHON: any that has pip; for a board, the one whose TVM it has to have
set -euo pipefail
folder=$(realpath -m "$1") python=$2 part=${3:-site}
[ ! -e "$folder/$part/complete" ] || exit 0

arm_apt() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Acquire::http::Timeout=20 \
    -o Dir::State="$folder/state" -o Dir::State::status="$folder/state/status" -o Dir::Cache="$folder/cache" "$@"
}

version_of() { "$python" -c "from importlib.metadata import version; print(version('$1'))"; }

if [ ! -e "$folder/root/complete" ]; then
  rm -rf "$folder"
  mkdir -p "$folder"/{root,state/lists/partial,cache/archives/partial}
  touch "$folder/state/status"
  arm_apt update
  arm_apt install -y --download-only --no-install-recommends python3 libstdc++6 >/dev/null
  for archive in "$folder"/cache/archives/*.deb; do dpkg-deb -x "$archive" "$folder/root"; done
  # Where all files lie under usr, the loader's name is one in lib still.
  [ -e "$folder/root/lib" ] || ln -s usr/lib "$folder/root/lib"
  rm -rf "$folder/cache" "$folder/state"
  touch "$folder/root/complete"
fi

packages=(numpy safetensors platformdirs)
[ "$part" = site ] || packages=("apache-tvm==$(version_of apache-tvm)" "apache-tvm-ffi==$(version_of apache-tvm-ffi)" numpy tornado psutil)
rm -rf "${folder:?}/$part"
release=$(basename "$(readlink "$folder/root/usr/bin/python3")")
platforms=()
for glibc in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_aarch64"); done
dependencies=(--no-deps)
[ "$part" = site ] || dependencies=()
"$python" -m pip install -q "${dependencies[@]}" --target "$folder/$part" --only-binary=:all: --python-version "${release#python}" \
  "${platforms[@]}" --platform manylinux2014_aarch64 --platform any "${packages[@]}"
touch "$folder/$part/complete"
