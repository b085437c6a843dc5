"""The chunk cache: chunks as stored, in one SQLite file a region, shared by the runs of a machine."""
