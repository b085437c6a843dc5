"""The chunk cache: stripped chunks in one SQLite file a region, shared by the runs of a machine."""
