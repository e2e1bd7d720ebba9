"""Where a graph runs: `local` on this machine, through dflow's debug mode."""
