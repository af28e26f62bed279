"""Searches: Optuna suggests trials and gets their results; it runs nothing itself."""
