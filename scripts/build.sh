# shellcheck shell=bash
# The Python environment (.venv) and the agent, built when their inputs changed. Sourced by ./dev.

# set_up runtime|dev [GROUP...]: everything vmgr needs to run here, or also what tests and checks need;
# and the packages of these groups.
set_up() {
  local agent environment=$1
  shift
  agent=$(agent_key)
  if is_done agent "$agent" && [[ -x agent/target/release/vmgr-agent ]]; then
    ensure_packages system "$@"
  else
    ensure_packages system rust "$@"
  fi
  ensure_venv "$environment"
  build_agent "$agent"
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

agent_key() {
  find agent \( -path agent/target -o -path agent/fuzz \) -prune -o -type f -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
}

# cargo_in_agent ARGUMENT...: in agent/, since its .cargo/config.toml says how to link.
cargo_in_agent() {
  local cargo
  cargo=$(find_cargo) || die 'no cargo that is new enough for the agent'
  (cd agent && PATH="${cargo%/*}:$PATH" CARGO_TARGET_DIR=$root/agent/target "$cargo" "$@")
}

# build_agent KEY
build_agent() {
  if is_done agent "$1" && [[ -x agent/target/release/vmgr-agent ]]; then
    return
  fi
  use_lock
  say 'building the agent (usually under a minute)'
  quietly agent cargo_in_agent build --release --locked
  mark_done agent "$1"
}
