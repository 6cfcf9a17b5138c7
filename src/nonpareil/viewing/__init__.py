"""Pages over stored groups and training runs, for the browser of this machine: read-only, by DuckDB."""
