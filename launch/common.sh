# shellcheck shell=bash
# Functions that the launchers share. Sourced, not run.

# shellcheck disable=SC2034  # For the launchers.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# --dry_run may stand anywhere: it is taken out of the arguments of the file that reads this one.
dry_run=0 arguments=()
for argument in "$@"; do
  if [[ $argument == --dry_run ]]; then dry_run=1; else arguments+=("$argument"); fi
done
set -- "${arguments[@]}"

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
  while (($#)); do
    case $1 in
      --workdir=?* | -workdir=?*) echo "${1#*=}" && return ;;
      --workdir | -workdir) [[ -n ${2:-} ]] && echo "$2" && return ;;
    esac
    shift
  done
  fail "--workdir=DIR is missing"
}

# Fails unless the interpreter has what the README installs.
check_python() {
  "$1" -c 'import absl, of_jax' 2>/dev/null ||
    fail "$1: cannot import of_jax and what it needs; install as the README says, or set PYTHON"
}

# Fails unless the option that is named first has a whole number.
whole_number() {
  [[ $2 =~ ^(0|[1-9][0-9]*)$ ]] || fail "$1=$2: not a whole number"
}

# Waits until a child has ended, however many signals the trap takes meanwhile, each of which ends a
# `wait`. Sets `ended` to its status.
wait_for() {
  local known
  ended=0
  wait "$1" || ended=$?
  while kill -0 "$1" 2>/dev/null; do
    ended=0
    wait "$1" || ended=$?
  done
  # It may have ended between the signal and the question.
  known=0
  wait "$1" 2>/dev/null || known=$?
  ((known == 127)) || ended=$known
}

# 0 finished, 1 a mistake in what was typed and 130 a person's Ctrl-C are final. Anything else is
# worth another try: 75 (told to stop, saved), a killed or a crashed process.
is_final() {
  [[ $1 == 0 || $1 == 1 || $1 == 130 ]]
}
