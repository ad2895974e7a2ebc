# shellcheck shell=bash
# Formatting, lint and types. Sourced by ./dev.

# run_checks: all of them, also after one has failed.
run_checks() {
  local failed=0
  set_up dev rust check
  check 'ruff check' .venv/bin/ruff check .
  check 'ruff format' .venv/bin/ruff format --check .
  check 'mypy, src' .venv/bin/mypy
  check 'cargo fmt' cargo_in_all fmt --check
  check 'cargo clippy' cargo_in_all clippy --locked --quiet --all-targets -- -D warnings
  check 'shellcheck' shellcheck --external-sources --check-sourced dev .ci/run
  ((failed == 0)) || die "$failed of the checks failed"
}

# check NAME COMMAND...: counts a failure.
check() {
  say "$1"
  shift
  "$@" </dev/null || failed=$((failed + 1))
}
