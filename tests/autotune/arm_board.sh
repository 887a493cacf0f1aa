#!/bin/sh
# Makes a folder with Debian's Python for ARM and TVM in it, which an emulator runs: arm_board.sh FOLDER PYTHON
# Nothing is installed on this machine. PYTHON is the one that tests run on: its TVM decides on the version.
set -eu
folder=$1 python=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
: >"$work/status"
cat >"$work/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
Dir::State "$work/state";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
END
export APT_CONFIG="$work/apt.conf"
apt-get -qq update
apt-get -qq install --yes --no-install-recommends --download-only python3 libstdc++6
for package in "$work"/cache/archives/*.deb; do dpkg-deb -x "$package" "$work/root"; done
release=$(basename "$(ls -d "$work"/root/usr/bin/python3.*[0-9])" | sed s/python//)
tvm=$("$python" -c 'from importlib.metadata import version; print(version("apache-tvm"))')
ffi=$("$python" -c 'from importlib.metadata import version; print(version("apache-tvm-ffi"))')
"$python" -m pip download --quiet --only-binary :all: --dest "$work/wheels" --python-version "$release" \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_24_aarch64 --platform manylinux_2_17_aarch64 \
  --platform manylinux2014_aarch64 --platform any "apache-tvm==$tvm" "apache-tvm-ffi==$ffi" tornado
for wheel in "$work"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$work/root/site"; done
rm -rf "$folder"
mkdir -p "$(dirname "$folder")"
mv "$work/root" "$folder"
