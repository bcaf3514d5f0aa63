"""Campaigns that try to break the commands: kills, bad input, and several processes at once.

``python -m tests.campaign kill --minutes 10 --seed 3``; see docs/breaking.md.
"""
