# shellcheck shell=bash
# Words to the person, logs of quiet steps, stamps of finished ones. Sourced by ./dev.

# Administration tools (mke2fs, depmod) are not on every ordinary user's PATH.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PATH
state=.dev

say() { printf '==> %s\n' "$*" >&2; }

die() {
  printf 'dev: %s\n' "$*" >&2
  exit 1
}

# quietly NAME COMMAND...: what it says goes to .dev/log/NAME.log, and is shown only when it fails.
quietly() {
  local log=$state/log/$1.log status=0
  shift
  mkdir -p "$state/log"
  "$@" </dev/null >"$log" 2>&1 || status=$?
  if ((status)); then
    tail -n 40 "$log" >&2
    printf 'dev: %q failed with %d; all of its output is in %s\n' "$1" "$status" "$root/$log" >&2
  fi
  return "$status"
}

# Stamps: .dev/NAME holds the key of the inputs from which a step last succeeded.
is_done() { [[ -f $state/$1 && $(<"$state/$1") == "$2" ]]; }

mark_done() {
  mkdir -p "$state"
  printf '%s\n' "$2" >"$state/$1.new"
  mv -f "$state/$1.new" "$state/$1"
}

# key_of TEXT FILE...: a hash of the text and of the files' contents.
key_of() {
  local text=$1
  shift
  { printf '%s\n' "$text" && cat -- "$@"; } | sha256sum
}

# Set-up is done by one ./dev at a time; the second waits and then finds the work done.
use_lock() {
  [[ -z ${lock_fd-} ]] || return 0
  if ! mkdir -p "$state" 2>/dev/null || [[ ! -w $state ]]; then
    die "$root cannot be written by $(id -un); clone it as this user and work there"
  fi
  command -v flock >/dev/null || return 0 # util-linux is essential on Debian
  exec {lock_fd}>"$state/lock"
  flock "$lock_fd"
}

# What is started from here must not keep the lock.
release_lock() {
  [[ -n ${lock_fd-} ]] || return 0
  exec {lock_fd}>&-
  unset lock_fd
}

# in_callers_directory PROGRAM ARGUMENT...: replaces this process; PROGRAM is within the checkout.
in_callers_directory() {
  local program=$root/$1
  shift
  cd -- "$called_from"
  exec "$program" "$@"
}
