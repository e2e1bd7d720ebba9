"""What runs when: the pipeline file, its graph, the backends and the `dpaflow` command."""
