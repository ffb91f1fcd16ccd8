# shellcheck shell=bash disable=SC2034
# What differs between clusters, and nothing else: edit it, or name a file of your own in EXTRATIME_SITE.

# Options of sbatch: for every job, and for each kind of job.
every=(--partition=gpu --account=me)
train=(--gpus-per-node=8 --cpus-per-task=64 --mem=0)
evaluate=(--gpus-per-node=1 --cpus-per-task=8)
serve=(--gpus-per-node=8 --cpus-per-task=64 --mem=0)
report=(--cpus-per-task=4)

processes=8               # of a training job on each node: one a GPU
ready_within=1800         # seconds that a server may take until it answers
logs=runs/slurm           # one file a job and attempt

# What a command stands behind, such as a container: prefix=(apptainer exec --nv extratime.sif)
prefix=()

# What makes `python` and `extratime` the right ones: modules, then the virtual environment.
activate() {
    # shellcheck source=/dev/null
    source .venv/bin/activate
}
