#!/bin/bash -l
#SBATCH --nodes 1
#SBATCH --ntasks-per-node 2
#SBATCH --gres=gpu:a100:4
#SBATCH --partition gpu
#SBATCH --job-name a.RUNHASH
#SBATCH --account=mat-sci
#SBATCH --qos=normal
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=1-00:00:00
#SBATCH --constraint="a100|h100"
#SBATCH --output=job-%j.out
#SBATCH --open-mode=append
#SBATCH --exclusive


REMOTE_ROOT=$(readlink -f /scratch/run/.dflow/pipeline/a/workdir/.)
echo 0 > "$REMOTE_ROOT"/HASH0_flag_if_job_task_fail
test $? -ne 0 && exit 1




export DPDISPATCHER_NUMBER_NODE=1
export DPDISPATCHER_CPU_PER_NODE=2
export DPDISPATCHER_GPU_PER_NODE=4
export DPDISPATCHER_QUEUE_NAME=gpu
export DPDISPATCHER_GROUP_SIZE=1
export DPAFLOW_STEPS=/scratch/run/steps
export DPAFLOW_LABELS=/scratch/run/labels
export DPAFLOW_STEP=a
export DPAFLOW_BATCH=slurm
export DFLOW_MODE=debug
export DFLOW_DEBUG_WORKDIR=/scratch/run/.dflow
export DFLOW_DETECT_EMPTY_DIR=false
export OMP_NUM_THREADS=2
export MKL_NUM_THREADS=2
export OPENBLAS_NUM_THREADS=2
export PYTHONUNBUFFERED=1

module load cuda/12.4
export NOTE='it'"'"'s'

source "$REMOTE_ROOT"/.HASH0.sub.run

cd "$REMOTE_ROOT"
test $? -ne 0 && exit 1

wait
FLAG_IF_JOB_TASK_FAIL=$(cat HASH0_flag_if_job_task_fail)
if test $FLAG_IF_JOB_TASK_FAIL -eq 0; then touch HASH0_job_tag_finished; else exit 1;fi



# --- .sub.run

cd "$REMOTE_ROOT"
cd .
test $? -ne 0 && exit 1
if [ ! -f HASH1_task_tag_finished ] ;then
   ( sed -i "s#\$(pwd)#$(pwd)#g" script && python -P -m workflows.backends.slurm.job script ) 1>>log 2>>log
  if test $? -eq 0; then touch HASH1_task_tag_finished; else echo 1 > "$REMOTE_ROOT"/HASH0_flag_if_job_task_fail;tail -v -c 1000 "$REMOTE_ROOT"/./log > "$REMOTE_ROOT"/HASH0_last_err_file;fi
fi &
wait
