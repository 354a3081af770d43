#!/usr/bin/env bash
# One job on a Cloud TPU slice of any size:
#   launch/tpu_pod.sh [--dry_run] [OPTIONS] COMMAND [-- TRAINER ARGUMENTS]
# COMMAND is
#   create   make the slice                    run      start the trainer on every worker
#   setup    send this clone, install it       status   the slice, and what runs on its workers
#   logs     follow worker 0                   stop     SIGTERM: saves, ends with 75
#   delete   give the slice back               up       create, setup and run, again after a preemption
# OPTIONS (or the variables in brackets):
#   --name=NAME [TPU_NAME]   --type=TYPE [TPU_TYPE], as v5litepod-256    --zone=ZONE [TPU_ZONE]
#   --version=IMAGE [TPU_VERSION], default: what Google names for the type         --spot
#   --retries=N: how often `up` starts the trainer again, default 10
#   --create_retries=N: how often `up` asks again for a slice, a minute apart, default 120
# The project is gcloud's own. --workdir is gs://BUCKET/RUN, or a folder that all workers share.
# `up` goes on with a job that is running, and with a slice that is there, on which it installs the
# clone as it is now; `stop` ends both. The slice is left, and paid, until `delete`.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name=${TPU_NAME:-} type=${TPU_TYPE:-} zone=${TPU_ZONE:-} version=${TPU_VERSION:-}
spot=() retries=10 create_retries=120 command=
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --retries=*) retries=${1#*=} ;;
    --create_retries=*) create_retries=${1#*=} ;;
    --) shift && break ;;
    -*) fail "$1: no such option; see the head of launch/tpu_pod.sh" ;;
    *)
      [[ -z $command ]] || fail "$1: one command at a time; trainer arguments stand behind --"
      command=$1
      ;;
  esac
  shift
done
whole_number --retries "$retries"
whole_number --create_retries "$create_retries"
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

# The type, and the image that Google names for it if none is given.
know_type() {
  [[ -n $type ]] || fail "--type=TYPE is missing, as in --type=v5litepod-256"
  [[ -n $version ]] || case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    *) fail "--version=IMAGE is missing: none is known for --type=$type" ;;
  esac
}

create() {
  tpu create --accelerator-type="$type" --version="$version" ${spot[@]+"${spot[@]}"}
}

# Prints the state of the slice: Google's, as READY or PREEMPTED; ABSENT; UNKNOWN if nobody answers.
state() {
  local errors
  { errors=$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(state)' \
    2>&1 >&3) && return; } 3>&1
  if [[ $errors == *NOT_FOUND* ]]; then echo ABSENT; else echo UNKNOWN; fi
}

# Asks a worker whether the trainer that was started there still runs: by its process id, as its
# name is also in the question.
alive="[ ! -f status ] && [ -f train.pid ] && kill -0 \$(cat train.pid) 2>/dev/null"

# Sends this clone with its history, so that the run records its commit, and what is uncommitted.
# Under `if`, bash would go on after a command that fails.
setup() {
  local bundle=BUNDLE
  ((dry_run)) || bundle=$(mktemp -d) || return 1
  run git -C "$root" bundle create "$bundle/of_jax.bundle" HEAD || return 1
  if ((dry_run)); then
    echo "GIT_INDEX_FILE=$bundle/index git -C $root add --all && git -C $root diff --cached --binary HEAD > $bundle/of_jax.diff"
  else
    cp "$(git -C "$root" rev-parse --absolute-git-dir)/index" "$bundle/index" &&
      GIT_INDEX_FILE=$bundle/index git -C "$root" add --all &&
      GIT_INDEX_FILE=$bundle/index git -C "$root" diff --cached --binary HEAD >"$bundle/of_jax.diff" ||
      return 1
  fi
  run gcloud compute tpus tpu-vm scp "$bundle/of_jax.bundle" "$bundle/of_jax.diff" "$name:" \
    --zone="$zone" --worker=all || return 1
  on_workers "if $alive; then echo 'error: a trainer is running there; stop it first' >&2; exit 1; fi; \
rm -rf of_jax && git clone -q of_jax.bundle of_jax && cd of_jax && \
if [ -s ../of_jax.diff ]; then git apply ../of_jax.diff; fi && \
python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu,gcs]'"
}

# Starts the trainer. One that was killed leaves libtpu's lock, over which the next one would fail.
# The slice itself is asked for its type.
start() {
  local words="" word slice="TYPE IMAGE"
  for word in "$@"; do words+=" $(printf %q "$word")"; done
  if ((dry_run)); then
    echo "# TYPE and IMAGE are what this prints:"
    tpu describe --format='value(acceleratorType.basename(),runtimeVersion)'
  else
    slice=$(tpu describe --format='value(acceleratorType.basename(),runtimeVersion)') || return 1
  fi
  read -r type version <<<"$slice"
  on_workers "if $alive; then echo is running; exit 0; fi; \
sudo rm -f /tmp/libtpu_lockfile status stopped train.pid; \
cd of_jax || exit 1; OF_JAX_LAUNCHER=launch/tpu_pod.sh OF_JAX_TOPOLOGY='$type' OF_JAX_IMAGE='$version' \
nohup sh -c 'echo \$\$ > ../train.pid; .venv/bin/python -m experiments.train \"\$@\"; echo \$? > ../status' \
of_jax --coordinator=auto$words >>../train.log 2>&1 </dev/null & \
for i in \$(seq 50); do [ ! -f ../train.pid ] || break; sleep 0.1; done"
}

status() {
  tpu describe --format='value(state)'
  on_workers "if $alive; then echo running; elif [ -f status ]; then echo ended with \$(cat status); \
elif [ -f train.pid ]; then echo killed; else echo not started; fi"
}

# SIGTERM to the trainer, not to the shell that notes its status; and a note for `up`.
stop() {
  on_workers "touch stopped; $alive && pkill -TERM -P \$(cat train.pid) || true"
}

# What worker 0 says of the trainer: running, stopped by `stop`, or its status.
ask() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=0 --command="if $alive; then \
echo running; elif [ -f stopped ]; then echo stopped; else cat status 2>/dev/null || echo 75; fi" \
    2>/dev/null
}

# Until the trainer of worker 0 has ended, sets `ended` to what it says, or to `lost` with the slice.
# What cannot be asked is asked again: it may be the network here.
wait_for_end() {
  while :; do
    ended=$(ask) || ended=
    [[ $ended =~ ^([0-9]+|stopped)$ ]] && return
    [[ $(state) =~ ^(READY|UNKNOWN)$ ]] || { ended=lost && return; }
    sleep 60
  done
}

# Makes a slice unless there is one, or one is on its way. A preempted one stays, of no use.
make_slice() {
  local try
  if ((dry_run)); then
    echo "# unless the slice is READY, up to $create_retries times again:"
    tpu delete --quiet
    create
    return
  fi
  for ((try = 0; try <= create_retries; try++)); do
    case $(state) in
      READY) return ;;
      ABSENT) create && return ;;
      UNKNOWN | CREATING | STARTING | RESTARTING) ;;
      *) tpu delete --quiet && create && return ;;
    esac
    sleep 60
  done
  fail "no slice after $((create_retries + 1)) requests"
}

# Workers that lost another one notice within a minute.
settle() {
  on_workers "for i in \$(seq 24); do $alive || break; sleep 5; done; \
$alive && pkill -KILL -P \$(cat train.pid) || true"
}

# Whether a trainer is running already.
is_running() {
  local try said
  for ((try = 0; try < 5; try++)); do
    case $(state) in
      READY) said=$(ask) && { [[ $said == running ]] || return 1; } && return ;;
      UNKNOWN) ;;
      *) return 1 ;;
    esac
    sleep 15
  done
  fail "Google or worker 0 does not say what runs there; try again, or \`delete\` the slice"
}

up() {
  local try is_installed=0
  if ! ((dry_run)) && is_running; then
    echo "launch/tpu_pod.sh: is running; what else was typed is not looked at" >&2
    wait_for_end
    try=0
  else
    ended=lost try=-1
  fi
  while :; do
    [[ $ended == lost ]] && is_installed=0
    if is_final "$ended" || [[ $ended == stopped ]]; then break; fi
    if ((try >= retries)); then
      echo "launch/tpu_pod.sh: given up after $((try + 1)) starts" >&2
      break
    fi
    ((++try)) && echo "launch/tpu_pod.sh: $ended; start $((try + 1)) of at most $((retries + 1))" >&2
    make_slice
    ended="not set up"
    settle || { sleep 60 && continue; }
    if ((!is_installed)); then
      setup || { sleep 60 && continue; }
      is_installed=1
    fi
    start "$@" || { sleep 60 && continue; }
    if ((dry_run)); then
      echo "# until worker 0 ends: 0, 1 and \`stop\` are final; else, or with the slice gone, up to" \
        "$retries times again"
      return
    fi
    wait_for_end
  done
  echo "launch/tpu_pod.sh: ended with $ended. The slice is there, and paid, until:" >&2
  echo "  launch/tpu_pod.sh --name=$name --zone=$zone delete" >&2
  [[ $ended =~ ^[0-9]+$ ]] || ended=75
  exit "$ended"
}

# A relative folder would lie in the clone, which `setup` replaces.
check_workdir() {
  local workdir
  workdir=$(workdir_of "$@")
  [[ $workdir =~ ^(/|gs://) ]] ||
    fail "--workdir=$workdir: give gs://BUCKET/RUN, or a folder from / on that all workers share"
}

# All that can be wrong with what was typed is said before anything is ordered or deleted.
case $command in
  create | up) know_type ;;&
  run | up) check_workdir "$@" ;;&
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
