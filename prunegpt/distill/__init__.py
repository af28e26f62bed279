"""Knowledge distillation: divergences, their memory-lean combination with the cross-entropy, teachers, and guards.

`objective.py` is what training calls; below it `chunked.py` does the arithmetic, `teachers.py` and `cache.py` supply
the teacher, `hidden.py` and `attention.py` the intermediate terms, and `guard.py` ends a run whose loss explodes.
"""
