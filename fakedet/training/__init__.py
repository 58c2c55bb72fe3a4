"""Training: one run, its stage 1, resuming, callbacks, loggers, and studies of many runs."""
