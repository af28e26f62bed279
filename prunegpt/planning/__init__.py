"""From a spec to a plan: what is known of models and texts, stage keys, teachers, costs. Imports no torch."""
