#!/usr/bin/env bash
# aarch64.sh: the kernels' tests for AArch64, run under qemu. On Debian 12, as root, once:
#   dpkg --add-architecture arm64 && apt-get update
#   apt-get install rustc-web libstd-rust-web-dev:arm64 gcc-12-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUSTC=${RUSTC:-/usr/bin/rustc}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc-12
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/aarch64}
cargo test -p fulmar-kernels --target aarch64-unknown-linux-gnu "$@"
