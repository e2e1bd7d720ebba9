"""One step each: a plain function `f(inputs, config, outdir)`, wrapped as a dflow OP."""
