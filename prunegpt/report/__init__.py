"""Results to tables and figures: what was measured, with its uncertainty, in formats people read. No torch."""
