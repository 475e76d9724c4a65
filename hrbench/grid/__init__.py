"""Grids of jobs: what will run, who does it where, how far it is, and what became of it."""
