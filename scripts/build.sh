# shellcheck shell=bash
# The Python environment (.venv) and the programs in Rust, built when their inputs changed. Sourced by
# ./dev.

# Each a crate in a directory of that name, whose program is vmgr-NAME.
readonly -a crates=(agent share-server)

# set_up runtime|dev [GROUP...]: everything vmgr needs to run here, or also what tests and checks need;
# and the packages of these groups.
set_up() {
  local crate environment=$1
  local -a groups=(system)
  shift
  for crate in "${crates[@]}"; do
    is_built "$crate" || groups=(system rust)
  done
  ensure_packages "${groups[@]}" "$@"
  ensure_venv "$environment"
  for crate in "${crates[@]}"; do
    build_crate "$crate"
  done
  release_lock
}

# ensure_venv runtime|dev
ensure_venv() {
  local key python
  local -a runtime=(requirements/build.lock requirements/runtime.lock)
  local -a locks=("${runtime[@]}")
  [[ $1 == runtime ]] || locks+=(requirements/dev.lock)
  key=$(key_of "$root" pyproject.toml "${locks[@]}")
  ! has_venv "$1" "$key" || return 0
  use_lock
  ! has_venv "$1" "$key" || return 0 # made while we waited
  if ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python)
    say "making a Python environment with $python"
    rm -rf .venv
    rm -f "$state"/venv-*
    quietly venv "$python" -m venv .venv
  fi
  say 'installing Python packages (usually 10 to 30 seconds)'
  quietly pip-install .venv/bin/python -m pip install --disable-pip-version-check \
    "${locks[@]/#/--requirement=}"
  # The checkout itself, editable; with the pinned build back end, so nothing else is fetched.
  quietly pip-editable .venv/bin/python -m pip install --disable-pip-version-check \
    --no-deps --no-build-isolation --editable .
  mark_done "venv-$1" "$key"
  # dev holds all that runtime does.
  [[ $1 == runtime ]] || mark_done venv-runtime "$(key_of "$root" pyproject.toml "${runtime[@]}")"
}

has_venv() { [[ -x .venv/bin/python && -x .venv/bin/vmgr ]] && is_done "venv-$1" "$2"; }

# crate_key CRATE
crate_key() {
  find "$1" \( -path "$1/target" -o -path "$1/fuzz" \) -prune -o -type f -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
}

# is_built CRATE
is_built() { is_done "$1" "$(crate_key "$1")" && [[ -x $1/target/release/vmgr-$1 ]]; }

# cargo_in CRATE ARGUMENT...: in its directory, since its .cargo/config.toml says how to link.
cargo_in() {
  local cargo crate=$1
  shift
  cargo=$(find_cargo) || die "no cargo that is new enough for the crate $crate"
  (cd "$crate" && PATH="${cargo%/*}:$PATH" CARGO_TARGET_DIR=$root/$crate/target "$cargo" "$@")
}

# cargo_in_all ARGUMENT...: in each crate, also after one has failed.
cargo_in_all() {
  local crate status=0
  for crate in "${crates[@]}"; do
    cargo_in "$crate" "$@" || status=$?
  done
  return "$status"
}

# build_crate CRATE
build_crate() {
  ! is_built "$1" || return 0
  use_lock
  ! is_built "$1" || return 0 # built while we waited
  say "building the crate $1 (usually under a minute)"
  quietly "$1" cargo_in "$1" build --release --locked
  mark_done "$1" "$(crate_key "$1")"
}
