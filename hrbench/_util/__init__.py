"""Helpers that know nothing of the field: files, packaged resources, TOML, progress bars."""
