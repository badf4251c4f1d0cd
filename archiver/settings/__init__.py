"""The config file in, typed settings out."""
