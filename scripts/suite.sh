# shellcheck shell=bash
# The tests: of the agent, of the rest, and (when run by root) again as an ordinary user.
# Sourced by ./dev.

readonly test_user=vmgr-test
readonly test_user_mark='vmgr test suite, removed after each run'
# A short place for files of their own: the addresses of sockets in them hold 107 bytes.
readonly ordinary_files=/tmp/vmgr-pytest
# What root hides: privilege, sandbox, process rules, the audit; and a machine's whole way without
# rights: kernel and image built, booted, started from a template, left to itself by a killed helper,
# on QEMU's own network. All else computes, or does the same for everybody.
readonly -a ordinary_part=(
  -m 'not slow' --basetemp="$ordinary_files" --durations=15
  tests/{audit,sandbox,spawner,userenv}
  tests/artifact/test_{privilege,staging}.py
  tests/doctor
  tests/helper/test_process_rules.py
  'tests/helper/test_machines.py::test_a_whole_life[debian-minimal]'
  tests/helper/test_reconcile.py::test_a_killed_helper_is_replaced_and_its_machines_go_on
  tests/helper/test_templates.py::test_two_machines_of_one_template_share_nothing_that_they_should_not
  tests/image/test_{disk,files}.py
  tests/network/test_fallback.py
  tests/test_dev.py
  tests/vmm/test_{accelerator,isolation}.py
)

# run_suite: everything. run_suite ARGUMENT...: only pytest, with these.
run_suite() {
  local failed=0 failures
  if (($#)); then
    set_up dev test
    exec .venv/bin/python -m pytest "$@"
  fi
  set_up dev rust test
  say 'tests of the agent'
  cargo_in_agent test --locked --quiet </dev/null || failed=1
  say 'tests'
  failures=$(mktemp)
  export VMGR_TEST_FAILURES=$failures
  .venv/bin/python -m pytest --durations=30 --durations-min=5 </dev/null || failed=1
  if ((EUID == 0)); then
    chmod 666 "$failures"
    run_as_ordinary_user || failed=1
  fi
  # What failed is far up by now.
  cat "$failures" >&2
  rm -f "$failures"
  ((failed == 0)) || die 'there are failed tests'
}

# In a subshell, so that its trap is its own.
run_as_ordinary_user() (
  local home copy name left
  local -a environment=()
  exec {suite_lock}>/run/lock/vmgr-test.lock
  flock "$suite_lock"
  remove_test_user
  say "tests as an ordinary user ($test_user, made for this and removed after it)"
  trap remove_test_user EXIT
  useradd --create-home --shell /bin/bash --comment "$test_user_mark" "$test_user"
  home=$(getent passwd "$test_user" | cut -d: -f6)
  copy=$home/vmgr
  mkdir -p "$copy/agent/target/release" "$copy/.dev"
  tar --create --exclude=./.venv --exclude=./.dev --exclude=./.git --exclude=./agent/target \
    --exclude=./agent/fuzz/target --exclude=__pycache__ --exclude='./.*_cache' . |
    tar --extract --directory="$copy" --no-same-owner
  # The agent that root built: an ordinary user of this machine need not have a Rust toolchain.
  cp agent/target/release/vmgr-agent "$copy/agent/target/release/"
  cp "$state/agent" "$copy/.dev/"
  chown -R "$test_user:" "$home"
  # How to reach the network (proxies, certificates, pip's settings) is the only thing passed on.
  for name in $(compgen -e); do
    case $name in
      CI | LANG | LC_ALL | VMGR_TEST_FAILURES | PIP_* | SSL_CERT_* | *_CA_BUNDLE | *_proxy | *_PROXY)
        environment+=("$name=${!name}")
        ;;
    esac
  done
  cd "$copy"
  setpriv --reuid="$test_user" --regid="$test_user" --init-groups -- \
    env --ignore-environment "${environment[@]}" HOME="$home" USER="$test_user" \
    LOGNAME="$test_user" SHELL=/bin/bash PATH=/usr/local/bin:/usr/bin:/bin \
    VMGR_TEST_IMAGES=debian-minimal ./dev test "${ordinary_part[@]}" </dev/null {suite_lock}>&- || return
  # Nothing that the tests started may outlive them. The dead do not count that wait for an init
  # process to collect them: in a container there may be none that does.
  left=$(ps -U "$test_user" -o pid=,stat=,args= | awk '$2 !~ /^[ZX]/')
  if [[ -n $left ]]; then
    printf 'dev: the tests left these processes of %s running:\n%s\n' "$test_user" "$left" >&2
    return 1
  fi
)

# Removes the user, its processes and its files; only one that this script made.
remove_test_user() {
  local entry uid
  entry=$(getent passwd "$test_user") || return 0
  [[ $entry == *":$test_user_mark:"* ]] || die "there is a user $test_user that is not ours"
  uid=$(cut -d: -f3 <<<"$entry")
  cd /
  pkill -KILL --uid "$uid" || true
  userdel --remove --force "$test_user" 2>/dev/null
  rm -rf -- "/tmp/vmgr-$uid" "$ordinary_files"
}
