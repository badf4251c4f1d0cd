"""Keeps a company's phone call recordings safe outside the recorder that made them."""

import os

__version__ = "0.1.0"

# The config's models need nobody's plugins, and looking for some takes a part of each start.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
