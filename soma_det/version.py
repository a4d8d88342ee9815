"""The version, without any import."""

__version__ = "0.2.0"
