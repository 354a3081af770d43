# shellcheck shell=bash
# What the launchers share. Sourced, not run.

# shellcheck disable=SC2034  # For the launchers.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=0

fail() {
  echo "error: $*" >&2
  exit 1
}

# The command that was typed below, as one that can be typed again.
quoted() {
  local word line=""
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  echo "${line# }"
}

# Runs a command, or with --dry_run prints it.
run() {
  if ((dry_run)); then
    quoted "$@"
  else
    "$@"
  fi
}

# The value of --workdir among the arguments of the trainer.
workdir_of() {
  local argument
  for argument in "$@"; do
    [[ $argument == --workdir=* ]] && echo "${argument#--workdir=}" && return
  done
  fail "--workdir=DIR is missing"
}

# 0 finished and 1 a mistake in what was typed are final. Anything else is worth another try: 75
# (told to stop, saved), a killed or a crashed process.
is_final() {
  [[ $1 == 0 || $1 == 1 ]]
}
