#!/bin/bash
# One corpus step on Slurm: an array of tasks, each with its share of the files, then one job that adds up the counts.
#   TASKS=500 slurm/corpus_step.sh data_prep.filter_medical culturax/ja --language ja --source web --out corpus/ja
#   TASKS=64 AFTER=JOBID slurm/corpus_step.sh data_prep.dedup corpus/ja/kept --out unique/ja
# Prints the id of the last job, which the next step can wait for (AFTER). SBATCH_PARTITION, SBATCH_TIMELIMIT and the like
# choose the rest. The same command again does only what is missing.
set -euo pipefail
TASKS=${TASKS:-8}
PYTHON=${PYTHON:-python}

submit() {  # submit DEPENDENCY OPTIONS -- COMMAND...: prints the job's id
    local after=$1 options=()
    shift
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    sbatch --parsable --requeue ${after:+--dependency=afterok:$after} "${options[@]}" --job-name "${1#data_prep.}" \
        --wrap "$PYTHON -m $(printf '%q ' "${@:1:$#-1}") ${*: -1}"
}

SHARE='--shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT'
ARRAY="--array=0-$((TASKS - 1))"
last=${AFTER:-}
if [ "$1" = data_prep.dedup ]; then
    for stage in sign pair compare decide write; do
        case $stage in
            pair | decide) last=$(submit "$last" -- "$@" --stage $stage "") ;;  # one task
            *) last=$(submit "$last" "$ARRAY" -- "$@" --stage $stage "$SHARE") ;;
        esac
    done
    set -- "$@" --stage write
else
    last=$(submit "$last" "$ARRAY" -- "$@" "$SHARE")
fi
submit "$last" -- "$@" ""
