"""Steps as jobs of Slurm: dflow's debug mode with its DispatcherExecutor, on a shared file system.

    local.run_locked -> leftovers      jobs of an earlier run are found again, or cancelled
      master (dflow) -> executor       DispatcherExecutor makes of every step a script that ...
        a step's process -> follow     ... submits a job with dpdispatcher and waits for its end
          the job -> job               claims the step's folder, runs what dflow made of the OP

The jobs are children of Slurm, not of `dpaflow run`: they go on when it is killed or the login
session ends. What a step's end means is read from its status file, in `ends`, not from the
existence of files.
"""
