"""The commands, a module a group; :mod:`archiver.cli` gathers them. Their imports are late: `--help` is quick."""
