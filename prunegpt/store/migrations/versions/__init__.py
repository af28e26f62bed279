"""One file a schema change. A new one is also named in `schema.REVISIONS`."""
