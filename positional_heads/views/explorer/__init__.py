"""The explorer: results as one JSON document that programs read, and the page that shows it to people."""
