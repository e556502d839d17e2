"""The lake: the log as Parquet files under a manifest, and what is computed from it."""
