"""Keeps a company's phone call recordings safe outside the recorder that made them."""

__version__ = "0.1.0"
