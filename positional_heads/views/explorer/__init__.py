"""The explorer: one page on which readers choose heads and see all that a folder of results says of them."""
