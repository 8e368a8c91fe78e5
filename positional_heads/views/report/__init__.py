"""Reports: a result as a folder of files, and a folder of results as one page."""
