# shellcheck shell=bash
# System packages: which are missing, and how to get them. Sourced by ./dev.
#
# What is looked for is the program, not the package, so a QEMU or a Rust from elsewhere is as good.

readonly python_minimum=3.11

# package : what shows that it is there
readonly -a system_needs=(
  'python3 python3-venv:python'
  'qemu-system-x86:command qemu-system-x86_64'
  'bubblewrap:command bwrap'
  'qemu-utils:command qemu-img'
  'mmdebstrap:command mmdebstrap'
  'e2fsprogs:command mke2fs'
  'uidmap:command newuidmap'
  'zstd:command zstd'
  'kmod:command depmod'
  'dpkg:command dpkg-deb'
  'util-linux:command setpriv'
  'slirp4netns:command slirp4netns'
  'nftables:command nft'
  'ca-certificates:file /etc/ssl/certs/ca-certificates.crt'
)
# Debian 12's plain rustc (1.63) is too old; rustc-web is the current one, kept for browsers.
readonly -a rust_needs=(
  'gcc:command gcc'
  'libc6-dev:static_libc'
  'rustc-web cargo-web:cargo'
)
# What the tests themselves call, and the smallest Debian has not.
readonly -a test_needs=(
  'iproute2:command ip'
  'procps:command ps'
  'dbus-daemon:command dbus-daemon'
  'desktop-file-utils:command desktop-file-validate'
  'libfuse3-3:library libfuse3.so.3'
  'sshfs:command sshfs'
  'polkitd:file /usr/lib/polkit-1/polkitd'
)
readonly -a check_needs=(
  'rustfmt-web:cargo_tool fmt'
  'rust-web-clippy:cargo_tool clippy'
  'shellcheck:command shellcheck'
)

has_command() { command -v "$1" >/dev/null; }
has_file() { [[ -e $1 ]]; }
has_library() { ldconfig -p | grep -q "$1"; }
has_python() { find_python >/dev/null; }
has_cargo() { find_cargo >/dev/null; }
has_static_libc() { [[ -e $(gcc -print-file-name=libc.a 2>/dev/null) ]]; }

has_cargo_tool() {
  local cargo
  cargo=$(find_cargo) && PATH="${cargo%/*}:$PATH" "$cargo" "$1" --version >/dev/null 2>&1
}

# The first Python that is new enough and can make virtual environments.
find_python() {
  local python
  for python in python3 python3.{14,13,12,11} /usr/bin/python3; do
    if "$python" -c "import ensurepip, sys, venv
sys.exit(sys.version_info < tuple(map(int, '$python_minimum'.split('.'))))" 2>/dev/null; then
      "$python" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  return 1
}

# The first cargo that runs and is new enough for the agent. A rustup shim that has no toolchain, or
# a cargo in a home that this user cannot enter, is passed over.
find_cargo() {
  local cargo minimum found
  minimum=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' agent/Cargo.toml)
  for cargo in "$(type -P cargo)" ~/.cargo/bin/cargo /usr/bin/cargo; do
    [[ -x $cargo ]] || continue
    found=$(PATH="${cargo%/*}:$PATH" rustc --version 2>/dev/null) || continue
    found=${found#rustc }
    if printf '%s\n' "$minimum" "${found%%[ -]*}" | sort -C -V; then
      printf '%s\n' "$cargo"
      return
    fi
  done
  return 1
}

# missing_of NEED...: sets `missing` to the packages that are not there.
missing_of() {
  local need
  missing=()
  for need; do
    # shellcheck disable=SC2086,SC2206 # words are meant to be split
    has_${need#*:} || missing+=(${need%%:*})
  done
}

# ensure_packages GROUP...: groups are system, rust, test and check.
ensure_packages() {
  local group stamp=packages round
  local -a needs=() missing
  for group; do
    [[ $stamp != *-$group* ]] || continue
    stamp+=-$group
    case $group in
      system) needs+=("${system_needs[@]}") ;;
      rust) needs+=("${rust_needs[@]}") ;;
      test) needs+=("${test_needs[@]}") ;;
      check) needs+=("${check_needs[@]}") ;;
    esac
  done
  # Nothing has changed since the last look: no package, no PATH, none of the needs.
  if is_done "$stamp" "$PATH" && [[ $state/$stamp -nt /var/lib/dpkg/status &&
    $state/$stamp -nt scripts/packages.sh && $state/$stamp -nt agent/Cargo.toml ]]; then
    return
  fi
  use_lock
  # A second round may be needed: installing one package can remove another (a qemu-utils from
  # backports gives way to a stock qemu-system-x86), or the package lists were too old.
  for round in install refresh; do
    missing_of "${needs[@]}"
    ((${#missing[@]})) || break
    install_packages "$round" "${missing[@]}"
  done
  missing_of "${needs[@]}"
  ((${#missing[@]} == 0)) || die "still missing after the installation: ${missing[*]}"
  mark_done "$stamp" "$PATH"
}

# install_packages install|refresh PACKAGE...: with refresh the lists are fetched first; with install
# only when apt does not know a package or its file is no longer there.
install_packages() {
  local how=$1
  shift
  # A fresh system knows no packages before the first update.
  local command="apt-get update && apt-get install --no-install-recommends $*"
  local -a as_root=()
  has_command apt-get || die "these Debian packages, or what they hold, are missing: $*"
  if ((EUID != 0)); then
    has_command sudo || die "packages are missing and there is no sudo; have root run: $command"
    as_root=(sudo)
    # Without a terminal a question for a password would wait for ever.
    [[ -t 0 && -t 2 ]] || as_root=(sudo -n)
    "${as_root[@]}" -v 2>/dev/null || "${as_root[@]}" true 2>/dev/null ||
      die "packages are missing and sudo is not permitted here; have root run: $command"
  fi
  local -a apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y
    -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
  local -a install=("${apt[@]}" install --no-install-recommends "$@")
  say "installing Debian packages: $* (usually half a minute to two minutes)"
  if [[ $how == refresh ]]; then
    quietly apt-update "${apt[@]}" update || true
  elif ! quietly apt-simulate "${install[@]}" --simulate 2>/dev/null; then
    say 'fetching package lists'
    quietly apt-update "${apt[@]}" update || true
  fi
  if ! quietly apt-install "${install[@]}" 2>/dev/null; then
    quietly apt-update "${apt[@]}" update || true
    quietly apt-install "${install[@]}" ||
      die "apt could not install the packages; see why with: $command"
  fi
}
