"""The sweep spec: read, check, expand, resolve, hash. Imports no torch."""
