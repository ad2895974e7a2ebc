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
  tests/{audit,sandbox,share,spawner,userenv}
  tests/artifact/test_{privilege,staging}.py
  tests/doctor
  tests/helper/test_process_rules.py
  'tests/helper/test_machines.py::test_a_whole_life[debian-minimal]'
  tests/helper/test_reconcile.py::test_a_killed_helper_is_replaced_and_its_machines_go_on
  tests/helper/test_templates.py::test_two_machines_of_one_template_share_nothing_that_they_should_not
  tests/image/test_{disk,files}.py
  tests/network/test_fallback.py
  tests/service
  tests/test_dev.py
  tests/vmm/test_{accelerator,isolation}.py
)

# run_suite: everything. run_suite ARGUMENT...: only pytest, with these.
run_suite() {
  local failed=0
  if (($#)); then
    set_up dev test
    exec .venv/bin/python -m pytest "$@"
  fi
  set_up dev rust test
  say 'tests of the agent and the share server'
  cargo_in_all test --locked --quiet </dev/null || failed=1
  suite_files=$(mktemp --directory)
  trap end_suite EXIT
  export VMGR_TEST_FAILURES=$suite_files/failures
  : >"$VMGR_TEST_FAILURES"
  if ((EUID == 0)); then
    make_ordinary_user
    # Beside the first tests of root, which compute, and wait for package mirrors.
    say "tests as an ordinary user ($test_user) run meanwhile; what they say comes at the end"
    run_as_ordinary_user >"$suite_files/ordinary" 2>&1 &
    ordinary=$!
  fi
  say 'tests'
  .venv/bin/python -m pytest --durations=30 --durations-min=5 </dev/null || failed=1
  if [[ -n $ordinary ]]; then
    wait "$ordinary" || failed=1
    ordinary=
    say "tests as an ordinary user ($test_user, made for this and removed after it)"
    cat "$suite_files/ordinary"
  fi
  # What failed is far up by now.
  cat "$VMGR_TEST_FAILURES" >&2
  ((failed == 0)) || die 'there are failed tests'
}

ordinary=   # the tests as an ordinary user, while they run
suite_lock= # held while there is such a user
suite_files=

end_suite() {
  # Also after an interrupt, which what runs in the background has not seen.
  [[ -z $ordinary ]] || kill "$ordinary" 2>/dev/null || true
  [[ -z $suite_lock ]] || remove_test_user
  rm -rf -- "$suite_files"
}

# A user for this run, with a copy of the checkout as it is before root's tests use it.
make_ordinary_user() {
  local home copy lock name
  exec {lock}>/run/lock/vmgr-test.lock
  flock "$lock"
  suite_lock=$lock
  remove_test_user
  useradd --create-home --shell /bin/bash --comment "$test_user_mark" "$test_user"
  home=$(getent passwd "$test_user" | cut -d: -f6)
  copy=$home/vmgr
  mkdir -p "$copy/.dev"
  tar --create --exclude=./.venv --exclude=./.dev --exclude=./.git --exclude='./*/target' \
    --exclude=./agent/fuzz/target --exclude=__pycache__ --exclude='./.*_cache' \
    --directory="$root" . |
    tar --extract --directory="$copy" --no-same-owner
  # What root built: an ordinary user of this machine need not have a Rust toolchain.
  for name in "${crates[@]}"; do
    mkdir -p "$copy/$name/target/release"
    cp "$root/$name/target/release/vmgr-$name" "$copy/$name/target/release/"
    cp "$state/$name" "$copy/.dev/"
  done
  chown -R "$test_user:" "$home"
  chmod 666 "$VMGR_TEST_FAILURES"
  chmod 711 "$suite_files"
}

run_as_ordinary_user() {
  local home name left
  local -a environment=()
  # How to reach the network (proxies, certificates, pip's settings) is all that is passed on.
  for name in $(compgen -e); do
    case $name in
      CI | LANG | LC_ALL | VMGR_TEST_FAILURES | PIP_* | SSL_CERT_* | *_CA_BUNDLE | *_proxy | *_PROXY)
        environment+=("$name=${!name}")
        ;;
    esac
  done
  home=$(getent passwd "$test_user" | cut -d: -f6)
  cd "$home/vmgr"
  setpriv --reuid="$test_user" --regid="$test_user" --init-groups -- \
    env --ignore-environment "${environment[@]}" HOME="$home" USER="$test_user" \
    LOGNAME="$test_user" SHELL=/bin/bash PATH=/usr/local/bin:/usr/bin:/bin \
    VMGR_TEST_IMAGES=debian-minimal ./dev test "${ordinary_part[@]}" </dev/null {suite_lock}>&- || return
  # Nothing that the tests started may outlive them. The dead do not count that wait for an init
  # process to collect them: in a container there may be none that does.
  left=$(ps -U "$test_user" -o pid=,stat=,args= | awk '$2 !~ /^[ZX]/') || true # none: ps fails
  if [[ -n $left ]]; then
    printf 'dev: the tests left these processes of %s running:\n%s\n' "$test_user" "$left" >&2
    return 1
  fi
}

# Removes the user, its processes and its files; only one that this script made. It may be there
# still from a run that was killed.
remove_test_user() {
  local entry uid
  entry=$(getent passwd "$test_user") || return 0
  [[ $entry == *":$test_user_mark:"* ]] || die "there is a user $test_user that is not ours"
  uid=$(cut -d: -f3 <<<"$entry")
  pkill -KILL --uid "$uid" || true
  userdel --remove --force "$test_user" 2>/dev/null
  rm -rf -- "/tmp/vmgr-$uid" "$ordinary_files"
}
