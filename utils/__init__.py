"""Code that all scripts share. A line belongs here if changing it should change every run."""

__version__ = "0.2.0"
