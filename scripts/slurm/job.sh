# shellcheck shell=bash
# What every job begins with: a log for this attempt, the site's environment, and how a job ends.
set -u
# shellcheck source=scripts/slurm/site.sh
source "$EXTRATIME_SITE"
name=$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
log=$logs/$name.${SLURM_RESTART_COUNT:-0}.log
exec >"$log" 2>&1
activate || { echo "job.sh: activate() in $EXTRATIME_SITE failed" && exit 1; }
# SLURM tells this shell, too, when it takes the nodes away; what runs is to end first.
trap : TERM

# finish STATUS: end the job; begin it again if its run was told to stop by SIGTERM or SIGUSR1. Where SLURM itself took the
# nodes away, or somebody cancelled the job, it is no longer running, and what comes next is decided already.
finish() {
    if [[ $1 == $((128 + 15)) || $1 == $((128 + 10)) ]] &&
        [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
        echo "told to stop: the job begins again and goes on from here"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$1"
}
