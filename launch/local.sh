#!/usr/bin/env bash
# Runs one job as N processes on this machine:
#   launch/local.sh [--dry_run] [--retries=3] N --config=FILE --workdir=DIR [--config.FIELD=VALUE...]
# On CPUs every process has LOCAL_DEVICES devices, by default 1; on GPUs set CUDA_VISIBLE_DEVICES in
# a wrapper of your own. Process 0 talks; the others write to DIR.logs. PYTHON chooses the
# interpreter. Status: as of experiments.train.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

retries=3
while [[ ${1:-} == --dry_run || ${1:-} == --retries=* ]]; do
  case $1 in
    --dry_run) dry_run=1 ;;
    --retries=*) retries=${1#*=} ;;
  esac
  shift
done
processes=${1:-}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "'$processes' is not a number of processes, as in launch/local.sh 4"
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries=$retries: not a whole number"
shift
workdir=$(workdir_of "$@")
python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
export JAX_NUM_CPU_DEVICES=${LOCAL_DEVICES:-1} OF_JAX_LAUNCHER="launch/local.sh $processes"
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

# Sets `status` to that of the first process that did not finish.
attempt() {
  local port process where
  if ((dry_run)); then port=PORT; else port=$(free_port); fi
  children=()
  for ((process = 0; process < processes; process++)); do
    where=(--coordinator="localhost:$port" --num_processes="$processes" --process_id="$process")
    ((processes > 1)) || where=()
    if ((dry_run)); then
      quoted env JAX_NUM_CPU_DEVICES="$JAX_NUM_CPU_DEVICES" "$python" -m experiments.train "$@" \
        ${where[@]+"${where[@]}"}
    elif ((process == 0)); then
      "$python" -m experiments.train "$@" ${where[@]+"${where[@]}"} &
      children+=($!)
    else
      mkdir -p "$workdir.logs"
      "$python" -m experiments.train "$@" "${where[@]}" >>"$workdir.logs/$process.log" 2>&1 &
      children+=($!)
    fi
  done
  status=0
  for child in ${children[@]+"${children[@]}"}; do
    local one again
    # A signal that the trap takes ends `wait` early.
    while :; do
      one=0
      wait "$child" || one=$?
      kill -0 "$child" 2>/dev/null || break
    done
    again=0
    wait "$child" 2>/dev/null || again=$?
    ((again == 127)) || one=$again
    if ((one && !status)); then status=$one; fi
  done
}

cd "$root"
for ((try = 0; ; try++)); do
  attempt "$@"
  if ((dry_run)); then
    echo "# while the status is neither 0 nor 1, up to $retries times again"
    exit 0
  fi
  if is_final "$status" || ((stopped || try >= retries)); then exit "$status"; fi
  echo "launch/local.sh: ended with status $status; start $((try + 2)) of at most $((retries + 1))" >&2
done
