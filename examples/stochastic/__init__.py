"""The parts of stochastic_teacher.py."""
