"""From a spec to a plan: what is known of models and texts, stage keys, teachers, costs. Imports no torch.

`resolve` is the way in: `opened` reads and expands a spec, `facts` looks at models and texts, `checks` says what does
not fit, `recipes` and `curves` fill stages in, `teachers` finds who teaches, `stages` makes the keys.
"""
