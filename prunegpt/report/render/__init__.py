"""Table formats, one file each: `render(tables)` gives the whole text, the same for the same tables."""
