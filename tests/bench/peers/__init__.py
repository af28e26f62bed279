"""What people use instead: each peer a process in a virtual environment of its own, on the same model and text."""
