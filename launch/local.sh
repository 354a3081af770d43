#!/usr/bin/env bash
# Runs one job as N processes on this machine:
#   launch/local.sh [--dry_run] [--retries=3] N --config=FILE --workdir=DIR [--config.FIELD=VALUE...]
# Paths are relative to the clone. On CPUs every process has LOCAL_DEVICES devices, by default 1; on
# GPUs set CUDA_VISIBLE_DEVICES in a wrapper of your own. Process 0 talks; the others write to
# DIR.logs, in the clone if DIR is gs://BUCKET/DIR. PYTHON chooses the interpreter. Status: 1 if a
# process ended with it, 75 if all were told to stop, else that of the first that did not finish.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

retries=3
while [[ ${1:-} == -* ]]; do
  case $1 in
    --retries=*) retries=${1#*=} ;;
    *) fail "$1: no such option; the trainer's arguments stand behind the number of processes" ;;
  esac
  shift
done
processes=${1:-}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "'$processes' is not a number of processes, as in launch/local.sh 4"
whole_number --retries "$retries"
shift
logs=$(workdir_of "$@")
[[ $logs != *://* ]] || logs=$(basename "$logs")
logs=${logs%/}.logs
python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
variables=(JAX_NUM_CPU_DEVICES="${LOCAL_DEVICES:-1}" OF_JAX_LAUNCHER="launch/local.sh $processes")
children=()

free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
}

# Each process gets a signal of ours; SIGTERM saves.
stop_all() {
  ((${#children[@]})) && kill -TERM "${children[@]}" 2>/dev/null
  return 0
}
stopped=0
trap 'stopped=1; stop_all' TERM INT

# Sets `status`.
attempt() {
  local port=PORT process child where
  ((dry_run)) || port=$(free_port)
  children=()
  for ((process = 0; process < processes && !stopped; process++)); do
    where=(--coordinator="localhost:$port" --num_processes="$processes" --process_id="$process")
    ((processes > 1)) || where=()
    set -- "${command[@]}" ${where[@]+"${where[@]}"}
    if ((dry_run)); then
      quoted "$@"
      continue
    elif ((process == 0)); then
      "$@" &
    else
      mkdir -p "$logs"
      "$@" >>"$logs/$process.log" 2>&1 &
    fi
    children+=($!)
  done
  status=0
  # Told while they were being started: the last may not have heard, or none has begun.
  if ((stopped)); then
    stop_all
    ((${#children[@]})) || status=75
  fi
  for process in "${!children[@]}"; do
    child=${children[process]}
    wait_for "$child"
    # SIGTERM and SIGINT also end a process that has not yet begun to listen.
    if ((stopped)) && [[ $ended == 143 || $ended == 130 ]]; then ended=75; fi
    if ((ended)) && ((ended == 1 || status == 0)); then status=$ended; fi
    if ((process && ended && ended != 75)); then
      echo "launch/local.sh: process $process ended with status $ended: $logs/$process.log ends in" >&2
      tail -n 3 "$logs/$process.log" >&2
    fi
  done
}

run cd "$root"
((dry_run)) || check_python "$python"
command=(env "${variables[@]}" "$python" -m experiments.train "$@")
for ((try = 0; ; try++)); do
  attempt
  if ((dry_run)); then
    echo "# while the status is neither 0 nor 1, up to $retries times again"
    exit 0
  fi
  if is_final "$status" || ((stopped || try >= retries)); then exit "$status"; fi
  echo "launch/local.sh: ended with status $status; start $((try + 2)) of at most $((retries + 1))" >&2
done
