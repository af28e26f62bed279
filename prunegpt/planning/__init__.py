"""From a spec to a plan: facts about models and datasets, stage keys, teachers, costs. Imports no torch.

`resolve` is the way in: `opened` reads and expands a spec, `facts` reads models and data, `checks` reports what does
not fit, `filled` completes stages, `teachers` finds who teaches, `stages` makes the keys.
"""
