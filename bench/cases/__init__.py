"""One module a subcommand of `ffs-bench`: each has `measure(context) -> Outcome`."""
