"""Searches: Optuna suggests trials and is told what they came to; it runs nothing itself."""
