#!/usr/bin/env bash
# One job on a Cloud TPU slice of any size:
#   launch/tpu_pod.sh [--dry_run] [OPTIONS] COMMAND [-- TRAINER ARGUMENTS]
# COMMAND is
#   create   make the slice                    run      start the trainer on every worker
#   setup    send this clone, install it       status   the slice, and what runs on its workers
#   logs     follow worker 0                   stop     SIGTERM: saves, ends with 75
#   delete   give the slice back               up       all of it, again after a preemption
# OPTIONS (or the variables in brackets):
#   --name=NAME [TPU_NAME]   --type=TYPE [TPU_TYPE], as v5litepod-256    --zone=ZONE [TPU_ZONE]
#   --version=IMAGE [TPU_VERSION], default v2-alpha-tpuv5-lite           --spot
#   --retries=N: how often `up` starts again, default 10
# The project is gcloud's own. --workdir=DIR must be a folder that all workers share, as of Filestore.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name=${TPU_NAME:-} type=${TPU_TYPE:-} zone=${TPU_ZONE:-} version=${TPU_VERSION:-v2-alpha-tpuv5-lite}
spot=() retries=10 command=
while (($#)); do
  case $1 in
    --dry_run) dry_run=1 ;;
    --name=*) name=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --retries=*) retries=${1#*=} ;;
    --) shift && break ;;
    -*) fail "$1: no such option; see the head of launch/tpu_pod.sh" ;;
    *)
      [[ -z $command ]] || fail "$1: one command at a time; trainer arguments stand behind --"
      command=$1
      ;;
  esac
  shift
done
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries=$retries: not a whole number"
[[ -n $name ]] || fail "--name=NAME is missing: which TPU?"
[[ -n $zone ]] || fail "--zone=ZONE is missing, as in --zone=us-west4-a"

tpu() {
  run gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" "${@:2}"
}

# On every worker, or on the one that is named first, as --worker=0.
on_workers() {
  local worker=--worker=all
  [[ $1 == --worker=* ]] && worker=$1 && shift
  tpu ssh "$worker" --command="$1"
}

create() {
  [[ -n $type ]] || fail "--type=TYPE is missing, as in --type=v5litepod-256"
  tpu create --accelerator-type="$type" --version="$version" ${spot[@]+"${spot[@]}"}
}

# This clone with its history, so that the run records its commit, and its uncommitted changes.
setup() {
  local bundle
  if ((dry_run)); then bundle=BUNDLE; else bundle=$(mktemp -d); fi
  run git -C "$root" bundle create "$bundle/of_jax.bundle" HEAD
  if ((dry_run)); then
    echo "GIT_INDEX_FILE=$bundle/index git -C $root add --all && git -C $root diff --cached --binary HEAD > $bundle/of_jax.diff"
  else
    cp "$(git -C "$root" rev-parse --absolute-git-dir)/index" "$bundle/index"
    GIT_INDEX_FILE=$bundle/index git -C "$root" add --all
    GIT_INDEX_FILE=$bundle/index git -C "$root" diff --cached --binary HEAD >"$bundle/of_jax.diff"
  fi
  run gcloud compute tpus tpu-vm scp "$bundle/of_jax.bundle" "$bundle/of_jax.diff" "$name:" \
    --zone="$zone" --worker=all
  on_workers "rm -rf of_jax && git clone -q of_jax.bundle of_jax && cd of_jax && \
if [ -s ../of_jax.diff ]; then git apply ../of_jax.diff; fi && \
python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu,gcs]'"
}

# What a worker is asked: is the trainer that was started there still there? By its process id, as
# its name is also in the question.
alive="[ ! -f status ] && [ -f train.pid ] && kill -0 \$(cat train.pid) 2>/dev/null"

# A trainer that was killed leaves libtpu's lock, over which the next one would fail.
start() {
  workdir_of "$@" >/dev/null
  local words="" word
  for word in "$@"; do words+=" $(printf %q "$word")"; done
  on_workers "if $alive; then echo is running; exit 0; fi; sudo rm -f /tmp/libtpu_lockfile status; \
cd of_jax || exit 1; OF_JAX_LAUNCHER=launch/tpu_pod.sh OF_JAX_TOPOLOGY='$type' OF_JAX_IMAGE='$version' \
nohup sh -c 'echo \$\$ > ../train.pid; .venv/bin/python -m experiments.train \"\$@\"; echo \$? > ../status' \
of_jax --coordinator=auto$words >>../train.log 2>&1 </dev/null &"
}

status() {
  tpu describe --format='value(state)'
  on_workers "if $alive; then echo running; elif [ -f status ]; then echo ended with \$(cat status); \
elif [ -f train.pid ]; then echo killed; else echo not started; fi"
}

# SIGTERM to the trainer, not to the shell that notes its status.
stop() {
  on_workers "$alive && pkill -TERM -P \$(cat train.pid) || true"
}

# Until the trainer of worker 0 has ended, sets `ended` to its status, or to `lost` with the slice.
wait_for_end() {
  while :; do
    ended=$(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=0 \
      --command="if $alive; then echo running; else cat status 2>/dev/null || echo 75; fi" \
      2>/dev/null) || ended=
    [[ $ended =~ ^[0-9]+$ ]] && return
    case $(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(state)' \
      2>/dev/null || echo ABSENT) in
      READY) ;;
      *) ended=lost && return ;;
    esac
    sleep 60
  done
}

# Makes the slice and installs, unless it is there. A preempted slice stays there, of no use.
make_ready() {
  if ((dry_run)); then
    echo "# unless the slice is READY:"
  elif [[ $(tpu describe --format='value(state)' 2>/dev/null) == READY ]]; then
    return 0
  fi
  tpu delete --quiet || true
  create || return 1
  setup || return 1
}

up() {
  local try
  for ((try = 0; try <= retries; try++)); do
    if ! make_ready; then
      sleep 60
      continue
    fi
    # Workers that lost another one notice within a minute.
    on_workers "for i in \$(seq 24); do $alive || break; sleep 5; done; \
$alive && pkill -KILL -P \$(cat train.pid) || true"
    start "$@"
    if ((dry_run)); then
      echo "# until worker 0 ends: 0 and 1 are final; else, or with the slice gone, up to $retries" \
        "times again"
      return
    fi
    wait_for_end
    if is_final "$ended"; then exit "$ended"; fi
    echo "launch/tpu_pod.sh: $ended; start $((try + 2)) of at most $((retries + 1))" >&2
  done
  fail "given up after $((retries + 1)) starts"
}

case $command in
  create) create ;;
  setup) setup ;;
  run) start "$@" ;;
  status) status ;;
  logs) on_workers --worker=0 "tail -n 100 -F train.log" ;;
  stop) stop ;;
  delete) tpu delete --quiet ;;
  up) up "$@" ;;
  "") fail "no command; there are create, setup, run, status, logs, stop, delete and up" ;;
  *) fail "$command: no such command; there are create, setup, run, status, logs, stop, delete and up" ;;
esac
