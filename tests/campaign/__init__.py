"""Trying to break the commands: kills, bad input, and two processes at once.

``python -m tests.campaign kill --minutes 10 --seed 3``; see docs/breaking.md.
"""
