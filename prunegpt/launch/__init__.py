"""Where attempts run: `base` says what a launcher is, `local` is this machine, `worker` the process at the far end."""
