"""A smaller shape: which layers, neurons, heads, channels and experts stay, and the model that is made of them."""
