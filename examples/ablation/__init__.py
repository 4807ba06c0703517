"""The parts of ablate_solvers.py."""
