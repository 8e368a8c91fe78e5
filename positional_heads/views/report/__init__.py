"""A folder of results as one page, or as files."""
